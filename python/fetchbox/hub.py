"""The hub process: it opens the database and serves it until it is drained."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import orjson

from fetchbox._core import CoreError, Hub
from fetchbox.config import Config, hub_options, hub_storage
from fetchbox.errors import ConfigError

if TYPE_CHECKING:
    from fetchbox.control import Control


async def run(config: Config, control: Control) -> int:
    """Serves the ledger and the streams; the exit code. A failed commit ends the process from inside the native module."""
    try:
        storage = hub_storage(config)
        hub = await asyncio.to_thread(Hub, orjson.dumps(hub_options(config)), None if storage is None else orjson.dumps(storage))
    except CoreError as error:
        raise ConfigError.single(error.code or "hub.path", error.message) from error
    control.add_metrics(hub.metrics)
    try:
        control.ready()
        await control.draining.wait()
    finally:
        await asyncio.to_thread(hub.close)
    return 0
