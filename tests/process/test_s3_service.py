"""A whole service on an object store: manifests, objects, readiness, and nothing that does not belong there."""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from tests.process.load import plain
from tests.process.object_stores import PART, S3, front, moto
from tests.process.origins import OriginProcess
from tests.process.service import Service
from tests.process.waiting import wait_for

BUCKETS = itertools.count()
PREFIX = "all/of it".replace(" ", "%20")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3]:
    with moto(tmp_path_factory.mktemp("s3")) as running:
        yield running


@pytest.fixture
def store(server: S3) -> S3:
    """The server with a bucket for this test."""
    return server.with_bucket(f"bucket-{next(BUCKETS)}")


def storage(store: S3, **options: Any) -> dict[str, Any]:
    """`[storage]` and `[fetch]` of a service on the store."""
    return {
        "storage": {"url": f"s3://{store.bucket}/{PREFIX}", **store.storage(**options)},
        "fetch": {
            "max_attempts": 6,
            "backoff_base": 0.05,
            "backoff_max": 0.2,
            "allow_networks": ["127.0.0.0/8"],
            "per_host_concurrency": 32,
        },
    }


def settled(service: Service, load: Any) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """A job posted and settled, with its outcomes."""
    job_id = str(service.http.post_until_acknowledged(load.body, load.key)[0]["job_id"])
    return service.http.await_job(job_id, 60, describe=service.dump), service.http.resources(job_id)


@pytest.mark.timeout(180)
def test_the_main_job_on_an_object_store(store: S3, tmp_path: Path, origin: OriginProcess) -> None:
    with Service(tmp_path / "service", storage(store)).start() as service:
        loads = [plain(origin.base_url, job, 40, size=3000) for job in range(3)]
        loads.append(plain(origin.base_url, 9, 3, size=2 * PART + 100))
        expected = set()
        for load in loads:
            job, outcomes = settled(service, load)
            assert (job["status"], job["resource_completed"]) == ("completed", len(outcomes))
            assert store.object(job["manifest_key"]).json() == json.loads(load.body)
            expected.add(job["manifest_key"])
            for outcome in outcomes:
                body = store.object(outcome["storage_url"]).content
                assert (len(body), hashlib.sha256(body).hexdigest()) == (outcome["size"], outcome["sha256"])
                expected.add(outcome["storage_url"])
            answer = service.http.http.get(f"/operators/jobs/{job['job_id']}/manifest")
            assert answer.json() == json.loads(load.body)
        # The same post again makes no second manifest.
        service.http.post_until_acknowledged(loads[0].body, loads[0].key)
        keys = {f"s3://{store.bucket}/" + key.replace(" ", "%20") for key in store.listed()}
        assert keys == expected, "manifests and objects and nothing else"
        assert store.uploads() == []
        service.end()


@pytest.mark.timeout(180)
def test_what_has_not_changed_is_copied_by_the_store(store: S3, tmp_path: Path, origin: OriginProcess) -> None:
    overrides = storage(store)
    overrides["fetch"]["reuse"] = True
    load = plain(origin.base_url, 0, 20, size=3000)
    large = plain(origin.base_url, 9, 2, size=2 * PART + 100)
    urls = set()
    with Service(tmp_path / "service", overrides).start() as service:
        for number, state in enumerate(("stored", "reused", "reused")):
            for posted in (load, large):
                job, outcomes = settled(service, replace(posted, key=f"{posted.key}-{number}"))
                assert {outcome["state"] for outcome in outcomes} == {state}, outcomes
                assert (job["status"], job["bytes_stored"] > 0) == ("completed", state == "stored")
                for wanted, outcome in zip(posted.resources, outcomes, strict=True):
                    assert outcome["storage_url"] not in urls, "every job has objects of its own"
                    urls.add(outcome["storage_url"])
                    body = store.object(outcome["storage_url"]).content
                    assert (len(body), hashlib.sha256(body).hexdigest()) == (outcome["size"], outcome["sha256"])
                    assert (outcome["size"], outcome["sha256"]) == (wanted.size, wanted.sha256)
        assert store.uploads() == []
        service.end()
        assert not service.assets.exists()


def test_case_10_the_stores_endpoint_is_refused_inside_allowed_networks(store: S3, tmp_path: Path, origin: OriginProcess) -> None:
    store.request("PUT", f"{store.bucket}/secret", b"not for crawlers")
    port = urlsplit(store.endpoint).port
    named = replace(store, endpoint=f"http://localhost:{port}")
    for number, spelled in enumerate((store, named)):
        with Service(tmp_path / f"service{number}", storage(spelled)).start() as service:
            urls = [f"http://{host}:{port}/{store.bucket}/secret" for host in ("127.0.0.1", "2130706433", "[::ffff:127.0.0.1]")]
            urls.append(f"{origin.base_url}/redirect-to?url=http://127.0.0.1:{port}/{store.bucket}/secret")
            manifest = {"manifest_version": "v1", "metadata": {}, "resources": [{"url": url} for url in urls]}
            response = service.http.post(json.dumps(manifest).encode())
            assert response.status_code == 202, response.text
            job_id = response.json()["job_id"]
            service.http.await_job(job_id, 30, describe=service.dump)
            codes = {outcome["url"]: outcome["code"] for outcome in service.http.resources(job_id)}
            assert codes == dict.fromkeys(urls, "DOWNLOAD_BLOCKED_ADDRESS")
            service.end()


@pytest.mark.timeout(180)
def test_case_40_a_failing_store_costs_attempts_and_nothing_else(store: S3, tmp_path: Path, origin: OriginProcess) -> None:
    with front(store) as through, Service(tmp_path / "service", storage(through.store())).start() as service:
        before = set(store.listed())
        load = plain(origin.base_url, 100, 30, size=2000)
        job_id = str(service.http.post_until_acknowledged(load.body, load.key)[0]["job_id"])
        through.faults = {"put": [(503, "SlowDown"), "lose", (500, "InternalError")] * 8}
        job = service.http.await_job(job_id, 60, describe=service.dump)
        assert (job["status"], job["resource_completed"], job["resource_total"]) == ("completed", 30, 30)
        for outcome in service.http.resources(job_id):
            body = store.object(outcome["storage_url"]).content
            assert hashlib.sha256(body).hexdigest() == outcome["sha256"]
        assert len(set(store.listed()) - before) == 31
        assert not through.faults["put"] or len(through.faults["put"]) < 24
        service.end()


@pytest.mark.timeout(180)
def test_case_41_a_store_that_denies_turns_readiness_red_until_it_lets_us_in(store: S3, tmp_path: Path, origin: OriginProcess) -> None:
    with front(store) as through, Service(tmp_path / "service", storage(through.store())).start() as service:
        through.always = {"put": (403, "AccessDenied")}
        load = plain(origin.base_url, 200, 2, size=100)
        response = service.http.post(load.body, key=load.key)
        assert response.status_code == 502, response.text
        assert response.json()["error"]["code"] == "STORAGE_UNAVAILABLE"
        assert "retry-after" in response.headers
        wait_for("readiness to turn red", lambda: service.http.status("/health/ready") == 503, 20, every=0.1, describe=service.dump)
        through.always = {}
        job, outcomes = settled(service, load)
        assert job["status"] == "completed"
        assert all(store.object(outcome["storage_url"]).status_code == 200 for outcome in outcomes)
        wait_for("readiness to turn green", lambda: service.http.status("/health/ready") == 200, 20, every=0.1, describe=service.dump)
        service.end()
