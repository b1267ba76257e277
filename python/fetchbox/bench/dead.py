"""Hosts that never answer, by the hundred, on this machine alone; and what they cost the good ones."""

from __future__ import annotations

import contextlib
import ipaddress
import operator
import socket
import statistics
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
    """How many good files, and how many tasks of how many hosts that are dead; half of those hosts refuse, half never answer.

    A single one never answers.
    """

    files: Files
    dead: int = 100_000
    hosts: int = 1000
    concurrency: int = 64
    settle_seconds: float = 600.0
    rounds: int = 3
    disk: Path | None = None

    def doomed(self, hole: BlackHole) -> list[str]:
        """The URLs of the dead hosts, the silent ones first."""
        refused = self.hosts // 2
        half = self.dead // 2 if refused else self.dead
        return [*hole.urls(self.hosts - refused, half), *refusing(max(refused, 1), self.dead - half)]


@dataclass(frozen=True, slots=True)
class _Run:
    """What one service did: files a second when the dead hosts had just come, and once more when they were known."""

    first: float
    again: float
    worker_mib: float
    pending: int
    lag: int


def compare(plan: Plan, say: Say) -> dict[str, Any]:
    """The good files alone and among the dead in alternating rounds, each on a fresh service; medians."""
    alone, among = [], []
    with static_origin(plan.files) as origin, BlackHole() as hole:
        good, dead = origin.urls(), plan.doomed(hole)
        for _ in range(plan.rounds):
            alone.append(_run(plan, good, []))
            say(f"alone: {alone[-1].first:,.0f} files/s, then {alone[-1].again:,.0f}")
            among.append(_run(plan, good, dead))
            say(f"among {plan.dead:,} tasks of {plan.hosts:,} dead hosts: {among[-1].first:,.0f}, then {among[-1].again:,.0f}")
    row: dict[str, Any] = {"files": plan.files.label(), "dead tasks": plan.dead, "dead hosts": plan.hosts}
    for name, figure in (("", operator.attrgetter("first")), (" again", operator.attrgetter("again"))):
        row[f"alone files/s{name}"] = statistics.median(map(figure, alone))
        row[f"among files/s{name}"] = statistics.median(map(figure, among))
        row[f"ratio{name}"] = row[f"among files/s{name}"] / row[f"alone files/s{name}"]
    row["alone worker MiB"] = max(run.worker_mib for run in alone)
    row["worker MiB"] = max(run.worker_mib for run in among)
    row["dead pending"] = min(run.pending for run in among)
    row["lag"] = max(run.lag for run in among)
    row["rounds"] = [[run.first for run in alone], [run.first for run in among]]
    return row


def _run(plan: Plan, good: Sequence[str], dead: Sequence[str]) -> _Run:
    fetch = {"per_host_concurrency": plan.concurrency}
    with bench_service(workers=1, disk=plan.disk, worker={"concurrency": plan.concurrency}, fetch=fetch) as service:
        caller = Caller(service.url)
        caller.wait_settled([caller.submit(manifest(good[:100]))], plan.settle_seconds)
        doomed = [caller.submit(manifest(part)) for part in _parts(dead)]
        if doomed:
            # They are met first: nobody may say that the good ones were quicker.
            pause(1.0)
        rates = []
        for _ in range(2):
            started = time.perf_counter()
            jobs = [caller.submit(manifest(part)) for part in _parts(good)]
            caller.wait_settled(jobs, plan.settle_seconds)
            rates.append(len(good) / (time.perf_counter() - started))
        pending = sum(caller.json(f"/jobs/{job}")["resource_pending"] for job in doomed)
        caller.close()
        return _Run(rates[0], rates[1], worker_memory(service) / 2**20, pending, lag(service))


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
