"""What tests of Iggy need: a real server, and a pass in front of it that can be cut. Without `iggy-server` on the PATH they are skipped."""

from __future__ import annotations

import asyncio
import threading

import pytest

from fetchbox.bench.iggy import SERVER, IggyServer, iggy_server
from fetchbox.testing import free_port

__all__ = ["SERVER", "SKIPPED", "IggyServer", "Pass", "iggy_server", "needs_iggy"]

SKIPPED = "iggy-server is not on the PATH: nothing of Iggy was tested"
needs_iggy = pytest.mark.skipif(SERVER is None, reason=SKIPPED)


class Pass:
    """A way to the server that can be cut: connections stay open and nothing goes through, or they are closed and nobody is let in."""

    def __init__(self, port: int) -> None:
        self._target = port
        self.port = free_port()
        self._loop = asyncio.new_event_loop()
        self._open = asyncio.Event()
        self._open.set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._started = threading.Event()
        self._thread = threading.Thread(target=self._run, name="iggy-pass", daemon=True)
        self._thread.start()
        assert self._started.wait(10)

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        server = self._loop.run_until_complete(asyncio.start_server(self._serve, "127.0.0.1", self.port))
        self._started.set()
        self._loop.run_forever()
        server.close()
        for task in self._tasks:
            task.cancel()
        self._loop.run_until_complete(asyncio.gather(*self._tasks, return_exceptions=True))
        self._loop.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        far_reader, far_writer = await asyncio.open_connection("127.0.0.1", self._target)
        for source, sink in ((reader, far_writer), (far_reader, writer)):
            task = asyncio.create_task(self._carry(source, sink))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _carry(self, source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
        try:
            while data := await source.read(1 << 16):
                await self._open.wait()
                sink.write(data)
                await sink.drain()
        except ConnectionError:
            pass
        finally:
            sink.close()

    def cut(self) -> None:
        """From now on nothing goes through."""
        self._loop.call_soon_threadsafe(self._open.clear)

    def mend(self) -> None:
        """It goes on, with what waited."""
        self._loop.call_soon_threadsafe(self._open.set)

    def close(self) -> None:
        """Ends it."""
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
