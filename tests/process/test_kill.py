"""kill -9 of each role once under load, and of everything once: all settles, exactly."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from tests.process.background import posting, sampling
from tests.process.kills import TREE, strike
from tests.process.load import plain
from tests.process.oracle import Oracle, difference
from tests.process.origins import OriginProcess
from tests.process.processes import await_end, descendants
from tests.process.service import DRAIN_TIMEOUT, START_LIMIT, Service
from tests.process.waiting import wait_for

JOBS = 12
PER_JOB = 50
PACE = 200.0


@pytest.mark.parametrize("whom", ["api", "hub", "worker", TREE])
def test_one_kill_under_load(tmp_path: Path, whom: str) -> None:
    with OriginProcess(tmp_path, pace=PACE) as origin, Service(tmp_path / "service").start() as service:
        oracle = Oracle(service.http, service.assets, origin.journal)
        loads = (plain(origin.base_url, job, PER_JOB) for job in range(JOBS))
        with posting(oracle, loads, ahead=4 * PER_JOB) as poster, sampling(oracle) as sampler:
            wait_for("a third of the requests", lambda: origin.journal.total >= JOBS * PER_JOB // 3, 30, describe=service.dump)
            old = {process.pid for process in descendants(service.process.pid)}
            strike(service, whom)
            poster.join(60)
            sampler.raise_failure()
        if whom != TREE:
            young = service.a_process(whom)
            assert young.pid not in old, "the supervisor started no new one"
            assert service.running, "the supervisor must survive the death of any child"
        service.wait_ready()
        oracle.await_settled(60)
        before = oracle.snapshots()
        print(oracle.check())
        service.end()
        service.start()
        assert not difference(before, oracle.snapshots())
        service.end()


def test_children_leave_when_their_supervisor_is_killed(tmp_path: Path) -> None:
    """Nobody is left to drain them, so they drain themselves; the next start finds everything free and goes on."""
    with OriginProcess(tmp_path, pace=PACE) as origin, Service(tmp_path / "service").start() as service:
        oracle = Oracle(service.http, service.assets, origin.journal)
        for job in range(6):
            oracle.post(plain(origin.base_url, job, PER_JOB))
        wait_for("some requests", lambda: origin.journal.total >= PER_JOB, 30, describe=service.dump)
        orphans = descendants(service.process.pid)
        assert {process.role for process in orphans} >= {"api", "hub", "worker"}
        service.process.send_signal(signal.SIGKILL)
        service.process.wait(5)
        await_end(orphans, DRAIN_TIMEOUT + 5)
        service.start()
        oracle.await_settled(60)
        oracle.check()
        service.end()


def test_a_start_beside_dying_children_waits_for_them(tmp_path: Path) -> None:
    """The supervisor is killed and started again at once: the old hub still drains, and its database has one owner at any time."""
    with OriginProcess(tmp_path, pace=PACE) as origin, Service(tmp_path / "service").start() as service:
        oracle = Oracle(service.http, service.assets, origin.journal)
        for job in range(6):
            oracle.post(plain(origin.base_url, job, PER_JOB))
        wait_for("some requests", lambda: origin.journal.total >= PER_JOB, 30, describe=service.dump)
        orphans = descendants(service.process.pid)
        service.process.send_signal(signal.SIGKILL)
        service.process.wait(5)
        # A process manager starts it again and again until it stays; the first tries may find the database taken and say so.
        for _ in range(20):
            service.launch()
            try:
                service.wait_ready(START_LIMIT)
                break
            except AssertionError:
                assert not service.running, service.dump()
        await_end(orphans, DRAIN_TIMEOUT + 5)
        oracle.await_settled(60)
        oracle.check()
        service.end()


def test_the_supervisor_restarts_a_child_that_dies_every_second(tmp_path: Path) -> None:
    with Service(tmp_path).start() as service:
        for role in ("worker", "api", "hub"):
            for _ in range(3):
                victim = service.kill_one(role)
                wait_for(
                    f"a {role} after {victim.pid}",
                    lambda role=role, pid=victim.pid: [p for p in service.processes(role) if p.pid != pid],  # type: ignore[misc]
                    START_LIMIT,
                    describe=service.dump,
                )
                service.wait_ready()
        assert service.running
        service.end()
