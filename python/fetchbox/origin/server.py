"""The server itself: listener, connections, pace, journal and counters."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
import time
from collections import Counter, deque
from collections.abc import Coroutine
from pathlib import Path
from types import TracebackType
from typing import TextIO

from fetchbox.origin import digest, good, hostile_body, hostile_head, hostile_redirect, hostile_resume  # noqa: F401  (they fill the table of routes)
from fetchbox.origin.certificates import Certificates, TlsMode, server_context
from fetchbox.origin.http import IDLE_TIMEOUT, MAX_HEAD, Exchange, Request, RequestError, read_request
from fetchbox.origin.ports import BlackHole
from fetchbox.origin.proxy import TLS_HANDSHAKE, Proxy, peek, streams
from fetchbox.origin.routes import find

KEPT_REQUESTS = 100_000
"""Requests that `Origin.requests` remembers; older ones are forgotten, the counters are not."""

BACKLOG = 4096
"""Connections that may wait to be accepted, so that a burst of clients is never refused."""


class Origin:
    """A web server for tests, demos and benches, with good pages and every hostile one.

        async with Origin() as origin:
            origin.url("/bytes/10?seed=1")

    `pace` is the most responses per second (None: as many as asked for). `journal` is a file that gets one line a request,
    `time target method`, flushed before the response starts. `tls` makes it speak TLS: "ca" (valid, signed by the CA in
    `certificates.ca_file`), "self-signed", "expired" or "wrong-host"; who begins without TLS on the same port is answered without. Port 0
    takes a free one. With a `proxy_port` there is a proxy as well,
    which misbehaves as the user name in its URL says.
    """

    def __init__(
        self,
        *,
        host: str = "127.0.0.1",
        port: int = 0,
        tls: TlsMode | None = None,
        journal: Path | str | None = None,
        pace: float | None = None,
        proxy_port: int | None = None,
    ) -> None:
        self.proxy = None if proxy_port is None else Proxy(host, proxy_port, self._proxy_context)
        self.host = host
        self.port = port
        self.requests: deque[Request] = deque(maxlen=KEPT_REQUESTS)
        self.counts: Counter[str] = Counter()
        self.open_connections = 0
        self.bytes_sent = 0
        """All that was ever answered, heads included."""
        self.certificates: Certificates | None = None
        self.black_hole = BlackHole()
        self._tls = tls
        self._journal_path = journal
        self._journal: TextIO | None = None
        self._interval = 1 / pace if pace else 0.0
        self._next_turn = 0.0
        self._tries: Counter[str] = Counter()
        self._server: asyncio.Server | None = None
        self._listener: socket.socket | None = None
        self._greeting: set[asyncio.Task[None]] = set()
        self._connections: dict[asyncio.Task[None], asyncio.StreamWriter] = {}

    @property
    def scheme(self) -> str:
        """ "http" or "https"."""
        return "https" if self._tls else "http"

    @property
    def base_url(self) -> str:
        """Scheme, host and port, without a slash at the end. A wildcard address is given as its loopback."""
        host = {"0.0.0.0": "127.0.0.1", "::": "::1", "": "127.0.0.1"}.get(self.host, self.host)  # noqa: S104  (named, not bound)
        return f"{self.scheme}://{f'[{host}]' if ':' in host else host}:{self.port}"

    def url(self, path: str) -> str:
        """The URL of a path of this origin."""
        return self.base_url + path

    def proxy_url(self, behaviour: str = "", scheme: str = "http") -> str:
        """The URL of this origin's proxy that asks for a behaviour."""
        assert self.proxy is not None, "this origin was made without proxy_port"
        host = self.base_url.split("://")[1].rpartition(":")[0]
        return f"{scheme}://{f'{behaviour}:x@' if behaviour else ''}{host}:{self.proxy.port}"

    def _proxy_context(self) -> ssl.SSLContext:
        """What the proxy presents when it is spoken to by TLS: the origin's own certificate, or a self-signed one."""
        if self.certificates is None:
            self.certificates = Certificates.create()
        return server_context(self.certificates, self._tls or "self-signed")

    def count(self, path: str) -> int:
        """Requests for a path (decoded, without its query) so far."""
        return self.counts[path]

    def count_try(self, key: str) -> int:
        """Counts one more try of something and gives the number, the first being 1."""
        self._tries[key] += 1
        return self._tries[key]

    async def start(self) -> None:
        """Binds and serves. OSError when the address is taken."""
        context: ssl.SSLContext | None = None
        if self._tls is not None:
            self.certificates = Certificates.create()
            context = server_context(self.certificates, self._tls)
        if self._journal_path is not None:
            # Opened once and kept; a line is written without waiting, since the page cache takes it.
            self._journal = Path(self._journal_path).open("a", buffering=1, encoding="utf-8", errors="backslashreplace")  # noqa: ASYNC230, SIM115
        if context is None:
            self._server = await asyncio.start_server(
                self._connected, self.host, self.port, limit=MAX_HEAD, backlog=BACKLOG, reuse_address=True
            )
            self.port = int(self._server.sockets[0].getsockname()[1])
        else:
            family = socket.AF_INET6 if ":" in self.host else socket.AF_INET
            self._listener = socket.create_server((self.host, self.port), family=family, backlog=BACKLOG)
            self._listener.setblocking(False)
            self.port = int(self._listener.getsockname()[1])
            self._greet(self._accept(self._listener, context))
        if self.proxy is not None:
            await self.proxy.start()

    async def close(self) -> None:
        """Stops listening and ends every connection, whatever it is doing."""
        if self.proxy is not None:
            await self.proxy.close()
        if self._server is not None:
            self._server.close()
        for greeting in list(self._greeting):
            greeting.cancel()
        await asyncio.gather(*self._greeting, return_exceptions=True)
        if self._listener is not None:
            self._listener.close()
            self._listener = None
        tasks = list(self._connections)
        for task, writer in list(self._connections.items()):
            writer.transport.abort()
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        if self._server is not None:
            await self._server.wait_closed()
            self._server = None
        self.black_hole.close()
        if self._journal is not None:
            self._journal.close()
            self._journal = None
        if self.certificates is not None:
            self.certificates.remove()
            self.certificates = None

    async def __aenter__(self) -> Origin:
        await self.start()
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        await self.close()

    def _greet(self, work: Coroutine[None, None, None]) -> None:
        task = asyncio.ensure_future(work)
        self._greeting.add(task)
        task.add_done_callback(self._greeting.discard)

    async def _accept(self, listener: socket.socket, context: ssl.SSLContext) -> None:
        loop = asyncio.get_running_loop()
        while True:
            accepted, _ = await loop.sock_accept(listener)
            self._greet(self._first_byte(accepted, context))

    async def _first_byte(self, accepted: socket.socket, context: ssl.SSLContext) -> None:
        """TLS or not, as the client likes: a redirect may lead from one to the other on the same port."""
        try:
            async with asyncio.timeout(IDLE_TIMEOUT):
                tls = await peek(accepted) == TLS_HANDSHAKE
                reader, writer = await streams(accepted, context if tls else None, MAX_HEAD)
        except (OSError, TimeoutError, ValueError, asyncio.CancelledError):
            accepted.close()
            return
        await self._connected(reader, writer)

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._connections[task] = writer
        self.open_connections += 1
        try:
            with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError, TimeoutError, ssl.SSLError):
                await self._serve(reader, writer)
        except asyncio.CancelledError:
            # Only close() cancels a connection; ending quietly keeps asyncio.streams from logging it.
            pass
        finally:
            self.open_connections -= 1
            del self._connections[task]
            with contextlib.suppress(ConnectionError, ssl.SSLError):
                writer.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        address = writer.get_extra_info("peername")
        peer = f"{address[0]}:{address[1]}" if address else ""
        while True:
            try:
                request = await read_request(reader, peer)
            except RequestError as error:
                await Exchange(Request(0, "GET", "", "", {}, {}), reader, writer, self).respond(
                    error.status, f"{error}\n".encode(), [("Connection", "close")]
                )
                return
            if request is None:
                return
            self._note(request)
            if self._interval:
                await self._turn()
            exchange = Exchange(request, reader, writer, self)
            await self._answer(exchange)
            if not exchange.keep_alive or request.headers.get("connection", "").lower() == "close":
                return

    async def _answer(self, x: Exchange) -> None:
        found = find(x.request.path)
        if found is None:
            await x.respond(404, b"there is no such path here; / lists them all\n")
            return
        entry, x.params = found
        if x.request.method not in ("GET", "HEAD") and entry.pattern not in ("/hook", "/echo"):
            await x.respond(405, b"only GET and HEAD\n", [("Allow", "GET, HEAD")])
            return
        try:
            await entry.handler(x)
        except RequestError as error:
            await x.respond(error.status, f"{error}\n".encode())

    def _note(self, request: Request) -> None:
        self.counts[request.path] += 1
        self.requests.append(request)
        if self._journal is not None:
            self._journal.write(f"{request.time:.6f} {request.target} {request.method}\n")

    async def _turn(self) -> None:
        now = time.monotonic()
        turn = max(now, self._next_turn)
        self._next_turn = turn + self._interval
        await asyncio.sleep(turn - now)
