"""The quarantine process: an engine of its own for tasks that may kill it. It talks to nobody but the worker that started it.

It is told to run tasks and tells how each ended; the worker settles them. So its death costs nothing but the work it had begun.
"""

from __future__ import annotations

import asyncio
import base64
from typing import TYPE_CHECKING, Any

import orjson

from fetchbox._core import CoreError, Engine
from fetchbox.config import Config, engine_options
from fetchbox.errors import ConfigError
from fetchbox.worker.transport import curl_transport

if TYPE_CHECKING:
    from fetchbox.control import Control

ENGINE_CLOSE_SECONDS = 1.0
"""How long transfers may take to abort."""
DRAIN_LIMIT = 256


async def run(config: Config, control: Control) -> int:
    """Runs what it is told to until it is drained; the exit code."""
    options = engine_options(config)
    # What is found out here stays here: a death in quarantine makes nobody a suspect.
    options["flight_dir"] = None
    try:
        engine = Engine(orjson.dumps(options))
    except CoreError as error:
        raise ConfigError.single(error.code or "engine", error.message) from error
    loop = asyncio.get_running_loop()

    def begin(order: dict[str, Any]) -> None:
        engine.submit_apart(int(order["place"]), base64.b64decode(order["task"]))

    def tell() -> None:
        while finished := engine.drain(DRAIN_LIMIT).encode():
            for place, task in finished:
                if not control.draining.is_set():
                    control.tell({"event": "finished", "place": place, "finished": base64.b64encode(task).decode()})

    curl = curl_transport(config, engine)
    control.on_order("run", begin)
    loop.add_reader(engine.fileno(), tell)
    try:
        control.ready()
        await control.draining.wait()
    finally:
        loop.remove_reader(engine.fileno())
        await asyncio.to_thread(engine.close, ENGINE_CLOSE_SECONDS)
        if curl is not None:
            curl.close()
    return 0
