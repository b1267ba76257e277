"""A job's log, as Server-Sent Events or JSON lines."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import orjson
from sse_starlette.event import ServerSentEvent
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from fetchbox.api.pages import LIMIT_MAX, MAX_OFFSET, flag, job_id_of, number, without_none
from fetchbox.api.problems import Problem, of_hub_error
from fetchbox.api.service import Service
from fetchbox.api.tail import Follower, Line
from fetchbox.api.types import HEADERS
from fetchbox.errors import HubUnavailable, Refused

PAGE = 500
"""Records asked for at a time."""
HEARTBEAT_SECONDS = 15.0
AWAY_SECONDS = 1.0
"""Wait for a hub that is away."""
AGAIN_SECONDS = 0.02
"""Wait of a reader that others were faster than."""
SEND_SECONDS = 30.0
"""A reader that takes nothing for this long is gone."""

_SSE = "text/event-stream"
_NDJSON = "application/x-ndjson"


async def logs_answer(service: Service, request: Request, tenant: str | None) -> Response:
    """The log from `since_offset` on; it ends when the job is settled, unless `follow=true`."""
    since = number(request, "since_offset", default=0, low=0, high=MAX_OFFSET)
    limit = number(request, "limit", default=None, low=1, high=LIMIT_MAX)
    follow = flag(request, "follow")
    assert since is not None
    last_seen = request.scope[HEADERS].get(b"last-event-id")
    if last_seen is not None:
        if not last_seen.isdigit() or len(last_seen) > 19:
            raise Problem(400, "INVALID_PARAMETER", "Last-Event-ID is not an id of this stream")
        # Exclusive: the reader has that one.
        since = max(since, int(last_seen) + 1)
    source = LogSource(service, without_none({"job_id": job_id_of(request), "tenant": tenant}), since, limit)
    # The first page is read before the answer begins, so that a job which is not there is a 404 and not a broken stream.
    first = await source.page()
    if last_seen is not None and not first and source.ended and not follow:
        return Response(status_code=204)
    lines = _NDJSON in request.headers.get("accept", "")
    return LogStream(service, source, first, follow=follow, lines=lines)


class LogSource:
    """Pages of one job's log, in order."""

    def __init__(self, service: Service, params: dict[str, Any], since: int, limit: int | None) -> None:
        self._service = service
        self._params = params
        self._left = limit
        self.job_id: str = params["job_id"]
        self.next = since
        """The first offset that was not read."""
        self.partition = 0
        self.ended = False
        """The job is settled and its log was read to the end."""

    @property
    def exhausted(self) -> bool:
        """Whether the caller's limit is reached."""
        return self._left == 0

    async def page(self) -> list[dict[str, Any]]:
        """The next records, none when there are none yet."""
        limit = PAGE if self._left is None else min(PAGE, self._left)
        answer = orjson.loads(await self._service.hub.query("logs", {**self._params, "since_offset": self.next, "limit": limit}))
        records: list[dict[str, Any]] = answer["logs"]
        self.ended = bool(answer["end"])
        self.partition = int(answer["partition"])
        # A page may be empty although the hub has looked further: other jobs share the partition.
        self.next = max(self.next, int(answer["next_offset"]))
        if self._left is not None:
            self._left -= len(records)
        return records

    def limited(self, lines: list[Line]) -> list[Line]:
        """As many of these as the caller still wants."""
        if self._left is None:
            return lines
        taken = lines[: self._left]
        self._left -= len(taken)
        return taken


class LogStream(Response):
    """The response: it watches for the reader's leaving and for the end of the process while it waits."""

    def __init__(self, service: Service, source: LogSource, first: list[dict[str, Any]], *, follow: bool, lines: bool) -> None:
        self._service = service
        self._source = source
        self._first = first
        self._follow = follow
        self._lines = lines
        self._wake = asyncio.Event()
        self._over = False
        self.status_code = 200
        self.background = None
        self.media_type = _NDJSON if lines else _SSE
        self.init_headers({"cache-control": "no-store", "x-accel-buffering": "no"})

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
        gone = asyncio.ensure_future(_gone(receive, self._wake))
        stop = self._service.on_drain(self._wake.set)
        try:
            if scope["method"] != "HEAD":
                async for piece in self._pieces(gone):
                    async with asyncio.timeout(SEND_SECONDS):
                        await send({"type": "http.response.body", "body": piece, "more_body": True})
            if not gone.done():
                await send({"type": "http.response.body", "body": b""})
        except TimeoutError:
            return
        finally:
            stop()
            gone.cancel()

    async def _pieces(self, gone: asyncio.Future[None]) -> AsyncIterator[bytes]:
        """What is sent: first what is there, page by page, then what comes, from the tail that all readers share."""
        records: list[dict[str, Any]] | None = self._first
        silent_for = 0.0
        while True:
            if records:
                yield b"".join(Line(record).encoded(self._lines) for record in records)
                silent_for = 0.0
            if self._source.exhausted:
                return
            if records is not None and self._source.ended and not self._follow:
                yield self._end()
                return
            if records == []:
                async for piece in self._at_the_end(gone):
                    yield piece
                if self._over or self._is_over(gone):
                    return
            try:
                records = await self._source.page()
            except HubUnavailable:
                # It comes back; the reader keeps its place.
                records = None
                if not await self._sleep(AWAY_SECONDS):
                    silent_for += AWAY_SECONDS
                if self._is_over(gone):
                    return
                if silent_for >= HEARTBEAT_SECONDS:
                    silent_for = 0.0
                    yield self._heartbeat()
            except Refused as error:
                yield self._refused(error)
                return

    async def _at_the_end(self, gone: asyncio.Future[None]) -> AsyncIterator[bytes]:
        """Follows the job's log until it is over (`_over`), or until the reader has to read by itself again."""
        source = self._source
        follower = Follower(source.job_id, source.partition, source.next, self._wake)
        tail = self._service.tail
        if not tail.join(follower):
            await asyncio.sleep(AGAIN_SECONDS)
            return
        try:
            while not self._is_over(gone):
                said = await self._sleep(HEARTBEAT_SECONDS)
                if self._is_over(gone):
                    return
                if not said:
                    yield self._heartbeat()
                    continue
                taken = source.limited(follower.take())
                source.next = follower.next
                if taken:
                    yield b"".join(line.encoded(self._lines) for line in taken)
                if follower.gone:
                    yield self._refused(Refused("NOT_FOUND", "the job was forgotten"))
                    self._over = True
                elif source.exhausted:
                    self._over = True
                elif follower.ended and not self._follow and not follower.behind:
                    yield self._end()
                    self._over = True
                if self._over or follower.behind:
                    return
        finally:
            tail.leave(follower)

    def _is_over(self, gone: asyncio.Future[None]) -> bool:
        return gone.done() or self._service.draining.is_set()

    async def _sleep(self, seconds: float) -> bool:
        """Waits; true when something happened before the time was up."""
        try:
            async with asyncio.timeout(seconds):
                await self._wake.wait()
        except TimeoutError:
            return False
        self._wake.clear()
        return True

    def _refused(self, error: Refused) -> bytes:
        body = of_hub_error(error).body()
        return body + b"\n" if self._lines else ServerSentEvent(body.decode(), event="error").encode()

    def _heartbeat(self) -> bytes:
        return b"\n" if self._lines else ServerSentEvent(comment="keep-alive").encode()

    def _end(self) -> bytes:
        return b"" if self._lines else ServerSentEvent("{}", event="end").encode()


async def _gone(receive: Receive, wake: asyncio.Event) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
    # Whoever waits looks whether this task is done, which it is a moment later.
    asyncio.get_running_loop().call_soon(wake.set)
