"""Workers that come back after the hub was away: nobody is given what another one is still at work on."""

from __future__ import annotations

import signal
import time
from pathlib import Path

from tests.process.load import plain
from tests.process.oracle import Oracle
from tests.process.origins import OriginProcess
from tests.process.service import START_LIMIT, Service
from tests.process.waiting import pause, wait_for

JOBS = 40
PER_JOB = 50
PACE = 300.0
CONCURRENCY = 16
WORKERS = 2
HEAD_START = 2.0
"""Seconds."""
AGAIN = 4 * WORKERS * CONCURRENCY
"""Requests that two deaths may cost beyond one a task: what was under way, and what had come and was not reported, twice over."""


def successor(service: Service, role: str, old: set[int]) -> bool:
    """Whether a process of the role came after those."""
    return any(process.pid not in old for process in service.processes(role))


def meet_first(service: Service, old: set[int]) -> None:
    """Gives a new worker time to enter the group, but never as long as the hub waits for those who were in it."""
    until = time.monotonic() + HEAD_START
    while time.monotonic() < until and not successor(service, "worker", old):
        pause(0.02)
    while time.monotonic() < until and not service.all_ready():
        pause(0.02)


def test_a_worker_that_died_with_the_hub_gets_nothing_that_another_one_holds(tmp_path: Path) -> None:
    overrides = {
        "worker": {"processes": WORKERS, "concurrency": CONCURRENCY},
        "fetch": {"per_host_concurrency": CONCURRENCY},
    }
    with OriginProcess(tmp_path, pace=PACE) as origin, Service(tmp_path / "service", overrides).start() as service:
        oracle = Oracle(service.http, service.assets, origin.journal)
        wait_for("both workers", lambda: len(service.processes("worker")) == WORKERS, START_LIMIT, describe=service.dump)
        for job in range(JOBS):
            oracle.post(plain(origin.base_url, job, PER_JOB))
        for part in (1, 2):
            wait_for(
                f"{part} fifths of the requests",
                lambda part=part: origin.journal.asked >= part * JOBS * PER_JOB // 5,  # type: ignore[misc]
                60,
                describe=service.dump,
            )
            # All tasks are in the hands of the two workers by now. One of them dies together with the hub, and comes back first.
            dead, alive = service.processes("worker")
            (hub,) = service.processes("hub")
            alive.send(signal.SIGSTOP)
            try:
                hub.send(signal.SIGKILL)
                dead.send(signal.SIGKILL)
                wait_for("a new hub", lambda old=hub.pid: successor(service, "hub", {old}), START_LIMIT, every=0.02, describe=service.dump)  # type: ignore[misc]
                service.wait_ready()
                meet_first(service, {dead.pid, alive.pid})
            finally:
                alive.send(signal.SIGCONT)
        oracle.await_settled(60)
        report = oracle.check(ratio=1 + AGAIN / (JOBS * PER_JOB))
        print(report)
        service.end()
