"""This node's telemetry port: /metrics, /health/live, /health/ready. Threads beside the loop, on the standard library's WSGI server."""

from __future__ import annotations

import asyncio
import json
import socket
import socketserver
import threading
from collections.abc import Awaitable, Callable, Iterable
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer
from wsgiref.types import StartResponse, WSGIEnvironment

from fetchbox.metrics import CONTENT_TYPE

ANSWER_TIMEOUT = 5.0
"""Seconds that the loop may take to answer; beyond that it does not live."""
CLIENT_TIMEOUT = 10.0
JSON = "application/json"

Ready = Callable[[], tuple[bool, dict[str, Any]]]
Answer = tuple[int, str, bytes]
"""Status, content type, body."""
_REASONS = {200: "200 OK", 404: "404 Not Found", 405: "405 Method Not Allowed", 503: "503 Service Unavailable"}


class TelemetryPort:
    """Serves until it is closed. `metrics` and `ready` run on the loop that made this."""

    def __init__(
        self, sock: socket.socket, metrics: Callable[[], Awaitable[str]], ready: Callable[[], tuple[bool, dict[str, Any]]]
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._metrics = metrics
        self._ready = ready
        self._server = _Server(sock, self._application)
        self._thread = threading.Thread(target=self._server.serve_forever, name="telemetry", daemon=True)
        self._thread.start()

    async def close(self) -> None:
        """Stops serving and closes the socket."""
        await asyncio.to_thread(self._server.shutdown)
        self._server.server_close()

    def _application(self, environ: WSGIEnvironment, start: StartResponse) -> Iterable[bytes]:
        if environ["REQUEST_METHOD"] not in ("GET", "HEAD"):
            answer = _error(405, "METHOD_NOT_ALLOWED", "only GET is answered here")
        else:
            try:
                future = asyncio.run_coroutine_threadsafe(self._answer(environ.get("PATH_INFO", "/")), self._loop)
                answer = future.result(ANSWER_TIMEOUT)
            except (TimeoutError, RuntimeError):
                answer = _error(503, "NOT_READY", "the supervisor does not answer")
        status, content_type, body = answer
        start(_REASONS[status], [("Content-Type", content_type), ("Content-Length", str(len(body))), ("Cache-Control", "no-store")])
        return [] if environ["REQUEST_METHOD"] == "HEAD" else [body]

    async def _answer(self, path: str) -> Answer:
        match path:
            case "/metrics":
                return 200, CONTENT_TYPE, (await self._metrics()).encode()
            case "/health/live":
                return 200, JSON, b'{"status":"ok"}'
            case "/health/ready":
                ready, body = self._ready()
                return 200 if ready else 503, JSON, json.dumps(body).encode()
            case _:
                return _error(404, "NOT_FOUND", "there are /metrics, /health/live and /health/ready")


def _error(status: int, code: str, message: str) -> Answer:
    return status, JSON, json.dumps({"error": {"code": code, "message": message}}).encode()


class _Server(socketserver.ThreadingMixIn, WSGIServer):
    daemon_threads = True

    def __init__(self, sock: socket.socket, application: Callable[[WSGIEnvironment, StartResponse], Iterable[bytes]]) -> None:
        super().__init__(sock.getsockname()[:2], _Handler, bind_and_activate=False)
        self.socket.close()
        self.socket = sock
        sock.setblocking(True)
        self.server_name, self.server_port = sock.getsockname()[:2]
        self.setup_environ()
        self.set_app(application)


class _Handler(WSGIRequestHandler):
    timeout = CLIENT_TIMEOUT

    def log_message(self, format: str, *args: Any) -> None:
        """Probes and scrapes are no news."""
