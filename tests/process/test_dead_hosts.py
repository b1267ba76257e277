"""Hosts that never answer: they cost the good ones nothing, and what waits for them holds up neither memory nor commits."""

from __future__ import annotations

from pathlib import Path

import pytest

from fetchbox.bench.dead import BlackHole, lag, refusing, worker_memory
from tests.process.load import Load, Wanted, of, plain
from tests.process.oracle import Oracle
from tests.process.origins import OriginProcess
from tests.process.service import Service
from tests.process.waiting import wait_for

MIB = 1 << 20
DEAD = 10_000
HOSTS = 200
"""More than there are slots, so that first contacts alone could take all of them for a connect time-out."""
MEMORY_LIMIT = 256 * MIB
AT_ONCE = 15
"""Seconds in which tasks are handed on because many wait: half of what they may wait when there is room."""


def doomed(name: str, urls: list[str]) -> list[Load]:
    """Jobs of 500 tasks each; nobody looks at what becomes of them."""
    parts = [urls[at : at + 500] for at in range(0, len(urls), 500)]
    return [of("", f"{name}-{number}", [Wanted(id=str(i), target=url) for i, url in enumerate(part)]) for number, part in enumerate(parts)]


@pytest.mark.timeout(180)
def test_good_hosts_go_on_and_commits_pass_what_waits(tmp_path: Path) -> None:
    overrides = {"fetch": {"allow_networks": ["127.0.0.0/8"], "per_host_concurrency": 32, "connect_timeout": 8}}
    with OriginProcess(tmp_path) as origin, BlackHole() as hole, Service(tmp_path / "service", overrides).start() as service:
        oracle = Oracle(service.http, service.assets, origin.journal)
        # Both kinds in turn: neither may hide behind the other.
        silent, refused = doomed("silent", hole.urls(HOSTS, DEAD)), doomed("refusing", refusing(HOSTS, DEAD))
        dead = [oracle.post(load) for pair in zip(silent, refused, strict=True) for load in pair]
        good = [oracle.post(plain(origin.base_url, job, 100)) for job in range(10)]
        for job_id in good:
            job = service.http.await_job(job_id, 30, describe=service.dump)
            assert job["status"] == "completed", job
        pending = sum(service.http.job(job_id)["resource_pending"] for job_id in dead)
        assert pending >= 2 * DEAD - HOSTS, f"only {pending} dead tasks are still pending: the good ones had to wait for the others"

        # More wait than there is room for at hosts that stand still: the rest goes to jobs.retry without waiting for its turn.
        def makes_room() -> bool:
            return lag(service, "jobs.retry") >= DEAD // 4

        wait_for("tasks of dead hosts to make room", makes_room, AT_ONCE, every=0.5, describe=service.dump)

        # What stays waits for half a minute; then the offsets move past it.
        def handed_on() -> bool:
            return lag(service) < DEAD // 4 and lag(service, "jobs.retry") > 0

        wait_for("tasks of dead hosts to be handed on", handed_on, 75, every=0.5, describe=lambda: f"lag {lag(service)}\n{service.dump()}")
        # The good ones do not mind that either.
        again = oracle.post(plain(origin.base_url, 99, 100))
        assert service.http.await_job(again, 20, describe=service.dump)["status"] == "completed"
        assert worker_memory(service) < MEMORY_LIMIT
        oracle.sample()
        service.end()
