"""The curl transport in a whole service: its job types beside the native ones, cancelled jobs, and a worker that is killed."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from fetchbox.testing import content_sha256, running_origin
from tests.process.background import posting, sampling
from tests.process.bad_ftp import SIZE, BadFtp, bad_ftp
from tests.process.kills import strike
from tests.process.load import plain
from tests.process.oracle import Oracle
from tests.process.origins import OriginProcess
from tests.process.service import Service
from tests.process.waiting import wait_for

JOB_TYPES = {
    "files": {"transport": "curl", "fetch": {"read_timeout": 60}},
    "digest": {"transport": "curl", "auth": {"type": "digest", "username": "ann", "password": "top-s3cret"}, "fetch": {"max_attempts": 2}},
}
JOBS, PER_JOB, PACE = 6, 50, 150.0


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    with Service(tmp_path_factory.mktemp("curl") / "service", {"job_types": JOB_TYPES}).start() as running:
        yield running
        running.end()


@pytest.fixture
def ftp() -> Iterator[BadFtp]:
    with bad_ftp() as server:
        yield server


def post(service: Service, job_type: str, urls: list[str]) -> Any:
    body = {"manifest_version": "v1", "metadata": {}, "resources": [{"id": f"n{n}", "url": url} for n, url in enumerate(urls)]}
    return service.http.http.post("/jobs", json=body, headers={"x-fetchbox-job-type": job_type})


def settled(service: Service, job_type: str, urls: list[str]) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    posted = post(service, job_type, urls)
    assert posted.status_code == 202, posted.text
    job_id = posted.json()["job_id"]
    job = service.http.await_job(job_id, 60, describe=service.dump)
    return job, sorted(service.http.resources(job_id), key=lambda resource: int(resource["index"]))


def test_a_job_of_files_beside_a_mute_server(service: Service, ftp: BadFtp) -> None:
    with bad_ftp() as mute:
        waiting = post(service, "files", [f"ftp://127.0.0.1:{mute.port}/mute-{n}.bin" for n in range(3)]).json()["job_id"]
        wait_for("the mute server to be asked", lambda: mute.asked.total() > 0, 20, describe=service.dump)
        base = f"ftp://127.0.0.1:{ftp.port}"
        job, resources = settled(service, "files", [f"{base}/{name}.bin" for name in ("fine", "busy-1", "cut", "gone")])
        assert (job["status"], job["resource_completed"], job["resource_failed"]) == ("partial", 2, 2)
        assert [resource["state"] for resource in resources] == ["stored", "stored", "failed", "failed"]
        assert resources[0]["sha256"] == content_sha256(0, SIZE)
        assert resources[1]["attempts"] == 2
        assert [resource["code"] for resource in resources[2:]] == ["DOWNLOAD_TRUNCATED", "DOWNLOAD_HTTP_4XX"]
        letters = service.http.http.get("/operators/dlq", params={"job": job["job_id"]}).json()["entries"]
        assert sorted(letter["code"] for letter in letters) == ["DOWNLOAD_HTTP_4XX", "DOWNLOAD_TRUNCATED"]
        assert service.http.http.post(f"/operators/jobs/{waiting}/cancel").status_code == 200
        assert service.http.await_job(waiting, 30, describe=service.dump)["status"] == "cancelled"


def test_only_job_types_with_the_transport_take_file_urls(service: Service) -> None:
    for url in ("ftp://h.example/x", "FTPS://h.example/x", "sftp://h.example/x"):
        refused = post(service, "default", [url])
        assert refused.status_code == 400
        [detail] = refused.json()["error"]["details"]
        assert (detail["pointer"], detail["code"]) == ("/resources/0/url", "VALIDATION_BAD_SCHEME")
        assert 'transport = "curl"' in detail["message"]
    login = post(service, "files", ["ftp://ann:pw@h.example/x"])
    assert login.json()["error"]["details"][0]["code"] == "VALIDATION_USERINFO"
    assert post(service, "files", ["gopher://h.example/x"]).json()["error"]["details"][0]["code"] == "VALIDATION_BAD_SCHEME"


def test_digest_with_the_job_types_credentials(service: Service) -> None:
    with running_origin() as origin:
        urls = [origin.url(f"/auth/digest/ann/{password}/bytes/{n}?seed=1") for password in ("top-s3cret", "other") for n in (10, 200_000)]
        _, resources = settled(service, "digest", urls)
        assert [(resource["state"], resource["code"]) for resource in resources] == [
            ("stored", None),
            ("stored", None),
            ("failed", "AUTH_ORIGIN_REFUSED"),
            ("failed", "AUTH_ORIGIN_REFUSED"),
        ]
        assert resources[1]["sha256"] == content_sha256(1, 200_000)
    assert "top-s3cret" not in service.log_path.read_text(encoding="utf-8", errors="replace").replace("/auth/digest/ann/top-s3cret", "")


def test_cancelling_a_job_ends_its_transfers(service: Service, ftp: BadFtp) -> None:
    posted = post(service, "files", [f"ftp://127.0.0.1:{ftp.port}/stall.bin"])
    wait_for("the transfer to stall", ftp.stalled.is_set, 20, describe=service.dump)
    job_id = posted.json()["job_id"]
    assert service.http.http.post(f"/operators/jobs/{job_id}/cancel").status_code == 200
    assert ftp.left.wait(10), "the connection was not closed"
    assert service.http.await_job(job_id, 20, describe=service.dump)["status"] == "cancelled"


def test_a_worker_that_is_killed_loses_nothing(tmp_path: Path) -> None:
    overrides = {"job_types": {"default": {"transport": "curl"}}}
    with OriginProcess(tmp_path, pace=PACE) as origin, Service(tmp_path / "service", overrides).start() as service:
        oracle = Oracle(service.http, service.assets, origin.journal)
        loads = (plain(origin.base_url, job, PER_JOB) for job in range(JOBS))
        with posting(oracle, loads, ahead=4 * PER_JOB) as poster, sampling(oracle) as sampler:
            wait_for("a third of the requests", lambda: origin.journal.total >= JOBS * PER_JOB // 3, 30, describe=service.dump)
            strike(service, "worker")
            poster.join(60)
            sampler.raise_failure()
        oracle.await_settled(60)
        print(oracle.check())
        service.end()
