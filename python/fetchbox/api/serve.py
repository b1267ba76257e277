"""One api process: Granian inside this process's own loop, on the socket that the supervisor bound."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import resource
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from granian.constants import HTTPModes, Interfaces
from granian.http import HTTP1Settings
from granian.net import SocketHolder  # type: ignore[attr-defined]
from granian.server.embed import Server
from starlette.types import ASGIApp

from fetchbox.api.app import create_app
from fetchbox.api.configure import settings_of
from fetchbox.api.front import Front
from fetchbox.api.service import Service
from fetchbox.config import Config, parse_address
from fetchbox.control import Control
from fetchbox.errors import HubUnavailable, Refused
from fetchbox.tracing import traces

if TYPE_CHECKING:
    from fetchbox.broker import HubConnection

logger = logging.getLogger(__name__)

BACKLOG = 1024
"""Connections that may wait to be accepted."""
HEADER_SECONDS = 15.0
"""How long a request's head may take, and a connection stay idle between requests."""
IDLE_MARGIN = 2.0
MAX_HEAD_BYTES = 64 << 10
"""Largest head of a request, roughly (what is read at once may exceed it); beyond it the connection is answered 431 and closed."""
DESCRIPTORS_KEPT = 256
"""Descriptors that connections may not use: the hub, the store, logs, handlers."""
FIRST_CONNECT_SECONDS = 5.0
"""How long the start waits for the hub before the process says that it is ready all the same: it can say 503."""
STORE_LOOK_SECONDS = 5.0
"""How often the store is looked at while it is there."""
STORE_AGAIN_SECONDS = 2.0
"""How often while it is not."""
CLOSE_MARGIN = 2.0
"""Seconds before the end of the drain at which requests that still run are left behind."""


class EmbeddedServer(Server):
    """Granian on a socket that exists already."""

    def __init__(self, app: ASGIApp, listener: socket.socket, **options: Any) -> None:
        super().__init__(app, interface=Interfaces.ASGINL, **options)
        self._descriptor, self._family = listener.fileno(), listener.family

    def _init_shared_socket(self) -> None:
        # The holder takes the descriptor as it is and calls listen() with our backlog.
        self._ssp = None
        # Granian's stubs drifted: the class takes these and the attributes start as None.
        holder: Any = SocketHolder(self._descriptor, self._family == socket.AF_UNIX, self.backlog)  # type: ignore[call-arg]
        self._shd = holder
        self._sfd = holder.get_fd()


def connection_limit() -> int:
    """Connections served at a time: what the descriptors allow."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return max(64, min(soft, 65_536) - DESCRIPTORS_KEPT)


def make_server(app: ASGIApp, listener: socket.socket, config: Config) -> EmbeddedServer:
    """The server, not started."""
    tls = config.server.tls_cert is not None and config.server.tls_key is not None
    return EmbeddedServer(
        app,
        listener,
        # HTTP/1.1 only: the limit on the time of a head then holds from the first byte on, and behind a proxy nothing else is spoken.
        http=HTTPModes.http1,
        http1_settings=HTTP1Settings(header_read_timeout=int(HEADER_SECONDS * 1000), max_buffer_size=MAX_HEAD_BYTES),
        websockets=False,
        backlog=BACKLOG,
        backpressure=connection_limit(),
        log_enabled=False,
        ssl_cert=Path(str(config.server.tls_cert)) if tls else None,
        ssl_key=Path(str(config.server.tls_key)) if tls else None,
    )


def listening_socket(config: Config, control: Control) -> socket.socket:
    """The socket that the supervisor bound, or one of our own."""
    listener = bind(config.server.bind_addr) if control.listen_fd is None else socket.socket(fileno=control.listen_fd)
    listener.setblocking(False)
    return listener


def bind(address: str) -> socket.socket:
    """A listening socket for `host:port`, when no supervisor hands one over."""
    host, port = parse_address(address)
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind((host, port))
    return listener


async def serve(config: Config, control: Control) -> int:
    """Serves until the control says to drain; the exit code."""
    from fetchbox.broker import HubConnection

    listener = listening_socket(config, control)
    hub = HubConnection(config, "api", name=f"api {control.index}")
    app = create_app(config, hub, draining=control.draining)
    service: Service = app.state.service
    service.traces = traces(config, control.name)
    control.add_metrics(service.metrics.render)
    hub.on_connected(
        lambda connected: control.set_health("hub", "ok" if connected else "degraded", None if connected else "the hub is away")
    )
    front = Front(make_server, app, listener, config, HEADER_SECONDS + IDLE_MARGIN)
    control.on_reload(_reloader(service, hub, front, config))
    looking = asyncio.ensure_future(_look_at_the_store(service))
    try:
        await asyncio.gather(_until_connected(hub, service), service.settings.manifests.probe())
        return await run_front(front, control)
    finally:
        looking.cancel()
        service.handlers.close()
        hub.close()
        if service.traces is not None:
            await asyncio.to_thread(service.traces.close)
        listener.close()


async def run_front(front: Front, control: Control) -> int:
    """Serves until the control says to drain, and then until the requests are answered or the time is up."""
    front.start()
    ended = asyncio.ensure_future(front.ended.wait())
    draining = asyncio.ensure_future(control.draining.wait())
    control.ready()
    try:
        await asyncio.wait((ended, draining), return_when=asyncio.FIRST_COMPLETED)
        if not draining.done():
            front.fault()
            logger.error("the HTTP server ended by itself")
            return 1
        left = None if control.drain_until is None else max(0.1, control.drain_until - time.monotonic() - CLOSE_MARGIN)
        if not await front.stop(left):
            logger.warning("requests that did not end in time are left behind")
        return 0
    finally:
        ended.cancel()
        draining.cancel()
        await front.abandon()


def _reloader(service: Service, hub: HubConnection, front: Front, config: Config) -> Callable[[Config], None]:
    """Puts each new configuration in force in place of the one before."""
    present = config

    def reload(changed: Config) -> None:
        nonlocal present
        apply(service, present, changed)
        hub.reload(changed)
        front.renew(changed)
        present = changed

    return reload


def apply(service: Service, before: Config, changed: Config) -> None:
    """Puts a new configuration in force: tokens, limits and job types. The store stays: its objects' URLs are part of what was promised."""
    same_store = before.storage == changed.storage
    service.settings = settings_of(changed, service.settings.manifests if same_store else None)


async def _look_at_the_store(service: Service) -> None:
    """Keeps readiness true: a store that is away, gone or closed is noticed without a post, and so is one that is back."""
    while True:
        manifests = service.settings.manifests
        await asyncio.sleep(STORE_LOOK_SECONDS if manifests.trouble is None else STORE_AGAIN_SECONDS)
        await manifests.probe()


async def _until_connected(hub: HubConnection, service: Service) -> None:
    """Waits a while for the hub, so that the first request after the start is not refused, and learns from it whenever it comes back."""
    connected = asyncio.Event()
    learning: set[asyncio.Task[None]] = set()

    def changed(now: bool) -> None:
        if now:
            connected.set()
            task = asyncio.ensure_future(_learn(service))
            learning.add(task)
            task.add_done_callback(learning.discard)

    hub.on_connected(changed)
    if hub.connected:
        changed(True)
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(FIRST_CONNECT_SECONDS):
            await connected.wait()
            await asyncio.gather(*learning)


async def _learn(service: Service) -> None:
    try:
        await service.learn_partitions()
    except (HubUnavailable, Refused) as error:
        logger.warning("the hub does not say how many partitions jobs.tasks has: %s", error)
