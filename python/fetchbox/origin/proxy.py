"""A proxy that forwards, or misbehaves in the way that the user name in its URL asks for: `http://truncate@127.0.0.1:8090`.

It speaks CONNECT, plain GET by absolute URL, SOCKS 5, and TLS around the first two when the client begins with it. It leads to loopback
addresses only, so that it is of no use to anybody else.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import contextlib
import ipaddress
import os
import socket
import ssl
import struct
from collections.abc import Callable
from urllib.parse import urlsplit

BEHAVIOURS: dict[str, str] = {
    "": "Forwards, as any other name does.",
    "407": "Demands other credentials: 407, or the refusal of a SOCKS login.",
    "refuse": "403 to CONNECT; SOCKS: not allowed by the rules.",
    "unreachable": "502 to CONNECT; SOCKS: host unreachable.",
    "close": "Closes the connection without a word.",
    "reset": "RST instead of an answer.",
    "stall": "Never answers.",
    "garbage": "Random bytes instead of an answer.",
    "truncate": "Forwards, and closes after 1,000 bytes of what the target sends.",
}
"""User names with a meaning, and what they do."""

TRUNCATE_AT = 1000
"""Bytes from the target that `truncate` lets through."""
HEAD_LIMIT = 64 << 10
STEP_SECONDS = 15.0
"""Limit of every step before the tunnel is up."""
STALL_SECONDS = 3600.0
BACKLOG = 1024
PIECE = 64 << 10
TLS_HANDSHAKE = 0x16
_SOCKS = 5
_SOCKS_REPLIES = {"refuse": 2, "unreachable": 4}
_HTTP_REPLIES = {
    "407": b'HTTP/1.1 407 Proxy Authentication Required\r\nProxy-Authenticate: Basic realm="origin"\r\nContent-Length: 0\r\n\r\n',
    "refuse": b"HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\n\r\n",
    "unreachable": b"HTTP/1.1 502 Bad Gateway\r\nContent-Length: 0\r\n\r\n",
}
_NOWHERE = b"HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\n\r\n"


class Proxy:
    """The proxy of an origin. `asked` holds `behaviour target` of every request in order."""

    def __init__(self, host: str, port: int, context: Callable[[], ssl.SSLContext]) -> None:
        self.host = host
        self.port = port
        self.asked: list[str] = []
        self._context = context
        self._listener: socket.socket | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        """Binds and serves. OSError when the address is taken."""
        family = socket.AF_INET6 if ":" in self.host else socket.AF_INET
        self._listener = socket.create_server((self.host, self.port), family=family, backlog=BACKLOG)
        self._listener.setblocking(False)
        self.port = int(self._listener.getsockname()[1])
        self._keep(self._accept(self._listener))

    async def close(self) -> None:
        """Ends everything."""
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._listener is not None:
            self._listener.close()
            self._listener = None

    def _keep(self, work: object) -> None:
        assert asyncio.iscoroutine(work)
        task: asyncio.Task[None] = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _accept(self, listener: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        while True:
            accepted, _ = await loop.sock_accept(listener)
            self._keep(self._connected(accepted))

    async def _connected(self, accepted: socket.socket) -> None:
        writer: asyncio.StreamWriter | None = None
        try:
            async with asyncio.timeout(STEP_SECONDS):
                first = await peek(accepted)
                context = self._context() if first == TLS_HANDSHAKE else None
                reader, writer = await streams(accepted, context)
            client = _Client(self, reader, writer)
            await (client.socks() if first == _SOCKS else client.http())
        except (OSError, asyncio.IncompleteReadError, asyncio.LimitOverrunError, TimeoutError, ImportError, ValueError):
            pass
        finally:
            if writer is None:
                accepted.close()
            else:
                writer.transport.abort()


class _Client:
    """One connection to the proxy."""

    def __init__(self, proxy: Proxy, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._proxy = proxy
        self._reader = reader
        self._writer = writer

    async def http(self) -> None:
        async with asyncio.timeout(STEP_SECONDS):
            head = (await self._reader.readuntil(b"\r\n\r\n")).decode("latin-1")
        line, *fields = head.rstrip("\r\n").split("\r\n")
        method, target, _ = line.split(" ", 2)
        given = {name.strip().lower(): value.strip() for name, _, value in (field.partition(":") for field in fields)}
        behaviour = _user(given.get("proxy-authorization", ""))
        self._proxy.asked.append(f"{behaviour} {target}")
        if behaviour in _HTTP_REPLIES:
            await self._say(_HTTP_REPLIES[behaviour], last=True)
        elif not await self._misbehaved(behaviour):
            if method == "CONNECT":
                host, _, port = target.rpartition(":")
                await self._forward(behaviour, host, int(port), b"HTTP/1.1 200 Connection established\r\n\r\n", b"", _NOWHERE)
            else:
                parts = urlsplit(target)
                path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
                kept = [field for field in fields if not field.lower().startswith(("proxy-", "connection:"))]
                request = "\r\n".join([f"{method} {path} HTTP/1.1", *kept, "Connection: close", "", ""]).encode("latin-1")
                await self._forward(behaviour, parts.hostname or "", parts.port or 80, b"", request, _NOWHERE)

    async def socks(self) -> None:
        read = self._reader.readexactly
        async with asyncio.timeout(STEP_SECONDS):
            _, methods = await read(2)
            offered = await read(methods)
            behaviour = ""
            if 2 in offered:
                await self._say(b"\x05\x02")
                _, length = await read(2)
                behaviour = (await read(length)).decode("latin-1")
                await read((await read(1))[0])
                if behaviour == "407":
                    self._proxy.asked.append("407 ")
                    await self._say(b"\x01\x01", last=True)
                    return
                await self._say(b"\x01\x00")
            else:
                await self._say(b"\x05\x00")
            kind = (await read(4))[3]
            if kind == 3:
                host = (await read((await read(1))[0])).decode("latin-1")
            else:
                host = str(ipaddress.ip_address(await read(4 if kind == 1 else 16)))
            (port,) = struct.unpack("!H", await read(2))
        self._proxy.asked.append(f"{behaviour} {host}:{port}")

        def reply(code: int) -> bytes:
            return bytes([5, code, 0, 1, 0, 0, 0, 0, 0, 0])

        if behaviour in _SOCKS_REPLIES:
            await self._say(reply(_SOCKS_REPLIES[behaviour]), last=True)
        elif not await self._misbehaved(behaviour):
            await self._forward(behaviour, host, port, reply(0), b"", reply(2))

    async def _misbehaved(self, behaviour: str) -> bool:
        if behaviour == "reset":
            raw = self._writer.get_extra_info("socket")
            raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        elif behaviour == "garbage":
            await self._say(os.urandom(1000), last=True)
        elif behaviour == "stall":
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(STALL_SECONDS):
                    while await self._reader.read(PIECE):
                        pass
        elif behaviour != "close":
            return False
        return True

    async def _forward(self, behaviour: str, host: str, port: int, ready: bytes, request: bytes, refused: bytes) -> None:
        try:
            allowed = host == "localhost" or ipaddress.ip_address(host.strip("[]")).is_loopback
        except ValueError:
            allowed = False
        if not allowed:
            await self._say(refused, last=True)
            return
        async with asyncio.timeout(STEP_SECONDS):
            reader, writer = await asyncio.open_connection(host.strip("[]"), port)
        try:
            await self._say(ready)
            writer.write(request)
            up = asyncio.ensure_future(_copy(self._reader, writer, None))
            try:
                await _copy(reader, self._writer, TRUNCATE_AT if behaviour == "truncate" else None)
                await self._end()
            finally:
                up.cancel()
                await asyncio.gather(up, return_exceptions=True)
        finally:
            writer.transport.abort()

    async def _say(self, data: bytes, *, last: bool = False) -> None:
        self._writer.write(data)
        await self._writer.drain()
        if last:
            await self._end()

    async def _end(self) -> None:
        """Closes in order: everything said before arrives."""
        self._writer.close()
        async with asyncio.timeout(STEP_SECONDS):
            await self._writer.wait_closed()


def _user(authorization: str) -> str:
    scheme, _, encoded = authorization.partition(" ")
    if scheme.lower() != "basic":
        return ""
    try:
        return base64.b64decode(encoded).decode("latin-1").partition(":")[0]
    except binascii.Error:
        return ""


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, limit: int | None) -> None:
    left = limit
    while left is None or left > 0:
        data = await reader.read(PIECE if left is None else min(PIECE, left))
        if not data:
            return
        if left is not None:
            left -= len(data)
        writer.write(data)
        await writer.drain()


async def peek(accepted: socket.socket) -> int:
    """The first byte, left where it is; ValueError when none comes."""
    accepted.setblocking(False)
    loop = asyncio.get_running_loop()
    readable = loop.create_future()
    loop.add_reader(accepted, lambda: None if readable.done() else readable.set_result(None))
    try:
        await readable
    finally:
        loop.remove_reader(accepted)
    data = accepted.recv(1, socket.MSG_PEEK)
    if not data:
        raise ValueError("closed before the first byte")
    return data[0]


async def streams(
    accepted: socket.socket, context: ssl.SSLContext | None, limit: int = HEAD_LIMIT
) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """An accepted connection as a pair of streams, under TLS when there is a context for it."""
    loop = asyncio.get_running_loop()
    reader = asyncio.StreamReader(limit=limit, loop=loop)
    protocol = asyncio.StreamReaderProtocol(reader, loop=loop)
    transport, _ = await loop.connect_accepted_socket(lambda: protocol, accepted, ssl=context)
    return reader, asyncio.StreamWriter(transport, protocol, reader, loop)
