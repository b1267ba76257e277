"""A worker's way to its tasks when the streams are on an Iggy server: that has the tasks and takes the outcomes, the hub has the ledger.

It has the methods of `HubConnection` that workers use. The hub is asked what is settled already; while it is away the worker goes on
without, and the projection counts nothing twice.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable
from typing import Any

import structlog

from fetchbox._core import Delivery, Engine, Follower, Report, Settled
from fetchbox.broker.hub import HubConnection
from fetchbox.broker.iggy import IggyLink, Polled, endpoint
from fetchbox.broker.topics import EVENTS, FINISH, TASKS, WORKERS
from fetchbox.config import Config
from fetchbox.errors import BrokerUnavailable, HubUnavailable

log = structlog.get_logger("fetchbox.worker")

POLL_MESSAGES = 1000
"""Most messages of one poll of a partition."""
REFRESH_SECONDS = 1.0
"""How often the server is asked which partitions are whose."""
LEAVE_SECONDS = 30.0
"""How long a partition that is asked back may take; the server moves it then by itself."""
IDLE_SECONDS = (0.005, 0.01, 0.02, 0.05, 0.1)
"""Waits between looks at partitions that do not grow."""
SETTLED_TIMEOUT = 2.0
"""Seconds that the hub may take to say what is settled, before the worker goes on without."""


class IggyConnection:
    """Tasks, outcomes and events over Iggy, everything else over the hub. Make it inside a running loop and close it there.

    Methods raise BrokerUnavailable when the server is away, and those that ask the hub HubUnavailable and Refused.
    """

    def __init__(self, config: Config, hub: HubConnection) -> None:
        to = endpoint(config)
        self._hub = hub
        self._link = IggyLink(to)
        self._events = IggyLink(to)
        self._tasks = Membership(self._link, TASKS, WORKERS)
        self._finish = Membership(self._events, EVENTS, FINISH)
        self._on_connected: list[Callable[[bool], None]] = []
        self._up: bool | None = None

    @property
    def connected(self) -> bool:
        """Whether the last call to the server went well."""
        return self._link.trouble is None

    @property
    def trouble(self) -> str | None:
        """Why not."""
        return self._link.trouble

    def on_connected(self, callback: Callable[[bool], None]) -> None:
        """Calls back with True when the server answers and with False when it does not any more."""
        self._on_connected.append(callback)

    def _tell(self) -> None:
        if self.connected is not self._up:
            self._up = self.connected
            for callback in self._on_connected:
                callback(self._up)

    async def query(self, name: str, params: dict[str, Any]) -> bytes:
        """A question to the ledger."""
        return await self._hub.query(name, params)

    async def join(self, engine: Engine, member: str) -> None:
        """Enters the workers' group."""
        try:
            await self._tasks.refresh(engine.owned(), engine.assign_partitions, now=True)
        finally:
            self._tell()

    async def leave(self) -> None:
        """Leaves the group, so that its partitions move at once."""
        with contextlib.suppress(BrokerUnavailable):
            await self._link.leave(TASKS, WORKERS)

    async def release_partitions(self, engine: Engine) -> None:
        """Nothing is asked back here: the server moves partitions at once."""

    async def poll(self, engine: Engine, max_messages: int, wait_ms: int) -> Delivery:
        """The next tasks of the partitions that have room; empty when `wait_ms` pass without any."""
        try:
            return Delivery.of([(p.partition, p.base_offset, p.messages) for p in await self._poll(engine, max_messages, wait_ms / 1000)])
        finally:
            self._tell()

    async def _poll(self, engine: Engine, most: int, wait: float) -> list[Polled]:
        until = time.monotonic() + wait
        quiet = 0
        while True:
            await self._tasks.refresh(engine.owned(), engine.assign_partitions)
            positions = engine.positions()
            found = await self._tasks.read(positions, most, POLL_MESSAGES)
            if found or time.monotonic() >= until:
                return found
            await asyncio.sleep(IDLE_SECONDS[min(quiet, len(IDLE_SECONDS) - 1)])
            quiet += 1

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

        Half of it may have been published when it fails: it is published again then, and counted once.
        """
        try:
            for topic, partition, messages in report.messages():
                await self._link.publish(topic, partition, messages)
            await self._tasks.commit(report.commits())
        finally:
            self._tell()

    async def follow(self, follower: Follower) -> None:
        """Enters the follower's group."""
        await self._finish.refresh(follower.partitions(), follower.assign_partitions, now=True)

    async def read(self, follower: Follower, max_messages: int, wait_ms: int) -> list[tuple[int, int, str]]:
        """What comes next: partition, offset behind the message and the job it speaks of."""
        until = time.monotonic() + wait_ms / 1000
        while True:
            await self._finish.refresh(follower.partitions(), follower.assign_partitions)
            found = await self._finish.read(follower.positions(), max_messages, max_messages)
            if found or time.monotonic() >= until:
                return follower.take([(p.partition, p.base_offset, p.messages) for p in found])
            await asyncio.sleep(IDLE_SECONDS[-1])

    async def commit(self, follower: Follower, offsets: list[tuple[int, int]]) -> None:
        """The follower's group is done with everything below these offsets."""
        await self._finish.commit(offsets)

    async def close(self) -> None:
        """Closes both connections to the server; the hub's is its owner's."""
        await self._link.close()
        await self._events.close()


class Membership:
    """A place in a group, and the partitions that come with it.

    A partition that is asked back is polled no more, and kept until what was polled of it is done and committed, or the server has moved
    it.
    """

    def __init__(self, link: IggyLink, topic: str, group: str) -> None:
        self._link = link
        self._topic = topic
        self._group = group
        self._generation = -1
        self._refreshed = 0.0
        self._turn = 0
        self.mine: list[int] = []
        """Those that are polled."""
        self._leaving: dict[int, float] = {}

    async def refresh(self, held: list[int], assign: Callable[[list[tuple[int, int]]], None], *, now: bool = False) -> None:
        """Asks the server which partitions are ours, once in a while, and tells who holds them when that has changed."""
        fresh = self._generation != self._link.generation
        if not (now or fresh or time.monotonic() - self._refreshed >= REFRESH_SECONDS):
            return
        await self._link.join(self._topic, self._group)
        mine = await self._link.assigned(self._topic, self._group)
        self._generation, self._refreshed = self._link.generation, time.monotonic()
        back = [partition for partition in mine if partition in self._leaving]
        for partition in set(self.mine) - set(mine):
            self._leaving[partition] = self._refreshed + LEAVE_SECONDS
        self._leaving = {
            partition: until for partition, until in self._leaving.items() if until > self._refreshed and partition not in mine
        }
        wanted = sorted({*mine, *self._leaving})
        self.mine = mine
        if not fresh and not back and wanted == held:
            return
        if back:
            # Somebody else went on with them meanwhile.
            assign([(partition, 0) for partition in held if partition not in back])
        known = set(held) - set(back)
        committed = {p: 0 if p in known else await self._link.committed(self._topic, self._group, p) for p in wanted}
        assign(list(committed.items()))

    def gone(self, partition: int) -> None:
        """The server says that it is another member's."""
        self._leaving.pop(partition, None)
        if partition in self.mine:
            self.mine.remove(partition)
        self._refreshed = 0.0

    async def commit(self, offsets: list[tuple[int, int]]) -> None:
        """Commits offsets of partitions, as far as they are ours."""
        for partition, offset in offsets:
            if not await self._link.commit(self._topic, self._group, partition, offset):
                self.gone(partition)

    async def read(self, positions: list[tuple[int, int]], most: int, each: int) -> list[Polled]:
        """Messages at these positions, those of other partitions first than last time."""
        positions = [(partition, offset) for partition, offset in positions if partition in self.mine]
        if not positions:
            return []
        ends = await self._link.ends(self._topic)
        news = [(partition, offset) for partition, offset in positions if partition < len(ends) and ends[partition] > offset]
        found: list[Polled] = []
        self._turn += 1
        for at in range(len(news)):
            partition, offset = news[(at + self._turn) % len(news)]
            runs = await self._link.poll(self._topic, partition, offset, min(each, most), self._group)
            found.extend(runs)
            most -= sum(len(run.messages) for run in runs)
            if most <= 0:
                break
        return found
