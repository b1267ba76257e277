"""A steady rate of tasks through the whole service with a worker that downloads nothing, and the hub killed in the middle of it."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import statistics
import tempfile
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fetchbox.bench.idle_worker import idle_worker
from fetchbox.bench.iggy import iggy_server
from fetchbox.bench.pipeline import PARTITIONS, Say
from fetchbox.bench.processes import read_tree
from fetchbox.bench.service import DISK, Caller, bench_service, manifest, pause
from fetchbox.testing import Service

LOOK_SECONDS = 0.2
WARM_SECONDS = 2.0


@dataclass(frozen=True, slots=True)
class Steady:
    """So many tasks a second for so many seconds, in jobs of `per_job`; after `kill_at` seconds kill -9 for the hub."""

    rate: int = 5000
    seconds: float = 20.0
    kill_at: float = 12.0
    per_job: int = 100
    iggy: bool = False
    disk: Path | None = None


@dataclass(frozen=True, slots=True)
class Look:
    """What the hub says at a moment."""

    at: float
    pending: float
    commits: float


def steady(plan: Steady, say: Say) -> dict[str, Any]:
    """Lag and commits before the kill, how long no job is taken after it, and how long until the lag is as before."""
    body = manifest([f"https://images.example.com/gallery/{number:08x}/photo.jpeg" for number in range(plan.per_job)])
    with contextlib.ExitStack() as stack:
        more: dict[str, Any] = {}
        if plan.iggy:
            directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="fetchbox-bench-iggy-", dir=plan.disk or DISK)))
            more["broker"] = {"url": stack.enter_context(iggy_server(directory, partitions=PARTITIONS)).url}
        service = stack.enter_context(bench_service(workers=0, disk=plan.disk, **more))
        stack.enter_context(idle_worker(service.config_path))
        caller = Caller(service.url)
        caller.wait_settled([caller.submit(body)], 60)
        looks: list[Look] = []
        stopped = threading.Event()
        looking = threading.Thread(target=_look, args=(service, looks, stopped), daemon=True)
        looking.start()
        begun = time.monotonic()
        job_ids, killed, back = _post(plan, service, body, begun)
        caller.wait_settled(job_ids, 120)
        ended = time.monotonic()
        pause(2 * LOOK_SECONDS)
        stopped.set()
        looking.join(10)
        caller.close()
    before = [look for look in looks if begun + WARM_SECONDS < look.at < killed]
    lags = sorted(look.pending for look in before)
    usual = lags[int(len(lags) * 0.95)]
    recovered = next((look.at for look in looks if look.at > back and look.pending <= usual), ended)
    row = {
        "broker": "iggy" if plan.iggy else "embedded",
        "tasks/s asked": float(plan.rate),
        "tasks/s": len(job_ids) * plan.per_job / (ended - begun),
        "commits/s": (before[-1].commits - before[0].commits) / (before[-1].at - before[0].at),
        "lag median": statistics.median(lags),
        "lag p95": usual,
        "lag p95 s": usual / plan.rate,
        "no job taken s": back - killed,
        "lag as before s": recovered - killed,
    }
    say(f"{row['broker']}: lag {usual:.0f} tasks at {plan.rate}/s; a job is taken {back - killed:.2f} s after kill -9 of the hub")
    return row


def _post(plan: Steady, service: Service, body: bytes, begun: float) -> tuple[list[str], float, float]:
    """Posts at the rate; the ids, when the hub was killed, and when a job was taken again."""
    caller, job_ids = Caller(service.url), []
    killed = back = 0.0
    for number in range(int(plan.rate * plan.seconds / plan.per_job)):
        due = begun + number * plan.per_job / plan.rate
        if (early := due - time.monotonic()) > 0:
            pause(early)
        if not killed and time.monotonic() - begun >= plan.kill_at:
            (hub,) = (pid for pid, state in read_tree(service.process.pid).items() if state.title.startswith("fetchbox: hub"))
            os.kill(hub, signal.SIGKILL)
            killed = time.monotonic()
        while True:
            try:
                job_ids.append(caller.submit(body))
                break
            except (RuntimeError, OSError):
                if not killed:
                    raise
                pause(0.01)
        if killed and not back:
            back = time.monotonic()
    caller.close()
    return job_ids, killed, back


def _look(service: Service, looks: list[Look], stopped: threading.Event) -> None:
    caller = Caller(service.metrics_url)
    while not stopped.wait(LOOK_SECONDS):
        with contextlib.suppress(OSError, AttributeError):
            text = caller.call("GET", "/metrics")[1].decode()
            looks.append(Look(time.monotonic(), _number(text, "fetchbox_resources_pending"), _number(text, COMMITS)))
    caller.close()


COMMITS = "fetchbox_ledger_commit_duration_seconds_count"


def _number(text: str, name: str) -> float:
    """The value of a metric; AttributeError while nobody tells it."""
    return float(re.search(rf"^{name}(?:{{[^}}]*}})? (\S+)$", text, re.MULTILINE).group(1))  # type: ignore[union-attr]
