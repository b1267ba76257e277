"""Sessions of browsers in which the operator token was entered.

A session is a cookie that says when it ends, signed under a key made from the operator token: every api process knows it, restarts change
nothing, and another operator token ends all of them. Nothing of the token can be read from it.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import os
import struct
from collections.abc import Mapping
from urllib.parse import urlsplit

from fetchbox.api.problems import Problem

COOKIE = "fetchbox_session"
SESSION_SECONDS = 12 * 3600
"""How long a session lasts: a shift."""

_VERSION = b"1"
_SALT = 12
_TAG = 32
_PORTS = {"http": 80, "https": 443}
SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})


class Sessions:
    """Makes and checks session values under one operator token."""

    def __init__(self, token: str) -> None:
        self._key = hmac.digest(token.encode(), b"fetchbox operator session", "sha256")

    def make(self, expires_at: int) -> str:
        """A new value that is good until then, seconds since 1970."""
        body = _VERSION + struct.pack(">Q", expires_at) + os.urandom(_SALT)
        return base64.urlsafe_b64encode(body + self._tag(body)).rstrip(b"=").decode()

    def expires_at(self, value: str, now: float) -> int | None:
        """When a value ends; None for one that is not ours, or has ended."""
        try:
            raw = base64.b64decode(value + "=" * (-len(value) % 4), b"-_", validate=True)
        except (ValueError, UnicodeEncodeError):
            return None
        body, tag = raw[:-_TAG], raw[-_TAG:]
        if len(raw) != len(_VERSION) + 8 + _SALT + _TAG or not hmac.compare_digest(tag, self._tag(body)) or body[:1] != _VERSION:
            return None
        (until,) = struct.unpack(">Q", body[1:9])
        return int(until) if now < until else None

    def _tag(self, body: bytes) -> bytes:
        return hmac.digest(self._key, body, hashlib.sha256)


def cookie_value(headers: Mapping[bytes, bytes]) -> str | None:
    """The session's cookie, if the request has one. HTTP/1.1 clients may send several Cookie headers; they were joined by commas."""
    for pair in headers.get(b"cookie", b"").replace(b",", b";").split(b";"):
        name, _, value = pair.strip().partition(b"=")
        if name == COOKIE.encode():
            return value.decode("latin-1").strip('"')
    return None


def set_cookie(value: str, seconds: int, *, secure: bool) -> str:
    """The Set-Cookie header; with no seconds left it takes the cookie away. Without a path it is for what lies beside the route that sets
    it: `/operators/…`, also behind a proxy that puts a prefix before that."""
    attributes = [f"{COOKIE}={value}", f"Max-Age={seconds}", "HttpOnly", "SameSite=Strict"]
    return "; ".join([*attributes, "Secure"] if secure else attributes)


def origin_of(headers: Mapping[bytes, bytes]) -> str | None:
    """The scheme of a same-origin request's Origin, None when the request has none. Raises Problem 403 for that of another site.

    Only authorities are compared: whether somebody in front of us speaks TLS cannot be seen from here.
    """
    origin = headers.get(b"origin")
    if origin is None:
        return None
    foreign = Problem(403, "FORBIDDEN", "the request comes from a page of another site (its Origin is not its Host)")
    try:
        there = urlsplit(origin.decode("ascii"))
        port = _PORTS[there.scheme] if there.port is None else there.port
        here = urlsplit(f"//{headers.get(b'host', b'').decode('ascii')}")
        same = (there.hostname, port) == (here.hostname, _PORTS[there.scheme] if here.port is None else here.port)
    except (ValueError, KeyError):
        raise foreign from None
    if not same or not there.hostname:
        raise foreign
    return there.scheme


def check_origin(headers: Mapping[bytes, bytes], method: str, *, needed: bool) -> None:
    """Raises Problem 403 for a request that changes something and comes from a page of another site, or says no Origin although one is
    `needed`."""
    if method not in SAFE_METHODS and origin_of(headers) is None and needed:
        raise Problem(403, "FORBIDDEN", "a request that changes something needs an Origin when a session's cookie is all it has")
