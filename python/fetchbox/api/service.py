"""What every endpoint shares."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import orjson

from fetchbox.api.metrics import Metrics
from fetchbox.api.settings import Settings
from fetchbox.api.tail import LogTail
from fetchbox.api.types import Core, Hub
from fetchbox.api.watch import Watch
from fetchbox.broker.topics import TASKS
from fetchbox.handler_host import HandlerHost

if TYPE_CHECKING:
    from fetchbox.tracing import Traces


@dataclass
class Service:
    """The api process's state: little, and none that a crash may not lose. `settings` is replaced as a whole when the configuration is
    read again."""

    settings: Settings
    hub: Hub
    core: Core
    clock: Callable[[], float]
    """Seconds since 1970."""
    new_id: Callable[[], str]
    metrics: Metrics = field(default_factory=Metrics)
    handlers: HandlerHost = field(default_factory=HandlerHost)
    draining: asyncio.Event = field(default_factory=asyncio.Event)
    """Set when streams have to end because the process is to end."""
    traces: Traces | None = None
    """Where spans go, if anywhere."""
    partitions: int | None = None
    """Partitions that jobs.tasks really has, once the hub has said so; an existing topic's number wins over the configuration."""

    def __post_init__(self) -> None:
        self.watch = Watch(self.clock)
        self.troubled: set[str] = set()
        """Components that this process itself has seen in trouble."""
        self.tail = LogTail(self.hub)
        self._at_drain: set[Callable[[], None]] = set()
        self._drain_told: asyncio.Task[None] | None = None

    def on_drain(self, callback: Callable[[], None]) -> Callable[[], None]:
        """Calls back when `draining` is set; what is returned ends that. One task waits for all who want to know."""
        self._at_drain.add(callback)
        if self._drain_told is None:
            self._drain_told = asyncio.ensure_future(self._tell_drain())

        def forget() -> None:
            self._at_drain.discard(callback)
            if not self._at_drain and self._drain_told is not None:
                self._drain_told.cancel()
                self._drain_told = None

        return forget

    async def _tell_drain(self) -> None:
        await self.draining.wait()
        for callback in tuple(self._at_drain):
            callback()

    async def learn_partitions(self) -> None:
        """Asks the hub how many partitions jobs.tasks has. Raises HubUnavailable or Refused."""
        answer = orjson.loads(await self.hub.query("topics", {}))
        for topic in answer["topics"]:
            if topic["topic"] == TASKS:
                self.partitions = len(topic["partitions"])
