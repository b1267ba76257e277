"""Hostile before the body: broken framing, heads too large or never ending, resets, headers that nobody should trust."""

from __future__ import annotations

import asyncio
import time
from email.utils import formatdate

from fetchbox.origin import pattern
from fetchbox.origin.body import body_of, send_body
from fetchbox.origin.http import STALL_LIMIT, Exchange, RequestError
from fetchbox.origin.routes import route

_TEN_YEARS = 10 * 365 * 24 * 3600


async def _raw(x: Exchange, *pieces: bytes) -> None:
    x.keep_alive = False
    await x.send(*pieces)


@route("/hostile/two-lengths", outcome="DOWNLOAD_BAD_FRAMING")
async def two_lengths(x: Exchange) -> None:
    """Two Content-Length fields that differ."""
    await _raw(x, b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\nContent-Length: 20\r\n\r\n", pattern.content(0, 20))


@route("/hostile/length-and-chunked", outcome="DOWNLOAD_BAD_FRAMING")
async def length_and_chunked(x: Exchange) -> None:
    """Content-Length together with Transfer-Encoding: chunked, as in request smuggling."""
    await _raw(x, b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\nA\r\n0123456789\r\n0\r\n\r\n")


@route("/hostile/bad-length", outcome="DOWNLOAD_BAD_FRAMING")
async def bad_length(x: Exchange) -> None:
    """A Content-Length that is no number (`value`, by default -5)."""
    value = x.text("value", "-5").replace("\r", "").replace("\n", "").encode()
    await _raw(x, b"HTTP/1.1 200 OK\r\nContent-Length: " + value + b"\r\n\r\n0123456789")


@route("/hostile/bad-chunk-size", outcome="DOWNLOAD_BAD_FRAMING")
async def bad_chunk_size(x: Exchange) -> None:
    """A chunk size that is no hexadecimal number."""
    await _raw(x, b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nabcd\r\nwhat?\r\nabcd\r\n0\r\n\r\n")


@route("/hostile/headers-64k", outcome="DOWNLOAD_BAD_RESPONSE")
async def headers_64k(x: Exchange) -> None:
    """One header of 64 KiB (or `size` bytes)."""
    value = b"x" * x.integer("size", 64 * 1024, high=16 << 20)
    await _raw(x, b"HTTP/1.1 200 OK\r\nX-Large: " + value + b"\r\nContent-Length: 2\r\n\r\nok")


@route("/hostile/fields-200", outcome="DOWNLOAD_BAD_RESPONSE")
async def fields_200(x: Exchange) -> None:
    """200 header fields (or `count`)."""
    fields = b"".join(b"X-Field-%d: %d\r\n" % (i, i) for i in range(x.integer("count", 200, high=100_000)))
    await _raw(x, b"HTTP/1.1 200 OK\r\n" + fields + b"Content-Length: 2\r\n\r\nok")


@route("/hostile/endless-1xx", outcome="DOWNLOAD_BAD_RESPONSE")
async def endless_1xx(x: Exchange) -> None:
    """`103 Early Hints` again and again (at most `count`, a million), and never the answer."""
    hint = b"HTTP/1.1 103 Early Hints\r\nLink: </style.css>; rel=preload\r\n\r\n" * 10
    x.keep_alive = False
    for _ in range(x.integer("count", 1_000_000) // 10):
        await x.send(hint)
        # A pause now and then keeps one such client from starving the others of the loop.
        await asyncio.sleep(0)
    await x.stall()


@route("/hostile/garbage", outcome="DOWNLOAD_BAD_RESPONSE")
async def garbage(x: Exchange) -> None:
    """Random bytes where HTTP should be."""
    await _raw(x, pattern.content("garbage", 4096), b"\r\n\r\n")


@route("/hostile/bad-status-line", outcome="DOWNLOAD_BAD_RESPONSE")
async def bad_status_line(x: Exchange) -> None:
    """A status line without a number."""
    await _raw(x, b"HTTP/1.1 fine thanks\r\nContent-Length: 2\r\n\r\nok")


@route("/hostile/empty-reply", outcome="retried, then DOWNLOAD_RESET")
async def empty_reply(x: Exchange) -> None:
    """Closes the connection properly, without a word."""
    x.keep_alive = False


@route("/hostile/reset", outcome="retried, then DOWNLOAD_RESET")
async def reset(x: Exchange) -> None:
    """RST instead of an answer. With `fails=k` and `id`, only the first k times."""
    if "fails" in x.request.query and x.tries("reset") > x.integer("fails"):
        await x.respond(200, b"ok\n")
        return
    await x.reset()


@route("/hostile/no-headers", outcome="retried, then DOWNLOAD_TIMEOUT")
async def no_headers(x: Exchange) -> None:
    """Takes the request and never answers (for at most `seconds`)."""
    await x.stall(x.number("seconds", STALL_LIMIT))


@route("/hostile/half-headers", outcome="retried, then DOWNLOAD_TIMEOUT")
async def half_headers(x: Exchange) -> None:
    """Sends half of the headers and falls silent."""
    await _raw(x, b"HTTP/1.1 200 OK\r\nContent-Type: text/pl")
    await x.stall()


@route("/hostile/slow-headers", outcome="retried, then DOWNLOAD_TIMEOUT")
async def slow_headers(x: Exchange) -> None:
    """One header byte a second (or `rate`): no read ever times out, only the whole."""
    x.keep_alive = False
    pause = 1 / x.number("rate", 1, low=0.01)
    for byte in b"HTTP/1.1 200 OK\r\nX-Slow: " + b"z" * 3600 + b"\r\nContent-Length: 2\r\n\r\nok":
        await x.send(bytes((byte,)))
        await asyncio.sleep(pause)


@route(
    "/hostile/retry-after/{kind}",
    example="/hostile/retry-after/seconds?id=a&fails=1",
    outcome="stored once the wait is over; honoured up to fetch.retry_after_max, nonsense ignored",
)
async def retry_after(x: Exchange) -> None:
    """429 (or `status`) with a Retry-After of a `kind`: seconds, date, years, negative, garbage, empty or none.

    The first `fails` times for each `id` (default 1), with `after` seconds (default 2), then it works.
    """
    if x.tries(f"retry-after {x.text('kind')}") > x.integer("fails", 1):
        await x.respond(200, b"ok\n")
        return
    after = x.integer("after", 2, high=_TEN_YEARS)
    values = {
        "seconds": str(after),
        "date": formatdate(time.time() + after, usegmt=True),
        "years": str(_TEN_YEARS),
        "negative": "-7",
        "garbage": "soon, I think",
        "empty": "",
        "none": None,
    }
    kind = x.text("kind")
    if kind not in values:
        raise RequestError(404, f"kinds are {', '.join(values)}")
    value = values[kind]
    await x.respond(x.integer("status", 429, low=400, high=599), b"later\n", [("Retry-After", value)] if value is not None else [])


_DISPOSITIONS = {
    "parent": b'attachment; filename="../../../etc/passwd"',
    "absolute": b'attachment; filename="/etc/cron.d/evil"',
    "nul": b'attachment; filename="a\0b.txt"',
    "long": b'attachment; filename="' + b"n" * 4096 + b'"',
    "encoded": b"attachment; filename*=UTF-8''..%2F..%2Fetc%2Fpasswd",
    "windows": b'attachment; filename="..\\..\\CON.txt"',
}


@route(
    "/hostile/content-disposition/{kind}",
    example="/hostile/content-disposition/parent",
    outcome="stored, the key untouched; `nul`: DOWNLOAD_BAD_RESPONSE",
)
async def content_disposition(x: Exchange) -> None:
    """A file name that tries to leave the directory: parent, absolute, nul, long (4 KiB), encoded or windows."""
    value = _DISPOSITIONS.get(x.text("kind"))
    if value is None:
        raise RequestError(404, f"kinds are {', '.join(_DISPOSITIONS)}")
    await x.send(b"HTTP/1.1 200 OK\r\nContent-Disposition: " + value + b"\r\nContent-Type: text/plain\r\nContent-Length: 3\r\n\r\nok\n")


@route("/hostile/path/{rest*}", example="/hostile/path/..%2F..%2Fetc/passwd")
async def path(x: Exchange) -> None:
    """Any path at all, also with `..`, NUL or thousands of characters in it, answered with 1,000 bytes: the key must not follow it."""
    await x.respond(200, pattern.content("path", 1000), kind="application/octet-stream")


@route("/hostile/crlf-headers", outcome="DOWNLOAD_BAD_RESPONSE, or stored with the value cleaned")
async def crlf_headers(x: Exchange) -> None:
    """Bare CR, bare LF and an obsolete folded line in header values that would become metadata."""
    fields = b"Content-Type: text/plain\rX-Injected: 1\r\nContent-Language: de\n X-Folded: 2\r\n"
    await _raw(x, b"HTTP/1.1 200 OK\r\n" + fields + b"Content-Length: 3\r\n\r\nok\n")


@route("/hostile/oversize-metadata")
async def oversize_metadata(x: Exchange) -> None:
    """Content-Type, Content-Language and ETag of 4 KiB each, with non-ASCII bytes: stored, the metadata shortened and cleaned."""
    large = b"\xe9" + b"m" * 4095
    fields = b"Content-Type: text/" + large + b"\r\nContent-Language: " + large + b'\r\nETag: "' + large + b'"\r\n'
    await x.send(b"HTTP/1.1 200 OK\r\n" + fields + b"Content-Length: 3\r\n\r\nok\n")


@route("/hostile/checksum-mismatch", outcome="DOWNLOAD_CHECKSUM_MISMATCH when the task hints at the checksum in X-Expected-SHA256")
async def checksum_mismatch(x: Exchange) -> None:
    """A clean transfer of 1,000 bytes, one of them wrong; `X-Expected-SHA256` has the digest of the right ones.

    They are those of /bytes/1000?seed=checksum.
    """
    right = pattern.content("checksum", 1000)
    wrong = right[:500] + bytes((right[500] ^ 1,)) + right[501:]
    await x.respond(200, wrong, [("X-Expected-SHA256", pattern.content_sha256("checksum", 1000))], kind="application/octet-stream")


@route(
    "/hostile/expired/bytes/{n}",
    example="/hostile/expired/bytes/1000",
    outcome="DOWNLOAD_HTTP_4XX; with a deadline in the past DOWNLOAD_EXPIRED, untried",
)
async def expired(x: Exchange) -> None:
    """A signed link whose time is over: always 403. A task that carries a deadline in the past must not get here at all."""
    await x.respond(403, b"this link has expired\n")


@route("/hostile/range-always/{n}", example="/hostile/range-always/1000", outcome="DOWNLOAD_BAD_RESPONSE")
async def range_always(x: Exchange) -> None:
    """206 to a request that asked for no range."""
    body = body_of(x)
    if "range" in x.request.headers:
        await send_body(x, body)
        return
    half = body.size // 2
    await x.respond(206, pattern.content(body.seed, half), [("Content-Range", f"bytes 0-{half - 1}/{body.size}")], kind=body.kind)
