"""aiohttp on uvloop (asyncio's own loop where that is missing), bodies written as they come: what most people write in Python."""

from __future__ import annotations

import asyncio
import os
import sys
from typing import Any

import aiohttp

CHUNK = 1 << 18

try:
    import uvloop

    run: Any = uvloop.run
except ImportError:
    run = asyncio.run


async def main(url_list: str, out: str, concurrency: int) -> int:
    """Downloads every URL of the list into `out/<first byte of its number>/<number>`; returns how many failed."""
    with open(url_list, encoding="utf-8") as lines:  # noqa: ASYNC230 - before anything runs
        work = enumerate([line.strip() for line in lines if line.strip()])
    for shard in range(256):
        os.makedirs(f"{out}/{shard:02x}", exist_ok=True)
    failed = 0

    async def worker(session: aiohttp.ClientSession) -> None:
        nonlocal failed
        for index, url in work:
            try:
                async with session.get(url) as response:
                    response.raise_for_status()
                    with open(f"{out}/{index % 256:02x}/{index}", "wb", buffering=0) as file:  # noqa: ASYNC230 - as such scripts do
                        async for chunk in response.content.iter_chunked(CHUNK):
                            file.write(chunk)
            except (aiohttp.ClientError, OSError):
                failed += 1

    connector = aiohttp.TCPConnector(limit=concurrency)
    async with aiohttp.ClientSession(connector=connector, auto_decompress=False, timeout=aiohttp.ClientTimeout(total=None)) as session:
        await asyncio.gather(*(worker(session) for _ in range(concurrency)))
    return failed


if __name__ == "__main__":
    sys.exit(1 if run(main(sys.argv[1], sys.argv[2], int(sys.argv[3]))) else 0)
