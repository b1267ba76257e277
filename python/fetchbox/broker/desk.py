"""An operator's hands on the streams, wherever they are: sizes and lags, a look into a topic, a message published by hand."""

from __future__ import annotations

import base64
import datetime as dt
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import orjson

from fetchbox._core import partition_tasks
from fetchbox.broker.hub import HubConnection
from fetchbox.broker.iggy import IggyLink, endpoint
from fetchbox.broker.topics import STREAM, TASKS, TopicPlan, plan
from fetchbox.config import Config
from fetchbox.errors import BrokerUnavailable


@dataclass(slots=True)
class GroupState:
    """How far a group is in a topic."""

    group: str
    committed: list[int]
    lags: list[int]


@dataclass(slots=True)
class TopicState:
    """What a topic holds."""

    topic: str
    starts: list[int]
    """The oldest offset of each partition."""
    ends: list[int]
    """The offset behind the newest."""
    bytes: int | None
    """None where nobody counts them."""
    groups: list[GroupState] = field(default_factory=list)


@dataclass(slots=True)
class Seen:
    """A message in its place."""

    partition: int
    offset: int
    time_ms: int
    body: bytes


@dataclass(slots=True)
class Difference:
    """What a topic is instead of what the configuration wants."""

    topic: str
    what: str
    state: str
    """"created", "as wanted" or "differs"."""


class Desk(Protocol):
    """The same for the hub's own streams and for a broker's."""

    async def topics(self) -> list[TopicState]:
        """Every topic with its groups."""

    async def read(self, topic: str, partition: int, offset: int, limit: int) -> list[Seen]:
        """Messages from an offset on, at most so many."""

    async def publish(self, topic: str, messages: Sequence[bytes]) -> list[tuple[int, int]]:
        """Publishes tasks, or statuses, of a job; partition and offset of each."""

    async def provision(self) -> list[Difference]:
        """Makes what is missing and says what is not as the configuration wants it."""


def _groups(entry: dict[str, Any], ends: list[int]) -> list[GroupState]:
    """The hub's groups of a topic, as far as partitions are there."""
    return [
        GroupState(
            group["group"],
            group["committed"][: len(ends)],
            [max(end - done, 0) for end, done in zip(ends, group["committed"], strict=False)],
        )
        for group in entry["groups"]
    ]


class HubDesk:
    """The hub's own streams."""

    def __init__(self, config: Config, hub: HubConnection) -> None:
        self._hub = hub
        self._by_host = config.tasks.partition_by == "host"
        self._plan = plan(config)

    async def topics(self) -> list[TopicState]:
        answer = orjson.loads(await self._hub.query("topics", {"bytes": True}))
        states = []
        for entry in answer["topics"]:
            ends = [partition["next"] for partition in entry["partitions"]]
            starts = [partition["start"] for partition in entry["partitions"]]
            states.append(TopicState(entry["topic"], starts, ends, entry.get("bytes"), _groups(entry, ends)))
        return states

    async def read(self, topic: str, partition: int, offset: int, limit: int) -> list[Seen]:
        asked = {"topic": topic, "partition": partition, "from": offset, "limit": limit}
        answer = orjson.loads(await self._hub.ledger("messages", asked))
        return [Seen(partition, one["offset"], one["time_ms"], base64.b64decode(one["body"])) for one in answer["messages"]]

    async def publish(self, topic: str, messages: Sequence[bytes]) -> list[tuple[int, int]]:
        order = {"topic": topic, "messages": [base64.b64encode(one).decode() for one in messages], "by_host": self._by_host}
        answer = orjson.loads(await self._hub.ledger("publish", order))
        return [(one["partition"], one["offset"]) for one in answer["published"]]

    async def provision(self) -> list[Difference]:
        there = {state.topic: len(state.ends) for state in await self.topics()}
        return [_compare(wanted, there.get(wanted.name, 0), None, None) for wanted in self._plan]


class IggyDesk:
    """An Iggy server's streams; the groups' offsets are the hub's."""

    def __init__(self, config: Config, hub: HubConnection | None) -> None:
        self._link = IggyLink(endpoint(config))
        self._hub = hub
        self._by_host = config.tasks.partition_by == "host"
        self._plan = plan(config)

    async def close(self) -> None:
        """Closes the connection to the server."""
        await self._link.close()

    async def topics(self) -> list[TopicState]:
        told = orjson.loads(await self._hub.query("topics", {}))["topics"] if self._hub is not None else []
        entries = {entry["topic"]: entry for entry in told}
        states = []
        for wanted in self._plan:
            name = wanted.name
            details = await self._link.call(lambda client, name=name: client.get_topic(STREAM, name))  # type: ignore[misc]
            if details is None:
                raise BrokerUnavailable(f"there is no topic {name}: run `fetchbox streams provision`")
            ends = await self._link.ends(name)
            counts = {partition.id: partition.messages_count for partition in details.partitions}
            starts = [max(end - counts[partition], 0) for partition, end in enumerate(ends)]
            groups = _groups(entries[name], ends) if name in entries else []
            states.append(TopicState(name, starts, ends, details.size, groups))
        return states

    async def read(self, topic: str, partition: int, offset: int, limit: int) -> list[Seen]:
        seen = []
        for run in await self._link.poll(topic, partition, offset, limit):
            for at, (body, stamp) in enumerate(zip(run.messages, run.stamps_us, strict=True), run.base_offset):
                seen.append(Seen(partition, at, stamp // 1000, body))
        return seen

    async def publish(self, topic: str, messages: Sequence[bytes]) -> list[tuple[int, int]]:
        count = len(await self._link.ends(topic))
        # A status begins with the id of its job, as a task does.
        partitions = partition_tasks(list(messages), count, self._by_host and topic == TASKS)
        return [
            (partition, await self._link.publish(topic, partition, [message]))
            for message, partition in zip(messages, partitions, strict=True)
        ]

    async def provision(self) -> list[Difference]:
        from apache_iggy import Durability, IggyExpiry, MaxTopicSize

        if await self._link.call(lambda client: client.get_stream(STREAM)) is None:
            await self._link.call(lambda client: client.create_stream(STREAM))
        found = []
        for wanted in self._plan:
            name, partitions = wanted.name, wanted.partitions
            details = await self._link.call(lambda client, name=name: client.get_topic(STREAM, name))  # type: ignore[misc]
            if details is not None:
                found.append(_compare(wanted, len(details.partitions), _seconds(details.message_expiry), _bytes(details.max_topic_size)))
                continue
            expiry = IggyExpiry.ExpireDuration(dt.timedelta(seconds=wanted.ttl))
            most = MaxTopicSize.Unlimited() if wanted.max_bytes is None else MaxTopicSize.Custom(wanted.max_bytes)
            await self._link.call(
                lambda client, name=name, partitions=partitions, expiry=expiry, most=most: client.create_topic(  # type: ignore[misc]
                    STREAM, name, partitions, message_expiry=expiry, max_topic_size=most, durability=Durability.PERSISTED
                )
            )
            found.append(Difference(name, f"{partitions} partitions", "created"))
        return found


def _seconds(expiry: Any) -> float | None:
    duration = getattr(expiry, "duration", None)
    return duration.total_seconds() if duration is not None else None


def _bytes(most: Any) -> int | None:
    value = getattr(most, "bytes", None)
    return int(value) if value is not None else None


def _compare(wanted: TopicPlan, partitions: int, ttl: float | None, most: int | None) -> Difference:
    """Where nothing is known of an age or a size, none is compared."""
    faults = []
    if partitions != wanted.partitions:
        faults.append(f"{partitions} partitions, wanted {wanted.partitions}")
    if ttl is not None and abs(ttl - wanted.ttl) > 1:
        faults.append(f"keeps {ttl:g} s, wanted {wanted.ttl:g}")
    if most is not None and wanted.max_bytes is not None and most != wanted.max_bytes:
        faults.append(f"keeps {most} bytes, wanted {wanted.max_bytes}")
    return Difference(wanted.name, "; ".join(faults) or f"{partitions} partitions", "differs" if faults else "as wanted")
