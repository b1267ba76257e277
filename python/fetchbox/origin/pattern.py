"""Deterministic content: what `/bytes/{n}?seed=` serves, so that a test can verify every byte it stored.

A seed gives a pattern of 64 KiB (SHAKE-128, the same on every machine and in every language); each block of the content is the pattern
with its first 16 bytes replaced by a stamp of seed and block number. Blocks swapped, repeated or taken from another seed are seen, and
serving costs no more than copying.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from functools import lru_cache

BLOCK = 64 * 1024
"""Bytes of one block."""

_STAMP = 16


@lru_cache(maxsize=256)
def _pattern(seed: str) -> bytes:
    return hashlib.shake_128(f"fetchbox:{seed}".encode()).digest(BLOCK)


def _block(seed: str, index: int) -> bytes:
    stamp = hashlib.shake_128(f"fetchbox:{seed}:{index}".encode()).digest(_STAMP)
    return stamp + _pattern(seed)[_STAMP:]


@lru_cache(maxsize=1024)
def _first_block(seed: str) -> bytes:
    return _block(seed, 0)


def blocks(seed: object, start: int, stop: int) -> Iterator[bytes]:
    """The bytes `start` (inclusive) to `stop` (exclusive) of a seed's content, in pieces of at most 64 KiB."""
    name = str(seed)
    position = start
    while position < stop:
        index, offset = divmod(position, BLOCK)
        block = _first_block(name) if index == 0 else _block(name, index)
        end = min(BLOCK, offset + stop - position)
        yield block[offset:end]
        position += end - offset


def content(seed: object, n: int) -> bytes:
    """The first `n` bytes of a seed's content, as `/bytes/{n}?seed=` sends them."""
    if n <= BLOCK:
        return _first_block(str(seed))[:n]
    return b"".join(blocks(seed, 0, n))


@lru_cache(maxsize=4096)
def content_sha256(seed: object, n: int) -> str:
    """SHA-256 of `content(seed, n)` in lower-case hex, computed block by block in constant memory."""
    digest = hashlib.sha256()
    for block in blocks(seed, 0, n):
        digest.update(block)
    return digest.hexdigest()
