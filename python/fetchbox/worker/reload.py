"""Puts a configuration that was read again in force in a worker: job types, credentials, proxies, callbacks, handlers."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import orjson
import structlog

from fetchbox._core import CoreError, Engine
from fetchbox.broker import HubConnection
from fetchbox.config import Config, engine_options
from fetchbox.errors import HandlerError
from fetchbox.worker.finish import Finisher
from fetchbox.worker.hooks import Hooks
from fetchbox.worker.loop import WorkerLoop
from fetchbox.worker.quarantine import Quarantine
from fetchbox.worker.transport import curl_transport

if TYPE_CHECKING:
    from fetchbox.curl.transport import CurlTransport

log = structlog.get_logger("fetchbox.worker")


class Reload:
    """Takes one configuration after the other; the newest when several wait.

    Downloads under way go on with what they began with, every attempt after it has the new.
    """

    def __init__(
        self,
        config: Config,
        engine: Engine,
        hub: HubConnection,
        loop: WorkerLoop,
        quarantine: Quarantine,
        finisher: Finisher,
        hooks: Hooks,
        curl: CurlTransport | None,
    ) -> None:
        self.curl = curl
        self._options = engine_options(config)
        self._engine = engine
        self._hub = hub
        self._loop = loop
        self._quarantine = quarantine
        self._finisher = finisher
        self._hooks = hooks
        self._waiting: Config | None = None
        self._task: asyncio.Task[None] | None = None

    def take(self, changed: Config) -> None:
        """Has it put in force soon; returns at once."""
        self._waiting = changed
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._run())

    async def _run(self) -> None:
        while (changed := self._waiting) is not None:
            self._waiting = None
            try:
                await self._apply(changed)
            except CoreError as error:
                log.error("the worker goes on with the configuration that it has", error=str(error))

    async def _apply(self, changed: Config) -> None:
        # Both in threads: users' code may be imported, and names are looked up.
        try:
            await asyncio.to_thread(self._hooks.load, changed)
        except HandlerError as error:
            log.error("the worker goes on with the handlers that it has", error=str(error))
        options = await asyncio.to_thread(engine_options, changed)
        if options != self._options:
            await asyncio.to_thread(self._engine.reload, orjson.dumps(options))
            self._options = options
        self._hub.reload(changed)
        self._quarantine.reload(changed)
        self._finisher.reload(changed, options["blocked_endpoints"], self._hooks.finalize, self._hooks.host)
        if self.curl is None:
            self.curl = curl_transport(changed, self._engine)
        self._loop.hook(changed, self._hooks.before, self._hooks.host)
