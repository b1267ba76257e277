"""A connection to an Iggy server: batches in, batches out, and every call ends.

The client itself would reconnect for ever, and hold calls meanwhile. Here a call has one try and a time limit; whoever calls decides what
an absence means. A connection that failed is not mended: the next call makes a new one.
"""

from __future__ import annotations

import asyncio
import datetime as dt
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, TypeVar
from urllib.parse import unquote, urlsplit

from fetchbox.broker.iggy_trouble import reason
from fetchbox.broker.topics import STREAM
from fetchbox.config import Config
from fetchbox.errors import BrokerUnavailable, ConfigError

if TYPE_CHECKING:
    from apache_iggy import IggyClient, ReceiveMessage

T = TypeVar("T")

CALL_TIMEOUT = 10.0
"""Seconds that a call may take."""
CONNECT_TIMEOUT = 5.0
CONSUMER = "fetchbox"
BAD_LOGIN = "it does not know this user with this password: see broker.url"
DEFAULT_PORT = 8090
SEND_BYTES = 4 << 20
"""Most bytes of one send; a larger list of messages goes in several."""


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


def with_credentials(to: Endpoint, config: Config) -> Endpoint:
    """The same server with the user and password of a configuration that was read again; its address changes at the next start only."""
    if config.broker.url == "embedded":
        return to
    fresh = endpoint(config)
    return replace(to, username=fresh.username, password=fresh.password) if fresh.address == to.address else to


@dataclass(slots=True)
class Polled:
    """Messages of a partition, without a gap."""

    partition: int
    base_offset: int
    messages: list[bytes]
    received: Sequence[ReceiveMessage] = ()
    """The same as the client gave them."""

    @property
    def stamps_us(self) -> list[int]:
        """When the server took each, microseconds since 1970. Only few want to know, and asking costs as much as the message did."""
        return [message.timestamp() for message in self.received]


class IggyLink:
    """One connection. Not for several loops; calls may run at the same time.

    Every method raises BrokerUnavailable when the server does not answer in time, is away, or refuses.
    """

    def __init__(self, to: Endpoint) -> None:
        self._to = to
        self._client: IggyClient | None = None
        self._connecting = asyncio.Lock()
        self.trouble: str | None = None
        """Why the last call failed; None while all is well, and before the first."""

    def reload(self, config: Config) -> None:
        """From its next connection on it logs in with the user and password of this configuration."""
        self._to = with_credentials(self._to, config)

    async def client(self) -> IggyClient:
        """The connected client."""
        if self._client is not None:
            return self._client
        async with self._connecting:
            if self._client is None:
                client = self._make()
                try:
                    await self._guard(client.connect(), CONNECT_TIMEOUT)
                except BrokerUnavailable as error:
                    known = BAD_LOGIN if "credentials" in str(error) else await reason(self._to)
                    if known is None:
                        raise
                    self._drop(f"{self._to.address}: {known}")
                    raise BrokerUnavailable(str(self.trouble)) from error
                self._client = client
            return self._client

    def _make(self) -> IggyClient:
        # Imported late: a process that uses the embedded broker never needs it.
        try:
            from apache_iggy import AutoLogin, IggyClient, TcpConfig, TcpReconnectionConfig
        except ImportError as error:
            raise ConfigError.single("broker.url", "needs the client of Iggy: pip install 'fetchbox[iggy]'") from error

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

    async def call(self, method: Callable[[IggyClient], Awaitable[T]], timeout: float = CALL_TIMEOUT) -> T:
        """Any call of the client."""
        client = await self.client()
        return await self._guard(method(client), timeout)

    async def publish(self, topic: str, partition: int, messages: list[bytes]) -> int:
        """Appends messages to a partition, in order. Persisted when it returns; the offset of the first."""
        from apache_iggy import SendMessage

        base: int | None = None
        for part in _split(messages):
            sent = list(map(SendMessage, part))
            response = await self.call(lambda client, sent=sent: client.send_messages(STREAM, topic, partition, sent))  # type: ignore[misc]
            if base is None and response.confirmations:
                base = response.confirmations[0].base_offset
        return base or 0

    async def poll(self, topic: str, partition: int, offset: int, count: int) -> list[Polled]:
        """Messages from an offset on. The server is told of no commit: offsets are the hub's."""
        from apache_iggy import Consumer, PollingStrategy

        received = await self.call(
            lambda client: client.poll_messages(
                STREAM,
                topic,
                consumer=Consumer.Single(CONSUMER),
                polling_strategy=PollingStrategy.Offset(offset),
                count=count,
                auto_commit=False,
                partition_id=partition,
            )
        )
        return _runs(partition, received)

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

    async def close(self) -> None:
        """Forgets the connection."""
        self._client = None


def _runs(partition: int, received: Sequence[ReceiveMessage]) -> list[Polled]:
    """The messages, each run without a gap by itself. They come in order: where first and last fit there is none."""
    if not received:
        return []
    first, last = received[0].offset(), received[-1].offset()
    if last - first == len(received) - 1:
        return [Polled(partition, first, [message.payload() for message in received], received)]
    begins = [at for at in range(1, len(received)) if received[at].offset() != received[at - 1].offset() + 1]
    parts = [received[begin:end] for begin, end in zip([0, *begins], [*begins, len(received)], strict=True)]
    return [Polled(partition, part[0].offset(), [message.payload() for message in part], part) for part in parts]


def _split(messages: list[bytes]) -> list[list[bytes]]:
    if sum(map(len, messages)) <= SEND_BYTES:
        return [messages] if messages else []
    parts: list[list[bytes]] = [[]]
    size = 0
    for message in messages:
        if size + len(message) > SEND_BYTES and parts[-1]:
            parts.append([])
            size = 0
        parts[-1].append(message)
        size += len(message)
    return [part for part in parts if part]
