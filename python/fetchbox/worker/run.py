"""One worker process, from its configuration to its exit."""

from __future__ import annotations

import asyncio
import os
import socket
import time
from typing import TYPE_CHECKING

import orjson
import structlog

from fetchbox._core import CoreError, Engine
from fetchbox.broker import HubConnection
from fetchbox.config import Config, engine_options
from fetchbox.errors import ConfigError, FetchboxError, HubUnavailable
from fetchbox.worker.loop import WorkerLoop

if TYPE_CHECKING:
    from fetchbox.control import Control

log = structlog.get_logger("fetchbox.worker")

ENGINE_CLOSE_SECONDS = 3.0
"""How long transfers may take to abort when a worker ends."""
CLOSE_MARGIN = 1.0
"""Seconds kept for the end of the process itself."""


async def run(config: Config, control: Control) -> int:
    """Downloads what its partitions bring until it is drained; the exit code."""
    try:
        engine = Engine(orjson.dumps(engine_options(config)))
    except CoreError as error:
        raise _startup_error(error) from error
    hub = HubConnection(config, "worker", on_cancelled=engine.cancel)
    hub.on_connected(lambda connected: control.set_health("hub", *(("ok", None) if connected else ("degraded", "the hub is away"))))
    control.add_metrics(engine.metrics)
    member = f"{socket.gethostname()}-{os.getpid()}-{control.index}"
    loop = WorkerLoop(engine, hub, member, config.worker.flush_interval)
    try:
        control.ready()
        await loop.run(control.draining, lambda: _time_to_finish(control))
    except HubUnavailable:
        log.info("the hub is away; unfinished tasks are delivered again")
    finally:
        await asyncio.to_thread(engine.close, ENGINE_CLOSE_SECONDS)
        hub.close()
    return 0


def _time_to_finish(control: Control) -> float:
    """Seconds for what is under way: the engine's close and the process's own end need theirs within the supervisor's limit."""
    left = (control.drain_until or time.monotonic()) - time.monotonic()
    return max(left - ENGINE_CLOSE_SECONDS - CLOSE_MARGIN, left / 2, 0)


def _startup_error(error: CoreError) -> FetchboxError:
    return ConfigError.single(error.code or "engine", error.message)
