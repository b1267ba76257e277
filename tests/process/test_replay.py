"""Dead letters of a real service: put back to work once each, whoever asks how often and whatever is killed meanwhile."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

import fetchbox
from tests.process.load import Load, Wanted, content_of, manifest
from tests.process.oracle import Oracle
from tests.process.origins import OriginProcess
from tests.process.service import Service, clean_environment, command
from tests.process.waiting import wait_for

WRONG, RIGHT = "/nowhere/bytes/", "/bytes/"
"""What the URLs of dead letters hold, and what a replay puts in its place."""
MEND = {"from": WRONG, "to": RIGHT}


def half_wrong(origin: str, job: int, count: int, *, size: int = 300, every: int = 2) -> Load:
    """A job in which each `every`-th URL is wrong. What is wanted is what a replay with the right ones brings."""

    def one(index: int) -> Wanted:
        seed, length = content_of(job, index, size)
        return Wanted(id=f"r{index}", target=f"{RIGHT}{length}?seed={seed}&of={job}-{index}", size=length, seed=seed)

    wanted = [one(index) for index in range(count)]
    posted = [Wanted(w.id, w.target.replace(RIGHT, WRONG, 1)) if index % every == 0 else w for index, w in enumerate(wanted)]
    return Load(key=f"half-{job}", body=manifest(origin, posted, metadata={"job": job}), resources=wanted)


@pytest.fixture
def service(tmp_path: Path, origin: OriginProcess) -> Iterator[Service]:
    with Service(tmp_path / "service", {"worker": {"flush_interval": 0.01}}) as service:
        yield service.start()


def letters(service: Service, **params: str) -> list[dict[str, Any]]:
    answer = service.http.get("/operators/dlq", limit=30, params={"limit": 1000, **params})
    assert answer["next_cursor"] is None
    return list(answer["entries"])


def run(service: Service, *arguments: str) -> subprocess.CompletedProcess[str]:
    parts = command("--config", str(service.config_path), "dlq", *arguments)
    return subprocess.run(parts, capture_output=True, text=True, timeout=60, env=clean_environment(), check=False)


def test_what_failed_is_seen_mended_and_stored_and_counts_once(service: Service, origin: OriginProcess) -> None:
    oracle = Oracle(service.http, service.assets, origin.journal)
    jobs = [oracle.post(half_wrong(origin.base_url, job, 20)) for job in range(3)]
    for job_id in jobs:
        job = service.http.await_job(job_id, 30, describe=service.dump)
        assert (job["status"], job["resource_completed"], job["resource_failed"]) == ("partial", 10, 10)
    assert len(letters(service)) == 30
    assert len(letters(service, job=jobs[0], code="DOWNLOAD_HTTP_4XX", host=f"127.0.0.1:{origin.port}", since="1h")) == 10
    assert letters(service, host="127.0.0.1:1") == []
    listed = run(service, "list", "--job", jobs[1], "--json")
    assert len(listed.stdout.splitlines()) == 10, listed.stderr
    story = json.loads(run(service, "show", json.loads(listed.stdout.splitlines()[0])["id"], "--json").stdout)
    assert story["task"]["url"].startswith(origin.url(WRONG))
    assert (story["http_status"], story["attempts"], story["history"][0]["state"]) == (404, 1, "failed")
    assert any("404" in line["message"] for line in story["log"])

    # A change that makes no good URL touches nothing.
    refused = run(service, "replay", "--url-replace", "http://=>http://user:password@")
    assert refused.returncode == 1
    assert "user name" in refused.stderr
    assert len(letters(service)) == 30
    dry = run(service, "replay", "--url-replace", f"{WRONG}=>{RIGHT}", "--dry-run")
    assert dry.stdout == "30 dead letters would be replayed\n"

    def order(_: int) -> int:
        with fetchbox.Client(service.url) as client:
            return client.replay(code="DOWNLOAD_HTTP_4XX", url_replace=[(WRONG, RIGHT)]).count

    with ThreadPoolExecutor(4) as pool:
        assert sum(pool.map(order, range(4))) == 30
    for job_id in jobs:
        job = service.http.await_job(job_id, 30, describe=service.dump)
        assert (job["status"], job["resource_completed"], job["resource_failed"], job["last_error"]) == ("completed", 20, 0, None)
        assert [r["generation"] for r in service.http.resources(job_id)] == [1, 0] * 10
    assert letters(service) == []
    assert len(letters(service, replayed="true")) == 30
    oracle.check(ratio=2.0)
    service.end()


def test_what_is_purged_stays_failed_and_a_cancelled_job_is_left_alone(service: Service, origin: OriginProcess) -> None:
    resources = [Wanted("bad", f"{WRONG}5?of=1"), Wanted("slow", "/delay/60/bytes/5?of=2")]
    cancelled = service.http.post(manifest(origin.base_url, resources), key="c").json()["job_id"]
    wait_for("the dead letter", lambda: letters(service), 30, describe=service.dump)
    assert service.http.http.post(f"/operators/jobs/{cancelled}/cancel").status_code == 200
    answer = service.http.http.post("/operators/dlq/replay", json={"filter": {"job": cancelled}})
    assert (answer.status_code, answer.json()["error"]["code"]) == (409, "JOB_CANCELLED")
    failed = service.http.post(manifest(origin.base_url, resources[:1]), key="f").json()["job_id"]
    before = service.http.await_job(failed, 30, describe=service.dump)
    assert run(service, "purge", "--job", failed).returncode == 2
    purged = run(service, "purge", "--job", failed, "--yes")
    assert (purged.returncode, purged.stdout) == (0, "1 dead letter purged\n")
    assert service.http.job(failed) == before
    assert [entry["job_id"] for entry in letters(service)] == [cancelled]
    with fetchbox.Client(service.url) as client:
        assert client.replay(job=failed).count == 0
        everything = client.replay()
        assert (everything.count, everything.refused) == (0, 1)


def test_a_replay_with_the_hub_killed_in_the_middle_counts_each_entry_once(tmp_path: Path, origin: OriginProcess) -> None:
    per_job, jobs, chunk = 500, 6, 500
    points = tmp_path / "points"
    points.mkdir()
    with Service(tmp_path / "service", prefix=("env", f"FETCHBOX_FAILPOINTS={points}")).start() as service:
        oracle = Oracle(service.http, service.assets, origin.journal)
        posted = [oracle.post(half_wrong(origin.base_url, job, per_job, every=1)) for job in range(jobs)]
        for job_id in posted:
            assert service.http.await_job(job_id, 60, describe=service.dump)["resource_failed"] == per_job

        def left() -> int:
            return int(service.http.get("/operators/dlq/groups", limit=30)["total"])

        order = {"filter": {"code": "DOWNLOAD_HTTP_4XX"}, "url_replace": MEND}
        remaining = per_job * jobs
        assert left() == remaining
        # Killed before the third chunk, and with the first or second one staged and not committed: those before it stand, whole.
        for point, hit, stand in (("before", 3, 2), ("after", 1, 0), ("after", 2, 1)):
            token = f"{point}{hit}"
            (points / f"hub::replay::{point}").write_text(f"{token} {hit}\n")
            answer = service.http.http.post("/operators/dlq/replay", json=order, timeout=60)
            assert answer.status_code == 503, answer.text
            assert list((points / "hit").glob(f"{token}.*")), "the hub was not killed there"
            service.wait_ready()
            remaining -= stand * chunk
            assert left() == remaining
        with fetchbox.Client(service.url, retry_for=60) as client:
            assert client.replay(code="DOWNLOAD_HTTP_4XX", url_replace={WRONG: RIGHT}).count == remaining
            assert client.replay(code="DOWNLOAD_HTTP_4XX", url_replace={WRONG: RIGHT}).count == 0
        for job_id in posted:
            job = service.http.await_job(job_id, 90, describe=service.dump)
            assert (job["status"], job["resource_completed"]) == ("completed", per_job), job
            assert {r["generation"] for r in service.http.resources(job_id, limit=30)} == {1}
        oracle.check(ratio=3.0)
        service.end()
