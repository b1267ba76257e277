"""Bodies of pseudo-random bytes, with validators and ranges: the one honest way to send content that other routes build on."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterable
from dataclasses import dataclass

from fetchbox.origin import pattern
from fetchbox.origin.http import Exchange, head_bytes

LAST_MODIFIED = "Wed, 01 Jan 2025 00:00:00 GMT"
"""The same for all content, which never changes."""

_RANGE = re.compile(r"bytes=(\d*)-(\d*)")
_SMALL = 256 * 1024


@dataclass(frozen=True, slots=True)
class Body:
    """Content of `size` bytes from `seed`, and how it is announced. `speed` is in bytes per second, 0 for as fast as it goes."""

    seed: str
    size: int
    etag: str
    kind: str = "application/octet-stream"
    ranges: bool = True
    speed: float = 0.0

    def fields(self, length: int) -> list[tuple[str, str]]:
        """Header fields of a response that carries `length` of its bytes."""
        fields = [("Content-Type", self.kind), ("Content-Length", str(length)), ("Last-Modified", LAST_MODIFIED)]
        if self.etag:
            fields.append(("ETag", self.etag))
        if self.ranges:
            fields.append(("Accept-Ranges", "bytes"))
        return fields


def body_of(x: Exchange) -> Body:
    """What the request's `{n}`, `seed`, `type`, `etag` (`weak`, `none`), `ranges` (`none`) and `speed` ask for."""
    size = x.integer("n")
    seed = x.text("seed", "0")
    tag = '"' + re.sub(r"[^\w.-]", "_", f"{seed}-{size}", flags=re.ASCII) + '"'
    etag = {"weak": "W/" + tag, "none": ""}.get(x.text("etag"), tag)
    kind = re.sub(r"[^\x20-\x7e]", "", x.text("type")) or "application/octet-stream"
    return Body(seed=seed, size=size, etag=etag, kind=kind, ranges=x.text("ranges") != "none", speed=x.number("speed"))


async def send_body(x: Exchange, body: Body, headers: Iterable[tuple[str, str]] = ()) -> None:
    """Answers with the body, part of it (206), 304 or 416, as the request's headers ask."""
    asked = x.request.headers
    if _not_modified(asked.get("if-none-match"), asked.get("if-modified-since"), body):
        await x.respond(304, headers=[*headers, ("ETag", body.etag), ("Last-Modified", LAST_MODIFIED)])
        return
    start, stop, status = 0, body.size, 200
    if body.ranges and "range" in asked and _if_range(asked.get("if-range"), body):
        part = parse_range(asked["range"], body.size)
        if isinstance(part, str):
            await x.respond(416, headers=[("Content-Range", f"bytes */{body.size}")])
            return
        if part is not None:
            start, stop = part
            status = 206
    fields = [*headers, *body.fields(stop - start)]
    if status == 206:
        fields.append(("Content-Range", f"bytes {start}-{stop - 1}/{body.size}"))
    head = head_bytes(status, fields)
    if x.request.method == "HEAD":
        await x.send(head)
    elif stop - start <= _SMALL and not body.speed:
        await x.send(head, *pattern.blocks(body.seed, start, stop))
    else:
        await x.send(head)
        await send_content(x, body.seed, start, stop, body.speed)


async def send_content(x: Exchange, seed: object, start: int, stop: int, speed: float = 0.0) -> None:
    """Sends bytes `start` to `stop` of a seed's content, at `speed` bytes per second when not 0 (in steps of a tenth of a second)."""
    if not speed:
        for block in pattern.blocks(seed, start, stop):
            await x.send(block)
        return
    step = max(1, int(speed / 10))
    for position in range(start, stop, step):
        end = min(stop, position + step)
        await x.send(*pattern.blocks(seed, position, end))
        await asyncio.sleep((end - position) / speed)


def parse_range(value: str, size: int) -> tuple[int, int] | str | None:
    """Start and end (exclusive) of a single byte range; "unsatisfiable"; None when it is to be ignored."""
    match = _RANGE.fullmatch(value.strip())
    if match is None or not (match[1] or match[2]):
        return None
    if not match[1]:
        last = int(match[2])
        return (max(0, size - last), size) if last and size else "unsatisfiable"
    start = int(match[1])
    stop = min(size, int(match[2]) + 1) if match[2] else size
    if match[2] and int(match[2]) < start:
        return None
    return (start, stop) if start < size else "unsatisfiable"


def _if_range(value: str | None, body: Body) -> bool:
    # A weak validator never lets a part be added to another.
    return value is None or value == LAST_MODIFIED or (value == body.etag and not body.etag.startswith("W/"))


def _not_modified(tags: str | None, since: str | None, body: Body) -> bool:
    if tags is not None:
        known = body.etag.removeprefix("W/")
        return tags.strip() == "*" or (known != "" and known in (tag.strip().removeprefix("W/") for tag in tags.split(",")))
    return since == LAST_MODIFIED
