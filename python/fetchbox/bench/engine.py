"""The native engine with nothing around it: `python -m fetchbox.bench.engine URL_LIST OUT CONCURRENCY`.

No outcome becomes a Python object, so its CPU is what downloading alone costs; what a service or `fetchbox get` uses above it is their own.
"""

from __future__ import annotations

import select
import sys
from pathlib import Path

import orjson

from fetchbox._core import Engine
from fetchbox.config import engine_options, load_library

CHUNK = 1000
AHEAD = 10_000
WAIT_MS = 1000
CLOSE_SECONDS = 10.0


def run(urls: list[str], out: str, concurrency: int) -> int:
    """Downloads every URL below `out`; returns how many outcomes came."""
    limits = {"per_host_concurrency": concurrency, "allow_networks": ["127.0.0.0/8"]}
    options = engine_options(load_library(config={"fetch": limits}, concurrency=concurrency), library=True)
    options["storage"]["url"] = Path(out).resolve().as_uri()
    engine = Engine(orjson.dumps(options))
    readable = select.poll()
    readable.register(engine.fileno(), select.POLLIN)
    sent = finished = 0
    while finished < len(urls):
        while sent < len(urls) and sent - finished <= AHEAD - CHUNK:
            sent += engine.submit_tasks(orjson.dumps(urls[sent : sent + CHUNK]), sent, True)
        finished += len(engine.drain(CHUNK))
        if finished < len(urls):
            readable.poll(WAIT_MS)
    engine.close(CLOSE_SECONDS)
    return finished


def main(url_list: str, out: str, concurrency: str) -> int:
    """The program; the exit status."""
    urls = [line for line in Path(url_list).read_text(encoding="utf-8").splitlines() if line]
    return 0 if run(urls, out, int(concurrency)) == len(urls) else 1


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:4]))
