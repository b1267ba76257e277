"""The routes of the dead letters: filters, orders in slices, what is refused before the hub is asked."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest
from tests.unit.api_fakes import Ingress, error_code

from fetchbox.api import dlq
from fetchbox.api.dlq import since_ms
from fetchbox.errors import Refused

NOW = 1_800_000_000.0


def slice_(count: int, next_cursor: str | None = None, refused: int = 0) -> dict[str, Any]:
    return {"count": count, "refused": refused, "busy": 0, "until": 77, "next_cursor": next_cursor}


@pytest.fixture
def ingress() -> Ingress:
    made = Ingress(proxy={"pools": {"fast": {"endpoints": ["http://127.0.0.1:3128"]}}}, job_types={"files": {"transport": "curl"}})
    made.app.state.service.clock = lambda: NOW
    return made


async def test_a_list_passes_filters_and_the_hubs_bytes(ingress: Ingress) -> None:
    raw = b'{"entries":[ ],"next_cursor":null}'
    ingress.hub.answers["dlq"] = [raw]
    response = await ingress.client.get("/operators/dlq?job=j&code=DOWNLOAD_TLS&host=a:80&since=1h&replayed=true&limit=7&cursor=zz")
    assert response.content == raw
    filter_ = {"job": "j", "code": "DOWNLOAD_TLS", "host": "a:80", "since_ms": int((NOW - 3600) * 1000)}
    assert ingress.hub.called("query dlq") == [{"filter": filter_, "replayed": True, "limit": 7, "cursor": "zz"}]


async def test_a_plain_list_asks_for_everything(ingress: Ingress) -> None:
    ingress.hub.answers["dlq"] = [{"entries": [], "next_cursor": None}]
    assert (await ingress.client.get("/operators/dlq")).json()["entries"] == []
    assert ingress.hub.called("query dlq") == [{"filter": {}, "replayed": False, "limit": 100}]


async def test_groups_and_single_entries(ingress: Ingress) -> None:
    ingress.hub.answers["dlq_groups"] = [{"groups": [], "total": 0, "others": 0, "next_cursor": None}]
    await ingress.client.get("/operators/dlq/groups?by=host&code=X")
    await ingress.client.get("/operators/dlq/groups")
    assert ingress.hub.called("query dlq_groups") == [{"by": "host", "filter": {"code": "X"}}, {"by": "code", "filter": {}}]
    assert (await ingress.client.get("/operators/dlq/groups?by=moon")).status_code == 400
    ingress.hub.answers["dlq_show"] = [{"id": "j.0.0"}]
    assert (await ingress.client.get("/operators/dlq/j.0.0")).json() == {"id": "j.0.0"}
    ingress.hub.fail("query dlq_show", Refused("NOT_FOUND", "the dead letter is not known"))
    assert (await ingress.client.get("/operators/dlq/none")).status_code == 404


@pytest.mark.parametrize(
    "query", ["since=soon", "since=2026-13-01", "since=2026-01-01T10:00:00", "since=-1h", "job=", "limit=0", "replayed=maybe"]
)
async def test_an_unusable_parameter_is_400(ingress: Ingress, query: str) -> None:
    response = await ingress.client.get(f"/operators/dlq?{query}")
    assert (response.status_code, error_code(response)) == (400, "INVALID_PARAMETER")
    assert ingress.hub.calls == []


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("2026-01-31", datetime(2026, 1, 31, tzinfo=UTC)),
        ("2026-01-31T12:00:00Z", datetime(2026, 1, 31, 12, tzinfo=UTC)),
        ("2026-01-31T12:00:00.5+02:00", datetime(2026, 1, 31, 10, 0, 0, 500_000, tzinfo=UTC)),
        ("2026-01-31T12:00:00 02:00", datetime(2026, 1, 31, 10, tzinfo=UTC)),
    ],
)
def test_times_are_read(text: str, expected: datetime) -> None:
    assert since_ms(text, NOW) == int(expected.timestamp() * 1000)
    assert since_ms("90", NOW) == int((NOW - 90) * 1000)
    assert since_ms("100000d", NOW) == 0


async def test_a_replay_without_changes_is_carried_out_slice_by_slice(ingress: Ingress) -> None:
    ingress.hub.answers["dlq_replay"] = [slice_(500, "a"), slice_(0, "b"), slice_(3, None, refused=2)]
    response = await ingress.client.post("/operators/dlq/replay", json={"filter": {"code": "DOWNLOAD_TLS", "since": "1h"}})
    assert (response.status_code, response.json()) == (200, {"count": 503, "refused": 2})
    calls = ingress.hub.called("query dlq_replay")
    assert [call.get("cursor") for call in calls] == [None, "a", "b"]
    assert [call.get("until") for call in calls] == [None, 77, 77]
    assert calls[0]["filter"] == {"code": "DOWNLOAD_TLS", "since_ms": int((NOW - 3600) * 1000)}
    assert not any(call["dry_run"] for call in calls)
    assert calls[0]["schemes"] == {"files": ["ftp", "ftps", "sftp"]}
    assert (calls[0]["partition_by"], calls[0]["limits"]["max_headers"]) == ("job", 32)


async def test_a_slice_whose_jobs_are_busy_is_asked_for_again(ingress: Ingress, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dlq, "BUSY_PAUSE", 0)
    busy = {**slice_(5, "b", refused=1), "busy": 2}
    ingress.hub.answers["dlq_replay"] = [slice_(1, "a"), busy, busy, slice_(2, None, refused=1)]
    response = await ingress.client.post("/operators/dlq/replay", json={"filter": {}})
    assert response.json() == {"count": 13, "refused": 1}
    assert [call.get("cursor") for call in ingress.hub.called("query dlq_replay")] == [None, "a", "a", "a"]
    ingress.hub.answers["dlq_replay"] = [busy]
    response = await ingress.client.post("/operators/dlq/replay", json={"filter": {}})
    assert (response.status_code, error_code(response)) == (503, "HUB_UNAVAILABLE")


async def test_changes_are_tried_on_everything_before_the_first_is_replayed(ingress: Ingress) -> None:
    ingress.hub.answers["dlq_replay"] = [slice_(9), slice_(8)]
    order = {"filter": {}, "headers": {"a": "b", "c": None}, "proxy_pool": "fast", "url_replace": {"x": "y"}}
    assert (await ingress.client.post("/operators/dlq/replay", json=order)).json()["count"] == 8
    first, second = ingress.hub.called("query dlq_replay")
    assert (first["dry_run"], second["dry_run"], second["until"]) == (True, False, 77)
    assert first["headers"] == order["headers"]


async def test_a_dry_run_only_counts(ingress: Ingress) -> None:
    ingress.hub.answers["dlq_replay"] = [slice_(9)]
    assert (await ingress.client.post("/operators/dlq/replay", json={"filter": {}, "dry_run": True})).json()["count"] == 9
    assert [call["dry_run"] for call in ingress.hub.called("query dlq_replay")] == [True]


async def test_a_purge_is_carried_out_slice_by_slice(ingress: Ingress) -> None:
    ingress.hub.answers["dlq_purge"] = [slice_(5, "a"), slice_(1)]
    assert (await ingress.client.post("/operators/dlq/purge", json={"filter": {"job": "j"}})).json() == {"count": 6, "refused": 0}
    assert ingress.hub.called("query dlq_purge")[0] == {"filter": {"job": "j"}}


@pytest.mark.parametrize(
    ("order", "pointer"),
    [
        ([], ""),
        ({}, "/filter"),
        ({"filter": []}, "/filter"),
        ({"filter": {}, "filters": {}}, "/filters"),
        ({"filter": {"jobs": "j"}}, "/filter/jobs"),
        ({"filter": {"job": 7}}, "/filter/job"),
        ({"filter": {"since": "soon"}}, "/filter/since"),
        ({"filter": {}, "headers": []}, "/headers"),
        ({"filter": {}, "headers": {"Host": "x"}}, "/headers/Host"),
        ({"filter": {}, "proxy_pool": "none"}, "/proxy_pool"),
        ({"filter": {}, "url_replace": "x"}, "/url_replace"),
        ({"filter": {}, "dry_run": "yes"}, "/dry_run"),
    ],
)
async def test_an_order_that_cannot_be_understood_is_400(ingress: Ingress, order: Any, pointer: str) -> None:
    response = await ingress.client.post("/operators/dlq/replay", json=order)
    assert (response.status_code, error_code(response)) == (400, "INVALID_PAYLOAD")
    assert response.json()["error"]["details"][0]["pointer"] == pointer
    assert ingress.hub.calls == []


async def test_a_cancelled_job_is_409_and_a_form_is_415(ingress: Ingress) -> None:
    ingress.hub.fail("query dlq_replay", Refused("JOB_CANCELLED", "the job was cancelled", job_id="j"))
    response = await ingress.client.post("/operators/dlq/replay", json={"filter": {"job": "j"}})
    assert (response.status_code, error_code(response), response.json()["error"]["job_id"]) == (409, "JOB_CANCELLED", "j")
    assert (await ingress.client.post("/operators/dlq/purge", data={"filter": "x"})).status_code == 415


@pytest.mark.parametrize(
    ("method", "path"),
    [("GET", ""), ("GET", "/groups"), ("GET", "/j.0.0"), ("POST", "/replay"), ("POST", "/purge")],
)
async def test_only_operators_are_let_in(method: str, path: str) -> None:
    ingress = Ingress(server={"operator_token": "op"})
    response = await ingress.client.request(method, f"/operators/dlq{path}", json={"filter": {}} if method == "POST" else None)
    assert (response.status_code, error_code(response)) == (401, "UNAUTHORIZED")
    assert ingress.hub.calls == []
