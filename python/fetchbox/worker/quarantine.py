"""A worker's quarantine: runs suspects in a process apart, and finds the one that kills it."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import sys
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import structlog

from fetchbox._core import Engine, OutcomeBatch
from fetchbox.config import Config, to_child_json
from fetchbox.supervisor.child import Child, Start
from fetchbox.worker.suspects import Suspect, Suspects

log = structlog.get_logger("fetchbox.worker")

READY_TIMEOUT = 60.0
"""Seconds from exec to ready, on a machine that is out of breath."""
END_TIMEOUT = 2.0
"""Seconds that the process gets to end."""
PAUSE_FIRST = 0.5
PAUSE_MOST = 30.0
"""Seconds between starts of a process that does not become ready."""

Settle = Callable[[OutcomeBatch], Awaitable[None]]


class Quarantine:
    """Runs suspects apart for as long as there are any; the process lives only meanwhile.

    `index` is the worker's own. What the process finishes goes to `settle`, and so does the verdict on what killed it.
    """

    def __init__(self, config: Config, index: int, engine: Engine) -> None:
        self._config = config
        self._index = index
        self._engine = engine
        self._suspects = Suspects()
        self._wanted = asyncio.Event()
        self._patience = _patience(config)
        # Holds at most one item a suspect and the end.
        self._finished: asyncio.Queue[tuple[int, bytes] | None] = asyncio.Queue()

    def reload(self, config: Config) -> None:
        """The next process gets this configuration."""
        self._config = config
        self._patience = _patience(config)

    def add(self, tasks: Sequence[tuple[int, bytes]]) -> None:
        """Takes in tasks that were set aside."""
        added = self._suspects.add(tasks)
        if added:
            log.warning("tasks that were under way when workers died run apart", tasks=added, waiting=len(self._suspects))
        self._wanted.set()

    async def run(self, settle: Settle) -> None:
        """Works until it is cancelled. What has not ended then is delivered again."""
        pause = PAUSE_FIRST
        while True:
            await self._wanted.wait()
            self._wanted.clear()
            while len(self._suspects):
                if await self._one_life(settle):
                    pause = PAUSE_FIRST
                else:
                    await asyncio.sleep(pause)
                    pause = min(pause * 2, PAUSE_MOST)

    async def _one_life(self, settle: Settle) -> bool:
        """One process from its start to its end, which may be by a task; False when it never became ready."""
        self._finished = asyncio.Queue()
        command = (sys.executable, "-m", "fetchbox._child", "quarantine", str(self._index))
        start = Start("quarantine", self._index, command, to_child_json(self._config))
        try:
            child = await Child.start(start, self._event)
        except OSError as error:
            log.error("cannot start the quarantine process", error=str(error))
            return False
        ended = asyncio.create_task(child.ended())
        ended.add_done_callback(lambda _: self._finished.put_nowait(None))
        try:
            if not await _becomes_ready(child, ended):
                log.error("the quarantine process does not become ready", how=_how(ended))
                return False
            while group := self._suspects.next():
                for suspect in group:
                    child.order({"do": "run", "place": suspect.place, "task": base64.b64encode(suspect.task).decode()})
                if not await self._ends_well(settle, child):
                    await self._after_death(settle, len(group), _how(ended))
                    return True
            return True
        finally:
            self._suspects.interrupted()
            await _end(child, ended)

    async def _ends_well(self, settle: Settle, child: Child) -> bool:
        """Takes what the group finishes; False when the process ends before, or hangs."""
        while (item := await self._next_finished(child)) is not None:
            place, finished = item
            await settle(OutcomeBatch.decode(finished))
            if self._suspects.finished(place):
                return True
        return False

    async def _next_finished(self, child: Child) -> tuple[int, bytes] | None:
        try:
            async with asyncio.timeout(self._patience):
                return await self._finished.get()
        except TimeoutError:
            log.error("the quarantine process hangs, killing it", after=self._patience)
            child.kill()
            return await self._finished.get()

    async def _after_death(self, settle: Settle, group: int, how: str) -> None:
        left = len(self._suspects)
        guilty = self._suspects.died()
        log.warning("the quarantine process died", how=how, group=group, suspects=left)
        if guilty is not None:
            await self._blame(settle, guilty, how)

    async def _blame(self, settle: Settle, guilty: Suspect, how: str) -> None:
        message = f"its process died whenever this task ran alone (last: {how})"
        outcomes = self._engine.poison(guilty.place, guilty.task, message)
        for outcome in outcomes.outcomes():
            log.error("a task kills its process: it is not tried again", resource_id=outcome.id, code=outcome.code, how=how)
        await settle(outcomes)

    def _event(self, message: dict[str, Any]) -> None:
        if message.get("event") == "finished":
            self._finished.put_nowait((int(message["place"]), base64.b64decode(message["finished"])))


def _patience(config: Config) -> float | None:
    """Seconds in which something must end, with all attempts of it; None where attempts have no limit."""
    limits = [config.fetch, *map(config.fetch_for, config.job_types)]
    total = max(limit.total_timeout for limit in limits)
    unlimited = any(limit.total_timeout == 0 for limit in limits)
    return None if unlimited else (total + PAUSE_MOST) * max(limit.max_attempts for limit in limits)


async def _becomes_ready(child: Child, ended: asyncio.Task[int]) -> bool:
    ready = asyncio.create_task(child.became_ready.wait())
    await asyncio.wait({ready, ended}, timeout=READY_TIMEOUT, return_when=asyncio.FIRST_COMPLETED)
    ready.cancel()
    return child.is_ready


async def _end(child: Child, ended: asyncio.Task[int]) -> None:
    """Ends the process, also when this task was cancelled; it leaves nothing behind."""
    if ended.done():
        return
    child.drain(END_TIMEOUT)
    await asyncio.wait({ended}, timeout=END_TIMEOUT)
    if not ended.done():
        child.kill()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(END_TIMEOUT):
                await asyncio.shield(ended)


def _how(ended: asyncio.Task[int]) -> str:
    if not ended.done():
        return "no end"
    code = ended.result()
    return f"signal {-code}" if code < 0 else f"exit code {code}"
