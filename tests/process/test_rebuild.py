"""A ledger that is lost: restored from a backup, made again from what the store holds, or both."""

from __future__ import annotations

import json
import shutil
import subprocess
import threading
from collections.abc import Iterator, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from tests.process.background import posting
from tests.process.load import KIB, Load, Wanted, of, plain
from tests.process.oracle import Oracle
from tests.process.origins import OriginProcess
from tests.process.s3 import S3, s3_server
from tests.process.service import Service, clean_environment, command
from tests.process.waiting import wait_for

NO_WORKERS = {"worker": {"processes": 0}}
WORKERS = {"worker": {"processes": 2}}
JOBS = 12
PER_JOB = 25


@pytest.fixture(scope="module")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3]:
    with s3_server(tmp_path_factory.mktemp("s3")) as server:
        yield server


def ledger(service: Service, *arguments: str) -> dict[str, Any]:
    """The answer of `fetchbox ledger … --json`, which must succeed."""
    whole = [*command("ledger", *arguments), "--json", "--config", str(service.config_path)]
    done = subprocess.run(whole, capture_output=True, text=True, timeout=60, env=clean_environment(), check=False)
    assert (done.returncode, bool(done.stdout)) == (0, True), f"{arguments}: {done.stdout}{done.stderr}\n{service.dump()}"
    return json.loads(done.stdout)  # type: ignore[no-any-return]


def some_missing(origin: str, job: int) -> Load:
    """A job of three of which one is not there."""
    good = plain(origin, job, 2, key="some-missing").resources
    return of(
        origin, f"some-missing-{job}", [*good, Wanted("gone", f"/status/404?of={job}", state="failed", code="DOWNLOAD_HTTP_4XX")], job=job
    )


def moment(job: dict[str, Any]) -> float:
    """When a job was made."""
    return datetime.fromisoformat(job["created_at"]).timestamp()


def forgetful(oracle: Oracle) -> Oracle:
    """An oracle that knows what was acknowledged, but not how far it was: a ledger that is restored or made again goes back."""
    fresh = Oracle(oracle.client, oracle.store, oracle.journal)
    fresh.acknowledged = oracle.acknowledged
    return fresh


def post_all(oracle: Oracle, loads: Sequence[Load]) -> list[str]:
    """Posts them; the jobs."""
    return [oracle.post(load) for load in loads]


def test_a_lost_ledger_is_made_again_from_the_store(tmp_path: Path, origin: OriginProcess) -> None:
    with Service(tmp_path / "service", WORKERS).start() as service:
        oracle = Oracle(service.http, service.assets, origin.journal)
        post_all(oracle, [plain(origin.base_url, job, PER_JOB) for job in range(JOBS)])
        missing = post_all(oracle, [some_missing(origin.base_url, 1000), some_missing(origin.base_url, 1001)])
        oracle.await_settled(60)
        service.end()
        service.configure(NO_WORKERS)
        service.start()
        late = oracle.post(plain(origin.base_url, 2000, 3))
        wait_for("its manifest", lambda: (service.assets / f"manifests/default/{late}/manifest.json").exists(), 20, describe=service.dump)
        before = {job["job_id"]: job for job in service.http.jobs()}
        service.end()
        # The hub's disk is gone.
        shutil.rmtree(service.data_dir / "hub")
        (service.assets / "manifests/default/0190b6d4-0000-7000-8000-000000000001").mkdir()
        (service.assets / "manifests/default/0190b6d4-0000-7000-8000-000000000001/manifest.json").write_text("{}")
        service.start()
        assert service.http.jobs() == []

        jobs, fetched = JOBS + len(missing), JOBS * PER_JOB + 2 * len(missing)
        counted = {"manifests": jobs + 2, "known": 0, "older": 1, "jobs": jobs + 1, "reported": 0, "restart": False, "skipped": []}
        assert ledger(service, "rebuild", "--dry-run") == {**counted, "stored": 0, "pending": fetched + len(missing) + 3}
        everything = ledger(service, "rebuild", "--dry-run", "--newer-than", "9999d")
        assert [skip["reason"].partition(":")[0] for skip in everything["skipped"]] == ["the manifest is not valid"]
        rebuilt = {**counted, "stored": fetched, "pending": len(missing) + 3}
        assert ledger(service, "rebuild", "--digests", "--tenant", "tenant-0") == rebuilt
        assert ledger(service, "rebuild") == {**counted, "known": jobs + 1, "jobs": 0, "stored": 0, "pending": 0}
        assert ledger(service, "check", "--deep")["ok"]
        for job_id, job in before.items():
            now = service.http.job(job_id)
            # Whose they were no manifest says that was posted with a header or a token.
            assert now["tenant"] == "tenant-0"
            # The id was made a moment after the clock was read.
            assert 0 <= moment(now) - moment(job) < 1
            same = ("job_id", "job_type", "resource_total", "resource_completed", "bytes_stored", "manifest_key")
            assert {name: now[name] for name in same} == {name: job[name] for name in same}
        asked = origin.journal.copy()
        service.end()

        # Only what is not in the store is asked for again.
        service.configure(WORKERS)
        service.start()
        oracle = forgetful(oracle)
        oracle.await_settled(60)
        (service.assets / "manifests/default/0190b6d4-0000-7000-8000-000000000001/manifest.json").unlink()
        print(oracle.check())
        again = {target for target, count in origin.journal.copy().items() if count > asked[target]}
        fetched_now = {wanted.target for job_id in missing for wanted in oracle.acknowledged[job_id].resources if wanted.state == "failed"}
        assert again == fetched_now | {wanted.target for wanted in oracle.acknowledged[late].resources}
        service.end()


def test_a_backup_that_was_made_under_load_is_restored_and_what_came_after_it_is_made_again(tmp_path: Path) -> None:
    with OriginProcess(tmp_path, pace=120.0) as origin, Service(tmp_path / "service", WORKERS).start() as service:
        oracle = Oracle(service.http, service.assets, origin.journal)
        copy = tmp_path / "copy"
        loads = [plain(origin.base_url, job, PER_JOB) for job in range(3 * JOBS)]
        copied = threading.Event()

        def in_two_parts() -> Iterator[Load]:
            yield from loads[:JOBS]
            assert copied.wait(60), "no backup was made"
            yield from loads[JOBS:]

        with posting(oracle, in_two_parts(), ahead=len(loads) * PER_JOB) as posts:
            wait_for("work under way", lambda: origin.journal.asked > PER_JOB and oracle.tasks == JOBS * PER_JOB, 60, describe=service.dump)
            assert ledger(service, "backup", str(copy))["items"] > 0
            copied.set()
            posts.join(60)
        oracle.await_settled(60)
        service.kill_tree()
        shutil.rmtree(service.data_dir / "hub")
        copy.rename(service.data_dir / "hub")
        service.configure(NO_WORKERS)
        service.start()
        assert ledger(service, "check")["ok"]
        assert len(service.http.jobs()) == JOBS
        rebuilt = ledger(service, "rebuild", "--digests")
        assert (rebuilt["known"], rebuilt["jobs"], rebuilt["pending"]) == (JOBS, len(loads) - JOBS, 0)
        service.end()
        service.configure(WORKERS)
        service.start()
        oracle = forgetful(oracle)
        oracle.await_settled(60)
        # What the backup did not know as stored was fetched twice.
        print(oracle.check(ratio=2.0))
        assert ledger(service, "check", "--deep")["ok"]
        service.end()


def test_a_ledger_is_made_again_from_a_bucket(tmp_path: Path, origin: OriginProcess, s3: S3) -> None:
    overrides: dict[str, Any] = {
        "storage": s3.settings(),
        "job_types": {"docs": {"storage": {"key_template": "by-host/{host}/{resource_id}"}}},
    }
    with Service(tmp_path / "service", overrides).start() as service:
        ours = service.http.post_until_acknowledged(plain(origin.base_url, 1, 3, size=2 * KIB).body, "a")[0]["job_id"]
        of_hosts = {"x-fetchbox-job-type": "docs"}
        anybodys = service.http.post_until_acknowledged(plain(origin.base_url, 2, 2, size=2 * KIB).body, "b", headers=of_hosts)[0]["job_id"]
        for job_id in (ours, anybodys):
            wait_for("the job", lambda job_id=job_id: service.http.job(job_id)["status"] == "completed", 30, describe=service.dump)  # type: ignore[misc]
        before = service.http.resources(ours)
        service.end()
        shutil.rmtree(service.data_dir / "hub")
        service.configure({**overrides, **NO_WORKERS})
        service.start()
        rebuilt = ledger(service, "rebuild", "--digests")
        # Under a key without the job's id the object may be another's.
        assert (rebuilt["jobs"], rebuilt["stored"], rebuilt["pending"], rebuilt["skipped"]) == (2, 3, 2, [])
        after = service.http.resources(ours)
        for name in ("id", "index", "url", "state", "size", "sha256", "storage_url"):
            assert [resource[name] for resource in after] == [resource[name] for resource in before]
        assert service.http.job(anybodys)["resource_pending"] == 2
        assert ledger(service, "check", "--deep")["ok"]
        service.end()
