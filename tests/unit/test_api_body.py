"""Bodies: decompression, limits, bombs, slowness."""

from __future__ import annotations

import asyncio
import gzip
import random
import tracemalloc
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from starlette.types import Message, Receive

from fetchbox.api import body as body_module
from fetchbox.api.body import Disconnected, drain, read_body
from fetchbox.api.inflate import MAX_MEMBERS, zstd
from fetchbox.api.problems import Problem

PLAIN = random.Random(7).randbytes(300_000) + b"a" * 700_000
LIMIT = 2_000_000


def receiving(*chunks: bytes, end: bool = True) -> Receive:
    """An ASGI receive that gives these chunks and then the end, or nothing more at all."""
    queue = list(chunks)

    async def receive() -> Message:
        if queue:
            return {"type": "http.request", "body": queue.pop(0), "more_body": True}
        if not end:
            await asyncio.Event().wait()
        return {"type": "http.request", "body": b"", "more_body": False}

    return receive


def split(data: bytes, size: int) -> list[bytes]:
    return [data[at : at + size] for at in range(0, len(data), size)]


async def refused(receive: Receive, headers: dict[bytes, bytes], limit: int = LIMIT) -> Problem:
    with pytest.raises(Problem) as caught:
        await read_body(receive, headers, limit)
    return caught.value


@pytest.mark.parametrize(
    ("encoding", "compress"), [(b"gzip", gzip.compress), (b"x-gzip", gzip.compress), (b"zstd", zstd.compress), (b" GZip ", gzip.compress)]
)
@pytest.mark.parametrize("size", [1000, 65_536, 10_000_000])
async def test_a_compressed_body_comes_out_whole(encoding: bytes, compress: Callable[[bytes], bytes], size: int) -> None:
    assert await read_body(receiving(*split(compress(PLAIN), size)), {b"content-encoding": encoding}, LIMIT) == PLAIN


@pytest.mark.parametrize(("encoding", "compress"), [(b"gzip", gzip.compress), (b"zstd", zstd.compress)])
@given(parts=st.lists(st.binary(max_size=300), min_size=1, max_size=5), size=st.integers(1, 64))
@settings(max_examples=60, deadline=None)
def test_members_and_frames_one_after_another_are_one_body(
    encoding: bytes, compress: Callable[[bytes], bytes], parts: list[bytes], size: int
) -> None:
    wire = b"".join(map(compress, parts))
    plain = asyncio.run(read_body(receiving(*split(wire, size)), {b"content-encoding": encoding}, LIMIT))
    assert plain == b"".join(parts)


@pytest.mark.parametrize("encoding", [b"", b"identity", None])
async def test_a_plain_body_stays_as_it_is(encoding: bytes | None) -> None:
    headers = {} if encoding is None else {b"content-encoding": encoding}
    assert await read_body(receiving(b"ab", b"", b"c"), headers, 3) == b"abc"


@pytest.mark.parametrize("encoding", [b"br", b"deflate", b"gzip, gzip", b"gzip, zstd", b"\xff"])
async def test_an_unknown_encoding_is_415(encoding: bytes) -> None:
    assert (await refused(receiving(b"x"), {b"content-encoding": encoding})).status == 415


@pytest.mark.parametrize(("encoding", "compress"), [(b"gzip", gzip.compress), (b"zstd", zstd.compress)])
@pytest.mark.parametrize("cut", [0, 1, 100, -1])
async def test_a_cut_body_is_400(encoding: bytes, compress: Callable[[bytes], bytes], cut: int) -> None:
    problem = await refused(receiving(compress(PLAIN)[:cut]), {b"content-encoding": encoding})
    assert (problem.status, problem.code) == (400, "INVALID_PAYLOAD")


@pytest.mark.parametrize(("encoding", "compress"), [(b"gzip", gzip.compress), (b"zstd", zstd.compress)])
@pytest.mark.parametrize(
    "damage",
    [lambda data: b"not compressed at all", lambda data: data + b"trailing garbage", lambda data: bytes(8) + data[8:]],
)
async def test_a_damaged_body_is_400(encoding: bytes, compress: Callable[[bytes], bytes], damage: Callable[[bytes], bytes]) -> None:
    assert (await refused(receiving(damage(compress(PLAIN))), {b"content-encoding": encoding})).status == 400


@pytest.mark.parametrize(("encoding", "compress"), [(b"gzip", gzip.compress), (b"zstd", zstd.compress)])
async def test_a_bomb_is_413_under_a_fixed_memory_cap(encoding: bytes, compress: Callable[[bytes], bytes]) -> None:
    bomb = compress(bytes(200_000_000))
    tracemalloc.start()
    try:
        problem = await refused(receiving(bomb), {b"content-encoding": encoding})
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert problem.status == 413
    assert peak < 4 * LIMIT


async def test_a_bomb_inside_a_bomb_is_opened_once_only() -> None:
    inner = gzip.compress(bytes(10_000_000))
    assert await read_body(receiving(gzip.compress(inner)), {b"content-encoding": b"gzip"}, LIMIT) == inner


async def test_a_zstd_window_beyond_8_mib_is_400() -> None:
    wide = zstd.compress(bytes(50_000_000), options={zstd.CompressionParameter.window_log: 27})
    assert (await refused(receiving(wide), {b"content-encoding": b"zstd"}, 100_000_000)).status == 400


@pytest.mark.parametrize(("encoding", "compress"), [(b"gzip", gzip.compress), (b"zstd", zstd.compress)])
async def test_endless_empty_members_are_400(encoding: bytes, compress: Callable[[bytes], bytes]) -> None:
    assert (await refused(receiving(compress(b"") * (MAX_MEMBERS + 1)), {b"content-encoding": encoding})).status == 400


async def test_the_wire_counts_too_when_compressed() -> None:
    """Incompressible input larger than the limit is refused before it is inflated to the end."""
    noise = gzip.compress(random.Random(1).randbytes(50_000))
    assert (await refused(receiving(*split(noise, 1000)), {b"content-encoding": b"gzip"}, 10_000)).status == 413


@pytest.mark.parametrize("length", [b"11", b"99999999999999999999999999999"])
async def test_a_declared_length_over_the_limit_is_413(length: bytes) -> None:
    assert (await refused(receiving(end=False), {b"content-length": length}, 10)).status == 413


@pytest.mark.parametrize("coding", [b"gzip, chunked", b"gzip", b"identity"])
async def test_another_transfer_encoding_is_400(coding: bytes) -> None:
    assert (await refused(receiving(b"x"), {b"transfer-encoding": coding})).status == 400


async def test_the_end_is_not_awaited_when_the_length_is_known() -> None:
    assert await read_body(receiving(b"abc", end=False), {b"content-length": b"3"}, 10) == b"abc"


async def test_a_body_that_stalls_is_408(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(body_module, "GRACE_SECONDS", 0.02)
    problem = await refused(receiving(b"{", end=False), {})
    assert (problem.status, problem.code) == (408, "REQUEST_TIMEOUT")
    assert problem.headers == {"connection": "close"}


async def test_a_body_that_trickles_is_408(monkeypatch: pytest.MonkeyPatch) -> None:
    """Progress alone does not help: it has to be fast enough."""
    monkeypatch.setattr(body_module, "GRACE_SECONDS", 0.05)

    async def trickle() -> Message:
        await asyncio.sleep(0.005)
        return {"type": "http.request", "body": b"x", "more_body": True}

    assert (await refused(trickle, {})).status == 408


async def test_one_byte_chunks_are_408_before_they_cost_much() -> None:
    asked = 0

    async def receive() -> Message:
        nonlocal asked
        asked += 1
        return {"type": "http.request", "body": b"x", "more_body": True}

    assert (await refused(receive, {})).status == 408
    assert asked == body_module.TINY_CHUNKS


async def test_a_client_that_leaves_is_noticed() -> None:
    async def receive() -> Message:
        return {"type": "http.disconnect"}

    with pytest.raises(Disconnected):
        await read_body(receive, {}, LIMIT)


async def test_draining_ends_at_its_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(body_module, "DRAIN_SECONDS", 0.02)
    await drain(receiving(b"x", end=False))
    taken = 0

    async def endless() -> Message:
        nonlocal taken
        taken += 1
        return {"type": "http.request", "body": bytes(1 << 20), "more_body": True}

    monkeypatch.setattr(body_module, "DRAIN_SECONDS", 5.0)
    await drain(endless)
    assert taken == body_module.DRAIN_BYTES >> 20
