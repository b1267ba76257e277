"""`fetchbox streams` and direct producers, on the hub's own streams and on a real Iggy server."""

from __future__ import annotations

import json
import subprocess
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from fetchbox.testing import free_port
from tests.process.iggy import SERVER, SKIPPED, iggy_server
from tests.process.load import plain
from tests.process.origins import OriginProcess
from tests.process.service import Service, clean_environment, command
from tests.process.waiting import wait_for

pytestmark = pytest.mark.timeout(180)

TOPICS = ["jobs.tasks", "jobs.retry", "jobs.status", "jobs.logs", "jobs.dlq", "jobs.events"]


@pytest.fixture(params=["embedded", "iggy"])
def service(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Service]:
    """A service on either broker, whose open jobs end after a second of silence."""
    settings: dict[str, Any] = {"tasks": {"partitions": 4}, "ledger": {"direct_idle": 1}}
    if request.param == "embedded":
        with Service(tmp_path / "service", settings).start() as running:
            yield running
            running.end()
        return
    if SERVER is None:
        pytest.skip(SKIPPED)
    with iggy_server(tmp_path / "iggy") as server, Service(tmp_path / "service", {**settings, "broker": {"url": server.url}}) as running:
        running.start()
        yield running
        running.end()


@pytest.fixture
def origin(tmp_path: Path) -> Iterator[OriginProcess]:
    with OriginProcess(tmp_path) as process:
        yield process


def streams(service: Service, *arguments: str, status: int = 0) -> list[dict[str, Any]]:
    """The JSON lines of a command."""
    line = command("--config", str(service.config_path), "streams", *arguments, "--json")
    done = subprocess.run(line, capture_output=True, text=True, timeout=60, env=clean_environment(), check=False)
    assert done.returncode == status, done.stderr
    return [json.loads(text) for text in done.stdout.splitlines()]


def test_topics_are_made_shown_and_looked_into(service: Service, origin: OriginProcess) -> None:
    made = streams(service, "provision")
    assert [(one["topic"], one["state"]) for one in made] == [(topic, "as wanted") for topic in TOPICS]
    answer, _ = service.http.post_until_acknowledged(plain(origin.base_url, 1, 5).body, "key")
    service.http.await_job(answer["job_id"], 30)
    shown = {one["topic"]: one for one in streams(service, "show")}
    assert sum(shown["jobs.tasks"]["ends"]) == 5
    assert len(shown["jobs.tasks"]["ends"]) == 4
    wait_for("no lag", lambda: all(g["lag"] == 0 for one in streams(service, "show") for g in one["groups"]), 30)
    tasks = [line["message"] for line in streams(service, "tail", "jobs.tasks")]
    assert [task["resource_id"] for task in tasks] == [f"r{index}" for index in range(5)]
    assert all(header["value"] == "********" for task in tasks for header in task.get("headers", []))
    events = [line["message"] for line in streams(service, "tail", "jobs.events")]
    assert [(event["job_id"], event["state"]) for event in events] == [(answer["job_id"], "JOB_STATE_COMPLETED")]
    assert streams(service, "tail", "jobs.none", status=2) == []


def test_a_direct_job_that_says_how_large_it_is_is_counted_like_any(service: Service, origin: OriginProcess) -> None:
    urls = [origin.url(f"/bytes/{size}") for size in (10, 20, 30)] + [origin.url("/status/404")]
    (told,) = streams(service, "publish", *urls, "--tenant", "crawler")
    job_id = told["job_id"]
    job = wait_for("the job", lambda: service.http.status(f"/operators/jobs/{job_id}") == 200 and service.http.job(job_id), 30)
    job = service.http.await_job(job_id, 30)
    assert (job["origin"], job["tenant"], job["manifest_key"]) == ("direct", "crawler", None)
    assert (job["status"], job["resource_total"], job["resource_completed"], job["resource_failed"]) == ("partial", 4, 3, 1)
    assert [resource["url"] for resource in service.http.resources(job_id)] == urls
    lines = service.http.http.get(f"/operators/jobs/{job_id}/logs", headers={"accept": "application/x-ndjson"}).text
    assert json.loads(lines.splitlines()[-1])["message"] == "settled"


def test_an_open_direct_job_has_as_many_resources_as_were_seen(service: Service, origin: OriginProcess) -> None:
    job_id = str(uuid.uuid4())
    first = [origin.url(f"/bytes/{size}") for size in (10, 20)]
    streams(service, "publish", *first, "--job", job_id, "--no-total")
    wait_for("it to end by itself", lambda: settled(service, job_id) == 2, 30, every=0.1)
    # What comes after a silence opens it again; what came before counts once.
    streams(service, "publish", first[0], origin.url("/bytes/30"), "--job", job_id, "--no-total")
    wait_for("it to end again", lambda: settled(service, job_id) == 3, 30, every=0.1)
    streams(service, "publish", "--job", job_id, "--no-total", "--close")
    job = service.http.await_job(job_id, 30)
    assert (job["status"], job["resource_total"], job["resource_completed"]) == ("completed", 3, 3)


def settled(service: Service, job_id: str) -> int | None:
    """How many resources a job has, once it is settled."""
    if service.http.status(f"/operators/jobs/{job_id}") != 200:
        return None
    job = service.http.job(job_id)
    return job["resource_total"] if job["finished_at"] else None


def test_what_is_no_task_goes_to_the_dead_letters_and_stops_nobody(service: Service, origin: OriginProcess) -> None:
    good = plain(origin.base_url, 1, 3)
    streams(service, "publish", origin.url("/bytes/1"), "--job", "no-uuid")
    answer, _ = service.http.post_until_acknowledged(good.body, "key")
    assert service.http.await_job(answer["job_id"], 30)["status"] == "completed"
    letters = wait_for("a dead letter", lambda: streams(service, "tail", "jobs.dlq"), 30)
    assert [letter["message"]["failure_code"] for letter in letters] == ["VALIDATION_BAD_TASK"]


def test_a_direct_task_does_not_speak_for_a_posted_job(service: Service, origin: OriginProcess) -> None:
    answer, _ = service.http.post_until_acknowledged(plain(origin.base_url, 1, 3).body, "key")
    before = service.http.await_job(answer["job_id"], 30)
    streams(service, "publish", origin.url("/status/404"), "--job", answer["job_id"], "--no-total")
    letters = wait_for("a dead letter", lambda: streams(service, "tail", "jobs.dlq"), 30)
    assert len(letters) == 1
    assert service.http.job(answer["job_id"]) == before
    assert len(service.http.resources(answer["job_id"])) == 3


def test_a_server_that_is_not_there_is_said_in_one_line(tmp_path: Path) -> None:
    config = tmp_path / "fetchbox.toml"
    config.write_text(f'data_dir = "{tmp_path}"\n[broker]\nurl = "iggy://user:secret@127.0.0.1:{free_port()}"\n', encoding="utf-8")
    line = command("--config", str(config), "streams", "provision")
    done = subprocess.run(line, capture_output=True, text=True, timeout=60, env=clean_environment(), check=False)
    assert (done.returncode, len(done.stderr.splitlines())) == (1, 1)
    assert "secret" not in done.stderr
