"""Reading a request's body: counted on the wire and after decompression, and never slower than it may be."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

from starlette.types import Receive

from fetchbox.api.inflate import Damaged, Decoder, decoder_of
from fetchbox.api.problems import Problem, invalid, too_large

GRACE_SECONDS = 10.0
"""What every body may take, however small."""
MIN_BYTES_PER_SECOND = 16 << 10
"""Beyond the grace a body has to arrive this fast."""
MAX_SECONDS = 60.0
"""No body takes longer than this, whatever its size."""
TINY_CHUNKS = 4096
"""Chunks after which their average size is looked at."""
TINY_CHUNK_BYTES = 64
"""An average below this is an attempt to make us work: each chunk costs us more than it costs its sender."""

DRAIN_SECONDS = 2.0
DRAIN_BYTES = 8 << 20
"""How much of a refused body is thrown away, so that the sender gets to read the answer before the connection closes."""


class Disconnected(Exception):
    """The client went away before its body was complete."""


def check_length(headers: Mapping[bytes, bytes], limit: int) -> int | None:
    """The declared length, if any. Raises Problem 413 for one beyond the limit, 400 for framing that we do not undo."""
    coding = headers.get(b"transfer-encoding")
    if coding is not None and coding.strip().lower() != b"chunked":
        raise invalid("Transfer-Encoding must be chunked or absent")
    raw = headers.get(b"content-length")
    if raw is None:
        return None
    if not raw.isdigit():
        raise invalid("Content-Length is not a number")
    # A number of absurd length is too large without being parsed.
    length = int(raw) if len(raw) <= 18 else limit + 1
    if length > limit:
        raise too_large(limit)
    return length


def choose_decoder(headers: Mapping[bytes, bytes]) -> Decoder | None:
    """The decoder that Content-Encoding asks for; None for a plain body. Raises Problem 415."""
    encoding = headers.get(b"content-encoding")
    if encoding is None or encoding.strip().lower() in (b"", b"identity"):
        return None
    decoder = decoder_of(encoding)
    if decoder is None:
        raise Problem(
            415,
            "UNSUPPORTED_MEDIA_TYPE",
            "Content-Encoding must be gzip, zstd or absent",
            headers={"accept-encoding": "gzip, zstd"},
        )
    return decoder


async def read_body(receive: Receive, headers: Mapping[bytes, bytes], limit: int) -> bytes:
    """The whole body, decompressed.

    Raises Problem 413 as soon as more than `limit` bytes have come, before or after decompression, 415 for an unknown encoding, 408 for
    a body that is too slow
    and 400 for one that does not decompress; Disconnected when the client left.
    """
    declared = check_length(headers, limit)
    decoder = choose_decoder(headers)
    try:
        async with asyncio.timeout(GRACE_SECONDS) as deadline:
            return await _read(receive, declared, decoder, limit, deadline)
    except TimeoutError:
        raise Problem(408, "REQUEST_TIMEOUT", "the body did not arrive in time", headers={"connection": "close"}) from None
    except Damaged as error:
        raise invalid(str(error)) from error


async def _read(receive: Receive, declared: int | None, decoder: Decoder | None, limit: int, deadline: asyncio.Timeout) -> bytes:
    started = (deadline.when() or 0.0) - GRACE_SECONDS
    pieces: list[bytes] = []
    wire = plain = chunks = 0
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise Disconnected
        chunk: bytes = message.get("body", b"")
        wire += len(chunk)
        if wire > limit:
            raise too_large(limit)
        if decoder is None:
            if chunk:
                pieces.append(chunk)
        else:
            for piece in decoder.feed(chunk):
                plain += len(piece)
                if plain > limit:
                    raise too_large(limit)
                pieces.append(piece)
                # Lets the loop turn: a body of some kilobytes may hold seconds of decompression in all.
                await asyncio.sleep(0)
        # The server says `more_body` until it has seen the end; asking once more only to hear of the end costs a turn of two loops.
        if not message.get("more_body", False) or wire == declared:
            break
        chunks += 1
        if chunks >= TINY_CHUNKS and wire < chunks * TINY_CHUNK_BYTES:
            raise Problem(408, "REQUEST_TIMEOUT", "the body comes in chunks that are too small", headers={"connection": "close"})
        deadline.reschedule(started + min(GRACE_SECONDS + wire / MIN_BYTES_PER_SECOND, MAX_SECONDS))
    if decoder is not None:
        decoder.finish()
    return pieces[0] if len(pieces) == 1 else b"".join(pieces)


async def drain(receive: Receive) -> None:
    """Throws away the rest of a refused body, within limits.

    Closing a socket with unread data resets the connection, and many clients then never see the answer.
    """
    dropped = 0
    try:
        async with asyncio.timeout(DRAIN_SECONDS):
            while dropped < DRAIN_BYTES:
                message = await receive()
                if message["type"] == "http.disconnect" or not message.get("more_body", False):
                    return
                dropped += len(message.get("body", b""))
    except TimeoutError:
        return
