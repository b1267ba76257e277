"""One worker process, from its configuration to its exit."""

from __future__ import annotations

import asyncio
import os
import resource
import socket
import time
from typing import TYPE_CHECKING

import orjson
import structlog

from fetchbox._core import CoreError, Engine
from fetchbox.broker import HubConnection
from fetchbox.config import Config, engine_options
from fetchbox.errors import ConfigError, FetchboxError, HandlerError, HubUnavailable
from fetchbox.worker.loop import WorkerLoop
from fetchbox.worker.quarantine import Quarantine

if TYPE_CHECKING:
    from fetchbox.control import Control
    from fetchbox.worker.before import BeforeFetch

log = structlog.get_logger("fetchbox.worker")

ENGINE_CLOSE_SECONDS = 3.0
"""How long transfers may take to abort when a worker ends."""
CLOSE_MARGIN = 1.0
"""Seconds kept for the end of the process itself."""


DESCRIPTORS = 65_536
"""As many as a worker asks for, if it may have them: hosts that do not answer take one each."""


async def run(config: Config, control: Control) -> int:
    """Downloads what its partitions bring until it is drained; the exit code."""
    _raise_descriptor_limit()
    try:
        engine = Engine(orjson.dumps(engine_options(config)))
    except CoreError as error:
        raise _startup_error(error) from error
    hub = HubConnection(config, "worker", on_cancelled=engine.cancel)
    hub.on_connected(lambda connected: control.set_health("hub", *(("ok", None) if connected else ("degraded", "the hub is away"))))
    control.add_metrics(engine.metrics)
    if reason := engine.unguarded():
        log.warning(
            "a task that kills this worker will not be found out: its traces cannot be kept", data_dir=config.data_dir, reason=reason
        )
    member = f"{socket.gethostname()}-{os.getpid()}-{control.index}"
    before = _before(config, engine)
    loop = WorkerLoop(engine, hub, member, config.worker.flush_interval, Quarantine(config, control.index, engine), before)
    try:
        control.ready()
        await loop.run(control.draining, lambda: _time_to_finish(control))
    except HubUnavailable:
        log.info("the hub is away; unfinished tasks are delivered again")
    finally:
        await asyncio.to_thread(engine.close, ENGINE_CLOSE_SECONDS)
        if before is not None:
            before.close()
        hub.close()
    return 0


def _before(config: Config, engine: Engine) -> BeforeFetch | None:
    if all(kind.handler is None for kind in config.job_types.values()):
        return None
    # Not needed where nobody has a handler: neither the users' code nor what surrounds it.
    from fetchbox.worker.before import BeforeFetch

    try:
        return BeforeFetch(config, engine)
    except HandlerError as error:
        raise ConfigError.single("job_types", str(error)) from error


def _time_to_finish(control: Control) -> float:
    """Seconds for what is under way: the engine's close and the process's own end need theirs within the supervisor's limit."""
    left = (control.drain_until or time.monotonic()) - time.monotonic()
    return max(left - ENGINE_CLOSE_SECONDS - CLOSE_MARGIN, left / 2, 0)


def _raise_descriptor_limit() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = DESCRIPTORS if hard == resource.RLIM_INFINITY else min(DESCRIPTORS, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def _startup_error(error: CoreError) -> FetchboxError:
    return ConfigError.single(error.code or "engine", error.message)
