"""Who is asking: tokens to tenants, and the operator's token.

A presented token is compared as a digest under a key that lives only in this process: neither the time of the look-up nor that of the
comparison says anything
about a token that would be right.
"""

from __future__ import annotations

import hashlib
import hmac
import os
from collections.abc import Mapping

from fetchbox.api.problems import Problem, invalid
from fetchbox.api.session import Sessions

DEFAULT_TENANT = "default"
MAX_TENANT = 128
"""Characters of a tenant's name."""

_KEY = os.urandom(32)


def _digest(token: bytes) -> bytes:
    return hashlib.blake2b(token, key=_KEY, digest_size=32).digest()


def _unauthorized(message: str) -> Problem:
    return Problem(401, "UNAUTHORIZED", message, headers={"www-authenticate": 'Bearer realm="fetchbox"'})


def bearer(headers: Mapping[bytes, bytes]) -> bytes | None:
    """The token of `Authorization: Bearer`, if that is what the header holds."""
    value = headers.get(b"authorization")
    if value is None:
        return None
    scheme, _, token = value.partition(b" ")
    if scheme.lower() != b"bearer":
        return None
    return token.strip() or None


def tenant_header(headers: Mapping[bytes, bytes]) -> str | None:
    """The tenant that X-Fetchbox-Tenant names. Raises Problem 400 for one that cannot be a name."""
    raw = headers.get(b"x-fetchbox-tenant")
    if raw is None:
        return None
    try:
        name = raw.decode()
    except UnicodeDecodeError:
        raise invalid("X-Fetchbox-Tenant is not UTF-8") from None
    if not 0 < len(name) <= MAX_TENANT or not name.isprintable():
        raise invalid(f"X-Fetchbox-Tenant must be 1 to {MAX_TENANT} printable characters")
    return name


class TenantTokens:
    """The API tokens and the tenants they stand for."""

    def __init__(self, tokens: Mapping[str, str]) -> None:
        self._tenants = {_digest(token.encode()): tenant for token, tenant in tokens.items()}

    def __bool__(self) -> bool:
        return bool(self._tenants)

    def tenant(self, headers: Mapping[bytes, bytes]) -> str:
        """The caller's tenant. Raises Problem 401 without a valid token, 403 when the header names another tenant."""
        token = bearer(headers)
        if token is None:
            raise _unauthorized("a bearer token is needed")
        tenant = self._tenants.get(_digest(token))
        if tenant is None:
            raise _unauthorized("the token is not valid")
        named = tenant_header(headers)
        if named is not None and named != tenant:
            raise Problem(403, "FORBIDDEN", "the token belongs to another tenant than X-Fetchbox-Tenant names")
        return tenant


class OperatorToken:
    """The one token that opens `/operators`, and the sessions of browsers in which it was entered."""

    def __init__(self, token: str | None) -> None:
        self._digest = None if token is None else _digest(token.encode())
        self.sessions = None if token is None else Sessions(token)

    def __bool__(self) -> bool:
        return self._digest is not None

    def is_presented(self, headers: Mapping[bytes, bytes]) -> bool:
        """Whether the caller presents a token, right or wrong."""
        return b"x-fetchbox-operator-token" in headers or bearer(headers) is not None

    def check(self, headers: Mapping[bytes, bytes]) -> None:
        """Raises Problem 401 unless the caller holds the token."""
        presented = headers.get(b"x-fetchbox-operator-token") or bearer(headers)
        if presented is None:
            raise _unauthorized("an operator token is needed")
        self.check_token(presented)

    def check_token(self, presented: bytes) -> None:
        """Raises Problem 401 unless this is the token."""
        if self._digest is None or not hmac.compare_digest(self._digest, _digest(presented)):
            raise _unauthorized("the operator token is not valid")
