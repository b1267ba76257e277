"""The hub process: it opens the database and serves it until it is drained."""

from __future__ import annotations

import asyncio
import os
from typing import TYPE_CHECKING

import orjson
import structlog

from fetchbox._core import CoreError, Hub
from fetchbox.config import Config, hub_options, hub_socket, hub_storage
from fetchbox.errors import ConfigError

if TYPE_CHECKING:
    from fetchbox.control import Control

log = structlog.get_logger("fetchbox.hub")


async def run(config: Config, control: Control) -> int:
    """Serves the ledger and the streams; the exit code. A failed commit ends the process from inside the native module."""
    try:
        storage = hub_storage(config)
        hub = await asyncio.to_thread(Hub, orjson.dumps(hub_options(config)), None if storage is None else orjson.dumps(storage))
    except CoreError as error:
        raise ConfigError.single(error.code or "hub.path", error.message) from error
    control.add_metrics(hub.metrics)
    control.on_reload(lambda changed: _reload(hub, changed))
    try:
        control.ready()
        if config.broker.url == "embedded":
            await control.draining.wait()
        else:
            await _feed_until_drained(config, control)
    finally:
        await asyncio.to_thread(hub.close)
    return 0


def _reload(hub: Hub, changed: Config) -> None:
    """Opens no connection and reads no file: it does not block."""
    storage = hub_storage(changed)
    try:
        hub.reload(orjson.dumps(hub_options(changed)), None if storage is None else orjson.dumps(storage))
    except CoreError as error:
        log.error("the hub goes on with the configuration that it has", error=error.message)


async def _feed_until_drained(config: Config, control: Control) -> None:
    """Keeps the streams of a broker outside and the ledger in step. The feed speaks with the hub like everybody else, over its socket."""
    from fetchbox.broker import HubConnection
    from fetchbox.broker.iggy_feed import IggyFeed

    # The client's runtime, the only one here that asks: a second thread of it would do nothing but be woken.
    os.environ.setdefault("TOKIO_WORKER_THREADS", "1")
    connection = HubConnection(config, "operator", name="feed", url=f"unix://{hub_socket(config)}")
    feed = IggyFeed(config, connection)
    control.add_metrics(feed.metrics)
    control.on_reload(feed.reload)
    control.on_reload(connection.reload)
    draining = asyncio.create_task(control.draining.wait())
    feeding = asyncio.create_task(feed.run())
    try:
        await asyncio.wait({draining, feeding}, return_when=asyncio.FIRST_COMPLETED)
        if feeding.done():
            feeding.result()
    finally:
        for task in (feeding, draining):
            task.cancel()
        await asyncio.gather(feeding, draining, return_exceptions=True)
        connection.close()
