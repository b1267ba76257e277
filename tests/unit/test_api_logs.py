"""A job's log as a stream."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import orjson
import pytest
from starlette.types import Message
from tests.unit.api_fakes import Ingress, error_code

from fetchbox.api import logs as logs_module
from fetchbox.errors import HubUnavailable, Refused


@pytest.fixture
def ingress() -> Ingress:
    return Ingress()


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logs_module, "POLL_SECONDS", (0.001,))


def records(*offsets: int, settled: bool = False) -> dict[str, Any]:
    lines = [{"offset": offset, "message": f"line {offset}\nand more"} for offset in offsets]
    return {"logs": lines, "next_offset": max(offsets, default=-1) + 1, "settled": settled, "end": settled}


async def test_a_settled_log_is_sent_and_ended(ingress: Ingress) -> None:
    ingress.hub.answers["logs"] = [records(3), records(4, settled=True)]
    response = await ingress.client.get("/operators/jobs/j/logs")
    assert response.headers["content-type"].startswith("text/event-stream")
    events = response.text.replace("\r\n", "\n").split("\n\n")
    assert events[0] == 'id: 3\nevent: log\ndata: {"offset":3,"message":"line 3\\nand more"}'
    assert events[2].startswith("event: end\n")
    assert [params["since_offset"] for params in ingress.hub.called("query logs")] == [0, 4]


async def test_the_stream_follows_a_job_until_it_is_settled(ingress: Ingress) -> None:
    ingress.hub.answers["logs"] = [records(1), records(), records(2), records(settled=True)]
    response = await ingress.client.get("/jobs/j/logs?since_offset=1")
    assert response.text.count("event: log") == 2
    assert response.text.count("event: end") == 1


async def test_json_lines_on_request(ingress: Ingress) -> None:
    ingress.hub.answers["logs"] = [records(1, 2), records(settled=True)]
    response = await ingress.client.get("/jobs/j/logs", headers={"accept": "application/x-ndjson"})
    assert response.headers["content-type"] == "application/x-ndjson"
    assert [orjson.loads(line)["offset"] for line in response.text.splitlines()] == [1, 2]


async def test_last_event_id_is_exclusive(ingress: Ingress) -> None:
    ingress.hub.answers["logs"] = [records(8), records(settled=True)]
    await ingress.client.get("/jobs/j/logs?since_offset=2", headers={"last-event-id": "7"})
    assert ingress.hub.called("query logs")[0]["since_offset"] == 8


async def test_a_reconnect_after_the_end_is_204(ingress: Ingress) -> None:
    ingress.hub.answers["logs"] = [records(settled=True)]
    response = await ingress.client.get("/jobs/j/logs", headers={"last-event-id": "7"})
    assert (response.status_code, response.content) == (204, b"")


@pytest.mark.parametrize(
    ("query", "headers"),
    [
        ("since_offset=-1", {}),
        ("since_offset=x", {}),
        ("limit=0", {}),
        ("follow=maybe", {}),
        ("", {"last-event-id": "abc"}),
        ("", {"last-event-id": "9" * 20}),
    ],
)
async def test_an_unusable_parameter_is_400(ingress: Ingress, query: str, headers: dict[str, str]) -> None:
    response = await ingress.client.get(f"/jobs/j/logs?{query}", headers=headers)
    assert (response.status_code, error_code(response)) == (400, "INVALID_PARAMETER")


async def test_a_job_that_is_not_there_is_404_and_no_stream(ingress: Ingress) -> None:
    ingress.hub.fail("query logs", Refused("NOT_FOUND", "no such job"))
    assert (await ingress.client.get("/jobs/j/logs")).status_code == 404


async def test_a_limit_ends_the_stream(ingress: Ingress) -> None:
    ingress.hub.answers["logs"] = [records(1, 2)]
    response = await ingress.client.get("/jobs/j/logs?limit=2")
    assert response.text.count("event: log") == 2
    assert "event: end" not in response.text
    assert ingress.hub.called("query logs")[0]["limit"] == 2


async def test_the_stream_outlives_a_hub_that_goes_and_comes_back(ingress: Ingress) -> None:
    ingress.hub.answers["logs"] = [records(1), records(2), records(settled=True)]
    original = ingress.hub.query
    asked = 0

    async def flaky(name: str, params: dict[str, Any], **options: Any) -> bytes:
        nonlocal asked
        asked += 1
        if asked == 2:
            raise HubUnavailable("away")
        return await original(name, params, **options)

    ingress.hub.query = flaky  # type: ignore[method-assign]
    response = await ingress.client.get("/jobs/j/logs")
    assert response.text.count("event: log") == 2
    assert "event: end" in response.text


async def stream(ingress: Ingress, until: Callable[[bytes], bool], leave: asyncio.Event) -> bytes:
    """Reads a stream over bare ASGI; `leave` disconnects it. Returns what came before it ended."""
    scope = {
        "type": "http",
        "method": "GET",
        "path": "/jobs/j/logs",
        "raw_path": b"/jobs/j/logs",
        "root_path": "",
        "query_string": b"follow=true",
        "headers": [],
    }
    got = bytearray()
    asked = False

    async def receive() -> Message:
        nonlocal asked
        if not asked:
            asked = True
            return {"type": "http.request", "body": b"", "more_body": False}
        await leave.wait()
        return {"type": "http.disconnect"}

    reached = asyncio.Event()

    async def send(message: Message) -> None:
        got.extend(message.get("body", b""))
        if until(bytes(got)):
            reached.set()

    running = asyncio.ensure_future(ingress.app(scope, receive, send))
    async with asyncio.timeout(5):
        await reached.wait()
        assert not running.done()
        leave.set()
        await running
    return bytes(got)


async def test_a_followed_stream_ends_when_the_reader_leaves(ingress: Ingress) -> None:
    ingress.hub.answers["logs"] = [records(1), records(settled=True)]
    assert b"event: end" not in await stream(ingress, lambda got: b"event: log" in got, asyncio.Event())


async def test_a_followed_stream_ends_when_the_process_drains(ingress: Ingress) -> None:
    ingress.hub.answers["logs"] = [records(1), records(settled=True)]
    draining = ingress.app.state.service.draining
    await stream(ingress, lambda got: b"event: log" in got, draining)


async def test_a_silent_stream_sends_heartbeats(ingress: Ingress, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logs_module, "HEARTBEAT_SECONDS", 0.003)
    ingress.hub.answers["logs"] = [records()]
    assert b": keep-alive" in await stream(ingress, lambda got: got.count(b": keep-alive") == 2, asyncio.Event())
