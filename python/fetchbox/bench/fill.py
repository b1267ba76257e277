"""Very many small jobs, put straight into a running hub: over HTTP a million of them would take longer than what is measured on them.

`python -m fetchbox.bench.fill CONFIG JOBS RATE` accepts one-resource jobs as the api does, by the same native calls, and prints their
ids: as fast as they are taken, or so many a second (0: no limit).
"""

from __future__ import annotations

import asyncio
import subprocess
import sys
import time
from pathlib import Path

import orjson
import structlog
import uvloop

from fetchbox import _core
from fetchbox.api.configure import settings_of
from fetchbox.api.ids import new_job_id, trace_of
from fetchbox.api.submit import Post, accept_facts
from fetchbox.bench.service import manifest
from fetchbox.broker import HubConnection
from fetchbox.config import Config, load

AT_ONCE = 256
CONNECT_SECONDS = 10.0


def fill(config_path: Path, jobs: int, timeout: float, rate: float = 0.0) -> list[str]:
    """Accepts so many jobs of one resource each, from a process of its own; their ids. At most `rate` a second (0: no limit)."""
    command = [sys.executable, "-m", "fetchbox.bench.fill", str(config_path), str(jobs), str(rate)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, timeout=timeout)
    return done.stdout.split()


async def _fill(config: Config, jobs: int, rate: float) -> list[str]:
    hub = HubConnection(config, "api", name="fill")
    settings = settings_of(config, None)
    job_type = settings.job_type(None, "default")
    numbers = iter(range(jobs))
    ids: list[str] = []
    begun = 0.0

    async def lane() -> None:
        for number in numbers:
            if rate and (early := begun + number / rate - time.monotonic()) > 0:
                await asyncio.sleep(early)
            body = manifest(
                [f"https://images.example.com/{number:x}/photo-{number * 7919 % 1_000_003}.jpg"], page="https://example.com/gallery"
            )
            now_ms = int(time.time() * 1000)
            partitions = job_type.context["partitions"]
            post = Post(new_job_id(), job_type, "default", None, body, None, trace_of(None), now_ms, settings, partitions)
            batch = _core.compile_manifest(body, post.context())
            facts = accept_facts(post, batch, orjson.loads(batch.facts()), reserved=True)
            ids.append((await hub.accept(facts, batch, body))["job_id"])

    connected = asyncio.Event()
    hub.on_connected(lambda now: connected.set() if now else None)
    try:
        if not hub.connected:
            async with asyncio.timeout(CONNECT_SECONDS):
                await connected.wait()
        begun = time.monotonic()
        await asyncio.gather(*(lane() for _ in range(AT_ONCE)))
    finally:
        hub.close()
    return ids


def main() -> None:
    """The process."""
    # Its output is the ids and nothing else.
    structlog.configure(logger_factory=structlog.PrintLoggerFactory(sys.stderr))
    ids = uvloop.run(_fill(load(Path(sys.argv[1])), int(sys.argv[2]), float(sys.argv[3])))
    # A line each: unbuffered, a long write that a pipe took only a part of would be cut there.
    for job_id in ids:
        print(job_id)


if __name__ == "__main__":
    main()
