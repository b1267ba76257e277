"""Download while a crawl goes on: URLs come from a coroutine, each with its own name, headers and checksum.

python examples/fetch_async.py https://example.org/ out/
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator

import fetchbox
from fetchbox import DownloadTask


async def found(page: str) -> AsyncIterator[DownloadTask]:
    """Stands for a crawler that finds files."""
    for number in range(1, 4):
        yield DownloadTask(f"{page}image/{number}.png", id=f"image-{number}", headers={"Referer": page})


async def main(page: str, store: str) -> int:
    """Returns how many were stored."""
    stored = 0
    async for outcome in fetchbox.afetch(found(page), store=store, concurrency=64):
        print(outcome.id, outcome.state, outcome.code or "", outcome.sniffed_type or "", outcome.storage_url or "")
        stored += outcome.state == "stored"
    return stored


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:3]))
