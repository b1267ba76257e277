"""A connection to an Iggy server: batches in, batches out, and every call ends.

The client itself would reconnect for ever, and hold calls meanwhile. Here a call has one try and a time limit; whoever calls decides what
an absence means. A connection that failed is not mended: the next call makes a new one.
"""

from __future__ import annotations

import asyncio
import datetime as dt
import struct
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar
from urllib.parse import unquote, urlsplit

from fetchbox.broker.topics import STREAM
from fetchbox.config import Config
from fetchbox.errors import BrokerUnavailable, ConfigError

if TYPE_CHECKING:
    from apache_iggy import IggyClient, IggyConsumer

T = TypeVar("T")

CALL_TIMEOUT = 10.0
"""Seconds that a call may take."""
CONNECT_TIMEOUT = 5.0
DEFAULT_PORT = 8090
SEND_BYTES = 4 << 20
"""Most bytes of one send; a larger list of messages goes in several."""
GET_CONSUMER_OFFSET, SYNC_CONSUMER_GROUP = 120, 606
"""Commands that the client has no method for."""
GROUP_KIND, NAME_KIND = 2, 2
NOT_OWNED = "does not own partition"
"""What the server says of a partition that has moved."""


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where the server is, and how one logs in."""

    address: str
    username: str
    password: str
    tls: bool
    tls_ca: str | None
    tls_host: str


def endpoint(config: Config) -> Endpoint:
    """The server of `broker.url`."""
    parts = urlsplit(config.broker.url)
    host = parts.hostname or ""
    shown = f"[{host}]" if ":" in host else host
    if not parts.username or parts.password is None:
        raise ConfigError.single("broker.url", "names no user and password: iggy://user:password@host:8090")
    return Endpoint(
        address=f"{shown}:{parts.port or DEFAULT_PORT}",
        username=unquote(parts.username),
        password=unquote(parts.password),
        tls=config.broker.tls or config.broker.tls_ca is not None,
        tls_ca=config.broker.tls_ca,
        tls_host=host,
    )


@dataclass(slots=True)
class Polled:
    """Messages of a partition, without a gap."""

    partition: int
    base_offset: int
    messages: list[bytes]
    stamps_us: list[int]
    """When the server took each, microseconds since 1970."""


class IggyLink:
    """One connection. Not for several loops; calls may run at the same time.

    Every method raises BrokerUnavailable when the server does not answer in time, is away, or refuses.
    """

    def __init__(self, to: Endpoint) -> None:
        self._to = to
        self._client: IggyClient | None = None
        self._connecting = asyncio.Lock()
        self._consumers: dict[tuple[str, str], IggyConsumer] = {}
        self._generation = 0
        self.trouble: str | None = None
        """Why the last call failed; None while all is well, and before the first."""

    @property
    def generation(self) -> int:
        """Grows with every new connection: what belongs to a connection, such as a place in a group, has to be taken anew."""
        return self._generation

    async def client(self) -> IggyClient:
        """The connected client."""
        async with self._connecting:
            if self._client is None:
                client = self._make()
                await self._guard(client.connect(), CONNECT_TIMEOUT)
                self._client = client
                self._generation += 1
            return self._client

    def _make(self) -> IggyClient:
        # Imported late: a process that uses the embedded broker never needs it.
        from apache_iggy import AutoLogin, IggyClient, TcpConfig, TcpReconnectionConfig

        to = self._to
        once = TcpReconnectionConfig(
            enabled=False,
            max_retries=0,
            interval=dt.timedelta(milliseconds=200),
            reestablish_after=dt.timedelta(0),
        )
        try:
            return IggyClient(
                TcpConfig(
                    server_address=to.address,
                    auto_login=AutoLogin.username_password(to.username, to.password),
                    reconnection=once,
                    tls_enabled=to.tls,
                    tls_domain=to.tls_host if to.tls else None,
                    tls_ca_file=to.tls_ca,
                    nodelay=True,
                )
            )
        except (ValueError, RuntimeError) as error:
            raise ConfigError.single("broker.url", str(error)) from error

    async def _guard(self, call: Awaitable[T], timeout: float = CALL_TIMEOUT) -> T:
        try:
            async with asyncio.timeout(timeout):
                result = await call
        except TimeoutError as error:
            self._drop(f"{self._to.address} did not answer within {timeout:g} s")
            raise BrokerUnavailable(str(self.trouble)) from error
        except RuntimeError as error:
            self._drop(f"{self._to.address}: {error}")
            raise BrokerUnavailable(str(self.trouble)) from error
        self.trouble = None
        return result

    def _drop(self, trouble: str) -> None:
        self.trouble = trouble
        self._client = None
        self._consumers.clear()

    async def call(self, method: Callable[[IggyClient], Awaitable[T]], timeout: float = CALL_TIMEOUT) -> T:
        """Any call of the client."""
        client = await self.client()
        return await self._guard(method(client), timeout)

    async def publish(self, topic: str, partition: int, messages: list[bytes]) -> int:
        """Appends messages to a partition, in order. Persisted when it returns; the offset of the first."""
        from apache_iggy import SendMessage

        base: int | None = None
        for part in _split(messages):
            sent = [SendMessage(message) for message in part]
            response = await self.call(lambda client, sent=sent: client.send_messages(STREAM, topic, partition, sent))  # type: ignore[misc]
            if base is None and response.confirmations:
                base = response.confirmations[0].base_offset
        return base or 0

    async def poll(self, topic: str, partition: int, offset: int, count: int, group: str | None = None) -> list[Polled]:
        """Messages from an offset on. As a member of `group` only its own partitions answer; nothing is committed."""
        from apache_iggy import Consumer, PollingStrategy

        consumer = Consumer.Group(group) if group is not None else Consumer.Single("fetchbox")
        received = await self.call(
            lambda client: client.poll_messages(
                STREAM,
                topic,
                consumer=consumer,
                polling_strategy=PollingStrategy.Offset(offset),
                count=count,
                auto_commit=False,
                partition_id=partition,
            )
        )
        runs: list[Polled] = []
        for message in received:
            at = message.offset()
            if not runs or at != runs[-1].base_offset + len(runs[-1].messages):
                runs.append(Polled(partition, at, [], []))
            runs[-1].messages.append(message.payload())
            runs[-1].stamps_us.append(message.timestamp())
        return runs

    async def ends(self, topic: str) -> list[int]:
        """The offset behind the last message of each partition. BrokerUnavailable when there is no such topic."""
        details = await self.call(lambda client: client.get_topic(STREAM, topic))
        if details is None:
            raise BrokerUnavailable(f"there is no topic {topic} on {self._to.address}: run `fetchbox streams provision`")
        ends: dict[int, int] = {}
        for partition in details.partitions:
            # An empty partition and one with a single message have the same current offset.
            ends[partition.id] = partition.current_offset + 1 if partition.messages_count or partition.current_offset else 0
        return [ends[id] for id in sorted(ends)]

    async def join(self, topic: str, group: str) -> None:
        """Makes this connection a member of a group, which is made if it is not there."""
        client = await self.client()
        if (topic, group) not in self._consumers:
            from apache_iggy import AutoCommit

            consumer = client.consumer_group(group, STREAM, topic, auto_commit=AutoCommit.Disabled())
            self._consumers[topic, group] = await self._guard(consumer)

    async def leave(self, topic: str, group: str) -> None:
        """Leaves a group, so that its partitions move at once."""
        if self._consumers.pop((topic, group), None) is not None:
            await self.call(lambda client: client.leave_consumer_group(STREAM, topic, group))

    async def commit(self, topic: str, group: str, partition: int, offset: int) -> bool:
        """The group is done with everything below `offset`. False when the partition is another member's by now."""
        consumer = self._consumers.get((topic, group))
        if consumer is None:
            raise BrokerUnavailable(f"not a member of {group} at the moment")
        if offset <= 0:
            return True
        try:
            # The server keeps the last offset that was consumed.
            async with asyncio.timeout(CALL_TIMEOUT):
                await consumer.store_offset(offset - 1, partition)
        except TimeoutError as error:
            self._drop(f"{self._to.address} did not answer within {CALL_TIMEOUT:g} s")
            raise BrokerUnavailable(str(self.trouble)) from error
        except RuntimeError as error:
            if NOT_OWNED in str(error):
                return False
            self._drop(f"{self._to.address}: {error}")
            raise BrokerUnavailable(str(self.trouble)) from error
        return True

    async def committed(self, topic: str, group: str, partition: int) -> int:
        """The offset below which the group is done with a partition."""
        request = bytes([GROUP_KIND]) + _name(group) + _name(STREAM) + _name(topic) + struct.pack("<BI", 1, partition)
        raw = await self.call(lambda client: client.send_binary_request(GET_CONSUMER_OFFSET, request))
        # The partition, its last offset, and the last one that was consumed; nothing when none was.
        return int(struct.unpack_from("<IQQ", raw)[2]) + 1 if len(raw) >= 20 else 0

    async def assigned(self, topic: str, group: str) -> list[int]:
        """The partitions that this member may poll at the moment."""
        request = _name(STREAM) + _name(topic) + _name(group)
        raw = await self.call(lambda client: client.send_binary_request(SYNC_CONSUMER_GROUP, request))
        # The assignment's generation, how many partitions, and which.
        (count,) = struct.unpack_from("<I", raw, 8)
        return sorted(struct.unpack_from(f"<{count}I", raw, 12))

    async def close(self) -> None:
        """Leaves what it has joined and forgets the connection."""
        for topic, group in list(self._consumers):
            try:
                await self.leave(topic, group)
            except BrokerUnavailable:
                break
        self._consumers.clear()
        self._client = None


def _split(messages: list[bytes]) -> list[list[bytes]]:
    parts: list[list[bytes]] = [[]]
    size = 0
    for message in messages:
        if size + len(message) > SEND_BYTES and parts[-1]:
            parts.append([])
            size = 0
        parts[-1].append(message)
        size += len(message)
    return [part for part in parts if part]


def _name(text: str) -> bytes:
    """An identifier as commands write it."""
    raw = text.encode()
    return bytes([NAME_KIND, len(raw)]) + raw
