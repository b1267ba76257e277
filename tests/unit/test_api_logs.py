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
from fetchbox.api import tail as tail_module
from fetchbox.errors import HubUnavailable, Refused


@pytest.fixture
def ingress() -> Ingress:
    return Ingress()


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tail_module, "TICK_SECONDS", 0.001)
    monkeypatch.setattr(logs_module, "AWAY_SECONDS", 0.001)


def records(*offsets: int, settled: bool = False) -> dict[str, Any]:
    lines = [{"offset": offset, "message": f"line {offset}\nand more"} for offset in offsets]
    return {"logs": lines, "next_offset": max(offsets, default=-1) + 1, "partition": 2, "settled": settled, "end": settled}


def tail(job_id: str, *offsets: int, end: bool = False, reached: int | None = None) -> dict[str, Any]:
    """What the hub says of one job, and how far it read."""
    lines = [{"offset": offset, "message": f"line {offset}"} for offset in offsets]
    return {"jobs": {job_id: {"logs": lines, "end": end}}, "next": {"2": max(offsets, default=0) + 1 if reached is None else reached}}


async def test_a_settled_log_is_sent_and_ended(ingress: Ingress) -> None:
    ingress.hub.answers["logs"] = [records(3), records(4, settled=True)]
    response = await ingress.client.get("/operators/jobs/j/logs")
    assert response.headers["content-type"].startswith("text/event-stream")
    events = response.text.replace("\r\n", "\n").split("\n\n")
    assert events[0] == 'id: 3\nevent: log\ndata: {"offset":3,"message":"line 3\\nand more"}'
    assert events[2].startswith("event: end\n")
    assert [params["since_offset"] for params in ingress.hub.called("query logs")] == [0, 4]


async def test_the_stream_follows_a_job_until_it_is_settled(ingress: Ingress) -> None:
    ingress.hub.answers["logs"] = [records(1), records()]
    ingress.hub.answers["tail"] = [{"jobs": {}, "next": {}}, tail("j", 2), tail("j", end=True, reached=3)]
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


async def test_readers_of_all_jobs_share_one_question(ingress: Ingress) -> None:
    a, b = [(await ingress.post()).json()["job_id"] for _ in range(2)]
    readers = [asyncio.ensure_future(ingress.client.get(f"/jobs/{job}/logs")) for job in (a, b, b)]
    followed = ingress.app.state.service.tail

    def asked() -> list[str]:
        calls = ingress.hub.called("query tail")
        return sorted(calls[-1]["partitions"]["0"][1]) if calls else []

    async with asyncio.timeout(5):
        while len(followed) < 3 or asked() != sorted((a, b)):  # noqa: ASYNC110
            await asyncio.sleep(0.001)
        both = tail(a, 5, end=True)["jobs"] | tail(b, 6, end=True)["jobs"]
        ingress.hub.answers["tail"] = [{"jobs": both, "next": {"0": 7}}]
        texts = [(await reader).text for reader in readers]
    assert ["id: 5" in text for text in texts] == [True, False, False]
    assert ["id: 6" in text for text in texts] == [False, True, True]
    assert all("event: end" in text for text in texts)
    assert len(followed) == 0


def follower(job_id: str, next_offset: int) -> tail_module.Follower:
    return tail_module.Follower(job_id, 2, next_offset, asyncio.Event())


def lines(*offsets: int) -> list[tail_module.Line]:
    return [tail_module.Line({"offset": offset, "message": ""}) for offset in offsets]


async def test_a_reader_takes_each_line_once() -> None:
    reader = follower("j", 4)
    reader.add(lines(2, 3, 4, 5), end=False, gone=False)
    reader.add(lines(5, 6), end=True, gone=False)
    assert [line.offset for line in reader.take()] == [4, 5, 6]
    assert (reader.next, reader.ended, reader.news.is_set()) == (7, True, True)
    reader.news.clear()
    reader.add([], end=True, gone=False)
    assert not reader.news.is_set()


async def test_a_reader_that_is_too_slow_reads_by_itself_again() -> None:
    reader = follower("j", 0)
    reader.add(lines(*range(tail_module.MOST_WAITING)), end=False, gone=False)
    assert not reader.behind
    reader.add(lines(tail_module.MOST_WAITING), end=True, gone=False)
    # Nothing is taken, nothing is at an end: it begins again where it was.
    assert (reader.behind, reader.take(), reader.next, reader.ended) == (True, [], 0, False)


async def test_who_comes_while_the_hub_is_asked_misses_nothing(ingress: Ingress) -> None:
    followed = ingress.app.state.service.tail
    early, late = follower("early", 5), follower("late", 6)
    original = ingress.hub.query
    asked = asyncio.Event()

    async def meanwhile(name: str, params: dict[str, Any], **options: Any) -> bytes:
        if not asked.is_set():
            asked.set()
            assert followed.join(late)
        return await original(name, params, **options)

    ingress.hub.query = meanwhile  # type: ignore[method-assign]
    ingress.hub.answers["tail"] = [tail("early", 8), {"jobs": {}, "next": {}}]
    assert followed.join(early)
    async with asyncio.timeout(5):
        await late.news.wait()
    assert (late.behind, early.behind, [line.offset for line in early.take()]) == (True, False, [8])
    # One that stands further back than the partition was read has to read on first.
    assert not followed.join(follower("other", 7))
    followed.leave(early)
    followed.leave(late)
    assert len(followed) == 0


async def test_a_hub_that_cannot_answer_for_all_is_told_of_once(ingress: Ingress, caplog: pytest.LogCaptureFixture) -> None:
    """One of before the question was there. Who reads goes on by itself, and the log is not filled."""
    followed = ingress.app.state.service.tail
    asked = 0

    async def older(name: str, params: dict[str, Any], **options: Any) -> bytes:
        nonlocal asked
        asked += 1
        raise Refused("INVALID", "there is no question tail")

    ingress.hub.query = older  # type: ignore[method-assign]
    reader = follower("job", 5)
    assert followed.join(reader)
    async with asyncio.timeout(5):
        while asked < 5:  # noqa: ASYNC110
            await asyncio.sleep(0.001)
    followed.leave(reader)
    assert reader.behind
    assert [record.getMessage() for record in caplog.records if "together" in record.getMessage()] == [
        "logs cannot be followed together, so each reader asks by itself: there is no question tail"
    ]
