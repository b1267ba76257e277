"""A bare loop of puts: `obstore_put.py ENDPOINT BUCKET COUNT SIZE CONCURRENCY`.

Bodies come from memory; nothing is downloaded, hashed or told.
"""

from __future__ import annotations

import asyncio
import os
import sys

import obstore
from obstore.store import S3Store


async def main(endpoint: str, bucket: str, count: int, size: int, concurrency: int) -> None:
    """Puts `count` bodies of `size` bytes."""
    store = S3Store(
        bucket,
        endpoint=endpoint,
        region="us-east-1",
        access_key_id=os.environ["AWS_ACCESS_KEY_ID"],
        secret_access_key=os.environ["AWS_SECRET_ACCESS_KEY"],
        client_options={"allow_http": True},
    )
    body = os.urandom(size)
    numbers = iter(range(count))

    async def lane() -> None:
        for number in numbers:
            await obstore.put_async(store, f"put/{number % 256:02x}/{number}", body, use_multipart=False)

    await asyncio.gather(*(lane() for _ in range(concurrency)))


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], sys.argv[2], *map(int, sys.argv[3:6])))
    # Its threads sometimes abort the process (signal 6) while the interpreter goes down; every put has ended by now.
    os._exit(0)
