"""A place for one child: its lives one after the other, with a pause between them that grows."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

import structlog

from fetchbox.control import process_name
from fetchbox.errors import ProcessError
from fetchbox.supervisor.child import Child, Start
from fetchbox.supervisor.policy import History, Policy, after_death

log = structlog.get_logger("fetchbox.supervisor")


class _Life(NamedTuple):
    """How one ended: `code` negative for a signal, `ready_for` seconds after it was ready. Without a pid it never began."""

    pid: int | None
    code: int
    ready_for: float | None


class Slot:
    """`name` as in titles. `restarts` counts the starts after the first; `first_ready` is set once a life became ready."""

    def __init__(
        self,
        role: str,
        index: int,
        command: Sequence[str],
        policy: Policy,
        listen_fd: int | None,
        config: Callable[[], str],
    ) -> None:
        self.role = role
        self.index = index
        self.name = process_name(role, index)
        self.restarts = 0
        self.first_ready = asyncio.Event()
        self.task: asyncio.Task[None] | None = None
        self.child: Child | None = None
        self._command = command
        self._policy = policy
        self._listen_fd = listen_fd
        self._config = config
        self._stopping = asyncio.Event()
        self._drain_until: float | None = None

    @property
    def is_ready(self) -> bool:
        """Whether the present life is ready."""
        return self.child is not None and self.child.is_ready

    @property
    def has_ended(self) -> bool:
        """Whether no life is left and none will come."""
        return self.child is None and (self.task is None or self.task.done())

    async def keep(self, changed: Callable[[], None]) -> None:
        """Starts the child again and again until `stop`; calls `changed` when it becomes ready or ends.

        Raises ProcessError when it never becomes ready.
        """
        history = History()
        while not self._stopping.is_set():
            life = await self._live(changed)
            if self._stopping.is_set():
                return
            decision = after_death(self._policy, history, life.ready_for, life.code)
            history = decision.history
            if decision.delay is None:
                often = f"{self.name} ended {history.failed_starts} times without becoming ready"
                raise ProcessError(f"{often} (last: {_how(life.code)}); its own messages are above")
            log.warning("a process ended, starting it again", child=self.name, pid=life.pid, how=_how(life.code), delay=decision.delay)
            try:
                async with asyncio.timeout(decision.delay):
                    await self._stopping.wait()
            except TimeoutError:
                self.restarts += 1

    async def wait_for(self, event: asyncio.Event) -> bool:
        """Waits for the event; False when this place is to stop before."""
        waiting = {asyncio.create_task(event.wait()), asyncio.create_task(self._stopping.wait())}
        try:
            await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in waiting:
                task.cancel()
        return not self._stopping.is_set()

    def stop(self, within: float) -> None:
        """Ends the present life within so many seconds, and lets no other begin. A second call can shorten that."""
        self._stopping.set()
        self._drain_until = time.monotonic() + within
        if self.child is not None:
            self.child.drain(within)

    def kill(self) -> None:
        """Ends the present life now."""
        self._stopping.set()
        if self.child is not None:
            self.child.kill()

    def reload(self, config: str) -> None:
        """Sends a new configuration; later lives get it by themselves."""
        if self.child is not None:
            self.child.reload(config)

    async def _live(self, changed: Callable[[], None]) -> _Life:
        start = Start(self.role, self.index, self._command, self._config(), self._listen_fd)
        try:
            child = self.child = await Child.start(start)
        except OSError as error:
            # No memory, no descriptors: may pass like any other death.
            log.error("cannot start a process", child=self.name, error=str(error))
            return _Life(None, 1, None)
        if self._drain_until is not None:
            child.drain(max(self._drain_until - time.monotonic(), 0.0))
        log.debug("a process started", child=self.name, pid=child.pid)
        watcher = asyncio.create_task(self._watch(child, changed))
        try:
            code = await child.ended()
        except asyncio.CancelledError:
            child.kill()
            await child.ended()
            raise
        finally:
            watcher.cancel()
            self.child = None
            changed()
        return _Life(child.pid, code, child.ready_for())

    async def _watch(self, child: Child, changed: Callable[[], None]) -> None:
        try:
            async with asyncio.timeout(self._policy.ready_timeout):
                await child.became_ready.wait()
        except TimeoutError:
            log.error("does not become ready, killing it", child=self.name, after=self._policy.ready_timeout)
            child.kill()
            return
        self.first_ready.set()
        log.debug("a process is ready", child=self.name, after=round(time.monotonic() - child.started_at, 3))
        changed()


def _how(code: int) -> str:
    return f"signal {-code}" if code < 0 else f"exit code {code}"
