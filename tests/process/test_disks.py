"""Disks that are full or fail, and a database killed in its first moments."""

from __future__ import annotations

import os
import random
import signal
import time
from pathlib import Path

import pytest

from tests.process.faults import failing_syncs, fill, frozen, small_disk
from tests.process.load import Load, plain
from tests.process.oracle import Oracle
from tests.process.origins import OriginProcess
from tests.process.processes import look
from tests.process.service import START_LIMIT, Service, command
from tests.process.waiting import wait_for


def post_until_refused(service: Service, oracle: Oracle, origin: str) -> Load:
    """Posts jobs of 1,000 until one is refused, which must be with 503; that one."""
    for job in range(1, 100):
        load = plain(origin, job, 1000)
        response = service.http.post(load.body, key=load.key, headers=load.headers)
        if response.status_code >= 500:
            assert response.status_code == 503, response.text
            assert response.json()["error"]["code"] in ("LEDGER_FULL", "HUB_UNAVAILABLE"), response.text
            assert "retry-after" in response.headers
            return load
        oracle.acknowledge(load, response.json(), response.status_code)
    raise AssertionError(f"99,000 tasks were taken although 1 MiB was free\n{service.dump()}")


@pytest.mark.timeout(180)
def test_a_full_disk_under_the_ledger_is_503_until_there_is_room(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", "192m") as disk, OriginProcess(tmp_path) as origin:
        overrides = {"hub": {"path": str(disk / "hub")}}
        with Service(tmp_path / "service", overrides).start() as service:
            oracle = Oracle(service.http, service.assets, origin.journal)
            oracle.post(plain(origin.base_url, 0, 50))
            oracle.await_settled(30)
            ballast = fill(disk, 1 << 20)
            refused = post_until_refused(service, oracle, origin.base_url)
            wait_for("health to turn red", lambda: service.http.status("/operators/health") == 503, 20, every=0.1, describe=service.dump)
            assert service.running
            ballast.unlink()
            wait_for(
                "readiness to turn green", lambda: service.http.status("/operators/health") == 200, 60, every=0.1, describe=service.dump
            )
            oracle.post(plain(origin.base_url, 500, 50))
            # The post that was refused last may be there or not; its key makes it one job.
            oracle.post(refused)
            oracle.await_settled(60)
            oracle.check()
            service.end()


@pytest.mark.timeout(180)
def test_a_full_disk_under_the_store_holds_work_until_there_is_room(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", "32m") as disk, OriginProcess(tmp_path) as origin:
        overrides = {"storage": {"url": f"file://{disk}/assets"}, "fetch": {"backoff_base": 0.2, "backoff_max": 1.0}}
        with Service(tmp_path / "service", overrides).start() as service:
            oracle = Oracle(service.http, disk / "assets", origin.journal)
            oracle.post(plain(origin.base_url, 0, 5))
            oracle.await_settled(30)
            ballast = fill(disk, 16 << 10)
            job_id = oracle.post(plain(origin.base_url, 1, 20, size=200 * 1024))
            wait_for("the downloads", lambda: origin.journal.total >= 10, 30, describe=service.dump)
            wait_for("health to turn red", lambda: service.http.status("/operators/health") == 503, 20, every=0.1, describe=service.dump)
            job = service.http.job(job_id)
            assert job["resource_failed"] == 0, f"a full disk is nobody's failure: {job}"
            ballast.unlink()
            oracle.await_settled(90)
            assert service.http.job(job_id)["status"] == "completed"
            wait_for("health to turn green", lambda: service.http.status("/operators/health") == 200, 30, every=0.1, describe=service.dump)
            oracle.check(ratio=20)
            service.end()


def test_a_failed_sync_ends_the_hub_and_nothing_is_acknowledged_after(tmp_path: Path, origin: OriginProcess) -> None:
    with Service(tmp_path / "service").start() as service:
        oracle = Oracle(service.http, service.assets, origin.journal)
        oracle.post(plain(origin.base_url, 0, 50))
        oracle.await_settled(30)
        hub = service.a_process("hub")
        top = look(service.process.pid)
        assert top is not None
        late = plain(origin.base_url, 1, 50)
        # The supervisor is held, so that no new hub can acknowledge what the broken one must not.
        with frozen(top), failing_syncs(hub, tmp_path / "strace.log"):
            tried = time.monotonic()
            response = service.http.post(late.body, key=late.key, headers=late.headers)
            assert response.status_code == 503, f"acknowledged although no sync succeeds: {response.status_code} {response.text}"
            wait_for("the hub to end", lambda: not hub.alive, 1.0 - min(0.9, time.monotonic() - tried), describe=service.dump)
            for _ in range(5):
                assert service.http.post(late.body, key=late.key, headers=late.headers).status_code == 503
        service.wait_ready()
        oracle.post(late)
        oracle.await_settled(30)
        oracle.check()
        service.end()


# ---- the database's first moments -----------------------------------------------------------------------------------------------


def hub_ready(service: Service) -> bool:
    """Whether the hub, run alone, says on its telemetry port that it is ready."""
    return service.http.status(service.metrics_url + "/health/ready") == 200


@pytest.mark.timeout(200)
def test_a_database_killed_while_it_is_made_always_opens_afterwards(tmp_path: Path) -> None:
    """`fetchbox hub` is killed twenty times, each time over a new directory, at a random moment of the database's creation."""
    seed = int(os.environ.get("FETCHBOX_CRASH_SEED", "0")) or random.randrange(2**31)
    print(f"FETCHBOX_CRASH_SEED={seed}")
    chance = random.Random(seed)
    window = 0.0
    for number in range(21):
        service = Service(tmp_path / str(number))
        service.command = command("hub", "--config", str(service.config_path))
        service.launch()
        wait_for("the first file of the database", lambda service=service: _entries(service.data_dir), START_LIMIT, describe=service.dump)  # type: ignore[misc]
        seen = time.monotonic()
        if number == 0:
            # The first one is let live: it shows how long there is something to interrupt.
            wait_for("the hub", lambda service=service: hub_ready(service), START_LIMIT, describe=service.dump)  # type: ignore[misc]
            window = time.monotonic() - seen
        else:
            moment = seen + chance.uniform(0, window)
            while time.monotonic() < moment:
                pass
            service.kill_tree()
            service.launch()
            wait_for(
                f"the hub to open what kill {number} of seed {seed} left",
                lambda service=service: hub_ready(service),  # type: ignore[misc]
                START_LIMIT,
                describe=service.dump,
            )
        service.process.send_signal(signal.SIGTERM)
        service.await_exit(0)
        service.close()


def _entries(directory: Path) -> bool:
    return directory.exists() and any(path.name.startswith("hub") for path in directory.iterdir())
