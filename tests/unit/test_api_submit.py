"""POST /jobs: what is accepted, and every refusal by name."""

from __future__ import annotations

import gzip
import json
import uuid
from collections.abc import AsyncIterator

import httpx
import pytest
from tests.unit.api_fakes import Ingress, error_code, manifest

from fetchbox.errors import HubUnavailable, Refused


@pytest.fixture
def ingress() -> Ingress:
    return Ingress()


async def test_a_new_job_is_answered_202_with_its_location(ingress: Ingress) -> None:
    response = await ingress.post(manifest(3))
    answer = response.json()
    assert response.status_code == 202
    assert uuid.UUID(answer["job_id"]).version == 7
    assert answer["resource_count"] == 3
    assert answer["manifest_key"] == f"file:///tmp/fetchbox-test/assets/manifests/default/{answer['job_id']}/manifest.json"
    assert response.headers["location"] == f"/jobs/{answer['job_id']}"
    assert response.headers["x-request-id"]


async def test_the_hub_gets_facts_tasks_and_the_very_bytes(ingress: Ingress) -> None:
    body = json.dumps(manifest(2, attributes={"crawl_id": "c-7", "priority": 3})).encode()
    job_id = (await ingress.post(body)).json()["job_id"]
    job = ingress.hub.jobs[job_id]
    assert job["manifest"] == body
    facts = job["facts"]
    assert (facts["crawl_id"], facts["priority"], facts["tenant"], facts["job_type"]) == ("c-7", 3, "default", "default")
    assert facts["reservation"] is None
    assert facts["rate_limit"] == {"per_second": 50.0, "burst": 50}
    context = job["tasks"].context
    assert context["job_id"] == job_id
    assert context["partitions"] == 64
    assert len(context["trace_id"]) == 32
    assert context["traceparent"].split("-")[1] == context["trace_id"]


async def test_the_partitions_of_the_topic_win_over_the_configuration(ingress: Ingress) -> None:
    ingress.hub.answers["topics"] = [
        {"topics": [{"topic": "jobs.logs", "partitions": []}, {"topic": "jobs.tasks", "partitions": [{}] * 8}]}
    ]
    await ingress.app.state.service.learn_partitions()
    await ingress.post()
    assert ingress.core.contexts[-1]["partitions"] == 8


async def test_a_traceparent_is_passed_on(ingress: Ingress) -> None:
    parent = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
    await ingress.post(traceparent=parent)
    assert ingress.core.contexts[-1]["traceparent"] == parent
    assert ingress.core.contexts[-1]["trace_id"] == "4bf92f3577b34da6a3ce929d0e0e4736"


@pytest.mark.parametrize(
    "bad",
    ["nonsense", "00-00000000000000000000000000000000-00f067aa0ba902b7-01", "ff-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"],
)
async def test_a_malformed_traceparent_is_replaced(ingress: Ingress, bad: str) -> None:
    assert (await ingress.post(traceparent=bad)).status_code == 202
    assert ingress.core.contexts[-1]["traceparent"] != bad


async def test_the_same_key_and_body_give_the_same_job_with_200(ingress: Ingress) -> None:
    first = await ingress.post(X_Fetchbox_Idempotency_Key="k1")
    second = await ingress.post(Idempotency_Key="k1")
    assert (first.status_code, second.status_code) == (202, 200)
    assert first.json() == second.json()
    assert len(ingress.hub.jobs) == 1


async def test_the_body_of_a_key_is_compared_decompressed(ingress: Ingress) -> None:
    body = json.dumps(manifest()).encode()
    first = await ingress.post(body, Idempotency_Key="k1")
    second = await ingress.post(gzip.compress(body), Idempotency_Key="k1", Content_Encoding="gzip")
    assert second.status_code == 200
    assert second.json() == first.json()


async def test_the_same_key_with_another_body_is_409_with_the_job(ingress: Ingress) -> None:
    first = await ingress.post(manifest(1), Idempotency_Key="k1")
    second = await ingress.post(manifest(2), Idempotency_Key="k1")
    assert second.status_code == 409
    assert error_code(second) == "IDEMPOTENCY_CONFLICT"
    assert second.json()["error"]["job_id"] == first.json()["job_id"]


async def test_the_same_key_of_two_tenants_is_two_jobs(ingress: Ingress) -> None:
    for tenant in ("a", "b"):
        assert (await ingress.post(Idempotency_Key="k1", X_Fetchbox_Tenant=tenant)).status_code == 202


@pytest.mark.parametrize("key", ["", "x" * 256, "a\tb"])
async def test_an_unusable_idempotency_key_is_400(ingress: Ingress, key: str) -> None:
    response = await ingress.post(Idempotency_Key=key)
    assert response.status_code == 400
    assert error_code(response) == "INVALID_PAYLOAD"


async def test_two_different_idempotency_keys_are_400(ingress: Ingress) -> None:
    response = await ingress.post(Idempotency_Key="a", X_Fetchbox_Idempotency_Key="b")
    assert (response.status_code, error_code(response)) == (400, "INVALID_PAYLOAD")


async def test_an_invalid_manifest_is_400_with_pointers(ingress: Ingress) -> None:
    response = await ingress.post(manifest(0))
    assert (response.status_code, error_code(response)) == (400, "INVALID_PAYLOAD")
    assert response.json()["error"]["details"][0]["pointer"] == "/resources"
    assert ingress.hub.calls == []


async def test_a_large_manifest_is_compiled_too(ingress: Ingress) -> None:
    response = await ingress.post(manifest(1000, metadata={"text": "x" * 200_000}), Idempotency_Key="big")
    assert (response.status_code, response.json()["resource_count"]) == (202, 1000)


async def test_a_large_invalid_manifest_is_400(ingress: Ingress) -> None:
    response = await ingress.post(manifest(0, metadata={"text": "x" * 200_000}))
    assert (response.status_code, error_code(response)) == (400, "INVALID_PAYLOAD")


@pytest.mark.parametrize(
    "value", [None, "text/plain", "application/x-www-form-urlencoded", "application/json; charset=latin-1", "application/jsonx"]
)
async def test_another_content_type_is_415(ingress: Ingress, value: str | None) -> None:
    headers = {} if value is None else {"content-type": value}
    response = await ingress.client.post("/jobs", content=b"{}", headers=headers)
    assert (response.status_code, error_code(response)) == (415, "UNSUPPORTED_MEDIA_TYPE")


@pytest.mark.parametrize(
    "value", ["application/json", "Application/JSON", "application/json; charset=utf-8", 'application/json;charset="UTF-8"']
)
async def test_json_in_utf8_is_accepted_in_any_spelling(ingress: Ingress, value: str) -> None:
    assert (await ingress.post(content_type=value)).status_code == 202


async def test_an_unknown_content_encoding_is_415(ingress: Ingress) -> None:
    response = await ingress.post(Content_Encoding="br")
    assert (response.status_code, error_code(response)) == (415, "UNSUPPORTED_MEDIA_TYPE")
    assert response.headers["accept-encoding"] == "gzip, zstd"


async def test_an_unconfigured_job_type_is_403(ingress: Ingress) -> None:
    response = await ingress.post(X_Fetchbox_Job_Type="gallery")
    assert (response.status_code, error_code(response)) == (403, "UNSUPPORTED_JOB_TYPE")


async def test_a_job_type_is_for_its_tenants_alone() -> None:
    tokens = {"token-a": "a", "token-b": "b"}
    ingress = Ingress(server={"api_tokens": tokens}, job_types={"archive": {"tenants": ["a"]}, "default": {"tenants": ["b"]}})

    async def post(token: str, **headers: str) -> httpx.Response:
        return await ingress.post(Authorization=f"Bearer {token}", **headers)

    assert (await post("token-a", X_Fetchbox_Job_Type="archive")).status_code == 202
    assert (await post("token-b")).status_code == 202
    for refused in (await post("token-b", X_Fetchbox_Job_Type="archive"), await post("token-a")):
        assert (refused.status_code, error_code(refused)) == (403, "FORBIDDEN")
        assert "tenants" in refused.json()["error"]["message"]
    # Neither says more than what is so: whoever has no token is told that first.
    assert (await ingress.post(X_Fetchbox_Job_Type="archive")).status_code == 401
    assert len(ingress.hub.called("accept")) == 2


async def test_a_configured_job_type_brings_its_hints() -> None:
    ingress = Ingress(
        job_types={"pdf": {"proxy": {"primary": "dc"}, "storage": {"bucket": "b2", "metadata": {"k": "v"}}}},
        proxy={"pools": {"dc": {"endpoints": ["http://127.0.0.1:1"]}}},
    )
    response = await ingress.post(X_Fetchbox_Job_Type="pdf")
    assert response.status_code == 202
    context = ingress.core.contexts[-1]
    assert context["job_type"] == "pdf"
    assert context["proxy"] == {"primary": "dc", "fallbacks": []}
    assert context["storage"]["bucket"] == "b2"
    assert "/manifests/pdf/" in response.json()["manifest_key"]


async def test_a_declared_length_over_the_limit_is_413_unread() -> None:
    ingress = Ingress(server={"max_manifest_bytes": 1000})

    read = False

    async def never() -> AsyncIterator[bytes]:
        nonlocal read
        read = True
        yield b"x" * 1001

    headers = {"content-type": "application/json", "content-length": "1001"}
    response = await ingress.client.post("/jobs", content=never(), headers=headers)
    assert (response.status_code, error_code(response)) == (413, "PAYLOAD_TOO_LARGE")


async def test_a_streamed_body_over_the_limit_is_413_as_soon_as_it_is() -> None:
    ingress = Ingress(server={"max_manifest_bytes": 1000})
    sent = 0

    async def chunks() -> AsyncIterator[bytes]:
        nonlocal sent
        for _ in range(50):
            sent += 1
            yield b"x" * 100

    response = await ingress.client.post("/jobs", content=chunks(), headers={"content-type": "application/json"})
    assert (response.status_code, error_code(response)) == (413, "PAYLOAD_TOO_LARGE")


async def test_a_body_of_exactly_the_limit_is_accepted() -> None:
    body = json.dumps(manifest()).encode()
    ingress = Ingress(server={"max_manifest_bytes": len(body)})
    assert (await ingress.post(body)).status_code == 202
    assert (await ingress.post(body + b" ")).status_code == 413


async def test_a_rate_limit_is_429_with_retry_after(ingress: Ingress) -> None:
    ingress.hub.fail("accept", Refused("RATE_LIMITED", "slow down", retry_after=0.2))
    response = await ingress.post()
    assert (response.status_code, error_code(response), response.headers["retry-after"]) == (429, "RATE_LIMITED", "1")


@pytest.mark.parametrize(
    ("error", "status", "code"),
    [
        (HubUnavailable("away"), 503, "HUB_UNAVAILABLE"),
        (Refused("BROKER_UNAVAILABLE", "the outbox is full"), 503, "BROKER_UNAVAILABLE"),
        (Refused("LEDGER_FULL", "the ledger is full"), 503, "LEDGER_FULL"),
        (Refused("STORAGE_UNAVAILABLE", "no store"), 502, "STORAGE_UNAVAILABLE"),
        (Refused("SOMETHING_NEW", "what is this"), 500, "INTERNAL_ERROR"),
    ],
)
async def test_what_the_hub_cannot_do_is_answered_with_retry_after(ingress: Ingress, error: Exception, status: int, code: str) -> None:
    ingress.hub.fail("accept", error)
    response = await ingress.post()
    assert (response.status_code, error_code(response)) == (status, code)
    assert int(response.headers["retry-after"]) >= 1
    assert ingress.hub.jobs == {}


async def test_an_unforeseen_failure_is_500_and_names_nothing(ingress: Ingress) -> None:
    ingress.hub.fail("accept", ZeroDivisionError("secret detail"))
    response = await ingress.post()
    assert (response.status_code, error_code(response)) == (500, "INTERNAL_ERROR")
    assert "secret" not in response.text


async def test_attributes_may_name_the_tenant_when_nothing_else_does(ingress: Ingress) -> None:
    job_id = (await ingress.post(manifest(attributes={"tenant": "acme"}))).json()["job_id"]
    assert ingress.hub.jobs[job_id]["facts"]["tenant"] == "acme"
    assert ingress.hub.jobs[job_id]["tasks"].context["tenant"] == "acme"


async def test_attributes_that_contradict_the_header_are_403(ingress: Ingress) -> None:
    response = await ingress.post(manifest(attributes={"tenant": "acme"}), X_Fetchbox_Tenant="other")
    assert (response.status_code, error_code(response)) == (403, "FORBIDDEN")


@pytest.mark.parametrize("tenant", ["", "x" * 129, "a\x7fb"])
async def test_an_unusable_tenant_is_400(ingress: Ingress, tenant: str) -> None:
    response = await ingress.post(X_Fetchbox_Tenant=tenant)
    assert (response.status_code, error_code(response)) == (400, "INVALID_PAYLOAD")


async def test_counters_tell_what_became_of_posts(ingress: Ingress) -> None:
    await ingress.post(manifest(4), Idempotency_Key="k")
    await ingress.post(manifest(4), Idempotency_Key="k")
    await ingress.post(manifest(0))
    text = ingress.app.state.service.metrics.render()
    assert 'fetchbox_ingest_jobs_total{result="accepted"} 1.0' in text
    assert 'fetchbox_ingest_jobs_total{result="duplicate"} 1.0' in text
    assert 'fetchbox_ingest_jobs_total{result="invalid_payload"} 1.0' in text
    assert 'fetchbox_api_requests_total{code="202",method="POST",route="/jobs"} 1.0' in text
    assert "fetchbox_ingest_duration_seconds_count 3.0" in text


async def test_a_request_id_is_echoed_if_it_is_harmless(ingress: Ingress) -> None:
    assert (await ingress.post(X_Request_Id="abc-1")).headers["x-request-id"] == "abc-1"
    assert (await ingress.post(X_Request_Id="a b\tc")).headers["x-request-id"] != "a b\tc"
