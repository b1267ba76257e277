"""The reading routes: parameters, pass-through, errors, health."""

from __future__ import annotations

from typing import Any

import orjson
import pytest
from tests.unit.api_fakes import Ingress, error_code, manifest

from fetchbox.api.watch import Watch
from fetchbox.errors import HubUnavailable, Refused


@pytest.fixture
def ingress() -> Ingress:
    return Ingress()


async def test_a_list_passes_filters_and_the_hubs_bytes(ingress: Ingress) -> None:
    raw = b'{"jobs":[{"job_id":"x" , "status":"failed"}],"next_cursor":"abc"}'
    ingress.hub.answers["jobs"] = [raw]
    response = await ingress.client.get("/operators/jobs?status=failed&tenant=a&job_type=pdf&crawl_id=c&limit=7&cursor=zz")
    assert response.content == raw
    assert response.headers["content-type"] == "application/json"
    expected = {"status": "failed", "tenant": "a", "job_type": "pdf", "crawl_id": "c", "limit": 7, "cursor": "zz"}
    assert ingress.hub.called("query jobs") == [expected]


async def test_the_default_page_has_100(ingress: Ingress) -> None:
    await ingress.client.get("/operators/jobs")
    assert ingress.hub.called("query jobs") == [{"limit": 100}]


@pytest.mark.parametrize(
    "query",
    [
        "limit=0",
        "limit=1001",
        "limit=-1",
        "limit=ten",
        "limit=",
        "limit=1.5",
        "limit=99999999999999999999999",
        "limit=²",
        "status=done",
        "status=",
        "tenant=",
        "crawl_id=%00",
        f"tenant={'x' * 1025}",
    ],
)
async def test_an_unusable_parameter_is_400(ingress: Ingress, query: str) -> None:
    response = await ingress.client.get(f"/operators/jobs?{query}")
    assert (response.status_code, error_code(response)) == (400, "INVALID_PARAMETER")
    assert ingress.hub.calls == []


async def test_a_cursor_that_the_hub_refuses_is_400(ingress: Ingress) -> None:
    ingress.hub.fail("query jobs", Refused("INVALID_CURSOR", "this is no cursor of ours"))
    response = await ingress.client.get("/operators/jobs?cursor=zz")
    assert (response.status_code, error_code(response)) == (400, "INVALID_CURSOR")


@pytest.mark.parametrize("prefix", ["/jobs", "/operators/jobs"])
async def test_resources_are_filtered_by_state(ingress: Ingress, prefix: str) -> None:
    job_id = (await ingress.post()).json()["job_id"]
    response = await ingress.client.get(f"{prefix}/{job_id}/resources?state=failed&limit=1000")
    assert response.json() == {"resources": [], "next_cursor": None}
    assert ingress.hub.called("query resources") == [{"job_id": job_id, "state": "failed", "limit": 1000}]
    assert (await ingress.client.get(f"{prefix}/{job_id}/resources?state=lost")).status_code == 400


async def test_cancel_answers_with_the_job(ingress: Ingress) -> None:
    job_id = (await ingress.post()).json()["job_id"]
    response = await ingress.client.post(f"/operators/jobs/{job_id}/cancel")
    assert (response.status_code, response.json()["status"]) == (200, "cancelled")


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/operators/jobs/none"),
        ("GET", "/jobs/none"),
        ("GET", "/operators/jobs/none/manifest"),
        ("POST", "/jobs/none/cancel"),
        ("GET", f"/jobs/{'x' * 129}"),
        ("GET", "/jobs/%07"),
    ],
)
async def test_a_job_that_is_not_there_is_404(ingress: Ingress, method: str, path: str) -> None:
    response = await ingress.client.request(method, path)
    assert (response.status_code, error_code(response)) == (404, "NOT_FOUND")


@pytest.mark.parametrize("path", ["/nope", "/jobs/", "/jobs/a/b/c", "/operators", "/openapi.json/"])
async def test_an_unknown_path_is_404_in_the_same_shape(ingress: Ingress, path: str) -> None:
    response = await ingress.client.get(path)
    assert (response.status_code, error_code(response)) == (404, "NOT_FOUND")


@pytest.mark.parametrize(
    ("method", "path", "allow"),
    [("GET", "/jobs", "POST"), ("DELETE", "/operators/jobs", "GET, HEAD"), ("PUT", "/jobs/x/cancel", "POST"), ("BREW", "/jobs", "POST")],
)
async def test_a_wrong_method_is_405_in_the_same_shape(ingress: Ingress, method: str, path: str, allow: str) -> None:
    response = await ingress.client.request(method, path)
    assert (response.status_code, error_code(response), response.headers["allow"]) == (405, "METHOD_NOT_ALLOWED", allow)


async def test_unmatched_paths_share_one_label(ingress: Ingress) -> None:
    await ingress.client.get("/nope/1")
    await ingress.client.request("BREW", "/nope/2")
    text = ingress.app.state.service.metrics.render()
    assert 'fetchbox_api_requests_total{code="404",method="GET",route="unmatched"} 1.0' in text
    assert 'fetchbox_api_requests_total{code="404",method="OTHER",route="unmatched"} 1.0' in text


async def test_reading_while_the_hub_is_away_is_503(ingress: Ingress) -> None:
    ingress.hub.fail("query job", HubUnavailable("away"))
    response = await ingress.client.get("/operators/jobs/x")
    assert (response.status_code, error_code(response)) == (503, "HUB_UNAVAILABLE")
    assert response.headers["retry-after"]


async def test_the_manifest_comes_from_the_hub_until_its_file_is_there(ingress: Ingress) -> None:
    body = orjson.dumps(manifest(2))
    job_id = (await ingress.post(body)).json()["job_id"]
    assert (await ingress.client.get(f"/operators/jobs/{job_id}/manifest")).content == body


async def test_the_manifest_comes_from_its_file(tmp_path: Any) -> None:
    ingress = Ingress(storage={"url": f"file://{tmp_path}/a%20b"})
    key = ingress.app.state.service.settings.manifests.url("default", "j1")
    assert key == f"file://{tmp_path}/a%20b/manifests/default/j1/manifest.json"
    ingress.hub.answers["manifest"] = [{"manifest_key": key, "body": None}]
    assert (await ingress.client.get("/operators/jobs/j1/manifest")).status_code == 404
    place = tmp_path / "a b" / "manifests" / "default" / "j1"
    place.mkdir(parents=True)
    (place / "manifest.json").write_bytes(b'{"a":1}')
    assert (await ingress.client.get("/operators/jobs/j1/manifest")).content == b'{"a":1}'


@pytest.mark.parametrize(
    "key",
    [
        "file:///etc/passwd",
        "file:///tmp/fetchbox-test/assets/manifests/../../../etc/passwd",
        "file:///tmp/fetchbox-test/assets/manifests/%2E%2E/x",
        "",
    ],
)
async def test_a_manifest_key_outside_the_store_is_404(ingress: Ingress, key: str) -> None:
    ingress.hub.answers["manifest"] = [{"manifest_key": key, "body": None}]
    assert (await ingress.client.get("/operators/jobs/j1/manifest")).status_code == 404


async def test_live_and_ready(ingress: Ingress) -> None:
    assert (await ingress.client.get("/health/live")).json() == {"status": "ok"}
    ready = await ingress.client.get("/health/ready")
    assert (ready.status_code, ready.json()["status"]) == (200, "ok")


async def test_ready_turns_red_and_green_with_the_hub(ingress: Ingress) -> None:
    ingress.hub.connected = False
    ready = await ingress.client.get("/health/ready")
    assert (ready.status_code, ready.json()["components"]["hub"]["status"]) == (503, "degraded")
    assert (await ingress.client.get("/health/live")).status_code == 200
    ingress.hub.connected = True
    assert (await ingress.client.get("/health/ready")).status_code == 200


async def test_ready_turns_red_when_the_process_drains(ingress: Ingress) -> None:
    ingress.app.state.service.draining.set()
    assert (await ingress.client.get("/health/ready")).status_code == 503


async def test_operators_health_names_every_component(ingress: Ingress) -> None:
    ingress.hub.answers["health"] = [{"components": {"broker": {"status": "degraded", "reason": "full"}}, "workers": 2}]
    response = await ingress.client.get("/operators/health")
    assert response.status_code == 503
    components = response.json()["components"]
    assert set(components) == {"api", "hub", "broker", "storage", "proxy_pools", "workers"}
    assert components["broker"]["reason"] == "full"
    assert components["workers"]["status"] == "ok"
    assert all({"status", "since"} <= set(component) for component in components.values())


async def test_operators_health_without_workers_is_503_although_ready_is_green(ingress: Ingress) -> None:
    ingress.hub.answers["health"] = [{"components": {"hub": {"status": "ok"}}, "workers": 0}]
    response = await ingress.client.get("/operators/health")
    assert (response.status_code, response.json()["components"]["workers"]["status"]) == (503, "degraded")
    assert (await ingress.client.get("/health/ready")).status_code == 200


async def test_since_moves_only_when_a_state_does() -> None:
    now = 1_000.0
    watch = Watch(lambda: now)
    first = watch.states({"hub": None})["hub"]
    now += 5
    assert watch.states({"hub": None})["hub"] == first
    changed = watch.states({"hub": "away"})["hub"]
    assert changed == {"status": "degraded", "since": "1970-01-01T00:16:45.000Z", "reason": "away"}
    now += 5
    assert watch.states({"hub": "still away"})["hub"]["since"] == changed["since"]


async def test_operators_health_without_the_hub_is_503(ingress: Ingress) -> None:
    ingress.hub.connected = False
    response = await ingress.client.get("/operators/health")
    assert (response.status_code, response.json()["status"]) == (503, "degraded")
    assert response.json()["components"]["broker"]["status"] == "degraded"


async def test_head_is_answered_without_a_body(ingress: Ingress) -> None:
    response = await ingress.client.head("/health/live")
    assert (response.status_code, response.content) == (200, b"")
