"""One worker process, from its configuration to its exit."""

from __future__ import annotations

import asyncio
import os
import resource
import secrets
import socket
import time
from typing import TYPE_CHECKING

import orjson
import structlog

from fetchbox._core import CoreError, Engine
from fetchbox.broker import HubConnection, Streams
from fetchbox.config import Config, engine_options
from fetchbox.errors import ConfigError, FetchboxError, HandlerError, Unavailable
from fetchbox.tracing import traces
from fetchbox.worker.finish import Finisher
from fetchbox.worker.hooks import Hooks
from fetchbox.worker.loop import WorkerLoop
from fetchbox.worker.quarantine import Quarantine
from fetchbox.worker.reload import Reload
from fetchbox.worker.tell import Teller
from fetchbox.worker.transport import curl_transport

if TYPE_CHECKING:
    from fetchbox.broker.iggy_worker import IggyConnection
    from fetchbox.control import Control

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
        hooks = Hooks(config)
    except HandlerError as error:
        raise ConfigError.single("job_types", str(error)) from error
    try:
        # A record for every file would be most of what a job's log holds.
        engine = Engine(orjson.dumps(engine_options(config)), log_stored=config.telemetry.log_level == "debug")
    except CoreError as error:
        raise _startup_error(error) from error
    hub = HubConnection(config, "worker", on_cancelled=engine.cancel)
    hub.on_connected(lambda connected: control.set_health("hub", *(("ok", None) if connected else ("degraded", "the hub is away"))))
    if not hub.connected:
        control.set_health("hub", "degraded", "the hub has not answered yet")
    iggy = _iggy(config, hub, control)
    streams: Streams = iggy or hub
    control.add_metrics(engine.metrics)
    if reason := engine.unguarded():
        log.warning(
            "a task that kills this worker will not be found out: its traces cannot be kept", data_dir=config.data_dir, reason=reason
        )
    # Containers may share both their names and their process ids.
    member = f"{socket.gethostname()}-{os.getpid()}-{control.index}-{secrets.token_hex(4)}"
    quarantine = Quarantine(config, control.index, engine)
    finisher = Finisher(config, streams, member, hooks.finalize, hooks.host)
    spans = traces(config, control.name)
    loop = WorkerLoop(engine, streams, member, config.worker.flush_interval, quarantine, finisher, spans)
    loop.hook(config, hooks.before, hooks.host)
    reload = Reload(config, engine, hub, loop, quarantine, finisher, hooks, curl_transport(config, engine))
    control.on_reload(reload.take)
    telling = asyncio.create_task(Teller(engine, hub, member, control.name).run())
    try:
        control.ready()
        await loop.run(control.draining, lambda: _time_to_finish(control))
    except Unavailable as error:
        log.info("unfinished tasks are delivered again", error=str(error))
    finally:
        telling.cancel()
        await asyncio.gather(telling, return_exceptions=True)
        await asyncio.to_thread(engine.close, ENGINE_CLOSE_SECONDS)
        if reload.curl is not None:
            reload.curl.close()
        hooks.close()
        if iggy is not None:
            await iggy.close()
        hub.close()
        if spans is not None:
            await asyncio.to_thread(spans.close)
    return 0


def _iggy(config: Config, hub: HubConnection, control: Control) -> IggyConnection | None:
    """The way to the tasks, where they are not the hub's."""
    if config.broker.url == "embedded":
        return None
    from fetchbox.broker.iggy_worker import IggyConnection

    iggy = IggyConnection(config, hub)
    control.on_reload(iggy.reload)
    iggy.on_connected(lambda connected: control.set_health("broker", *(("ok", None) if connected else ("degraded", iggy.trouble))))
    return iggy


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
