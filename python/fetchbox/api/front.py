"""The HTTP server of an api process, and the one before it for a while when its certificate was renewed.

Granian reads a certificate when it starts and never again, and what it offers to replace a worker closes connections on which a request may
be on its way: that would be a refused request. So a second server begins on the same listening socket, and the first one is left with the
connections that it has: a socket that nobody connects to takes the place of its descriptor, every answer that it still gives says
`Connection: close`, and idle connections end by their own time-out. When nothing is left it is stopped.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import logging
import os
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from fetchbox.config import Config

logger = logging.getLogger(__name__)

LOOK_SECONDS = 0.5
STOP_SECONDS = 5.0
"""How long a server that has nothing to do may take to end."""


class Gate:
    """The application as one server sees it: counts its requests, and ends connections once the server is retired."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app
        self.is_retired = False
        self.running = 0
        self.ended_at = 0.0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def closing(message: Message) -> None:
            if self.is_retired and message["type"] == "http.response.start":
                message["headers"] = [*message.get("headers", ()), (b"connection", b"close")]
            await send(message)

        self.running += 1
        try:
            await self._app(scope, receive, closing)
        finally:
            self.running -= 1
            self.ended_at = time.monotonic()


@dataclass(slots=True)
class _Serving:
    server: Any
    gate: Gate
    descriptor: int
    task: asyncio.Future[None] = field(default_factory=asyncio.Future)


Make = Callable[[ASGIApp, socket.socket, Config], Any]
"""A Granian server for an application on a socket."""


class Front:
    """Serves `app` on `listener`, which stays the caller's. `idle` is how long a connection may do nothing, in seconds."""

    def __init__(self, make: Make, app: ASGIApp, listener: socket.socket, config: Config, idle: float) -> None:
        self._make = make
        self._app = app
        self._listener = listener
        self._config = config
        self._idle = idle
        self._shown = shown(config)
        self._present = self._server(config)
        self._before: list[_Serving] = []
        self._retiring: set[asyncio.Task[None]] = set()
        self.ended = asyncio.Event()
        """Set when the server ends, which it does not by itself."""

    def start(self) -> None:
        """Begins."""
        serving = self._present
        serving.task = asyncio.ensure_future(serving.server.serve())

        def done(_: object) -> None:
            if serving is self._present:
                self.ended.set()

        serving.task.add_done_callback(done)

    def renew(self, config: Config) -> None:
        """Shows the certificate that is there now to every connection from now on. With the old one it goes on when the new is unusable."""
        if self._shown is None:
            if config.server.tls_cert is not None:
                logger.warning("server.tls_cert: whether TLS is spoken is decided at the start; restart for it")
            return
        try:
            now = shown(config)
            if now is None or now == self._shown:
                return
            fresh = self._server(config)
        except (OSError, ValueError) as error:  # an ssl.SSLError is an OSError
            logger.error("the api goes on with the certificate that it has: %s", error)
            return
        old, self._present, self._shown = self._present, fresh, now
        self.start()
        self._before.append(old)
        task = asyncio.ensure_future(self._retire(old))
        self._retiring.add(task)
        task.add_done_callback(self._retiring.discard)
        logger.info("the certificate was renewed")

    def fault(self) -> None:
        """Raises what ended the server, if it was an exception."""
        self._present.task.result()

    async def stop(self, within: float | None) -> bool:
        """Stops accepting and waits for requests under way; whether all ended in time."""
        for task in self._retiring:
            task.cancel()
        every = [self._present, *self._before]
        for serving in every:
            serving.server.stop()
        await asyncio.wait([serving.task for serving in every], timeout=within)
        return all(serving.task.done() for serving in every)

    async def abandon(self) -> None:
        """Leaves behind what still runs."""
        for serving in (self._present, *self._before):
            if not serving.task.done():
                serving.task.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await serving.task

    def _server(self, config: Config) -> _Serving:
        gate = Gate(self._app)
        # Granian takes a descriptor as it is, and its runtime closes it.
        own = self._listener.dup()
        try:
            # Without TLS nothing is ever renewed.
            server = self._make(self._app if self._shown is None else gate, own, config)
        except BaseException:
            own.close()
            raise
        return _Serving(server, gate, own.detach())

    async def _retire(self, old: _Serving) -> None:
        old.gate.is_retired = True
        old.gate.ended_at = time.monotonic()
        with socket.socket(socket.AF_UNIX) as nobody:
            nobody.bind("")
            nobody.listen(1)
            nobody.setblocking(False)
            # What is awaited of the old socket wakes the old server too, which then finds nothing to accept.
            os.dup2(nobody.fileno(), old.descriptor, inheritable=False)
        while old.gate.running or time.monotonic() - old.gate.ended_at < self._idle:  # noqa: ASYNC110  (time passes; nobody tells)
            await asyncio.sleep(LOOK_SECONDS)
        old.server.stop()
        await asyncio.wait((old.task,), timeout=STOP_SECONDS)
        self._before.remove(old)


def shown(config: Config) -> bytes | None:
    """What tells one certificate and key from another; None without TLS. OSError when they cannot be read."""
    server = config.server
    if server.tls_cert is None or server.tls_key is None:
        return None
    return hashlib.sha256(Path(server.tls_cert).read_bytes() + b"\0" + Path(server.tls_key).read_bytes()).digest()
