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
from fetchbox.api.types import HEADERS
from fetchbox.errors import HubUnavailable, Refused

PAGE = 500
"""Records asked for at a time."""
HEARTBEAT_SECONDS = 15.0
POLL_SECONDS = (0.25, 0.5, 1.0, 2.0)
"""Waits between looks at a log that does not grow: quick at first, then sparing with the hub. A new record starts over."""
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
        self._next = since
        self._left = limit
        self.ended = False
        """The job is settled and its log was read to the end."""

    @property
    def exhausted(self) -> bool:
        """Whether the caller's limit is reached."""
        return self._left == 0

    async def page(self) -> list[dict[str, Any]]:
        """The next records, none when there are none yet."""
        limit = PAGE if self._left is None else min(PAGE, self._left)
        answer = orjson.loads(await self._service.hub.query("logs", {**self._params, "since_offset": self._next, "limit": limit}))
        records: list[dict[str, Any]] = answer["logs"]
        self.ended = bool(answer["end"])
        # A page may be empty although the hub has looked further: other jobs share the partition.
        self._next = max(self._next, int(answer["next_offset"]))
        if self._left is not None:
            self._left -= len(records)
        return records


class LogStream(Response):
    """The response: it watches for the reader's leaving and for the end of the process while it waits."""

    def __init__(self, service: Service, source: LogSource, first: list[dict[str, Any]], *, follow: bool, lines: bool) -> None:
        self._service = service
        self._source = source
        self._first = first
        self._follow = follow
        self._lines = lines
        self.status_code = 200
        self.background = None
        self.media_type = _NDJSON if lines else _SSE
        self.init_headers({"cache-control": "no-store", "x-accel-buffering": "no"})

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
        gone = asyncio.ensure_future(_gone(receive))
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
            gone.cancel()

    async def _pieces(self, gone: asyncio.Future[None]) -> AsyncIterator[bytes]:
        records = self._first
        quiet = 0
        silent_for = 0.0
        trouble = False
        while True:
            if records:
                yield b"".join(map(self._record, records))
                quiet, silent_for = 0, 0.0
            if self._source.exhausted:
                return
            if self._source.ended and not trouble and not self._follow:
                yield self._end()
                return
            if not records:
                pause = POLL_SECONDS[min(quiet, len(POLL_SECONDS) - 1)]
                quiet += 1
                if await self._interrupted(gone, pause):
                    return
                silent_for += pause
                if silent_for >= HEARTBEAT_SECONDS:
                    silent_for = 0.0
                    yield b"\n" if self._lines else ServerSentEvent(comment="keep-alive").encode()
            try:
                records, trouble = await self._source.page(), False
            except HubUnavailable:
                # It comes back; the reader keeps its place.
                records, trouble = [], True
            except Refused as error:
                yield self._event("error", of_hub_error(error).body().decode(), None)
                return

    async def _interrupted(self, gone: asyncio.Future[None], seconds: float) -> bool:
        """Waits; true when the reader left or the process is to end."""
        draining = asyncio.ensure_future(self._service.draining.wait())
        try:
            await asyncio.wait((gone, draining), timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
            return gone.done() or draining.done()
        finally:
            draining.cancel()

    def _record(self, record: dict[str, Any]) -> bytes:
        return self._event("log", orjson.dumps(record).decode(), str(record["offset"]))

    def _end(self) -> bytes:
        return b"" if self._lines else self._event("end", "{}", None)

    def _event(self, name: str, data: str, id: str | None) -> bytes:
        if self._lines:
            return data.encode() + b"\n"
        return ServerSentEvent(data, event=name, id=id).encode()


async def _gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
