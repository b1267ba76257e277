"""Readers of logs by the hundred, over bare sockets, and a server that keeps jobs pending for as long as a test wants."""

from __future__ import annotations

import asyncio
import contextlib
import os
from pathlib import Path
from types import TracebackType

TICKS = os.sysconf("SC_CLK_TCK")


def resident(pid: int) -> int:
    """Bytes of memory that are this process's alone."""
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="ascii").splitlines():
        if line.startswith("Pss_Anon:"):
            return int(line.split()[1]) * 1024
    raise AssertionError("the kernel tells no Pss_Anon")


def cpu_seconds(pid: int) -> float:
    """User and system time so far."""
    fields = Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS


class Gate:
    """A web server of this loop that answers nobody before it is opened."""

    def __init__(self) -> None:
        self.opened = asyncio.Event()
        self.waiting = 0

    async def __aenter__(self) -> Gate:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.url = f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.opened.set()
        self._server.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            while True:
                await reader.readuntil(b"\r\n\r\n")
                self.waiting += 1
                await self.opened.wait()
                writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhello")
                await writer.drain()
        writer.close()


class Reader:
    """Reads one job's log as Server-Sent Events until the stream ends."""

    def __init__(self, port: int, job_id: str, *, follow: bool = False, last: int | None = None) -> None:
        self._port = port
        self._job_id = job_id
        self._follow = follow
        self.last = last
        self.status = 0
        self.offsets: list[int] = []
        self.begun = asyncio.Event()
        self.heartbeats = 0
        self.ended = False
        """`event: end` came."""
        self.whole = False
        """The stream ended as HTTP wants it, and did not just break off."""

    async def run(self) -> None:
        """Reads until the end of the stream or of the connection."""
        reader, self._writer = await asyncio.open_connection("127.0.0.1", self._port, limit=1 << 20)
        try:
            seen = f"Last-Event-ID: {self.last}\r\n" if self.last is not None else ""
            target = f"/jobs/{self._job_id}/logs{'?follow=true' if self._follow else ''}"
            self._writer.write(f"GET {target} HTTP/1.1\r\nHost: x\r\n{seen}\r\n".encode())
            head = await reader.readuntil(b"\r\n\r\n")
            self.status = int(head.split()[1])
            self.begun.set()
            if self.status != 200:
                return
            while size := int(await reader.readline() or b"-1", 16):
                if size < 0:
                    return
                self._take((await reader.readexactly(size + 2))[:-2])
            self.whole = True
        except (ConnectionError, asyncio.IncompleteReadError):
            return
        finally:
            self._writer.close()

    def leave(self) -> None:
        """Breaks the connection off."""
        self._writer.transport.abort()

    def _take(self, piece: bytes) -> None:
        for line in piece.splitlines():
            if line.startswith(b"id: "):
                self.last = int(line[4:])
                self.offsets.append(self.last)
            self.heartbeats += line.startswith(b": keep-alive")
            self.ended |= line == b"event: end"
