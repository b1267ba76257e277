"""A worker that downloads nothing: `python -m fetchbox.bench.idle_worker CONFIG [finish]`.

It joins the workers of a running service like any other and says of every task at once that it is stored. With `finish` it reads what is
settled as well, as workers do for `finalize_job` and callbacks. No command of FetchBox starts it: only benches do, to see what everything
but the download costs.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import orjson
import uvloop
from setproctitle import setproctitle

from fetchbox._core import Engine
from fetchbox.broker import HubConnection, Streams
from fetchbox.broker.iggy_worker import IggyConnection
from fetchbox.config import engine_options, load
from fetchbox.control import ALLOCATOR
from fetchbox.worker.finish import Finisher
from fetchbox.worker.loop import WorkerLoop
from fetchbox.worker.quarantine import Quarantine

STOP_SECONDS = 10.0


@contextlib.contextmanager
def idle_worker(config_path: Path, *, finish: bool = False) -> Iterator[int]:
    """Runs one beside the service of this configuration; its process id. With `finish` it reads the events of settled jobs."""
    command = [sys.executable, "-m", "fetchbox.bench.idle_worker", str(config_path), *(["finish"] if finish else [])]
    child = subprocess.Popen(command, env=ALLOCATOR | os.environ, start_new_session=True)
    try:
        yield child.pid
    finally:
        child.terminate()
        try:
            child.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait(STOP_SECONDS)


async def _run(config_path: Path, finish: bool) -> None:
    config = load(config_path)
    draining = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, draining.set)
    engine = Engine(orjson.dumps(engine_options(config)), idle=True)
    hub = HubConnection(config, "worker", name="idle worker")
    iggy = None if config.broker.url == "embedded" else IggyConnection(config, hub)
    streams: Streams = iggy or hub
    try:
        finisher = Finisher(config, streams, "idle", {}, None) if finish else None
        loop = WorkerLoop(engine, streams, "idle", config.worker.flush_interval, Quarantine(config, 0, engine), finisher=finisher)
        await loop.run(draining, lambda: STOP_SECONDS / 2)
    finally:
        engine.close(1.0)
        if iggy is not None:
            await iggy.close()
        hub.close()


def main() -> None:
    """The process."""
    setproctitle("fetchbox: worker idle")
    uvloop.run(_run(Path(sys.argv[1]), "finish" in sys.argv[2:]))


if __name__ == "__main__":
    main()
