"""Disks that are full or fail, and a database killed in its first moments."""

from __future__ import annotations

import json
import random
import resource
import subprocess
import sys
import time
from pathlib import Path

import pytest

from fetchbox.config import hub_options, load
from tests.process import crash
from tests.process.faults import failing_syncs, fill, frozen, limited, small_disk
from tests.process.load import Load, plain
from tests.process.oracle import Oracle, difference
from tests.process.origins import OriginProcess
from tests.process.processes import look
from tests.process.service import START_LIMIT, Service
from tests.process.waiting import wait_for


def red(service: Service) -> bool:
    """Whether the operator's health or the node's says that something is wrong."""
    return service.http.status("/operators/health") == 503 or not service.all_ready()


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
            assert service.http.status("/health/ready") == 503
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


def test_a_full_disk_under_the_store_is_503_until_there_is_room(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", "32m") as disk, OriginProcess(tmp_path) as origin:
        overrides = {"storage": {"url": f"file://{disk}/assets"}}
        with Service(tmp_path / "service", overrides).start() as service:
            oracle = Oracle(service.http, disk / "assets", origin.journal)
            oracle.post(plain(origin.base_url, 0, 5))
            oracle.await_settled(30)
            ballast = fill(disk, 16 << 10)
            wait_for("health to turn red", lambda: red(service), 20, every=0.1, describe=service.dump)
            late = plain(origin.base_url, 1, 5)
            response = service.http.post(late.body, key=late.key, headers=late.headers)
            assert response.status_code == 503, response.text
            assert "retry-after" in response.headers
            ballast.unlink()
            wait_for("health to turn green", lambda: not red(service), 30, every=0.1, describe=service.dump)
            oracle.post(late)
            oracle.await_settled(30)
            oracle.check()
            service.end()


@pytest.mark.timeout(180)
def test_tasks_outlast_a_full_disk_under_the_store(tmp_path: Path) -> None:
    """Free space, and work goes on by itself (docs/failures.md, STORAGE_FULL)."""
    with small_disk(tmp_path / "disk", "32m") as disk, OriginProcess(tmp_path, pace=40) as origin:
        overrides = {"storage": {"url": f"file://{disk}/assets"}, "fetch": {"backoff_base": 0.2, "backoff_max": 1.0}}
        with Service(tmp_path / "service", overrides).start() as service:
            oracle = Oracle(service.http, disk / "assets", origin.journal)
            load = plain(origin.base_url, 1, 60, size=100 * 1024)
            job_id = oracle.post(load)
            wait_for("the first downloads", lambda: origin.journal.total >= 5, 30, describe=service.dump)
            ballast = fill(disk, 16 << 10)
            wait_for("health to turn red", lambda: red(service), 20, every=0.1, describe=service.dump)
            # Seven requests for one URL are more than its five attempts.
            wait_for(
                "a task to have been tried more often than others may be",
                lambda: max(origin.journal.copy().values()) >= 7 or service.http.job(job_id)["resource_failed"],
                60,
                every=0.1,
                describe=service.dump,
            )
            job = service.http.job(job_id)
            assert job["resource_failed"] == 0, f"a full disk is nobody's failure: {job}"
            ballast.unlink()
            oracle.await_settled(90)
            assert service.http.job(job_id)["status"] == "completed"
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


def end_of_journal(service: Service) -> int:
    """Where the newest journal's content ends; the file itself is longer."""
    newest = max((service.data_dir / "hub" / "db").rglob("*.jnl"))
    return len(newest.read_bytes().rstrip(b"\0"))


def test_a_write_cut_short_ends_the_hub_and_its_torn_tail_is_discarded(tmp_path: Path, origin: OriginProcess) -> None:
    """A limit on the size of its files lets the next write through in part; the rest fails with EFBIG."""
    with Service(tmp_path / "service").start() as service:
        oracle = Oracle(service.http, service.assets, origin.journal)
        oracle.post(plain(origin.base_url, 0, 50))
        oracle.await_settled(30)
        hub = service.a_process("hub")
        top = look(service.process.pid)
        assert top is not None
        late = plain(origin.base_url, 1, 50)
        with frozen(top), limited(hub, resource.RLIMIT_FSIZE, end_of_journal(service) + 100):
            tried = time.monotonic()
            response = service.http.post(late.body, key=late.key, headers=late.headers)
            assert response.status_code == 503, f"acknowledged although it was not written: {response.status_code} {response.text}"
            wait_for("the hub to end", lambda: not hub.alive, 1.0 - min(0.9, time.monotonic() - tried), describe=service.dump)
            for _ in range(5):
                assert service.http.post(late.body, key=late.key, headers=late.headers).status_code == 503
        service.wait_ready()
        assert len(service.http.jobs()) == 1, "what was not acknowledged came back"
        oracle.post(late)
        oracle.await_settled(30)
        oracle.check()
        service.end()


@pytest.mark.timeout(120)
def test_damage_inside_the_journal_stops_the_start_and_is_named(tmp_path: Path, origin: OriginProcess) -> None:
    with Service(tmp_path / "service").start() as service:
        oracle = Oracle(service.http, service.assets, origin.journal)
        for job in range(3):
            oracle.post(plain(origin.base_url, job, 20))
        oracle.await_settled(30)
        before = oracle.snapshots()
        service.kill_tree()
        journal = max((service.data_dir / "hub" / "db").rglob("*.jnl"))
        whole = journal.read_bytes()
        middle = len(whole.rstrip(b"\0")) // 2
        journal.write_bytes(whole[:middle] + bytes([whole[middle] ^ 0x55]) + whole[middle + 1 :])
        service.launch()
        assert service.await_exit(limit=60) not in (0, None)
        said = service.log_tail()
        assert str(service.data_dir / "hub") in said, said
        assert "damage" in said or "checksum" in said.lower() or "acknowledged" in said, said
        # Nothing was changed by the attempt: with the byte put right all is there.
        journal.write_bytes(whole)
        service.start()
        assert not difference(before, oracle.snapshots())
        service.end()


# ---- the database's first moments -----------------------------------------------------------------------------------------------


HUB = """
import sys
from fetchbox._core import Hub
hub = Hub(sys.argv[1].encode())
print("open", flush=True)
sys.stdin.read()
hub.close()
"""
"""A hub without a service around it: it opens, says so, and closes when its standard input ends."""


class BareHub:
    """The database's owner by itself, so that twenty beginnings take seconds."""

    def __init__(self, directory: Path) -> None:
        config = load(env={}, overrides={"data_dir": str(directory), "hub": {"path": str(directory / "hub")}})
        self.directory = directory
        self._command = [sys.executable, "-c", HUB, json.dumps(hub_options(config))]
        self._process: subprocess.Popen[bytes] | None = None

    def launch(self) -> None:
        """Starts it."""
        self._process = subprocess.Popen(self._command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)

    @property
    def process(self) -> subprocess.Popen[bytes]:
        """The process."""
        assert self._process is not None
        return self._process

    def await_open(self) -> None:
        """Waits until it is open; AssertionError with what it said instead."""
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line == b"open\n", (line + self.process.stdout.read()).decode()

    def await_first_file(self) -> None:
        """Waits until there is something of the database on disk."""
        wait_for("the first file of the database", self._has_files, START_LIMIT)

    def _has_files(self) -> bool:
        return self.directory.exists() and any(path.name.startswith("hub") for path in self.directory.iterdir())

    def kill(self) -> None:
        """SIGKILL."""
        self.process.kill()
        self._end()

    def close(self) -> None:
        """Ends it as the service would."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        assert self._end() == 0

    def _end(self) -> int:
        code = self.process.wait(START_LIMIT)
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe is not None:
                pipe.close()
        return code


def test_a_database_killed_while_it_is_made_always_opens_afterwards(tmp_path: Path) -> None:
    """A hub is killed twenty times, each time over a new directory, at a random moment of its database's creation."""
    seed = crash.chosen_seed()
    print(f"{crash.SEED_VARIABLE}={seed}")
    chance = random.Random(seed)
    first = BareHub(tmp_path / "first")
    first.launch()
    first.await_first_file()
    began = time.monotonic()
    # This one is let live: it shows how long there is something to interrupt.
    first.await_open()
    window = time.monotonic() - began
    first.close()
    for number in range(20):
        hub = BareHub(tmp_path / str(number))
        hub.launch()
        hub.await_first_file()
        moment = time.monotonic() + chance.uniform(0, window)
        while time.monotonic() < moment:
            pass
        hub.kill()
        hub.launch()
        hub.await_open()
        hub.close()
