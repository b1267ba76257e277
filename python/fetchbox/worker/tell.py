"""A worker's word on itself to the hub: what it has under way, and which proxy pools do not work. It goes with the connection."""

from __future__ import annotations

import asyncio
import socket
from typing import Any

import structlog

from fetchbox._core import Engine
from fetchbox.broker import HubConnection
from fetchbox.errors import HubUnavailable, Refused

log = structlog.get_logger("fetchbox.worker")

LOOK_SECONDS = 1.0
"""How often the engine is looked at; what has not changed is not said again."""


class Teller:
    """Tells until it is cancelled. The engine and the connection belong to the caller."""

    def __init__(self, engine: Engine, hub: HubConnection, member: str, name: str) -> None:
        self._engine = engine
        self._hub = hub
        self._who = {"member": member, "host": socket.gethostname(), "name": name}
        self._said: dict[str, Any] | None = None
        hub.on_connected(self._connection_changed)

    async def run(self) -> None:
        """A hub that is away is told when it is back."""
        while True:
            running, pools_out = self._engine.standing()
            now = {**self._who, "running": running, "held": self._engine.backlog(), "pools_out": pools_out}
            if now != self._said and self._hub.connected:
                if pools_out != (self._said or now)["pools_out"] or (pools_out and self._said is None):
                    log.warning("proxy pools of which no endpoint works", pools=pools_out)
                self._said = now
                try:
                    await self._hub.query("worker_state", now)
                except (HubUnavailable, Refused) as error:
                    self._said = None
                    log.debug("the hub was not told how this worker stands", error=str(error))
            await asyncio.sleep(LOOK_SECONDS)

    def _connection_changed(self, connected: bool) -> None:
        self._said = None
