"""Processes that stand still, and a hub that is away."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from tests.process.background import posting, sampling
from tests.process.faults import frozen, no_hub, refused
from tests.process.load import plain
from tests.process.oracle import Oracle, difference
from tests.process.origins import OriginProcess
from tests.process.processes import Process, look
from tests.process.service import Service
from tests.process.waiting import pause, wait_for

STALL_VARIABLE = "FETCHBOX_STALL_SECONDS"
STALL = float(os.environ.get(STALL_VARIABLE, "4"))
"""How long a process stands still or stays away, at least; 60 for the long run."""
MOVED_LIMIT = 45.0 + STALL
"""Seconds in which the partitions of a worker that stands still must have moved and been worked on."""


def the_process(service: Service, role: str) -> Process:
    """The one process of a role."""
    process = look(service.process.pid) if role == "supervisor" else service.a_process(role)
    assert process is not None
    return process


@pytest.mark.timeout(240)
def test_a_stopped_worker_loses_its_partitions_and_its_late_outcomes_change_nothing(tmp_path: Path) -> None:
    overrides = {"worker": {"processes": 2}}
    with OriginProcess(tmp_path, pace=150) as origin, Service(tmp_path / "service", overrides).start() as service:
        oracle = Oracle(service.http, service.assets, origin.journal)
        with posting(oracle, (plain(origin.base_url, job, 50) for job in range(16)), ahead=300) as poster, sampling(oracle):
            wait_for("two workers at work", lambda: len(service.processes("worker")) == 2 and origin.journal.total >= 200, 30)
            with frozen(service.processes("worker")[0]):
                stopped = time.monotonic()
                poster.join(60)
                oracle.await_settled(MOVED_LIMIT)
                before = oracle.snapshots()
                # It stands still for as long as was asked for, even when the others were quicker.
                wait_for("the stall to be long enough", lambda: time.monotonic() - stopped >= STALL, STALL + 1, every=0.05)
            wait_for("the worker to answer again", lambda: service.http.status("/operators/health") == 200, 30, describe=service.dump)
        assert not difference(before, oracle.snapshots()), "late outcomes changed something"
        oracle.check()
        service.end()


@pytest.mark.timeout(240)
@pytest.mark.parametrize("role", ["hub", "api", "worker", "supervisor"])
def test_a_process_that_stands_still_goes_on_where_it_was(tmp_path: Path, role: str) -> None:
    with OriginProcess(tmp_path, pace=150) as origin, Service(tmp_path / "service").start() as service:
        oracle = Oracle(service.http, service.assets, origin.journal)
        with posting(oracle, (plain(origin.base_url, job, 50) for job in range(10)), ahead=200, limit=60 + STALL) as poster:
            wait_for("requests at the origin", lambda: origin.journal.total >= 100, 30, describe=service.dump)
            with frozen(the_process(service, role)):
                pause(STALL)
            poster.join(60 + STALL)
        oracle.await_settled(60)
        oracle.check()
        service.end()


def test_a_hub_that_is_away_means_503_and_afterwards_all_goes_on(tmp_path: Path) -> None:
    with OriginProcess(tmp_path, pace=150) as origin, Service(tmp_path / "service").start() as service:
        oracle = Oracle(service.http, service.assets, origin.journal)
        for job in range(6):
            oracle.post(plain(origin.base_url, job, 50))
        wait_for("requests at the origin", lambda: origin.journal.total >= 50, 30, describe=service.dump)
        worker = service.a_process("worker")
        late = plain(origin.base_url, 100, 50)
        with no_hub(service):
            assert refused(service, late, 10)[:2] == (503, "HUB_UNAVAILABLE")
            away = time.monotonic()
            wait_for("the ingress to say that it is not ready", lambda: service.http.status("/health/ready") == 503, 10)
            assert service.http.status("/health/live") == 200
            assert service.http.status("/operators/health") == 503
            while time.monotonic() - away < STALL:
                status, code, retry_after = refused(service, late, 10)
                assert (status, code) == (503, "HUB_UNAVAILABLE")
                assert int(retry_after) >= 1
                pause(0.2)
        service.wait_ready()
        oracle.post(late)
        oracle.await_settled(60)
        assert worker.alive, "the worker waits for the hub; it does not die with it"
        oracle.check(ratio=1.2)
        service.end()
