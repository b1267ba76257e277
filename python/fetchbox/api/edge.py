"""The outermost layer: request ids, counting, the last answer to what nobody foresaw."""

from __future__ import annotations

import logging
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from fetchbox.api.body import Disconnected, drain
from fetchbox.api.ids import request_id
from fetchbox.api.metrics import Metrics
from fetchbox.api.problems import Problem
from fetchbox.api.types import HEADERS

logger = logging.getLogger(__name__)

UNMATCHED = "unmatched"
"""The route label of paths that are none of ours: a path itself would make a label per guess."""


class Edge:
    """Wraps the application. Plain ASGI: it costs a few microseconds, and streams pass through it untouched."""

    def __init__(self, app: ASGIApp, *, metrics: Metrics) -> None:
        self._app = app
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = scope[HEADERS] = header_map(scope["headers"])
        exchange = _Exchange(receive, send, request_id(headers.get(b"x-request-id")))
        try:
            await self._app(scope, exchange.receive, exchange.send)
        except Disconnected:
            # Nobody is there to read it, but the server wants an answer to close the exchange with.
            await exchange.refuse(scope, Problem(400, "INVALID_REQUEST", "the body is incomplete"))
        except Exception:
            logger.exception("request %s to %s failed", exchange.id.decode(), _route(scope))
            await exchange.refuse(scope, Problem(500, "INTERNAL_ERROR", "this is a fault of ours; the log has it under the request id"))
        self._metrics.request(scope["method"], exchange.status, _route(scope))
        if exchange.status >= 400 and exchange.status != 408 and not exchange.body_ended and _has_body(headers):
            await drain(receive)


class _Exchange:
    """One request and its answer, watched."""

    __slots__ = ("_receive", "_send", "body_ended", "id", "status")

    def __init__(self, receive: Receive, send: Send, id: bytes) -> None:
        self._receive = receive
        self._send = send
        self.id = id
        self.status = 0
        self.body_ended = False

    async def receive(self) -> Message:
        message = await self._receive()
        if not message.get("more_body", False):
            self.body_ended = True
        return message

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            message["headers"] = [*message.get("headers", ()), (b"x-request-id", self.id), (b"x-content-type-options", b"nosniff")]
        await self._send(message)

    async def refuse(self, scope: Scope, problem: Problem) -> None:
        """Answers with the problem, unless an answer has begun: then the broken stream has to speak for itself."""
        if self.status == 0:
            await problem.response()(scope, self.receive, self.send)


def header_map(pairs: Any) -> dict[bytes, bytes]:
    """Headers by name; a repeated one is joined with commas, as RFC 9110 has it."""
    headers: dict[bytes, bytes] = {}
    for name, value in pairs:
        headers[name] = value if name not in headers else headers[name] + b", " + value
    return headers


def _route(scope: Scope) -> str:
    route = scope.get("route")
    return UNMATCHED if route is None else str(route.path)


def _has_body(headers: dict[bytes, bytes]) -> bool:
    return headers.get(b"content-length", b"0") != b"0" or b"transfer-encoding" in headers
