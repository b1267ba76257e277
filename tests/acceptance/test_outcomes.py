"""What becomes of resources that cannot be had, of jobs that are cancelled, and of addresses that are forbidden."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.acceptance.brokers import service_on
from tests.process.client import Json
from tests.process.load import Wanted, content_of, of
from tests.process.oracle import check_outcome, conserved
from tests.process.origins import OriginProcess
from tests.process.service import Service
from tests.process.waiting import wait_for

FAST_RETRIES = {"fetch": {"max_attempts": 3, "backoff_base": 0.02, "backoff_max": 0.1}}


@pytest.fixture(scope="module")
def service(broker: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """A service that gives up after three attempts, a few hundredths of a second apart."""
    with service_on(broker, tmp_path_factory.mktemp("service"), FAST_RETRIES) as running:
        yield running


def good(number: int) -> Wanted:
    """A resource that is stored."""
    seed, size = content_of(number, 0)
    return Wanted(id=f"good-{number}", target=f"/bytes/{size}?seed={seed}&good={number}", size=size, seed=seed)


def failing(status: int, code: str) -> Wanted:
    """A resource that fails with an HTTP status."""
    return Wanted(id=f"status-{status}", target=f"/status/{status}", state="failed", code=code)


def flaky(number: int, failures: int, status: int = 503) -> Wanted:
    """A resource whose first requests fail."""
    seed, size = content_of(number, 1)
    target = f"/flaky/{failures}/bytes/{size}?seed={seed}&id=flaky-{number}&status={status}"
    return Wanted(id=f"flaky-{number}", target=target, size=size, seed=seed)


def run(service: Service, origin: str, key: str, wanted: list[Wanted]) -> tuple[Json, list[Json]]:
    """Posts a job, waits until it is settled, holds each outcome against what was wanted; the job and its outcomes."""
    load = of(origin, key, wanted)
    job_id = str(service.http.post_until_acknowledged(load.body, key)[0]["job_id"])
    job = service.http.await_job(job_id, 45, describe=service.dump)
    conserved(job)
    outcomes = service.http.resources(job_id)
    for one, outcome in zip(wanted, outcomes, strict=True):
        check_outcome(one, outcome)
    return job, outcomes


def test_some_failed_is_partial_with_the_code_of_each(service: Service, origin: OriginProcess) -> None:
    bad = [failing(404, "DOWNLOAD_HTTP_4XX"), failing(410, "DOWNLOAD_HTTP_4XX"), failing(500, "DOWNLOAD_HTTP_5XX")]
    job, outcomes = run(service, origin.base_url, "partial", [good(1), *bad, good(2)])
    assert (job["status"], job["resource_completed"], job["resource_failed"]) == ("partial", 2, 3)
    assert job["last_error"]["code"] in {one.code for one in bad}
    assert [outcome["http_status"] for outcome in outcomes] == [200, 404, 410, 500, 200]
    assert [outcome["attempts"] for outcome in outcomes] == [1, 1, 1, 3, 1], "4xx is final, 500 is tried max_attempts times"
    assert not any(outcome["storage_url"] for outcome in outcomes[1:4])
    assert [origin.journal.count(one.target) for one in bad] == [1, 1, 3]


def test_all_failed_is_failed_and_all_good_is_completed(service: Service, origin: OriginProcess) -> None:
    job, _ = run(service, origin.base_url, "failed", [failing(403, "DOWNLOAD_HTTP_4XX"), failing(451, "DOWNLOAD_HTTP_4XX")])
    assert (job["status"], job["resource_failed"]) == ("failed", 2)
    job, _ = run(service, origin.base_url, "completed", [good(3), good(4)])
    assert (job["status"], job["last_error"]) == ("completed", None)
    assert job["finished_at"] is not None


def test_what_fails_twice_succeeds_the_third_time(service: Service, origin: OriginProcess) -> None:
    wanted = [flaky(1, 2), good(5), flaky(2, 1, 500), good(6), flaky(3, 2, 502)]
    job, outcomes = run(service, origin.base_url, "flaky", wanted)
    assert job["status"] == "completed"
    assert [outcome["attempts"] for outcome in outcomes] == [3, 1, 2, 1, 3]
    assert [origin.journal.count(one.target) for one in wanted] == [3, 1, 2, 1, 3]


def test_what_fails_too_often_fails_for_good(service: Service, origin: OriginProcess) -> None:
    one = flaky(4, 3)
    hopeless = Wanted(id=one.id, target=one.target, state="failed", code="DOWNLOAD_HTTP_5XX")
    job, outcomes = run(service, origin.base_url, "too flaky", [hopeless])
    assert (job["status"], outcomes[0]["attempts"], origin.journal.count(one.target)) == ("failed", 3, 3)


def test_a_body_that_ends_early_is_never_stored(service: Service, origin: OriginProcess) -> None:
    cut = Wanted(id="cut", target="/hostile/truncated?n=100000", state="failed", code="DOWNLOAD_TRUNCATED")
    job, outcomes = run(service, origin.base_url, "truncated", [cut, good(7)])
    assert job["status"] == "partial"
    files = [path for path in service.assets.rglob("*") if path.is_file() and job["job_id"] in str(path)]
    assert len(files) == 2, f"the good one and the manifest: {files}"
    assert outcomes[0]["attempts"] == 3


# ---- cancelling -----------------------------------------------------------------------------------------------------------------


def test_cancelling_takes_what_is_pending_and_keeps_what_is_stored(service: Service, origin: OriginProcess) -> None:
    slow = [Wanted(id=f"slow-{n}", target=f"/delay/120/bytes/1000?slow={n}", state="cancelled") for n in range(20)]
    load = of(origin.base_url, "cancelled", [good(8), *slow])
    job_id = str(service.http.post_until_acknowledged(load.body, load.key)[0]["job_id"])
    wait_for("the good one", lambda: service.http.job(job_id)["resource_completed"] == 1, 20, describe=service.dump)
    wait_for("the slow ones to be asked for", lambda: origin.journal.count(slow[0].target) == 1, 20, describe=service.dump)
    answer = service.http.http.post(f"/operators/jobs/{job_id}/cancel")
    assert answer.status_code == 200
    job = service.http.job(job_id)
    conserved(job)
    assert (job["status"], job["resource_completed"], job["resource_cancelled"], job["resource_pending"]) == ("cancelled", 1, 20, 0)
    for one, outcome in zip(load.resources, service.http.resources(job_id), strict=True):
        check_outcome(one, outcome)
    assert service.http.http.post(f"/operators/jobs/{job_id}/cancel").json()["status"] == "cancelled", "cancelling twice is no error"
    # The slots of the cancelled downloads are free again: others need not wait two minutes for them.
    run(service, origin.base_url, "after the cancelled one", [good(n) for n in range(20, 80)])
    assert service.http.job(job_id) == job, "nothing that came late changed it"


def test_a_settled_job_cannot_be_cancelled(service: Service, origin: OriginProcess) -> None:
    job, _ = run(service, origin.base_url, "settled", [good(9)])
    service.http.http.post(f"/jobs/{job['job_id']}/cancel")
    assert service.http.job(job["job_id"]) == job


def test_a_job_that_is_not_there_is_404(service: Service) -> None:
    for path in ("", "/resources", "/logs"):
        for root in ("/jobs", "/operators/jobs"):
            response = service.http.http.get(f"{root}/0192f0c1-0000-7000-8000-000000000000{path}")
            assert (response.status_code, response.json()["error"]["code"]) == (404, "NOT_FOUND")
    assert service.http.http.post("/jobs/0192f0c1-0000-7000-8000-000000000000/cancel").status_code == 404


# ---- forbidden addresses --------------------------------------------------------------------------------------------------------


def test_only_the_allowed_network_is_connected_to(tmp_path: Path) -> None:
    """127.0.0.2 is allowed, its neighbour 127.0.0.3 is not: directly, by another spelling, and by a redirect. No request gets there."""
    narrow = {"fetch": {**FAST_RETRIES["fetch"], "allow_networks": ["127.0.0.2/32"]}}
    allowed_origin = OriginProcess(tmp_path, host="127.0.0.2", name="allowed")
    forbidden_origin = OriginProcess(tmp_path, host="127.0.0.3", name="forbidden")
    with allowed_origin as allowed, forbidden_origin as forbidden, Service(tmp_path / "service", narrow).start() as service:
        port = forbidden.port
        spellings = [f"http://{host}:{port}/bytes/10" for host in ("127.0.0.3", "0x7f000003", "127.3", "2130706435", "[::ffff:127.0.0.3]")]
        refused_early = []
        wanted = [good(1)]
        for number, url in enumerate(spellings):
            blocked = Wanted(id=f"blocked-{number}", target=url, state="failed", code="DOWNLOAD_BLOCKED_ADDRESS")
            # What the text alone gives away may be refused at ingest.
            if service.http.post(of(allowed.base_url, f"probe-{number}", [blocked]).body).status_code == 400:
                refused_early.append(url)
            else:
                wanted.append(blocked)
        redirect = f"/redirect-to?url=http://127.0.0.3:{port}/bytes/10"
        wanted.append(Wanted(id="redirect", target=redirect, state="failed", code="DOWNLOAD_BLOCKED_ADDRESS"))
        own = Wanted(id="own", target=f"{service.url}/health/live", state="failed", code="DOWNLOAD_BLOCKED_ADDRESS")
        job, outcomes = run(service, allowed.base_url, "blocked", [*wanted, own])
        assert (job["status"], job["resource_completed"]) == ("partial", 1)
        assert all(outcome["attempts"] <= 1 for outcome in outcomes), "forbidden is final"
        assert len(refused_early) + len(wanted) == len(spellings) + 2
        assert forbidden.journal.total == 0, "no request may get there"
        service.end()
