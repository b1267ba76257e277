"""What the way through api, hub and worker costs a task, and what very long queues cost."""

from __future__ import annotations

import contextlib
import random
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fetchbox.bench.fill import fill
from fetchbox.bench.idle_worker import idle_worker
from fetchbox.bench.iggy import iggy_server
from fetchbox.bench.load import Spec, run_load
from fetchbox.bench.nginx import Files, static_origin
from fetchbox.bench.peers import Stored, engine_peer, run_peer
from fetchbox.bench.processes import read_tree
from fetchbox.bench.service import DISK, Caller, ServiceMeter, bench_service, disk_bytes, manifest, pause
from fetchbox.testing import Service

PER_JOB = 1000
DISTINCT = 1000
"""Files of the origin; tasks take them in turn."""
READY_SECONDS = 120.0
PARTITIONS = 64
"""Of jobs.tasks, as the configuration's default."""
Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Spine:
    """How many tasks, in how large jobs, and whether they are downloaded ("stored"), refused by the address policy before any connection
    ("blocked"), or said to be stored by a worker that downloads nothing ("idle")."""

    tasks: int = 100_000
    bodies: str = "stored"
    per_job: int = PER_JOB
    concurrency: int = 64
    disk: Path | None = None
    size: int = 1
    """Bytes of a body."""
    iggy: bool = False
    """Whether tasks and outcomes travel over an Iggy server, started for it, instead of the hub's own streams."""


def spine(plan: Spine, say: Say) -> dict[str, Any]:
    """CPU per task of each role from the first post to the last job settled, with bodies of one byte.

    `engine` is the CPU per task of the engine alone over the same URLs, less its start; what the service uses above that is the spine.
    """
    jobs = max(plan.tasks // plan.per_job, 1)
    idle = plan.bodies == "idle"
    fetch = {"per_host_concurrency": plan.concurrency, "allow_networks": [] if plan.bodies == "blocked" else ["127.0.0.0/8"]}
    with contextlib.ExitStack() as stack:
        urls = _urls() if idle else stack.enter_context(static_origin(Files(DISTINCT, plan.size))).urls()
        body = manifest(urls[: plan.per_job])
        more: dict[str, Any] = {}
        roots: list[int] = []
        if plan.iggy:
            directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="fetchbox-bench-iggy-", dir=plan.disk or DISK)))
            server = stack.enter_context(iggy_server(directory, partitions=PARTITIONS))
            more["broker"] = {"url": server.url}
            roots.append(server.pid)
        with (
            bench_service(
                workers=0 if idle else 1, disk=plan.disk, worker={"concurrency": plan.concurrency}, fetch=fetch, **more
            ) as service,
            idle_worker(service.config_path) if idle else contextlib.nullcontext(service.process.pid) as worker,
        ):
            caller = Caller(service.url)
            caller.wait_settled([caller.submit(body)], 120)
            meter = ServiceMeter(service.process.pid, worker, *roots)
            meter.start()
            posted = run_load(_posts(service.url, body, jobs, collect=True))
            answers = caller.wait_settled(posted.job_ids, 60 + plan.tasks / 500)
            usage = meter.stop()
            caller.close()
        tasks = sum(answer["resource_total"] for answer in answers)
        row: dict[str, Any] = {
            "tasks": tasks,
            "resources/job": plan.per_job,
            "bodies": plan.bodies,
            "broker": "iggy" if plan.iggy else "embedded",
            "wall s": meter.wall,
            "tasks/s": tasks / meter.wall,
        }
        for role, seconds in sorted(usage.per_process.items()):
            row[f"{role} us/task"] = seconds / tasks * 1e6
        row["all us/task"] = usage.cpu / tasks * 1e6
        say(f"{tasks:,} tasks in {meter.wall:.1f} s: {row['all us/task']:.1f} us CPU a task in all")
        if idle:
            row["spine us/task"] = row["all us/task"]
        elif plan.bodies == "stored" and plan.size == 1:
            engine = _engine_cost(urls, jobs * plan.per_job, plan.concurrency)
            row["engine us/task"] = engine
            row["spine us/task"] = row["all us/task"] - engine
            say(f"the same URLs by the engine alone: {engine:.1f} us a task; the spine is the rest: {row['spine us/task']:.1f} us")
        row["peak MiB"] = sum(usage.peak_rss.values()) / 2**20
        expected = "failed" if plan.bodies == "blocked" else "completed"
        wrong = sum(answer["status"] != expected for answer in answers)
        if wrong:
            raise RuntimeError(f"{wrong} of {len(answers)} jobs are not {expected}")
        return row


def _urls() -> list[str]:
    """URLs of ordinary length that nobody asks for; a random part in each, so that they compress no better than those of the world."""
    return [f"https://images.example.com/gallery/{random.getrandbits(64):016x}/{random.getrandbits(64):016x}.jpeg" for _ in range(DISTINCT)]


def _engine_cost(urls: list[str], tasks: int, concurrency: int) -> float:
    """Microseconds of CPU a task of the engine with nothing around it, its start taken off."""
    peer = engine_peer()
    start = run_peer(peer, urls[:1], concurrency, Stored(1, 1)).cpu
    # Files are named by their URLs: the same one again would be the same file. The origin looks at no query.
    many = [f"{urls[number % len(urls)]}?{number}" for number in range(tasks)]
    return (run_peer(peer, many, concurrency, Stored(tasks, tasks)).cpu - start) / tasks * 1e6


def _posts(url: str, body: bytes, count: int, *, collect: bool = False) -> Spec:
    headers = {"Content-Type": "application/json"}
    return Spec(url, body=body.decode(), headers=headers, connections=4, seconds=24 * 3600.0, count=count, collect=collect)


@dataclass(frozen=True, slots=True)
class Depth:
    """How deep the queue gets before a worker starts, in how large jobs, and for how many seconds it is drained."""

    tasks: int = 1_000_000
    per_job: int = PER_JOB
    drain_seconds: float = 30.0
    lookups: int = 2000
    concurrency: int = 64
    disk: Path | None = None


def depth(plan: Depth, say: Say) -> dict[str, Any]:
    """Queues so many tasks with no worker; then memory, disk, lookups, a restart, and how fast a worker drains them."""
    jobs = max(plan.tasks // plan.per_job, 1)
    with static_origin(Files(DISTINCT, 1)) as origin:
        # A random part in each URL: they compress no better than those of the world.
        body = manifest([f"{url}?v={random.getrandbits(64):016x}" for url in origin.urls()[: plan.per_job]])
        with bench_service(workers=0, disk=plan.disk, worker={"concurrency": plan.concurrency}) as service:
            empty = disk_bytes(service.data_dir)
            posted = run_load(_posts(service.url, body, jobs, collect=True))
            if posted.refused or posted.answered != jobs:
                raise RuntimeError(f"{posted.answered} of {jobs} jobs were accepted: {posted.statuses}")
            tasks = jobs * plan.per_job
            row: dict[str, Any] = {"tasks": tasks, "resources/job": plan.per_job, "accepted tasks/s": tasks / posted.wall}
            row |= memory_row(service)
            row["disk B/task"] = (disk_bytes(service.data_dir) - empty) / tasks
            say(f"{tasks:,} queued in {posted.wall:.1f} s; {row['disk B/task']:.0f} B on disk a task, {row['memory MiB']:.0f} MiB in all")
            row |= lookups(service, posted.job_ids, plan.lookups, say)
            service.stop()
            row["disk B/task stopped"] = (disk_bytes(service.data_dir) - empty) / tasks
            started = time.perf_counter()
            service.restart()
            row["restart s"] = time.perf_counter() - started
            row["memory MiB restarted"] = memory_row(service)["memory MiB"]
            say(f"ready {row['restart s']:.2f} s after a restart")
            service.stop()
            row["drain tasks/s"] = drain(service, plan.drain_seconds, tasks)
            row["memory MiB draining"] = memory_row(service)["peak MiB"]
            say(f"one worker drains {row['drain tasks/s']:,.0f} tasks/s")
        return row


@dataclass(frozen=True, slots=True)
class Settled:
    """How many jobs of one resource are settled before anything is looked up, at most how many a second (0: no limit), and whether a
    worker reads the events of that."""

    jobs: int = 1_000_000
    rate: float = 0.0
    events: bool = False
    lookups: int = 5000
    disk: Path | None = None


def settled_jobs(plan: Settled, say: Say) -> dict[str, Any]:
    """A ledger full of small settled jobs: disk and memory, look-ups in it, and a restart on top of it."""
    limit = 120 + plan.jobs / 1000 + (plan.jobs / plan.rate if plan.rate else 0)
    with bench_service(workers=0, disk=plan.disk, retention={"ledger_max_bytes": "100GB"}) as service:
        empty = disk_bytes(service.data_dir)
        with idle_worker(service.config_path, finish=plan.events) as worker:
            meter = ServiceMeter(service.process.pid, worker)
            meter.start()
            job_ids = fill(service.config_path, plan.jobs, limit, plan.rate)
            deadline = time.monotonic() + limit
            while _stored(service) < plan.jobs:
                if time.monotonic() > deadline:
                    raise RuntimeError(f"only {_stored(service):,} of {plan.jobs:,} jobs were settled")
                pause(0.1)
            usage = meter.stop()
        row: dict[str, Any] = {"jobs": plan.jobs, "wall s": meter.wall, "jobs/s": plan.jobs / meter.wall}
        row |= {f"{role} us/job": seconds / plan.jobs * 1e6 for role, seconds in sorted(usage.per_process.items())}
        row["hub % of a core"] = usage.per_process["hub"] / meter.wall * 100
        row |= {f"{role} MiB": size / 2**20 for role, size in sorted(usage.peak_rss.items())}
        row |= memory_row(service)
        row["disk B/job"] = (disk_bytes(service.data_dir) - empty) / plan.jobs
        say(f"{plan.jobs:,} jobs settled at {row['jobs/s']:,.0f}/s; hub {row['hub us/job']:.1f} us, {row['disk B/job']:.0f} B on disk each")
        row |= lookups(service, job_ids, plan.lookups, say, status="completed")
        service.stop()
        row["disk B/job stopped"] = (disk_bytes(service.data_dir) - empty) / plan.jobs
        started = time.perf_counter()
        service.restart()
        row["restart s"] = time.perf_counter() - started
        row["memory MiB restarted"] = memory_row(service)["memory MiB"]
        row |= {f"{name} restarted": value for name, value in lookups(service, job_ids, plan.lookups, say, status="completed").items()}
        say(f"ready {row['restart s']:.2f} s after a restart")
        return row


def memory_row(service: Service) -> dict[str, float]:
    """Resident memory of all processes now, and the sum of their peaks."""
    states = read_tree(service.process.pid).values()
    return {"memory MiB": sum(state.rss for state in states) / 2**20, "peak MiB": sum(state.peak_rss for state in states) / 2**20}


def lookups(service: Service, job_ids: list[str], count: int, say: Say, status: str = "queued") -> dict[str, float]:
    """p99 in milliseconds of reading one random job, and of listing the newest 50, over one connection."""
    chosen = random.sample(job_ids, min(count, len(job_ids)))
    figures = {}
    for name, targets in (
        ("job p99 ms", [f"/operators/jobs/{job_id}" for job_id in chosen]),
        ("list p99 ms", ["/operators/jobs?limit=50"]),
        ("list by status p99 ms", [f"/operators/jobs?status={status}&limit=50"]),
    ):
        report = run_load(Spec(service.url, targets=targets, method="GET", connections=1, seconds=60.0, count=count))
        if report.refused or not report.answered:
            raise RuntimeError(f"{name}: {report.statuses}")
        figures[name] = report.latency(0.99) * 1e3
    say(", ".join(f"{name} {value:.2f}" for name, value in figures.items()))
    return figures


def drain(service: Service, seconds: float, most: int) -> float:
    """Starts the stopped service with one worker; returns tasks settled a second from the first outcome on, at most for `seconds`."""
    at = service.command.index("--workers") + 1
    service.command[at] = "1"
    service.restart()
    first = _stored(service)
    limit = time.monotonic() + READY_SECONDS
    while (begun := _stored(service)) == first and time.monotonic() < limit:
        pause(0.01)
    started = time.perf_counter()
    settled = begun
    while time.perf_counter() - started < seconds and settled < most:
        pause(0.1)
        settled = _stored(service)
    return (settled - begun) / (time.perf_counter() - started)


def _stored(service: Service) -> int:
    """Resources settled since the service started, from its metrics."""
    caller = Caller(service.metrics_url)
    try:
        _, body = caller.call("GET", "/metrics")
    finally:
        caller.close()
    lines = [line for line in body.decode().splitlines() if line.startswith("fetchbox_resources_settled_total")]
    return int(sum(float(line.rpartition(" ")[2]) for line in lines))
