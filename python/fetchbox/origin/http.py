"""HTTP by hand, on raw streams: a hostile server must be able to send bytes that no HTTP library would."""

from __future__ import annotations

import asyncio
import socket
import struct
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from email.utils import formatdate
from functools import lru_cache
from http import HTTPStatus
from typing import TYPE_CHECKING
from urllib.parse import parse_qsl, unquote

if TYPE_CHECKING:
    from fetchbox.origin.server import Origin

MAX_HEAD = 256 * 1024
"""Bytes of request line and headers that are read before the answer is 431."""

MAX_BODY = 16 * 1024 * 1024
"""Bytes of a request body (`/hook`) that are read before the answer is 413."""

IDLE_TIMEOUT = 120.0
"""Seconds that a connection may lie idle between requests."""

STALL_LIMIT = 3600.0
"""Seconds after which even the most patient stall ends, so that no connection lives for ever."""


@dataclass(frozen=True, slots=True)
class Request:
    """One request as it arrived. `headers` has lower-case names; of repeated ones the last counts."""

    time: float
    method: str
    target: str
    path: str
    query: Mapping[str, str]
    headers: Mapping[str, str]
    body: bytes = b""
    peer: str = ""


class RequestError(Exception):
    """A request that the origin refuses to understand; `status` is what it answers."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


async def read_request(reader: asyncio.StreamReader, peer: str) -> Request | None:
    """The next request of a connection, or None when the client closed it or idled too long.

    Raises RequestError for a head or body that is too large or malformed.
    """
    try:
        async with asyncio.timeout(IDLE_TIMEOUT):
            head = await reader.readuntil(b"\r\n\r\n")
    except (asyncio.IncompleteReadError, TimeoutError):
        return None
    except asyncio.LimitOverrunError:
        raise RequestError(431, "the request's headers are too large") from None
    arrived = time.time()
    lines = head.decode("latin-1").split("\r\n")
    try:
        method, target, _version = lines[0].split(" ", 2)
    except ValueError:
        raise RequestError(400, f"not a request line: {lines[0]!r}") from None
    headers: dict[str, str] = {}
    for line in lines[1:]:
        if line:
            name, colon, value = line.partition(":")
            if not colon:
                raise RequestError(400, f"not a header: {line!r}")
            headers[name.strip().lower()] = value.strip()
    raw_path, _, raw_query = target.partition("?")
    return Request(
        time=arrived,
        method=method,
        target=target,
        path=unquote(raw_path),
        query=dict(parse_qsl(raw_query, keep_blank_values=True)) if raw_query else {},
        headers=headers,
        body=await _read_body(reader, headers),
        peer=peer,
    )


async def _read_body(reader: asyncio.StreamReader, headers: Mapping[str, str]) -> bytes:
    if "transfer-encoding" not in headers and "content-length" not in headers:
        return b""
    async with asyncio.timeout(IDLE_TIMEOUT):
        if "chunked" in headers.get("transfer-encoding", "").lower():
            return await _read_chunked(reader)
        try:
            length = int(headers["content-length"])
        except ValueError:
            raise RequestError(400, "Content-Length is not a number") from None
        if length > MAX_BODY:
            raise RequestError(413, f"the body is larger than {MAX_BODY} bytes")
        return await reader.readexactly(length)


async def _read_chunked(reader: asyncio.StreamReader) -> bytes:
    body = bytearray()
    while True:
        line = await reader.readuntil(b"\r\n")
        try:
            size = int(line.split(b";")[0], 16)
        except ValueError:
            raise RequestError(400, "not a chunk size") from None
        if len(body) + size > MAX_BODY:
            raise RequestError(413, f"the body is larger than {MAX_BODY} bytes")
        if size == 0:
            while await reader.readuntil(b"\r\n") != b"\r\n":
                pass
            return bytes(body)
        body += await reader.readexactly(size)
        await reader.readexactly(2)


@lru_cache(maxsize=256)
def _status_line(status: int) -> bytes:
    try:
        phrase = HTTPStatus(status).phrase
    except ValueError:
        phrase = "Unknown"
    return f"HTTP/1.1 {status} {phrase}\r\nServer: fetchbox-origin\r\n".encode()


@lru_cache(maxsize=4)
def _date_line(second: int) -> bytes:
    return f"Date: {formatdate(second, usegmt=True)}\r\n".encode()


def head_bytes(status: int, headers: Iterable[tuple[str, str]]) -> bytes:
    """A response head up to and with the empty line. Names and values are sent exactly as given (latin-1)."""
    fields = "".join(f"{name}: {value}\r\n" for name, value in headers)
    return _status_line(status) + _date_line(int(time.time())) + fields.encode("latin-1") + b"\r\n"


@dataclass(slots=True)
class Exchange:
    """One request and the raw way back. A handler either answers whole or sets `keep_alive` to False."""

    request: Request
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    origin: Origin
    params: Mapping[str, str] = field(default_factory=dict)
    keep_alive: bool = True

    def number(self, name: str, default: float = 0.0, *, low: float = 0.0, high: float = 1e15) -> float:
        """A number from the path, else from the query, else `default`. RequestError(400) for anything else or out of bounds."""
        text = self.params.get(name, self.request.query.get(name))
        try:
            value = default if text is None else float(text)
        except ValueError:
            raise RequestError(400, f"{name} is not a number: {text!r}") from None
        if not low <= value <= high:
            raise RequestError(400, f"{name} must be between {low:g} and {high:g}")
        return value

    def integer(self, name: str, default: int = 0, *, low: int = 0, high: int = 1 << 50) -> int:
        """As `number`, for whole numbers (of bytes, mostly)."""
        return int(self.number(name, default, low=low, high=high))

    def text(self, name: str, default: str = "") -> str:
        """A value from the path, else from the query, else `default`."""
        return self.params.get(name, self.request.query.get(name, default))

    def tries(self, route: str) -> int:
        """How often this route was asked for with this `id` (a query parameter), this time included."""
        return self.origin.count_try(f"{route} {self.text('id')}")

    async def send(self, *pieces: bytes) -> None:
        """Writes bytes as they are and waits for the socket's buffer. Raises ConnectionError when the client is gone."""
        self.origin.bytes_sent += sum(map(len, pieces))
        self.writer.writelines(pieces)
        await self.writer.drain()

    async def head(self, status: int, headers: Iterable[tuple[str, str]] = ()) -> None:
        """Sends a response head with exactly these fields beside Server and Date."""
        await self.send(head_bytes(status, headers))

    async def respond(self, status: int, body: bytes = b"", headers: Iterable[tuple[str, str]] = (), *, kind: str = "text/plain") -> None:
        """A whole, correct response. For HEAD the body is left out and its length kept."""
        fields = [*headers, ("Content-Type", kind), ("Content-Length", str(len(body)))]
        if status in (204, 304) or status < 200:
            await self.send(head_bytes(status, headers))
        elif self.request.method == "HEAD":
            await self.send(head_bytes(status, fields))
        else:
            await self.send(head_bytes(status, fields), body)

    async def flush(self) -> None:
        """Waits until everything written was handed to the kernel; needed before an abort, which drops what is buffered."""
        # With a limit of 0 the TLS layers of asyncio and uvloop pause even when nothing is buffered, and never resume.
        self.writer.transport.set_write_buffer_limits(high=1 if self.origin.scheme == "https" else 0)
        await self.writer.drain()

    async def reset(self) -> None:
        """Ends the connection with a TCP RST instead of a FIN."""
        await self.flush()
        raw: socket.socket | None = self.writer.get_extra_info("socket")
        if raw is not None:
            raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.cut()

    def cut(self) -> None:
        """Ends the connection at once: no TLS close_notify, nothing that is still buffered."""
        self.keep_alive = False
        self.writer.transport.abort()

    async def stall(self, seconds: float = STALL_LIMIT) -> None:
        """Keeps the connection open and says nothing until the client gives up, or for `seconds`."""
        self.keep_alive = False
        await self.flush()
        try:
            async with asyncio.timeout(min(seconds, STALL_LIMIT)):
                while await self.reader.read(65536):
                    pass
        except TimeoutError:
            pass
