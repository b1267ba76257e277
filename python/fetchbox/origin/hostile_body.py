"""Hostile in the body: cut short, without an end, far too slow, far too large, or in a million crumbs."""

from __future__ import annotations

import asyncio
import base64
import zlib
from functools import lru_cache

from fetchbox.origin import pattern
from fetchbox.origin.body import body_of, send_content
from fetchbox.origin.http import Exchange, RequestError
from fetchbox.origin.routes import route

_MIB = 1 << 20
_BLOCK = pattern.content("endless", _MIB)
_CHUNK = b"%x\r\n" % len(_BLOCK) + _BLOCK + b"\r\n"
_CRUMBS = 10_000


@route("/hostile/truncated", outcome="retried, then DOWNLOAD_TRUNCATED")
async def truncated(x: Exchange) -> None:
    """Announces `n` bytes (default 100,000), sends half of them and closes. No ETag and no ranges, so nothing can be resumed."""
    size = x.integer("n", 100_000)
    x.keep_alive = False
    await x.head(200, [("Content-Type", "application/octet-stream"), ("Content-Length", str(size))])
    await send_content(x, x.text("seed", "0"), 0, size // 2)


@route("/hostile/truncated-chunked", outcome="retried, then DOWNLOAD_TRUNCATED")
async def truncated_chunked(x: Exchange) -> None:
    """A chunked body that closes before its last chunk."""
    x.keep_alive = False
    await x.head(200, [("Transfer-Encoding", "chunked")])
    await x.send(b"3e8\r\n", pattern.content(0, 1000), b"\r\n")


@route("/hostile/truncated-chunk", outcome="retried, then DOWNLOAD_TRUNCATED")
async def truncated_chunk(x: Exchange) -> None:
    """A chunked body that closes in the middle of a chunk."""
    x.keep_alive = False
    await x.head(200, [("Transfer-Encoding", "chunked")])
    await x.send(b"3e8\r\n", pattern.content(0, 500))


@route("/hostile/close-without-notify", outcome="over TLS retried, then DOWNLOAD_TRUNCATED; else stored, flagged length_unknown")
async def close_without_notify(x: Exchange) -> None:
    """A body ended by closing the connection, without TLS's close_notify: over TLS nobody can tell whether it is whole."""
    x.keep_alive = False
    await x.head(200, [("Content-Type", "application/octet-stream"), ("Connection", "close")])
    await x.send(pattern.content(0, 1000))
    if x.origin.scheme == "https":
        await x.flush()
        # The buffers of the TLS layer have been written; leave the loop one turn to hand them to the socket.
        await asyncio.sleep(0.05)
        x.cut()


@route("/hostile/reset-body", outcome="retried, then DOWNLOAD_RESET")
async def reset_body(x: Exchange) -> None:
    """Half of `n` bytes (default 100,000), then RST."""
    size = x.integer("n", 100_000)
    await x.head(200, [("Content-Type", "application/octet-stream"), ("Content-Length", str(size))])
    await send_content(x, x.text("seed", "0"), 0, size // 2)
    await x.reset()


@route("/hostile/drip", outcome="retried, then DOWNLOAD_TOO_SLOW under fetch.min_speed, else DOWNLOAD_TIMEOUT at fetch.total_timeout")
async def drip(x: Exchange) -> None:
    """`n` bytes (default 1,000,000) at one byte a second (or `rate`)."""
    size = x.integer("n", 1_000_000)
    x.keep_alive = False
    await x.head(200, [("Content-Type", "application/octet-stream"), ("Content-Length", str(size))])
    pause = 1 / x.number("rate", 1, low=0.01)
    for position in range(size):
        await x.send(*pattern.blocks("drip", position, position + 1))
        await asyncio.sleep(pause)


@route("/hostile/stall", outcome="retried, then DOWNLOAD_TIMEOUT, or DOWNLOAD_TOO_SLOW under fetch.min_speed")
async def stall(x: Exchange) -> None:
    """Half of `n` bytes (default 100,000), then silence, the connection open."""
    size = x.integer("n", 100_000)
    await x.head(200, [("Content-Type", "application/octet-stream"), ("Content-Length", str(size))])
    await send_content(x, x.text("seed", "0"), 0, size // 2)
    await x.stall()


@lru_cache(maxsize=1)
def _gzip_member() -> bytes:
    packer = zlib.compressobj(9, wbits=31)
    return packer.compress(bytes(10 * _MIB)) + packer.flush()


# 64 MiB of zeros in brotli's format; encoded once, for the standard library has no encoder.
_BROTLI_64M = base64.b64decode(
    "y///P/gnAOKxQCD3/o///3/wTwDEYRGA7v0f////4J8AiMMCAN37P/7//8E/ARCHBQC693/8//+DfwIgDgsAdO//+P//B/8EQBwWAOje//H//w/+CYA4LADQvf/j//8f/BMAcVgAoHv/Nw=="
)


@lru_cache(maxsize=4)
def _zstd_zeros(size: int) -> bytes:
    # A frame of RLE blocks, four bytes for every 128 KiB: magic, single-segment header with an 8-byte size would ask for a huge window,
    # so the window descriptor says 8 MiB.
    blocks = max(1, size // (128 * 1024))
    parts = [b"\x28\xb5\x2f\xfd", b"\x00", bytes((13 << 3,))]
    for index in range(blocks):
        header = (128 * 1024 << 3) | (1 << 1) | (index == blocks - 1)
        parts.append(header.to_bytes(3, "little") + b"\0")
    return b"".join(parts)


@route("/hostile/bomb/{coding}", example="/hostile/bomb/gzip?mib=10240", outcome="stored as sent, never decoded")
async def bomb(x: Exchange) -> None:
    """A decompression bomb in gzip, zstd or br: `mib` MiB of zeros (default 10,240; br always 64) under a Content-Encoding."""
    coding, size = x.text("coding"), x.integer("mib", 10_240, low=1, high=1_000_000)
    if coding == "gzip":
        body = _gzip_member() * max(1, size // 10)
    elif coding == "zstd":
        body = _zstd_zeros(size * _MIB)
    elif coding == "br":
        body = _BROTLI_64M
    else:
        raise RequestError(404, "codings are gzip, zstd, br")
    await x.respond(200, body, [("Content-Encoding", coding)], kind="text/plain")


@route("/hostile/endless", outcome="DOWNLOAD_TOO_LARGE at max_bytes")
async def endless(x: Exchange) -> None:
    """A body of unknown length that never ends."""
    x.keep_alive = False
    await x.head(200, [("Content-Type", "application/octet-stream"), ("Connection", "close")])
    while True:
        await x.send(_BLOCK)
        await asyncio.sleep(0)


@route("/hostile/endless-chunked", outcome="DOWNLOAD_TOO_LARGE at max_bytes")
async def endless_chunked(x: Exchange) -> None:
    """A chunked body that never ends."""
    x.keep_alive = False
    await x.head(200, [("Transfer-Encoding", "chunked")])
    while True:
        await x.send(_CHUNK)
        await asyncio.sleep(0)


@route("/hostile/huge-length", outcome="DOWNLOAD_TOO_LARGE, before the body")
async def huge_length(x: Exchange) -> None:
    """Announces `n` bytes (default 10 TB) and sends on and on."""
    size = x.integer("n", 10**13)
    x.keep_alive = False
    await x.head(200, [("Content-Type", "application/octet-stream"), ("Content-Length", str(size))])
    for _ in range(0, size, _MIB):
        await x.send(_BLOCK)
        await asyncio.sleep(0)


@route("/hostile/one-byte-chunks", example="/hostile/one-byte-chunks?n=100000")
async def one_byte_chunks(x: Exchange) -> None:
    """`n` zero bytes (default 10 million) in chunks of one byte: stored, at a bounded cost for others."""
    size = x.integer("n", 10_000_000)
    await x.head(200, [("Content-Type", "application/octet-stream"), ("Transfer-Encoding", "chunked")])
    crumbs = b"1\r\n\0\r\n" * _CRUMBS
    for position in range(0, size, _CRUMBS):
        await x.send(crumbs if size - position >= _CRUMBS else b"1\r\n\0\r\n" * (size - position))
        await asyncio.sleep(0)
    await x.send(b"0\r\n\r\n")


@route("/hostile/wrong-type", outcome="stored; declared and sniffed type differ")
async def wrong_type(x: Exchange) -> None:
    """A PDF head that calls itself a picture."""
    await x.respond(200, b"%PDF-1.7\n" + pattern.content(0, 1000), kind="image/png")


@route("/hostile/trailing-bytes/{n}", example="/hostile/trailing-bytes/1000")
async def trailing_bytes(x: Exchange) -> None:
    """`n` bytes as announced, then more than that: only the announced ones count, and the connection must not be used again."""
    body = body_of(x)
    x.keep_alive = False
    await x.head(200, body.fields(body.size))
    await send_content(x, body.seed, 0, body.size)
    await x.send(b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nforged")
