"""An FTP server that misbehaves as the file's name says. Just enough of RFC 959 for a client that fetches one file."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections import Counter
from collections.abc import Iterator

from fetchbox.testing import content

SIZE = 50_000
Pair = tuple[asyncio.StreamReader, asyncio.StreamWriter]


class BadFtp:
    """`port`, and how often each file was asked for."""

    def __init__(self) -> None:
        self.port = 0
        self.asked: Counter[str] = Counter()
        self.stalled = threading.Event()
        self.left = threading.Event()
        self.writers: list[asyncio.StreamWriter] = []

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        data: asyncio.Server | None = None
        self.writers.append(writer)
        arrived: asyncio.Queue[Pair] = asyncio.Queue()

        def say(line: str) -> None:
            writer.write(f"{line}\r\n".encode())

        async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            self.writers.append(writer)
            arrived.put_nowait((reader, writer))

        say("220 as you wish")
        try:
            while line := (await reader.readline()).decode().strip():
                verb, _, name = line.partition(" ")
                match verb.upper():
                    case "USER":
                        say("331 and the password")
                    case "PASS":
                        say("230 in")
                    case "PWD":
                        say('257 "/"')
                    case "EPSV":
                        say("500 not here")
                    case "PASV":
                        arrived = asyncio.Queue()
                        if data is not None:
                            data.close()
                        data = await asyncio.start_server(accept, "127.0.0.1", 0)
                        port = data.sockets[0].getsockname()[1]
                        # An address that nobody may connect to: the data come from the server itself, or not at all.
                        say(f"227 Entering Passive Mode (10,1,2,3,{port >> 8},{port & 255})")
                    case "TYPE" | "CWD":
                        say("200 fine")
                    case "SIZE" if not name.startswith("unknown"):
                        say(f"213 {SIZE}")
                    case "RETR":
                        self.asked[name] += 1
                        if not await self._send(name, say, arrived):
                            return
                    case "QUIT":
                        say("221 bye")
                    case _:
                        say("502 no")
                await writer.drain()
        except (ConnectionError, asyncio.CancelledError):
            pass
        finally:
            if data is not None:
                data.close()
            writer.close()

    async def _send(self, name: str, say: object, arrived: asyncio.Queue[Pair]) -> bool:
        assert callable(say)
        kind, _, number = name.partition(".")[0].partition("-")
        if kind == "busy" and self.asked[name] <= int(number):
            say("450 busy, come back later")
            return True
        if kind == "gone":
            say("550 there is no such file")
            return True
        reader, connection = await arrived.get()
        say("150 here it comes")
        body = content(0, SIZE)
        connection.write(body[: SIZE // 2] if kind in ("cut", "stall") else body)
        with contextlib.suppress(ConnectionError):
            await connection.drain()
        if kind == "stall":
            self.stalled.set()
            # Until the client has had enough.
            with contextlib.suppress(ConnectionError):
                await reader.read()
            self.left.set()
        connection.close()
        if kind != "mute":
            say("426 broken off" if kind == "cut" else "226 all of it")
        return True


@contextlib.contextmanager
def bad_ftp() -> Iterator[BadFtp]:
    """A running one, on a thread."""
    server = BadFtp()
    ready = threading.Event()
    loop = asyncio.new_event_loop()

    async def run() -> None:
        listening = await asyncio.start_server(server.serve, "127.0.0.1", 0)
        server.port = listening.sockets[0].getsockname()[1]
        ready.set()
        await stop.wait()
        listening.close()
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for writer in server.writers:
            writer.transport.abort()
        # Transports are closed by the loop's next turns.
        for _ in range(3):
            await asyncio.sleep(0)

    stop = asyncio.Event()
    thread = threading.Thread(target=lambda: loop.run_until_complete(run()), daemon=True)
    thread.start()
    assert ready.wait(10)
    try:
        yield server
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join(10)
        loop.close()
