"""Paths that behave: content of any size, pages, images, redirects, errors on request, limits and logins."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import html
import json
import struct
import time
import zlib

from fetchbox.origin import pattern
from fetchbox.origin.body import body_of, send_body, send_content
from fetchbox.origin.http import Exchange, RequestError
from fetchbox.origin.routes import ROUTES, route

_CHUNK = 16 * 1024


@route("/")
async def index(x: Exchange) -> None:
    """Lists every path with what it does and what FetchBox makes of it; `?format=json` for programs."""
    rows = [
        {"path": r.pattern, "example": x.origin.url(r.example), "outcome": r.outcome, "hostile": r.hostile, "summary": r.summary}
        for r in ROUTES
    ]
    if x.text("format") == "json":
        await x.respond(200, json.dumps(rows, indent=1).encode(), kind="application/json")
        return
    lines = [
        f'<tr><td><a href="{html.escape(r.example)}">{html.escape(r.pattern)}</a><td>{html.escape(r.outcome)}<td>{html.escape(r.summary)}'
        for r in ROUTES
    ]
    title = "<!doctype html><meta charset=utf-8><title>fetchbox origin</title><h1>fetchbox origin</h1>"
    await x.respond(200, f"{title}<table>{''.join(lines)}</table>".encode(), kind="text/html; charset=utf-8")


@route("/bytes/{n}", example="/bytes/10240?seed=1")
async def bytes_(x: Exchange) -> None:
    """`n` bytes made from `seed`, with strong ETag, Last-Modified, ranges, If-Range and 304.

    `type=` sets the content type, `etag=weak|none` and `ranges=none` take validators and ranges away, `speed=` limits to bytes per second.
    """
    await send_body(x, body_of(x))


@route("/chunked/{n}", example="/chunked/100000?seed=1")
async def chunked(x: Exchange) -> None:
    """The same content in chunked encoding, its length not announced."""
    size, seed = x.integer("n"), x.text("seed", "0")
    await x.head(200, [("Content-Type", "application/octet-stream"), ("Transfer-Encoding", "chunked")])
    if x.request.method == "HEAD":
        return
    for position in range(0, size, _CHUNK):
        end = min(size, position + _CHUNK)
        await x.send(b"%x\r\n" % (end - position), *pattern.blocks(seed, position, end), b"\r\n")
    await x.send(b"0\r\n\r\n")


@route("/close-delimited/{n}", example="/close-delimited/1000?seed=1")
async def close_delimited(x: Exchange) -> None:
    """The same content ended by closing the connection, as HTTP/1.0 did: stored, but flagged `length_unknown`."""
    x.keep_alive = False
    await x.head(200, [("Content-Type", "application/octet-stream"), ("Connection", "close")])
    if x.request.method != "HEAD":
        await send_content(x, x.text("seed", "0"), 0, x.integer("n"))


@route("/gzip/{n}", example="/gzip/10000?seed=1")
async def gzip_(x: Exchange) -> None:
    """The same content under `Content-Encoding: gzip`, whoever asks: kept as sent, the encoding noted as metadata."""
    if x.integer("n") > 64 << 20:
        raise RequestError(400, "at most 64 MiB here")
    packer = zlib.compressobj(1, wbits=31)
    packed = packer.compress(pattern.content(x.text("seed", "0"), x.integer("n"))) + packer.flush()
    await x.respond(200, packed, [("Content-Encoding", "gzip")], kind="application/octet-stream")


@route("/image/{i}.png", example="/image/7.png")
async def image(x: Exchange) -> None:
    """A real PNG of 64 × 64 pixels, another one for every number."""
    number = x.integer("i")
    red, green, blue = hashlib.sha256(str(number).encode()).digest()[:3]
    rows = b"".join(b"\0" + bytes(v for c in range(64) for v in (red, (green + 4 * c) % 256, (blue + 4 * r) % 256)) for r in range(64))
    body = b"\x89PNG\r\n\x1a\n"
    for kind, data in ((b"IHDR", struct.pack(">IIBBBBB", 64, 64, 8, 2, 0, 0, 0)), (b"IDAT", zlib.compress(rows)), (b"IEND", b"")):
        body += struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
    await x.respond(200, body, [("ETag", f'"image-{number}"'), ("Cache-Control", "max-age=3600")], kind="image/png")


@route("/page.html", example="/page.html?images=12")
async def page(x: Exchange) -> None:
    """A web page with `images` pictures and a few files, as a crawler would find."""
    pictures = "".join(f'<img src="/image/{i}.png" alt="{i}">' for i in range(x.integer("images", 12, high=10_000)))
    files = "".join(f'<p><a href="/bytes/{1000 * i}?seed={i}">file {i}</a>' for i in range(1, 6))
    await x.respond(200, f"<!doctype html><title>A page</title>{pictures}{files}".encode(), kind="text/html; charset=utf-8")


@route("/delay/{seconds}/bytes/{n}", example="/delay/1.5/bytes/1000")
async def delay(x: Exchange) -> None:
    """As /bytes/{n}, but the answer starts only after so many seconds (at most 600)."""
    await asyncio.sleep(x.number("seconds", high=600))
    await send_body(x, body_of(x))


@route("/status/{code}", example="/status/404", outcome="404: DOWNLOAD_HTTP_4XX")
async def status(x: Exchange) -> None:
    """That HTTP status with a small body."""
    code = x.integer("code", low=200, high=599)
    await x.respond(code, f"status {code}, as asked for\n".encode())


@route("/redirect/{n}", example="/redirect/3")
async def redirect(x: Exchange) -> None:
    """`n` redirects, then /bytes/1000. More than 10: DOWNLOAD_TOO_MANY_REDIRECTS."""
    hops = x.integer("n", high=1000)
    await x.respond(302, headers=[("Location", f"/redirect/{hops - 1}" if hops > 1 else "/bytes/1000")])


@route("/redirect-to", example="/redirect-to?url=/bytes/1000&status=307", outcome="that of the target")
async def redirect_to(x: Exchange) -> None:
    """A redirect (`status`, by default 302) to `url`, sent as it is."""
    target = x.text("url", "/").replace("\r", "").replace("\n", "")
    await x.respond(x.integer("status", 302, low=300, high=399), headers=[("Location", target.encode().decode("latin-1"))])


@route("/loop", outcome="DOWNLOAD_TOO_MANY_REDIRECTS")
async def loop(x: Exchange) -> None:
    """A redirect to itself."""
    await x.respond(302, headers=[("Location", "/loop")])


@route("/flaky/{k}/bytes/{n}", example="/flaky/2/bytes/1000?id=a")
async def flaky(x: Exchange) -> None:
    """Fails `k` times with 503 (or `status`) for each `id` and then works. A new `id` starts over."""
    if x.tries(f"flaky {x.text('k')} {x.text('n')}") <= x.integer("k"):
        await x.respond(x.integer("status", 503, low=400, high=599), b"not yet\n")
    else:
        await send_body(x, body_of(x))


@route("/cut/{k}/bytes/{n}", example="/cut/50000/bytes/200000?seed=1")
async def cut(x: Exchange) -> None:
    """Every transfer breaks off after `k` bytes, but ranges are honoured: whoever resumes gets all of it. Byte for byte as /bytes/{n}."""
    body = body_of(x)
    start = 0
    wanted = x.request.headers.get("range", "")
    if wanted.startswith("bytes=") and x.request.headers.get("if-range", body.etag) == body.etag:
        start = int(wanted[6:].partition("-")[0] or 0)
    end = min(body.size, start + x.integer("k", low=1))
    extra = [("Content-Range", f"bytes {start}-{body.size - 1}/{body.size}")] if start else []
    await x.head(206 if start else 200, [*body.fields(body.size - start), *extra])
    if x.request.method == "HEAD":
        return
    await send_content(x, body.seed, start, end)
    if end < body.size:
        await x.flush()
        x.cut()


@route("/limited/{rate}/bytes/{n}", example="/limited/5/bytes/1000")
async def limited(x: Exchange) -> None:
    """A host that allows `rate` requests a second (for each `id`) and answers 429 with Retry-After: 1 above it."""
    second = int(time.monotonic() * 1)
    if x.origin.count_try(f"limited {x.text('rate')} {x.text('id')} {second}") > x.number("rate", low=0.001):
        await x.respond(429, b"slower, please\n", [("Retry-After", "1")])
    else:
        await send_body(x, body_of(x))


@route("/signed/bytes/{n}", example="/signed/bytes/1000?expires=4102444800&signature=s3cret")
async def signed(x: Exchange) -> None:
    """A signed link: 403 once the Unix time in `expires` is over. The signature must appear in no log."""
    if time.time() > x.number("expires"):
        await x.respond(403, b"this link has expired\n")
    else:
        await send_body(x, body_of(x))


@route(
    "/auth/basic/{user}/{password}/bytes/{n}",
    example="/auth/basic/ann/pw/bytes/1000",
    outcome="stored with the login, else DOWNLOAD_HTTP_4XX",
)
async def basic_auth(x: Exchange) -> None:
    """Wants HTTP basic authentication with that user and password, else 401."""
    wanted = base64.b64encode(f"{x.text('user')}:{x.text('password')}".encode()).decode()
    if hmac.compare_digest(x.request.headers.get("authorization", "").encode("latin-1", "replace"), f"Basic {wanted}".encode()):
        await send_body(x, body_of(x))
    else:
        await x.respond(401, headers=[("WWW-Authenticate", 'Basic realm="origin"')])


@route("/robots.txt")
async def robots_txt(x: Exchange) -> None:
    """Disallows /robots/denied/ for all, and everything for the agent `shunned`."""
    await x.respond(200, b"User-agent: shunned\nDisallow: /\n\nUser-agent: *\nDisallow: /robots/denied/\n")


@route("/robots/denied/bytes/{n}", example="/robots/denied/bytes/1000")
async def robots_denied(x: Exchange) -> None:
    """Content that robots.txt disallows."""
    await send_body(x, body_of(x))


@route("/robots/tagged/bytes/{n}", example="/robots/tagged/bytes/1000?tag=noai")
async def robots_tagged(x: Exchange) -> None:
    """Content with an `X-Robots-Tag` header (`tag`, by default noai)."""
    tag = "".join(c for c in x.text("tag", "noai") if " " <= c <= "~")
    await send_body(x, body_of(x), [("X-Robots-Tag", tag)])


@route("/echo", outcome="stored")
async def echo(x: Exchange) -> None:
    """The request as JSON: method, target, headers and the client's address."""
    request = x.request
    answer = {"method": request.method, "target": request.target, "headers": dict(request.headers), "peer": request.peer}
    await x.respond(200, json.dumps(answer).encode(), kind="application/json")


@route("/hook", outcome="for callbacks")
async def hook(x: Exchange) -> None:
    """Takes a POST and answers 204; the first `fails` of each `id` get 503. Tests find the bodies in the journal in memory."""
    if x.tries("hook") <= x.integer("fails"):
        await x.respond(503, b"not yet\n")
    else:
        await x.respond(204)
