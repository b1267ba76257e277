"""Manifests in an object store: written before the job is accepted, removed when it is refused."""

from __future__ import annotations

import asyncio
from typing import Any

import obstore
import pytest
from obstore.store import MemoryStore
from tests.unit.api_fakes import Ingress, error_code, manifest

from fetchbox.api import manifests as manifests_module
from fetchbox.api.manifests import RemoteManifests
from fetchbox.errors import HubUnavailable, Refused


@pytest.fixture
def store() -> MemoryStore:
    return MemoryStore()


@pytest.fixture
def ingress(store: MemoryStore) -> Ingress:
    return Ingress(manifests=RemoteManifests(store, "s3://bucket/prefix/"))


def stored(store: MemoryStore) -> dict[str, bytes]:
    objects = [item["path"] for page in obstore.list(store) for item in page]
    return {path: bytes(obstore.get(store, path).bytes()) for path in objects}


async def test_the_manifest_is_stored_under_the_url_in_the_answer(ingress: Ingress, store: MemoryStore) -> None:
    answer = (await ingress.post(b'{"resources":[{"url":"https://a/"}]}', Idempotency_Key="k")).json()
    key = answer["manifest_key"]
    assert key == f"s3://bucket/prefix/manifests/default/{answer['job_id']}/manifest.json"
    assert stored(store) == {key.removeprefix("s3://bucket/prefix/"): b'{"resources":[{"url":"https://a/"}]}'}
    assert ingress.hub.jobs[answer["job_id"]]["manifest"] is None
    ingress.hub.answers["manifest"] = [{"manifest_key": key, "body": None}]
    read = await ingress.client.get(f"/operators/jobs/{answer['job_id']}/manifest")
    assert read.content == b'{"resources":[{"url":"https://a/"}]}'


async def test_a_refused_job_leaves_no_manifest(ingress: Ingress, store: MemoryStore) -> None:
    ingress.hub.fail("accept", Refused("LEDGER_FULL", "full"))
    assert (await ingress.post()).status_code == 503
    assert stored(store) == {}


async def test_a_refused_job_with_a_key_leaves_its_manifest_to_whoever_took_the_key_over(ingress: Ingress, store: MemoryStore) -> None:
    """Under one key two posts may be at work on one id: one that stood still too long, and the one that took over."""
    ingress.hub.fail("accept", Refused("LEDGER_FULL", "full"))
    assert (await ingress.post(Idempotency_Key="k")).status_code == 503
    assert len(stored(store)) == 1
    assert ingress.hub.keys == {}


@pytest.mark.parametrize(("error", "status"), [(HubUnavailable("gone"), 503), (RuntimeError("a bug"), 500)])
async def test_an_unknown_outcome_keeps_the_manifest_for_the_retry(
    ingress: Ingress, store: MemoryStore, error: Exception, status: int
) -> None:
    ingress.hub.fail("accept", error)
    assert (await ingress.post(Idempotency_Key="k")).status_code == status
    assert len(stored(store)) == 1
    assert (await ingress.post(Idempotency_Key="k")).status_code == 202
    assert len(stored(store)) == 1
    assert ingress.core.contexts[-1]["job_id"] in next(iter(stored(store)))


async def test_the_hub_knows_of_a_manifest_before_it_is_stored_also_without_a_key(ingress: Ingress) -> None:
    await ingress.post()
    await ingress.post(Idempotency_Key="k")
    first, second = ingress.hub.called("reserve")
    assert (first["key"], second["key"]) == ("\0" + first["job_id"], "k")
    assert first["stores_manifest"]
    assert second["stores_manifest"]
    assert [facts["stores_manifest"] for facts in ingress.hub.called("accept")] == [True, True]
    assert [facts["rate_limit"] for facts in ingress.hub.called("accept")] == [None, None], "a reservation has been counted already"
    local = Ingress()
    await local.post()
    assert local.hub.called("reserve") == []
    assert not local.hub.called("accept")[0]["stores_manifest"]


async def test_a_repeated_post_stores_nothing_more(ingress: Ingress, store: MemoryStore) -> None:
    first = await ingress.post(Idempotency_Key="k")
    second = await ingress.post(Idempotency_Key="k")
    assert (second.status_code, second.json()) == (200, first.json())
    assert len(stored(store)) == 1


async def test_an_invalid_manifest_is_not_stored(ingress: Ingress, store: MemoryStore) -> None:
    assert (await ingress.post(manifest(0), Idempotency_Key="k")).status_code == 400
    assert stored(store) == {}
    assert ingress.hub.calls == []


async def test_a_store_that_fails_is_502_and_turns_ready_red_until_it_works(ingress: Ingress, monkeypatch: pytest.MonkeyPatch) -> None:
    async def broken(*args: Any, **options: Any) -> None:
        raise OSError("https://secret-signed-url")

    with monkeypatch.context() as patched:
        patched.setattr(obstore, "put_async", broken)
        response = await ingress.post(Idempotency_Key="k")
    assert (response.status_code, error_code(response)) == (502, "STORAGE_UNAVAILABLE")
    assert response.headers["retry-after"]
    assert "secret" not in response.text
    assert ingress.hub.keys == {}
    ready = await ingress.client.get("/health/ready")
    assert (ready.status_code, ready.json()["components"]["storage"]["status"]) == (503, "degraded")
    assert (await ingress.post(Idempotency_Key="k")).status_code == 202
    assert (await ingress.client.get("/health/ready")).status_code == 200


async def test_a_store_that_hangs_is_502(ingress: Ingress, monkeypatch: pytest.MonkeyPatch) -> None:
    async def hanging(*args: Any, **options: Any) -> None:
        await asyncio.Event().wait()

    monkeypatch.setattr(manifests_module, "PUT_SECONDS", 0.01)
    monkeypatch.setattr(obstore, "put_async", hanging)
    assert (await ingress.post()).status_code == 502


@pytest.mark.parametrize("key", ["s3://other/manifests/x", "s3://bucket/prefix/manifests/default/none/manifest.json"])
async def test_a_manifest_that_is_not_there_is_404(ingress: Ingress, key: str) -> None:
    ingress.hub.answers["manifest"] = [{"manifest_key": key, "body": None}]
    assert (await ingress.client.get("/operators/jobs/j/manifest")).status_code == 404
