"""A worker's way to its tasks when the streams are on an Iggy server: that has the tasks and takes the outcomes, the hub has the ledger.

Which partitions are whose, and how far they are done, is the hub's to say here as well: partitions move when what was begun of them is
done, and a worker has its own again after a restart of hub or server. (The server's own groups keep members that were connected when it was
killed, and their partitions with them.) While the hub is away a worker goes on with the partitions that it has; what it does then is done
again at most, and counted once.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any

import structlog

from fetchbox._core import Delivery, Engine, Follower, Report, Settled
from fetchbox.broker.hub import HubConnection
from fetchbox.broker.iggy import IggyLink, Polled, endpoint
from fetchbox.broker.topics import EVENTS, TASKS
from fetchbox.config import Config
from fetchbox.errors import HubUnavailable, Refused, Unavailable

log = structlog.get_logger("fetchbox.worker")

POLL_MESSAGES = 1000
"""Most messages of one poll of a partition."""
WATCH_MS = 5000
"""How long the hub may hold the question which partitions are ours."""
IDLE_SECONDS = (0.005, 0.01, 0.02, 0.05, 0.1)
"""Waits between looks at partitions that do not grow. The last one is that of a worker that has enough to do, too."""
EVENTS_SECONDS = 0.2
"""The same for the events of settled jobs."""
SETTLED_TIMEOUT = 2.0
"""Seconds that the hub may take to say what is settled, before the worker goes on without."""
AGAIN_SECONDS = 0.5
REPORT_REST = 0.1


class IggyConnection:
    """Tasks, outcomes and events over Iggy, everything else over the hub. Make it inside a running loop and close it there.

    Methods raise Unavailable when the server or the hub is away, and Refused when the hub says no.
    """

    def __init__(self, config: Config, hub: HubConnection) -> None:
        to = endpoint(config)
        self._hub = hub
        self._link = IggyLink(to)
        self._events = IggyLink(to)
        self._tasks = Reader(self._link, TASKS)
        self._finish = Reader(self._events, EVENTS)
        self._on_connected: list[Callable[[bool], None]] = []
        self._up: bool | None = None
        self._watching: asyncio.Task[None] | None = None
        self._uncommitted: dict[int, int] = {}

    @property
    def connected(self) -> bool:
        """Whether the last call to the server went well."""
        return self._link.trouble is None

    @property
    def trouble(self) -> str | None:
        """Why not."""
        return self._link.trouble

    @property
    def report_rest(self) -> float:
        """A report is a call and an fsync of the server for each partition of each topic."""
        return REPORT_REST

    def on_connected(self, callback: Callable[[bool], None]) -> None:
        """Calls back with True when the server answers and with False when it does not any more."""
        self._on_connected.append(callback)

    def _tell(self) -> None:
        if self.connected is not self._up:
            self._up = self.connected
            for callback in self._on_connected:
                callback(self._up)

    def reload(self, config: Config) -> None:
        """Takes over new credentials for the next connections."""
        for link in (self._link, self._events):
            link.reload(config)

    async def query(self, name: str, params: dict[str, Any]) -> bytes:
        """A question to the ledger."""
        return await self._hub.query(name, params)

    async def join(self, engine: Engine, member: str) -> None:
        """Enters the workers' group, for as long as this connection lives: a hub that comes back is told which partitions are at work
        here."""
        if self._watching is None:
            await self._hub.join(engine, member)
            self._watching = asyncio.create_task(self._watch(engine, member))

    async def _watch(self, engine: Engine, member: str) -> None:
        is_member = True
        while True:
            try:
                if not is_member:
                    await self._hub.join(engine, member)
                    is_member = True
                await self._hub.watch(engine, WATCH_MS)
            except (HubUnavailable, Refused) as error:
                is_member = False
                log.debug("the hub cannot say which partitions are ours", error=str(error))
                await asyncio.sleep(AGAIN_SECONDS)

    async def leave(self) -> None:
        """Leaves the group, so that its partitions move at once."""
        if self._watching is not None:
            self._watching.cancel()
            await asyncio.gather(self._watching, return_exceptions=True)
            self._watching = None
            await self._hub.leave()

    async def release_partitions(self, engine: Engine) -> None:
        """Gives up the partitions that are to move and have nothing in flight."""
        await self._hub.release_partitions(engine)

    async def poll(self, engine: Engine, max_messages: int, wait_ms: int) -> Delivery:
        """The next tasks of the partitions that have room; empty when `wait_ms` pass without any."""
        until = time.monotonic() + wait_ms / 1000
        quiet = len(IDLE_SECONDS) if engine.backlog() > max_messages else 0
        try:
            while not (found := await self._tasks.read(engine.positions(), max_messages)) and time.monotonic() < until:
                if engine.to_release():
                    break
                await asyncio.sleep(IDLE_SECONDS[min(quiet, len(IDLE_SECONDS) - 1)])
                quiet += 1
        finally:
            self._tell()
        return Delivery.of([(run.partition, run.base_offset, run.messages) for run in found])

    async def settled(self, delivery: Delivery) -> Settled:
        """What is settled already of the delivery's jobs, if the hub says so in time."""
        if not self._hub.connected:
            return Settled.unknown()
        try:
            async with asyncio.timeout(SETTLED_TIMEOUT):
                return await self._hub.settled(delivery)
        except (HubUnavailable, TimeoutError) as error:
            log.info("the hub did not say what is settled, going on without", error=str(error))
            return Settled.unknown()

    async def append(self, report: Report) -> None:
        """Publishes a report, logs and dead letters before the status, and then commits its offsets. Persisted when it returns.

        Half of it may have been published when it fails: it is published again then, and counted once. A hub that is away is told of the
        offsets later.
        """
        try:
            for topic, partition, messages in report.messages():
                await self._link.publish(topic, partition, messages)
        finally:
            self._tell()
        self._uncommitted.update(report.commits())
        if not self._uncommitted or not self._hub.connected:
            return
        try:
            await self._hub.commit_tasks(list(self._uncommitted.items()))
            self._uncommitted.clear()
        except Unavailable as error:
            log.info("offsets are committed later", error=str(error))

    async def follow(self, follower: Follower) -> None:
        """Enters the follower's group."""
        await self._hub.follow(follower)

    async def read(self, follower: Follower, max_messages: int, wait_ms: int) -> list[tuple[int, int, str, list[tuple[int, int]]]]:
        """What comes next: partition, offset behind the message, the job it speaks of, and index and generation of what failed."""
        until = time.monotonic() + wait_ms / 1000
        while True:
            await self._hub.read(follower, max_messages, 0)
            found = await self._finish.read(follower.positions(), max_messages)
            if found or time.monotonic() >= until:
                return follower.take([(run.partition, run.base_offset, run.messages) for run in found])
            await asyncio.sleep(EVENTS_SECONDS)

    async def commit(self, follower: Follower, offsets: list[tuple[int, int]]) -> None:
        """The follower's group is done with everything below these offsets."""
        await self._hub.commit(follower, offsets)

    async def close(self) -> None:
        """Closes both connections to the server; the hub's is its owner's."""
        if self._watching is not None:
            self._watching.cancel()
            await asyncio.gather(self._watching, return_exceptions=True)
        await self._link.close()
        await self._events.close()


class Reader:
    """Reads a topic at given places, fairly between its partitions."""

    def __init__(self, link: IggyLink, topic: str) -> None:
        self._link = link
        self._topic = topic
        self._turn = 0

    async def read(self, positions: list[tuple[int, int]], most: int) -> list[Polled]:
        """Messages at these positions, those of other partitions first than last time."""
        if not positions:
            return []
        ends = await self._link.ends(self._topic)
        news = [(partition, offset) for partition, offset in positions if partition < len(ends) and ends[partition] > offset]
        found: list[Polled] = []
        self._turn += 1
        for at in range(len(news)):
            partition, offset = news[(at + self._turn) % len(news)]
            runs = await self._link.poll(self._topic, partition, offset, min(POLL_MESSAGES, most))
            found.extend(runs)
            most -= sum(len(run.messages) for run in runs)
            if most <= 0:
                break
        return found
