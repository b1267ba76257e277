"""HTTP digest authentication (RFC 7616), as far as a test server needs it."""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets

from fetchbox.origin.body import body_of, send_body
from fetchbox.origin.http import Exchange
from fetchbox.origin.routes import route

_NONCE = secrets.token_hex(16)
_FIELD = re.compile(r'(\w+)=(?:"([^"]*)"|([^\s,]+))')
_HASHES = {"MD5": "md5", "SHA-256": "sha256"}


@route(
    "/auth/digest/{user}/{password}/bytes/{n}",
    example="/auth/digest/ann/pw/bytes/1000",
    outcome='stored with the login and `transport = "curl"`, else DOWNLOAD_HTTP_4XX',
)
async def digest_auth(x: Exchange) -> None:
    """Wants HTTP digest authentication with that user and password, else 401; `algorithm=` is MD5 (the default) or SHA-256."""
    algorithm = x.text("algorithm", "MD5").upper()
    name = _HASHES.get(algorithm, "md5")
    fields = {key: quoted or bare for key, quoted, bare in _FIELD.findall(x.request.headers.get("authorization", ""))}
    if x.request.headers.get("authorization", "").lower().startswith("digest ") and _fits(x, name, fields):
        await send_body(x, body_of(x))
        return
    challenge = f'Digest realm="origin", qop="auth", algorithm={algorithm}, nonce="{_NONCE}", opaque="origin"'
    await x.respond(401, b"log in\n", headers=[("WWW-Authenticate", challenge)])


def _fits(x: Exchange, name: str, fields: dict[str, str]) -> bool:
    def digest(text: str) -> str:
        return hashlib.new(name, text.encode(), usedforsecurity=False).hexdigest()

    if fields.get("nonce") != _NONCE or fields.get("uri") != x.request.target or fields.get("username") != x.text("user"):
        return False
    secret = digest(f"{x.text('user')}:origin:{x.text('password')}")
    request = digest(f"{x.request.method}:{x.request.target}")
    wanted = digest(":".join((secret, _NONCE, fields.get("nc", ""), fields.get("cnonce", ""), "auth", request)))
    return hmac.compare_digest(wanted.encode(), fields.get("response", "").encode("utf-8", "replace"))
