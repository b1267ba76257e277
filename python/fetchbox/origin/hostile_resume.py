"""Hostile when a broken transfer is resumed. Each breaks off the first time and lies to the Range request; a plain GET after that works."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from fetchbox.origin.body import Body, body_of, parse_range, send_body, send_content
from fetchbox.origin.http import Exchange
from fetchbox.origin.routes import Handler, route


def _lie(name: str, *, outcome: str = "stored, from the start") -> Callable[[Handler], Handler]:
    return route(f"/hostile/resume/{name}/{{n}}", example=f"/hostile/resume/{name}/200000?id=a", outcome=outcome)


async def _break_off(x: Exchange, body: Body) -> None:
    """Announces all of it, sends half and cuts the connection."""
    await x.head(200, body.fields(body.size))
    await send_content(x, body.seed, 0, body.size // 2)
    await x.flush()
    x.cut()


def _asked_from(x: Exchange, body: Body) -> int | None:
    part = parse_range(x.request.headers.get("range", ""), body.size)
    return part[0] if isinstance(part, tuple) else None


@_lie("wrong-content-range")
async def wrong_content_range(x: Exchange) -> None:
    """Breaks off; the Range request gets a 206 whose Content-Range is another one. After that a plain GET works."""
    body = body_of(x)
    start = _asked_from(x, body)
    if x.tries("wrong-content-range") == 1 and start is None:
        await _break_off(x, body)
    elif start is not None:
        shifted = max(0, start - 1000)
        fields = [*body.fields(body.size - shifted), ("Content-Range", f"bytes {shifted}-{body.size - 1}/{body.size}")]
        await x.head(206, fields)
        await send_content(x, body.seed, shifted, body.size)
    else:
        await send_body(x, body)


@_lie("no-content-range")
async def no_content_range(x: Exchange) -> None:
    """Breaks off; the Range request gets a 206 without Content-Range."""
    body = body_of(x)
    start = _asked_from(x, body)
    if x.tries("no-content-range") == 1 and start is None:
        await _break_off(x, body)
    elif start is not None:
        await x.head(206, body.fields(body.size - start))
        await send_content(x, body.seed, start, body.size)
    else:
        await send_body(x, body)


@_lie("etag-changes", outcome="stored, from the start, the new content")
async def etag_changes(x: Exchange) -> None:
    """Breaks off; then the content and its ETag are others, and If-Range is honoured with a 200."""
    body = body_of(x)
    if x.tries("etag-changes") == 1:
        await _break_off(x, body)
    else:
        await send_body(x, _renewed(body))


@_lie("etag-changes-206", outcome="stored, from the start, the new content")
async def etag_changes_206(x: Exchange) -> None:
    """Breaks off; the content changes, If-Range is ignored and the 206 carries the new ETag: the halves must not be joined."""
    body = body_of(x)
    start = _asked_from(x, body)
    if x.tries("etag-changes-206") == 1 and start is None:
        await _break_off(x, body)
        return
    new = _renewed(body)
    if start is None:
        await send_body(x, new)
        return
    await x.head(206, [*new.fields(new.size - start), ("Content-Range", f"bytes {start}-{new.size - 1}/{new.size}")])
    await send_content(x, new.seed, start, new.size)


@_lie("ignores-range")
async def ignores_range(x: Exchange) -> None:
    """Promises ranges and breaks off; the Range request gets a 200 with all of it."""
    body = body_of(x)
    if x.tries("ignores-range") == 1:
        await _break_off(x, body)
    else:
        await x.head(200, body.fields(body.size))
        await send_content(x, body.seed, 0, body.size)


@_lie("not-satisfiable")
async def not_satisfiable(x: Exchange) -> None:
    """Breaks off; the Range request gets a 416."""
    body = body_of(x)
    if x.tries("not-satisfiable") == 1 and _asked_from(x, body) is None:
        await _break_off(x, body)
    elif _asked_from(x, body) is not None:
        await x.respond(416, headers=[("Content-Range", f"bytes */{body.size}")])
    else:
        await send_body(x, body)


@_lie("weak-etag")
async def weak_etag(x: Exchange) -> None:
    """Breaks off under a weak ETag, with which no part may be joined to another."""
    body = body_of(x)
    body = replace(body, etag="W/" + body.etag)
    if x.tries("weak-etag") == 1:
        await _break_off(x, body)
    else:
        await send_body(x, body)


def _renewed(body: Body) -> Body:
    return replace(body, seed=body.seed + "-new", etag='"new-' + body.etag[1:])
