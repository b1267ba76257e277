"""The wall clock jumps by an hour while jobs run: nothing expires early, no time is negative, no retry is an hour late."""

from __future__ import annotations

import functools
import hashlib
import time
from datetime import datetime
from pathlib import Path

import pytest

from tests.process.background import posting, sampling
from tests.process.clock import FakeClock
from tests.process.load import Load, Wanted, manifest, plain
from tests.process.oracle import Oracle
from tests.process.origins import OriginProcess
from tests.process.service import Service
from tests.process.waiting import wait_for

HOUR = 3600
AFTER = 18
"""Seconds of Retry-After that lead through the first tier of jobs.retry (15 s)."""
DEADLINE_MS = 20 * 60 * 1000


class Answer(Wanted):
    """A resource whose content is the origin's "ok"."""

    __slots__ = ()

    @property
    def sha256(self) -> str:
        return hashlib.sha256(b"ok\n").hexdigest()


def patient(busy: str, kind: str, after: int) -> Load:
    """A job of one resource that asks to come back later."""
    wanted = [Answer(id="later", target=f"{busy}/hostile/retry-after/{kind}?id={kind}&after={after}", size=3)]
    return Load(key=f"later-{kind}", body=manifest(busy, wanted), resources=wanted)


def urgent(origin: str, count: int) -> Load:
    """A job whose links hold for twenty minutes."""
    base = plain(origin, 900, count)
    body = manifest(origin, base.resources, attributes={"deadline": int(time.time() * 1000) + DEADLINE_MS})
    return Load(key="urgent", body=body, resources=base.resources)


def reached(origin: OriginProcess, requests: int) -> bool:
    """Whether the origin has seen so many."""
    return origin.journal.total >= requests


def moment(text: str) -> datetime:
    """A time of the operator API."""
    return datetime.fromisoformat(text)


@pytest.mark.timeout(180)
def test_jumps_of_an_hour_either_way(tmp_path: Path) -> None:
    clock = FakeClock(tmp_path)
    with (
        OriginProcess(tmp_path, pace=60) as origin,
        OriginProcess(tmp_path, name="busy") as busy,
        Service(tmp_path / "service", prefix=clock.prefix).start() as service,
    ):
        oracle = Oracle(service.http, service.assets, origin.journal)
        patiently = oracle.post(patient(busy.base_url, "seconds", AFTER))
        oracle.post(urgent(origin.base_url, 200))
        with sampling(oracle), posting(oracle, (plain(origin.base_url, job, 50) for job in range(12)), ahead=200) as poster:
            wait_for("requests at the origin", lambda: origin.journal.total >= 50, 30, describe=service.dump)
            wait_for("the busy origin to be asked", lambda: busy.journal.total >= 1, 30, describe=service.dump)
            asked = time.monotonic()
            for offset in (HOUR, -HOUR, 0):
                until = origin.journal.total + 100
                clock.jump_to(offset)
                if offset == HOUR:
                    oracle.post(patient(busy.base_url, "date", 3))
                wait_for("work to go on", functools.partial(reached, origin, until), 30, describe=service.dump)
                assert service.http.status("/health/ready") == 200
            clock.jump_to(-HOUR)
            poster.join(60)
            first = wait_for(
                "the retry that waits to be made", lambda: service.http.job(patiently)["resource_completed"], 60, describe=service.dump
            )
            assert first == 1
            # It came when it was asked for: not before, and by upkeep's clock not much later.
            assert AFTER - 2 <= time.monotonic() - asked <= 2 * AFTER
            oracle.await_settled(30)
        oracle.check()
        for job in service.http.jobs():
            assert moment(job["created_at"]) <= moment(job["finished_at"])
            assert moment(job["created_at"]) <= moment(job["updated_at"])
            for resource in service.http.resources(job["job_id"]):
                assert all(0 <= spent < HOUR * 1_000_000 for spent in resource["timings"].values()), resource
        service.end()
