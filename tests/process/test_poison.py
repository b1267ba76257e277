"""Tasks that kill their worker: only they are lost, and nobody is suspected for long of what somebody else did."""

from __future__ import annotations

import functools
import re
import signal
from pathlib import Path

import pytest

from tests.process.background import sampling
from tests.process.load import Load, Wanted, of, plain
from tests.process.oracle import Oracle
from tests.process.origins import OriginProcess
from tests.process.processes import await_end, descendants
from tests.process.service import Service
from tests.process.waiting import wait_for

MARKER = "of=poison"
"""URLs with this end whatever process fetches them (rust/engine/src/deadly.rs)."""


def with_poison(origin: str, job: int, count: int, poison: int) -> Load:
    """A job of `count` good resources with `poison` deadly ones among them."""
    good = list(plain(origin, job, count).resources)
    for number in range(poison):
        deadly = Wanted(id=f"poison-{number}", target=f"/bytes/64?seed=1&{MARKER}-{number}", state="failed", code="SYSTEM_POISON")
        good.insert(count // 2 + number * 7, deadly)
    return of(origin, f"poisoned-{job}", good, job=job)


def reached(origin: OriginProcess, requests: int) -> bool:
    """Whether the origin has seen so many."""
    return origin.journal.total >= requests


def restarts(service: Service) -> int:
    """Starts of workers after their first, as the telemetry port tells."""
    text = service.http.http.get(service.metrics_url + "/metrics").text
    found = re.findall(r'^fetchbox_process_restarts_total\{process="worker \d+"\} (\S+)$', text, re.MULTILINE)
    assert found, text
    return int(sum(map(float, found)))


@pytest.mark.parametrize(
    ("how", "poison", "workers", "most"),
    [("FAILPOINT_ABORT_URL", 1, 1, 3), ("FAILPOINT_KILL_URL", 2, 2, 8)],
    ids=["one that aborts", "two that get it killed, two workers"],
)
@pytest.mark.timeout(150)
def test_only_what_kills_its_process_alone_is_poison(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str, poison: int, workers: int, most: int
) -> None:
    monkeypatch.setenv(how, MARKER)
    overrides = {"worker": {"processes": workers}}
    with OriginProcess(tmp_path) as origin, Service(tmp_path / "service", overrides).start() as service:
        oracle = Oracle(service.http, service.assets, origin.journal)
        with sampling(oracle):
            for number in range(2):
                oracle.post(plain(origin.base_url, number, 100))
            poisoned = [oracle.post(with_poison(origin.base_url, 2 + number, 100, 1)) for number in range(poison)]
            for number in range(2 + poison, 5):
                oracle.post(plain(origin.base_url, number, 100))
            oracle.await_settled(90)
        # Each death repeats at most what its worker held: everything, or half of it where there are two.
        oracle.check(ratio=1 + most / workers)
        assert poison <= restarts(service) <= most
        for job_id in poisoned:
            job = service.http.job(job_id)
            assert (job["status"], job["resource_completed"], job["resource_failed"]) == ("partial", 100, 1)
            (outcome,) = [r for r in service.http.resources(job_id) if r["state"] == "failed"]
            assert "alone" in outcome["message"]
        # No crash loop, nobody left in quarantine, and work goes on as before.
        before = restarts(service)
        oracle.post(plain(origin.base_url, 9, 100))
        oracle.await_settled(30)
        assert restarts(service) == before
        assert service.http.status("/operators/health") == 200
        wait_for(
            "the quarantine to be empty",
            lambda: not [p for p in descendants(service.process.pid) if p.role == "quarantine"],
            15,
            describe=service.dump,
        )
        service.end()


@pytest.mark.timeout(120)
def test_who_was_there_when_a_worker_was_killed_twice_is_innocent(tmp_path: Path) -> None:
    with OriginProcess(tmp_path, pace=40) as origin, Service(tmp_path / "service").start() as service:
        oracle = Oracle(service.http, service.assets, origin.journal)
        oracle.post(plain(origin.base_url, 0, 200))
        for _ in range(2):
            # At this pace what was under way is under way again, and the first few may have ended meanwhile.
            until = origin.journal.total + 20
            wait_for("a worker with tasks under way", functools.partial(reached, origin, until), 30, describe=service.dump)
            service.kill_one("worker")
        quarantine = wait_for(
            "suspects to run apart",
            lambda: [p for p in descendants(service.process.pid) if p.role == "quarantine"],
            30,
            describe=service.dump,
        )
        # Whoever watches over suspects may be killed as well.
        assert quarantine[0].send(signal.SIGKILL)
        await_end(quarantine, 10)
        oracle.await_settled(60)
        oracle.check(ratio=2.0)
        service.end()
