"""The hub's side of an Iggy server: what the hub says is published, what workers say is read back, and retries are moved when they are due.

The hub's commits hold how far each of that is. So nothing is lost when this process dies in between, and what is done twice counts once.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable

import orjson
import structlog

from fetchbox._core import partition_tasks
from fetchbox.broker.hub import HubConnection
from fetchbox.broker.iggy import IggyLink, Polled, endpoint
from fetchbox.broker.topics import LOGS, MOVER, RETRY, RETRY_SECONDS, STATUS, TASKS, WORKERS
from fetchbox.config import Config
from fetchbox.errors import Refused, Unavailable

log = structlog.get_logger("fetchbox.hub")

OUTBOX_BYTES = 4 << 20
"""Most bytes of the outbox that are published in one round."""
OUTBOX_WAIT_MS = 10_000
READ_MESSAGES = 2000
IDLE_SECONDS = (0.005, 0.01, 0.02, 0.05)
REST_SHARE, READ_REST, OUTBOX_REST = 8.0, 0.1, 0.05
"""After a round that brought something it rests so many times as long as that took, and so many seconds at most: the more there is to do,
the more each call, each fsync of the server and each commit does of it. A job waits for its first task for no more than OUTBOX_REST."""
LOGS_SECONDS = 0.1
"""How often logs are looked for. Nobody counts by them."""
RETRY_LOOK_SECONDS = 1.0
"""How often the tiers are looked at; the shortest delay is 15 s."""
AGAIN_FIRST, AGAIN_MOST = 0.1, 2.0
LAG_SECONDS = 5.0
"""How often lags are measured."""


class IggyFeed:
    """Publishes and reads until it is cancelled. The hub's connection belongs to the caller."""

    def __init__(self, config: Config, hub: HubConnection) -> None:
        to = endpoint(config)
        self._hub = hub
        self._by_host = config.tasks.partition_by == "host"
        self._out, self._in, self._retries, self._lags = (IggyLink(to) for _ in range(4))
        self._links = (self._out, self._in, self._retries, self._lags)
        self._places: dict[str, list[int]] = {}
        self._lag: dict[tuple[str, str], tuple[int, float]] = {}
        self._told: str | None = ""

    def reload(self, config: Config) -> None:
        """Takes over new credentials for the next connections."""
        for link in self._links:
            link.reload(config)

    async def run(self) -> None:
        """Works until it is cancelled; an absence of either side is waited for."""
        try:
            async with asyncio.TaskGroup() as group:
                for work in (self._publish, self._read_outcomes, self._read_logs, self._move_retries, self._measure, self._tell):
                    group.create_task(self._again(work))
        finally:
            for link in self._links:
                await link.close()

    async def _again(self, work: Callable[[], Awaitable[None]]) -> None:
        pause = AGAIN_FIRST
        while True:
            begun = time.monotonic()
            try:
                await work()
            except (Unavailable, Refused) as error:
                if time.monotonic() - begun > AGAIN_MOST:
                    pause = AGAIN_FIRST
                level = log.warning if isinstance(error, Refused) else log.info
                level("the streams have to wait", part=work.__name__.strip("_"), error=str(error), pause=pause)
                await asyncio.sleep(pause)
                pause = min(pause * 2, AGAIN_MOST)

    async def _publish(self) -> None:
        """The outbox, in order. What was published when the end is not noted is published again."""
        while True:
            items = await self._hub.outbox(0, OUTBOX_BYTES, OUTBOX_WAIT_MS)
            if not items:
                # So that an absence is noticed before there is something to say.
                await self._out.call(lambda client: client.ping())
                continue
            begun = time.monotonic()
            batches: dict[tuple[str, int], list[bytes]] = {}
            for _, posted in items:
                for topic, partition, messages in posted:
                    batches.setdefault((topic, partition), []).extend(messages)
            for (topic, partition), messages in batches.items():
                await self._out.publish(topic, partition, messages)
            await self._hub.outbox_done(items[-1][0])
            await asyncio.sleep(_rest(begun, OUTBOX_REST))

    async def _place(self, topic: str) -> list[int]:
        """Where to read on in each partition. Asked anew after every trouble: a feed that was not answered may have been committed."""
        return list(orjson.loads(await self._hub.query("fed", {}))[topic])

    async def _read_outcomes(self) -> None:
        at = await self._place(STATUS)
        quiet = 0
        while True:
            begun = time.monotonic()
            if await self._take(STATUS, at):
                quiet = 0
                rest = _rest(begun, READ_REST)
            else:
                rest = IDLE_SECONDS[min(quiet, len(IDLE_SECONDS) - 1)]
                quiet += 1
            await asyncio.sleep(rest)

    async def _read_logs(self) -> None:
        at = await self._place(LOGS)
        while True:
            await self._take(LOGS, at)
            await asyncio.sleep(LOGS_SECONDS)

    async def _take(self, topic: str, at: list[int]) -> bool:
        """Takes over what is there in any partition; whether there was something. What was read together is committed together."""
        ends = await self._in.ends(topic)
        found = False
        while grown := [partition for partition in range(min(len(at), len(ends))) if ends[partition] > at[partition]]:
            read = [await self._in.poll(topic, partition, at[partition], READ_MESSAGES) for partition in grown]
            if not any(read):
                break
            # All have ended before the first failure is told: what is asked anew then overtakes none of them.
            for failure in await asyncio.gather(*(self._feed(topic, runs, at) for runs in read), return_exceptions=True):
                if isinstance(failure, BaseException):
                    raise failure
            found = True
        return found

    async def _feed(self, topic: str, runs: list[Polled], at: list[int]) -> None:
        """Takes over what was read of one partition, one run after another: behind a later one the hub would pass over an earlier."""
        for run in runs:
            await self._hub.feed(topic, run.partition, run.base_offset, run.messages)
            at[run.partition] = run.base_offset + len(run.messages)

    async def _move_retries(self) -> None:
        at = await self._place(RETRY)
        while True:
            ends = await self._retries.ends(RETRY)
            for tier, delay in enumerate(RETRY_SECONDS[: len(ends)]):
                while ends[tier] > at[tier] and await self._move(tier, delay, at):
                    pass
            await asyncio.sleep(RETRY_LOOK_SECONDS)

    async def _move(self, tier: int, delay: int, at: list[int]) -> bool:
        """Moves what is due of the next messages; whether there may be more."""
        runs = await self._retries.poll(RETRY, tier, at[tier], READ_MESSAGES)
        due_us = (time.time() - delay) * 1e6
        for run in runs:
            due = next((index for index, stamp in enumerate(run.stamps_us) if stamp > due_us), len(run.messages))
            if due:
                await self._send_back(Polled(tier, run.base_offset, run.messages[:due]))
                at[tier] = run.base_offset + due
            if due < len(run.messages):
                return False
        return bool(runs)

    async def _send_back(self, run: Polled) -> None:
        partitions = len(await self._retries.ends(TASKS))
        batches: dict[int, list[bytes]] = {}
        for task, partition in zip(run.messages, partition_tasks(run.messages, partitions, self._by_host), strict=True):
            batches.setdefault(partition, []).append(task)
        for partition, tasks in batches.items():
            await self._retries.publish(TASKS, partition, tasks)
        await self._hub.feed(RETRY, run.partition, run.base_offset, run.messages)

    async def _measure(self) -> None:
        while True:
            ends = await self._lags.ends(TASKS)
            committed = await self._committed(TASKS, WORKERS) or [0] * len(ends)
            behind = [(partition, done) for partition, (end, done) in enumerate(zip(ends, committed, strict=False)) if end > done]
            self._lag[TASKS, WORKERS] = (sum(ends[partition] - done for partition, done in behind), await self._age(TASKS, behind))
            places, tiers = await self._place(RETRY), await self._lags.ends(RETRY)
            waiting = [(tier, at) for tier, (at, end) in enumerate(zip(places, tiers, strict=False)) if end > at]
            self._lag[RETRY, MOVER] = (sum(tiers[tier] - at for tier, at in waiting), await self._age(RETRY, waiting))
            told = [{"topic": t, "group": g, "lag": lag, "oldest_age_seconds": age} for (t, g), (lag, age) in self._lag.items()]
            await self._hub.query("broker_queues", {"queues": told})
            await asyncio.sleep(LAG_SECONDS)

    async def _committed(self, topic: str, group: str) -> list[int]:
        """The hub's offsets of a group; empty before its first."""
        topics = orjson.loads(await self._hub.query("topics", {}))["topics"]
        groups = next(entry["groups"] for entry in topics if entry["topic"] == topic)
        return next((list(entry["committed"]) for entry in groups if entry["group"] == group), [])

    async def _age(self, topic: str, heads: list[tuple[int, int]]) -> float:
        """Seconds since the oldest of these messages came."""
        stamps = [run.stamps_us[0] for partition, at in heads for run in await self._lags.poll(topic, partition, at, 1)]
        return max(0.0, time.time() - min(stamps) / 1e6) if stamps else 0.0

    async def _tell(self) -> None:
        """Says in the hub's health how the server is."""
        while True:
            trouble = next((link.trouble for link in (self._out, self._in) if link.trouble is not None), None)
            if trouble != self._told:
                await self._hub.query("broker_state", {"trouble": trouble})
                (log.info if trouble is None else log.warning)(
                    "the broker is there" if trouble is None else "the broker is away", reason=trouble
                )
                self._told = trouble
            await asyncio.sleep(0.5)

    def metrics(self) -> str:
        """Lags as Prometheus text."""
        lines = ["# TYPE fetchbox_queue_lag gauge"]
        lines += [f'fetchbox_queue_lag{{topic="{topic}",group="{group}"}} {lag}' for (topic, group), (lag, _) in self._lag.items()]
        lines.append("# TYPE fetchbox_queue_oldest_age_seconds gauge")
        lines += [f'fetchbox_queue_oldest_age_seconds{{topic="{topic}"}} {age:.3f}' for (topic, _), (_, age) in self._lag.items()]
        return "\n".join(lines) + "\n"


def _rest(begun: float, most: float) -> float:
    """Seconds to rest after a round that began then."""
    return min((time.monotonic() - begun) * REST_SHARE, most)
