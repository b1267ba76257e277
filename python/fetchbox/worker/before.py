"""`before_fetch`: a job type's own code has a last look at a task, between its delivery and its download."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from typing import Any

import msgspec
import orjson
import structlog

from fetchbox._core import Engine
from fetchbox.config import Config
from fetchbox.errors import HandlerError
from fetchbox.handler_host import HandlerHost, HandlerSpec
from fetchbox.manifest import DownloadTask

log = structlog.get_logger("fetchbox.worker")

AT_ONCE = 32
"""Calls at a time; the host runs as many in threads."""
HOOK = "before_fetch"
MAX_HEADERS = 32


class BeforeFetch:
    """Takes tasks that the engine holds back, and lets each go on or refuses it. `specs` are the handlers that want to, by job type."""

    def __init__(self, config: Config, engine: Engine, specs: Mapping[str, HandlerSpec], host: HandlerHost) -> None:
        self._engine = engine
        self._host = host
        # Holds no more than the engine's backlog, which the worker's loop limits.
        self._queue: asyncio.Queue[tuple[int, str, bytes]] = asyncio.Queue()
        self.reload(config, specs)

    def reload(self, config: Config, specs: Mapping[str, HandlerSpec]) -> None:
        """From now on it is these handlers."""
        self._specs = specs
        limits = {"max_headers": MAX_HEADERS, "max_header_bytes": config.server.max_header_bytes}
        self._engine.hook(set(specs), orjson.dumps(limits))

    def take(self) -> None:
        """Takes over what the engine holds back."""
        for item in self._engine.take_hooked():
            self._queue.put_nowait(item)

    async def run(self, set_aside: Callable[[], None]) -> None:
        """Works until it is cancelled; what has not gone on by then is delivered again. `set_aside` is called when a task may have been
        set aside instead of started."""
        async with asyncio.TaskGroup() as group:
            for _ in range(AT_ONCE):
                group.create_task(self._work(set_aside))

    async def _work(self, set_aside: Callable[[], None]) -> None:
        while True:
            place, job_type, encoded = await self._queue.get()
            try:
                spec = self._specs.get(job_type)
                # Its handler may have gone since it was held back.
                headers = b"{}" if spec is None else orjson.dumps(await self._changes(spec, encoded))
            except HandlerError as error:
                log.info("before_fetch refused a task", job_type=job_type, code=error.code, error=str(error))
                self._engine.refuse_hooked(place, error.code, str(error))
            except TypeError as error:
                self._engine.refuse_hooked(place, "HANDLER_BAD_TASK", f"before_fetch set headers that are no texts: {error}")
            else:
                self._engine.release_hooked(place, headers)
                set_aside()

    async def _changes(self, spec: HandlerSpec, encoded: bytes) -> dict[str, Any]:
        task, before = (DownloadTask(**orjson.loads(encoded)) for _ in range(2))
        await self._host.call(spec, HOOK, task)
        if msgspec.structs.replace(task, headers={}) != msgspec.structs.replace(before, headers={}):
            raise HandlerError("before_fetch may change a task's headers and nothing else of it", code="HANDLER_BAD_TASK")
        return changed_headers(before.headers, task.headers)


def changed_headers(before: Mapping[str, str], after: Mapping[str, Any]) -> dict[str, Any]:
    """What differs, with None for what is gone."""
    gone = dict.fromkeys(before.keys() - after.keys())
    return gone | {name: value for name, value in after.items() if name not in before or before[name] != value}
