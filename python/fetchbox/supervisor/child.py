"""One child process from exec to exit, and what it has said on its channel."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import structlog

from fetchbox.control import ALLOCATOR, CHILD_ENV, ENV_CONTROL_FD, ENV_LISTEN_FD, ENV_PARENT_PID, Channel, Message, process_name

log = structlog.get_logger("fetchbox.supervisor")

STDERR = 2
OnEvent = Callable[[Message], None]


@dataclass(frozen=True, slots=True)
class Start:
    """What a child is started with. `config` is its JSON, secrets included; it travels over the channel only."""

    role: str
    index: int
    command: Sequence[str]
    config: str
    listen_fd: int | None = None


class Child:
    """A running child. Make it with `Child.start` and always await `ended`."""

    def __init__(self, start: Start, process: asyncio.subprocess.Process, channel: Channel, on_event: OnEvent | None) -> None:
        self.name = process_name(start.role, start.index)
        self.pid = process.pid
        self.started_at = time.monotonic()
        self.ready_at: float | None = None
        self.became_ready = asyncio.Event()
        self.health: dict[str, dict[str, Any]] = {}
        self._process = process
        self._channel = channel
        self._on_event = on_event
        self._questions: dict[int, asyncio.Future[list[str]]] = {}
        self._next_question = 0
        self._listener = asyncio.create_task(self._listen())

    @classmethod
    async def start(cls, start: Start, on_event: OnEvent | None = None) -> Child:
        """Execs the child in a session of its own, so that a terminal's Ctrl-C reaches the supervisor alone.

        `on_event` gets what it says beyond what every child says.
        """
        ours, theirs = socket.socketpair()
        with theirs:
            environment = ALLOCATOR | {name: value for name, value in os.environ.items() if name not in CHILD_ENV}
            environment[ENV_CONTROL_FD] = str(theirs.fileno())
            environment[ENV_PARENT_PID] = str(os.getpid())
            descriptors = [theirs.fileno()]
            if start.listen_fd is not None:
                environment[ENV_LISTEN_FD] = str(start.listen_fd)
                descriptors.append(start.listen_fd)
            try:
                process = await asyncio.create_subprocess_exec(
                    *start.command,
                    env=environment,
                    pass_fds=descriptors,
                    start_new_session=True,
                    stdin=asyncio.subprocess.DEVNULL,
                    # Standard output belongs to commands that print results; children only log.
                    stdout=STDERR,
                )
            except BaseException:
                ours.close()
                raise
        try:
            channel = await Channel.open(ours)
        except BaseException:
            process.kill()
            ours.close()
            raise
        channel.send({"do": "start", "config": start.config})
        return cls(start, process, channel, on_event)

    @property
    def is_ready(self) -> bool:
        """Whether it said that it is ready."""
        return self.ready_at is not None

    def ready_for(self) -> float | None:
        """Seconds since it was ready, or None."""
        return None if self.ready_at is None else time.monotonic() - self.ready_at

    async def ended(self) -> int:
        """Waits for the exit; the code, negative for a signal."""
        code = await self._process.wait()
        await asyncio.wait({self._listener}, timeout=1)
        self._listener.cancel()
        await self._channel.close()
        return code

    def drain(self, within: float) -> None:
        """Tells it to finish within so many seconds. SIGTERM too: it ends a child that has not come to listening yet."""
        self._channel.send({"do": "drain", "within": within})
        self.signal(signal.SIGTERM)

    def order(self, message: Message) -> None:
        """Sends an order of the role's own."""
        self._channel.send(message)

    def reload(self, config: str) -> None:
        """Sends a new configuration."""
        self._channel.send({"do": "reload", "config": config})

    def kill(self) -> None:
        """Ends it now."""
        self.signal(signal.SIGKILL)

    def signal(self, number: signal.Signals) -> None:
        """Sends a signal, unless the child has ended."""
        with contextlib.suppress(ProcessLookupError):
            self._process.send_signal(number)

    async def metrics(self, timeout: float) -> list[str]:
        """Its metrics; nothing if it does not answer in time."""
        self._next_question += 1
        number = self._next_question
        answer: asyncio.Future[list[str]] = asyncio.get_running_loop().create_future()
        self._questions[number] = answer
        self._channel.send({"do": "metrics", "id": number})
        try:
            async with asyncio.timeout(timeout):
                return await answer
        except TimeoutError:
            return []
        finally:
            del self._questions[number]

    async def _listen(self) -> None:
        while (message := await self._channel.receive()) is not None:
            match message.get("event"):
                case "ready":
                    self.ready_at = time.monotonic()
                    self.became_ready.set()
                case "metrics":
                    answer = self._questions.get(message["id"])
                    if answer is not None and not answer.done():
                        answer.set_result(message["texts"])
                case "health":
                    self.health[message["component"]] = {key: message[key] for key in ("status", "reason", "since")}
                case unknown:
                    if self._on_event is None:
                        log.warning("unknown message from a child", child=self.name, message=unknown)
                    else:
                        self._on_event(message)
        for answer in self._questions.values():
            if not answer.done():
                answer.set_result([])
