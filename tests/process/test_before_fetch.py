"""`before_fetch` in a whole service: a job type's own code in the worker, its failures accounted for like all others."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.process.origins import OriginProcess
from tests.process.service import Service
from tests.process.waiting import wait_for

HANDLERS = '''
import asyncio
import threading

import fetchbox


class Signing(fetchbox.Handler):
    """Signs, by what `options` and the task say; refuses and hangs where the id says so."""

    async def before_fetch(self, task):
        await asyncio.sleep(0)
        if task.id.startswith("refused"):
            raise fetchbox.HandlerError("no signature for this one", code="HANDLER_NO_KEY")
        if task.id.startswith("broken"):
            raise RuntimeError("with a secret that the client must not see")
        if task.id.startswith("greedy"):
            task.url = "http://elsewhere.example/"
        if task.id.startswith("unsendable"):
            task.headers["x-signature"] = "line\\nbreak"
        task.headers.pop("x-draft", None)
        task.headers["X-Signature"] = f"{self.options['key']}:{task.tags['kind']}:{task.id}"


class Plain(fetchbox.Handler):
    """The same without async, in a thread; one in it never comes back."""

    def before_fetch(self, task):
        if task.id == "hangs":
            threading.Event().wait()
        task.headers["x-thread"] = threading.current_thread().name


class AtIngestOnly(fetchbox.Handler):
    """Nothing for the workers."""
'''


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """A service whose job types have handlers of their own."""
    directory = tmp_path_factory.mktemp("before")
    (directory / "samples.py").write_text(HANDLERS, encoding="utf-8")
    job_types = {
        "signed": {"handler": "samples:Signing", "options": {"key": "k1"}},
        "plain": {"handler": "samples:Plain", "handler_timeout": 0.5, "fetch": {"max_attempts": 1}},
        "quiet": {"handler": "samples:AtIngestOnly"},
    }
    overrides = {"job_types": job_types}
    with Service(directory / "service", overrides, environment={"PYTHONPATH": str(directory)}).start() as running:
        yield running
        running.end()


def settled(service: Service, job_type: str, resources: list[dict[str, Any]]) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
    """A job posted and settled, with its outcomes by id."""
    body = {"manifest_version": "v1", "metadata": {}, "resources": resources}
    posted = service.http.http.post("/jobs", json=body, headers={"x-fetchbox-job-type": job_type})
    assert posted.status_code == 202, posted.text
    job_id = posted.json()["job_id"]
    job = service.http.await_job(job_id, 60, describe=service.dump)
    return job, {resource["id"]: resource for resource in service.http.resources(job_id)}


def echoed(resource: dict[str, Any]) -> dict[str, str]:
    """The headers that reached the origin, which answers with them."""
    assert resource["state"] == "stored", resource
    headers: dict[str, str] = json.loads(Path(resource["storage_url"].removeprefix("file://")).read_text())["headers"]
    return {name.lower(): value for name, value in headers.items()}


def test_the_headers_that_it_sets_are_sent(service: Service, origin: OriginProcess) -> None:
    resources = [
        {"id": f"n{number}", "url": f"{origin.base_url}/echo?n={number}", "tags": {"kind": "a"}, "headers": {"x-draft": "1", "x-kept": "2"}}
        for number in range(50)
    ]
    job, outcomes = settled(service, "signed", resources)
    assert (job["status"], job["resource_completed"]) == ("completed", 50)
    for number in range(50):
        sent = echoed(outcomes[f"n{number}"])
        assert (sent["x-signature"], sent["x-kept"]) == (f"k1:a:n{number}", "2")
        assert "x-draft" not in sent


def test_what_it_refuses_is_a_dead_letter_with_its_code_and_disturbs_nobody(service: Service, origin: OriginProcess) -> None:
    expected = {"refused": "HANDLER_NO_KEY", "broken": "HANDLER_ERROR", "greedy": "HANDLER_BAD_TASK", "unsendable": "HANDLER_BAD_TASK"}
    resources = [{"id": name, "url": f"{origin.base_url}/echo?of={name}", "tags": {"kind": "b"}} for name in [*expected, "fine"]]
    job, outcomes = settled(service, "signed", resources)
    assert (job["status"], job["resource_failed"], job["resource_completed"]) == ("partial", 4, 1)
    assert {name: outcomes[name]["code"] for name in expected} == expected
    assert all(outcomes[name]["attempts"] == 1 for name in expected)
    assert outcomes["refused"]["message"] == "no signature for this one"
    assert "secret" not in json.dumps(outcomes["broken"])
    assert echoed(outcomes["fine"])["x-signature"] == "k1:b:fine"
    letters = service.http.http.get("/operators/dlq", params={"job": job["job_id"]}).json()["entries"]
    assert {letter["resource_id"]: letter["code"] for letter in letters} == expected


def test_one_that_hangs_is_given_up_and_the_others_go_on(service: Service, origin: OriginProcess) -> None:
    names = ["hangs", *(f"n{number}" for number in range(20))]
    job, outcomes = settled(service, "plain", [{"id": name, "url": f"{origin.base_url}/echo?of={name}"} for name in names])
    assert (outcomes["hangs"]["state"], outcomes["hangs"]["code"]) == ("failed", "HANDLER_TIMEOUT")
    assert job["resource_completed"] == 20
    assert {echoed(outcomes[name])["x-thread"] for name in names[1:]} == {"fetchbox-handler"}


def test_a_handler_without_it_costs_the_worker_nothing(service: Service, origin: OriginProcess) -> None:
    job, outcomes = settled(service, "quiet", [{"id": "n", "url": f"{origin.base_url}/echo"}])
    assert job["status"] == "completed"
    assert "x-signature" not in echoed(outcomes["n"])


def test_a_worker_that_dies_meanwhile_loses_nothing(service: Service, origin: OriginProcess) -> None:
    resources = [{"id": f"n{number}", "url": f"{origin.base_url}/echo?d={number}", "tags": {"kind": "d"}} for number in range(300)]
    body = {"manifest_version": "v1", "metadata": {}, "resources": resources}
    job_id = service.http.http.post("/jobs", json=body, headers={"x-fetchbox-job-type": "signed"}).json()["job_id"]
    wait_for("work to begin", lambda: service.http.job(job_id)["resource_completed"] > 0, 30, describe=service.dump)
    service.kill_one("worker")
    job = service.http.await_job(job_id, 60, describe=service.dump)
    assert (job["status"], job["resource_completed"]) == ("completed", 300)
