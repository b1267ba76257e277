"""Hosts that never answer, by the hundred, on this machine alone; and what they cost the good ones."""

from __future__ import annotations

import contextlib
import ipaddress
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fetchbox.bench.nginx import Files, static_origin
from fetchbox.bench.processes import read_tree
from fetchbox.bench.service import Caller, bench_service, manifest, pause
from fetchbox.origin import free_port
from fetchbox.testing import Service

PER_JOB = 1000
FILL_SECONDS = 0.2
"""A connection that is not up by then found the queue full."""
MOST_FILL = 64
Say = Callable[[str], None]


class BlackHole:
    """A port of every address in 127.0.0.0/8 on which a SYN is never answered: its queue of connections is full and nobody takes any."""

    def __init__(self) -> None:
        self._listener = socket.socket()
        self._listener.bind(("0.0.0.0", 0))  # noqa: S104 - all of 127.0.0.0/8 leads to one listener this way
        self._listener.listen(0)
        self.port: int = self._listener.getsockname()[1]
        self._inside: list[socket.socket] = []
        for _ in range(MOST_FILL):
            if not self._connects():
                return
        self.close()
        raise RuntimeError("the kernel does not let a listener's queue fill up here")

    def _connects(self) -> bool:
        one = socket.socket()
        one.settimeout(FILL_SECONDS)
        self._inside.append(one)
        try:
            one.connect(("127.0.0.1", self.port))
        except TimeoutError:
            return False
        return True

    def host(self, number: int) -> str:
        """Host and port number `number`, each another address."""
        return f"{ipaddress.IPv4Address('127.1.0.1') + number}:{self.port}"

    def urls(self, hosts: int, count: int) -> list[str]:
        """`count` URLs of `hosts` hosts in turn."""
        return [f"http://{self.host(number % hosts)}/{number}" for number in range(count)]

    def close(self) -> None:
        """Ends it; whoever waits is reset."""
        for one in (*self._inside, self._listener):
            one.close()

    def __enter__(self) -> BlackHole:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def refusing(hosts: int, count: int) -> list[str]:
    """`count` URLs of `hosts` hosts that refuse every connection."""
    port = free_port()
    return [f"http://{ipaddress.IPv4Address('127.2.0.1') + number % hosts}:{port}/{number}" for number in range(count)]


@dataclass(frozen=True, slots=True)
class Plan:
    """How many good files, and how many tasks of how many hosts that are dead; half of those hosts refuse, half never answer."""

    files: Files
    dead: int = 100_000
    hosts: int = 1000
    concurrency: int = 64
    settle_seconds: float = 600.0
    disk: Path | None = None


def compare(plan: Plan, say: Say) -> dict[str, Any]:
    """The good files alone and among the dead in one run, each on a fresh service."""
    with static_origin(plan.files) as origin, BlackHole() as hole:
        good = origin.urls()
        alone = _run(plan, good, [])
        say(f"alone: {alone['files/s']:,.0f} files/s")
        half = plan.dead // 2
        dead = [*hole.urls(plan.hosts // 2, half), *refusing(plan.hosts - plan.hosts // 2, plan.dead - half)]
        among = _run(plan, good, dead)
        say(f"among {plan.dead:,} tasks of {plan.hosts:,} dead hosts: {among['files/s']:,.0f} files/s; {among['dead pending']:,} pending")
    row = {"files": plan.files.label(), "dead tasks": plan.dead, "dead hosts": plan.hosts, "alone files/s": alone["files/s"]}
    row |= {"among files/s": among["files/s"], "ratio": among["files/s"] / alone["files/s"], "alone worker MiB": alone["worker MiB"]}
    return row | {key: among[key] for key in ("worker MiB", "dead pending", "lag")}


def _run(plan: Plan, good: Sequence[str], dead: Sequence[str]) -> dict[str, Any]:
    fetch = {"per_host_concurrency": plan.concurrency}
    with bench_service(workers=1, disk=plan.disk, worker={"concurrency": plan.concurrency}, fetch=fetch) as service:
        caller = Caller(service.url)
        caller.wait_settled([caller.submit(manifest(good[:100]))], plan.settle_seconds)
        doomed = [caller.submit(manifest(part)) for part in _parts(dead)]
        if doomed:
            # They are met first: nobody may say that the good ones were quicker.
            pause(1.0)
        started = time.perf_counter()
        jobs = [caller.submit(manifest(part)) for part in _parts(good)]
        caller.wait_settled(jobs, plan.settle_seconds)
        wall = time.perf_counter() - started
        pending = sum(caller.json(f"/jobs/{job}")["resource_pending"] for job in doomed)
        caller.close()
        return {"files/s": len(good) / wall, "worker MiB": worker_memory(service) / 2**20, "dead pending": pending, "lag": lag(service)}


def _parts(urls: Sequence[str]) -> Iterator[Sequence[str]]:
    return (urls[at : at + PER_JOB] for at in range(0, len(urls), PER_JOB))


def worker_memory(service: Service) -> int:
    """Most memory that the workers have had resident, in bytes."""
    return sum(state.peak_rss for state in read_tree(service.process.pid).values() if "worker" in state.title)


def lag(service: Service, topic: str = "jobs.tasks") -> int:
    """Tasks behind the committed offsets of a topic."""
    with contextlib.closing(Caller(service.metrics_url)) as caller:
        _, body = caller.call("GET", "/metrics")
    lines = [line for line in body.decode().splitlines() if line.startswith("fetchbox_queue_lag{") and f'"{topic}"' in line]
    return int(sum(float(line.rpartition(" ")[2]) for line in lines))
