"""The channel between the supervisor and one of its children: JSON lines over an inherited socket.

The first line that a child receives is its start order with the configuration; end of file means that the supervisor is gone, and the
child drains.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import socket
import sys
import time
from collections.abc import Callable
from typing import Any

LINE_LIMIT = 64 * 1024 * 1024
"""Longest line in bytes: the metrics of one process or a whole configuration, with a wide margin."""
ENV_CONTROL_FD = "FETCHBOX_CONTROL_FD"
ENV_LISTEN_FD = "FETCHBOX_LISTEN_FD"
ENV_PARENT_PID = "FETCHBOX_PARENT_PID"
CHILD_ENV = (ENV_CONTROL_FD, ENV_LISTEN_FD, ENV_PARENT_PID)
ALLOCATOR = {"MIMALLOC_ALLOW_THP": "0", "MIMALLOC_PURGE_DELAY": "5000"}
"""How children use memory, unless the environment says otherwise. Huge pages cost more in zeroing than they save, also where the kernel
gives them unasked. What was freed is given back after 5 s and not after one: under load it is wanted again at once, and a tenth of a
worker's time went into getting it back."""

Message = dict[str, Any]


class Channel:
    """JSON lines both ways over one connected socket."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    @classmethod
    async def open(cls, sock: socket.socket) -> Channel:
        """Takes ownership of `sock`."""
        sock.setblocking(False)
        return cls(*await asyncio.open_connection(sock=sock, limit=LINE_LIMIT))

    def send(self, message: Message) -> None:
        """Queues a message; a peer that is gone is not an error here, its end of file tells."""
        if not self._writer.is_closing():
            self._writer.write(json.dumps(message, separators=(",", ":")).encode() + b"\n")

    async def receive(self) -> Message | None:
        """The next message, or None when the peer is gone. Lines that are not JSON objects are a bug of ours and raise ValueError."""
        try:
            line = await self._reader.readline()
        except (ConnectionError, asyncio.IncompleteReadError):
            return None
        if not line.endswith(b"\n"):
            return None
        message = json.loads(line)
        if not isinstance(message, dict):
            raise ValueError("a control message is a JSON object")
        return message

    async def close(self) -> None:
        """Closes the socket."""
        self._writer.close()
        with contextlib.suppress(OSError):
            await self._writer.wait_closed()


class Control:
    """What a role is given: how to say that it is ready, how it stands, and how it learns that it must end.

    `role` and `index` name this process. `listen_fd` is the listening socket that the supervisor bound for an api process, or None.
    `draining` is set once the process should finish what it holds and return; `drain_until` is then the monotonic time by which it must
    have.
    """

    def __init__(self, role: str, index: int, *, listen_fd: int | None = None, channel: Channel | None = None) -> None:
        self.role = role
        self.index = index
        self.listen_fd = listen_fd
        self.draining = asyncio.Event()
        self.drain_until: float | None = None
        self._channel = channel
        self._metrics: list[Callable[[], str]] = []
        self._reload: list[Callable[[Any], None]] = []
        self._health: dict[str, dict[str, Any]] = {}
        self._ready = False
        self._on_drain: list[Callable[[float], None]] = []
        self._on_order: dict[str, Callable[[Message], None]] = {}

    @property
    def name(self) -> str:
        """`hub`, `api 0`, `worker 1`: as in titles, logs and metrics."""
        return process_name(self.role, self.index)

    @property
    def is_ready(self) -> bool:
        """Whether `ready` was called."""
        return self._ready

    def ready(self) -> None:
        """This process can do its part from now on."""
        if not self._ready:
            self._ready = True
            self._send({"event": "ready"})

    def set_health(self, component: str, status: str, reason: str | None = None) -> None:
        """How something that this process depends on stands: `status` is "ok" or "degraded". Only changes travel."""
        before = self._health.get(component)
        if before is not None and before["status"] == status and before["reason"] == reason:
            return
        entry = {"status": status, "reason": reason, "since": time.time()}
        if before is not None and before["status"] == status:
            entry["since"] = before["since"]
        self._health[component] = entry
        self._send({"event": "health", "component": component, **entry})

    @property
    def health(self) -> dict[str, dict[str, Any]]:
        """What `set_health` was told, by component: `status`, `reason`, `since` (seconds since 1970)."""
        return dict(self._health)

    def add_metrics(self, source: Callable[[], str]) -> None:
        """`source` returns Prometheus text and is called on the loop whenever the telemetry port is read."""
        self._metrics.append(source)

    def on_reload(self, callback: Callable[[Any], None]) -> None:
        """`callback` gets the new Config after a SIGHUP; it must not block."""
        self._reload.append(callback)

    def on_drain(self, callback: Callable[[float], None]) -> None:
        """`callback` gets the seconds that are left when draining begins."""
        self._on_drain.append(callback)

    def on_order(self, do: str, callback: Callable[[Message], None]) -> None:
        """`callback` gets the parent's messages whose "do" is this: orders that only this role knows."""
        self._on_order[do] = callback

    def tell(self, message: Message) -> None:
        """Tells the parent something that only this role has to say."""
        self._send(message)

    def metrics_texts(self) -> list[str]:
        """The text of each source. One that fails costs its own lines only."""
        texts = []
        for source in self._metrics:
            try:
                texts.append(source())
            except Exception as error:
                print(f"fetchbox: {self.name}: metrics are missing: {error!r}", file=sys.stderr)
        return texts

    def drain(self, within: float) -> None:
        """Begins to drain, for at most `within` seconds; a second call can only shorten that. Called by the child's main program."""
        until = time.monotonic() + within
        if self.drain_until is not None and until >= self.drain_until:
            return
        self.drain_until = until
        self.draining.set()
        for callback in self._on_drain:
            callback(within)

    def reload(self, config: Any) -> None:
        """Hands a new configuration to whoever asked for it. One that fails keeps what it has, and this process listening."""
        for callback in self._reload:
            try:
                callback(config)
            except Exception as error:
                print(f"fetchbox: {self.name}: the new configuration is not in force here: {error!r}", file=sys.stderr)

    async def serve(self, parse_config: Callable[[str], Any], orphan_timeout: float) -> None:
        """Acts on the supervisor's messages until it is gone, and then drains for at most `orphan_timeout` seconds."""
        if self._channel is None:
            return
        while (message := await self._channel.receive()) is not None:
            match message.get("do"):
                case "metrics":
                    self._send({"event": "metrics", "id": message["id"], "texts": self.metrics_texts()})
                case "drain":
                    self.drain(float(message["within"]))
                case "reload":
                    self.reload(parse_config(message["config"]))
                case own if own in self._on_order:
                    self._on_order[own](message)
                case unknown:
                    print(f"fetchbox: {self.name}: unknown order {unknown!r}", file=sys.stderr)
        self.drain(orphan_timeout)

    def _send(self, message: Message) -> None:
        if self._channel is not None:
            self._channel.send(message)


def process_name(role: str, index: int) -> str:
    """How a process is called in titles, logs and metrics; there is one hub only."""
    return role if role == "hub" else f"{role} {index}"


def inherited_fd(name: str) -> int | None:
    """The descriptor that the environment variable `name` announces; the variable is removed, so that no grandchild believes in it."""
    value = os.environ.pop(name, None)
    return int(value) if value else None
