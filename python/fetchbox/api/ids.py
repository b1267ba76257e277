"""Ids: jobs, requests and trace contexts."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass

import uuid_utils

_TRACEPARENT = re.compile(r"(?!ff)[0-9a-f]{2}-([0-9a-f]{32})-([0-9a-f]{16})-[0-9a-f]{2}(-.*)?")
_REQUEST_ID = re.compile(rb"[A-Za-z0-9._:/+=@-]{1,128}")


def new_job_id() -> str:
    """A UUIDv7: ids made later sort later."""
    return str(uuid_utils.uuid7())


def request_id(given: bytes | None) -> bytes:
    """The caller's X-Request-Id if it can be echoed safely, else a new one."""
    if given is not None and _REQUEST_ID.fullmatch(given):
        return given
    return uuid_utils.uuid7().hex.encode()


@dataclass(frozen=True, slots=True)
class Trace:
    """A W3C trace context."""

    trace_id: str
    traceparent: str


def trace_of(header: bytes | None) -> Trace:
    """The caller's trace context, or a new one when there is none or it is malformed, as W3C asks."""
    if header is not None:
        text = header.decode("latin-1").strip()
        match = _TRACEPARENT.fullmatch(text)
        # Version 00 has exactly four fields; later versions may have more.
        if match and match[1].strip("0") and match[2].strip("0") and not (text.startswith("00") and match[3]):
            return Trace(match[1], text[:55])
    random = os.urandom(24).hex()
    trace_id, span_id = random[:32], random[32:]
    return Trace(trace_id, f"00-{trace_id}-{span_id}-01")
