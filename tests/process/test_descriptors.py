"""Processes that may open no more files: jobs are refused, readiness is red, and all goes on when there are descriptors again."""

from __future__ import annotations

import re
import resource
from pathlib import Path

import httpx
import pytest

from tests.process.faults import limited, open_files
from tests.process.load import plain
from tests.process.oracle import Oracle
from tests.process.origins import OriginProcess
from tests.process.service import Service
from tests.process.waiting import wait_for


def test_a_hub_short_of_descriptors_means_503_until_it_has_some(tmp_path: Path, origin: OriginProcess) -> None:
    with Service(tmp_path / "service").start() as service:
        oracle = Oracle(service.http, service.assets, origin.journal)
        oracle.post(plain(origin.base_url, 0, 20))
        hub = service.a_process("hub")
        late = plain(origin.base_url, 1, 20)
        with limited(hub, resource.RLIMIT_NOFILE, open_files(hub) + 2):
            wait_for("readiness to turn red", lambda: service.http.status("/health/ready") == 503, 10, every=0.05, describe=service.dump)
            assert service.http.status("/operators/health") == 503
            assert not service.all_ready()
            response = service.http.post(late.body, key=late.key, headers=late.headers)
            assert (response.status_code, response.json()["error"]["code"]) == (503, "HUB_UNAVAILABLE"), response.text
            assert "retry-after" in response.headers
            # What was accepted before goes on.
            oracle.await_settled(30)
        service.wait_ready(10)
        assert service.all_ready()
        oracle.post(late)
        oracle.await_settled(30)
        oracle.check()
        assert hub.alive
        service.end()


def retries(service: Service, code: str) -> int:
    """How often the worker tried again because of a code."""
    text = httpx.get(service.metrics_url + "/metrics", trust_env=False).text
    pattern = rf'^fetchbox_worker_download_retries_total{{[^}}]*code="{code}"[^}}]*}} (\S+)$'
    return sum(int(float(value)) for value in re.findall(pattern, text, re.MULTILINE))


@pytest.mark.timeout(120)
def test_tasks_outlast_a_worker_without_descriptors(tmp_path: Path, origin: OriginProcess) -> None:
    tasks = 40
    with Service(tmp_path / "service").start() as service:
        oracle = Oracle(service.http, service.assets, origin.journal)
        # Whoever has to start without descriptors cannot.
        wait_for("every process to be ready", service.all_ready, 30, every=0.1, describe=service.dump)
        worker = service.a_process("worker")
        with limited(worker, resource.RLIMIT_NOFILE, open_files(worker)):
            job_id = oracle.post(plain(origin.base_url, 0, tasks))
            # Seven attempts each are more than the five that a task has.
            wait_for(
                "tasks to have been tried more often than others may be",
                lambda: retries(service, "SYSTEM_RESOURCES") >= 7 * tasks or service.http.job(job_id)["resource_failed"],
                60,
                every=0.1,
                describe=service.dump,
            )
            assert not service.all_ready()
            job = service.http.job(job_id)
            assert job["resource_failed"] == 0, f"a worker without descriptors is no task's failure: {job}"
        oracle.await_settled(60)
        assert service.http.job(job_id)["status"] == "completed"
        assert worker.alive
        oracle.check(ratio=20)
        service.end()


@pytest.mark.timeout(120)
def test_an_api_without_descriptors_serves_who_is_connected_and_heals(tmp_path: Path, origin: OriginProcess) -> None:
    with Service(tmp_path / "service").start() as service:
        oracle = Oracle(service.http, service.assets, origin.journal)
        oracle.post(plain(origin.base_url, 0, 5))
        wait_for("every process to be ready", service.all_ready, 30, every=0.1, describe=service.dump)
        api = service.a_process("api")
        with limited(api, resource.RLIMIT_NOFILE, 3):
            wait_for("the node's readiness to turn red", lambda: not service.all_ready(), 10, every=0.05, describe=service.dump)
            # This client has its connection already.
            oracle.post(plain(origin.base_url, 1, 5))
            for _ in range(3):
                with pytest.raises(httpx.TransportError):
                    httpx.get(service.url + "/health/live", timeout=0.5, trust_env=False)
        wait_for("the node's readiness to turn green", service.all_ready, 20, every=0.1, describe=service.dump)
        assert httpx.get(service.url + "/health/live", timeout=5, trust_env=False).status_code == 200
        assert api.alive
        oracle.await_settled(30)
        oracle.check()
        service.end()
