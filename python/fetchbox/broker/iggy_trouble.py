"""Why an Iggy server cannot be used, in words: its client says of most troubles only that there is no connection.

Asked only after a connection failed. A connection of its own finds out, and ends before it says anything to the server.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import ssl
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fetchbox.broker.iggy import Endpoint

LIMIT = 2.0
"""Seconds for a connection, and for its handshake."""
_EXPIRED, _TOO_EARLY = 10, 9
_OTHER_NAME = frozenset({62, 64})
"""OpenSSL's verdicts on names and on addresses."""


async def reason(to: Endpoint) -> str | None:
    """What is wrong with the way to the server, and what to do; None when nothing is as far as the handshake goes."""
    host, port = to.tls_host, int(to.address.rpartition(":")[2])
    try:
        async with asyncio.timeout(LIMIT):
            _, writer = await asyncio.open_connection(host, port)
        writer.close()
    except TimeoutError:
        return f"no answer within {LIMIT:g} s"
    except socket.gaierror:
        return "its name cannot be resolved"
    except OSError as error:
        return os.strerror(error.errno) if error.errno else str(error)
    if not to.tls:
        return "it speaks TLS: set broker.tls_ca, or broker.tls" if await _shakes_hands(host, port) else None
    try:
        context = ssl.create_default_context(cafile=to.tls_ca)
    except (ssl.SSLError, OSError) as error:
        return f"broker.tls_ca ({to.tls_ca}) cannot be used: {error}"
    return await _refusal(host, port, context, to.tls_ca)


async def _refusal(host: str, port: int, context: ssl.SSLContext, ca: str | None) -> str | None:
    try:
        await _handshake(host, port, context)
    except ssl.SSLCertVerificationError as error:
        return _verdict(error.verify_code, error.verify_message, host, ca)
    except (TimeoutError, ssl.SSLError, OSError):
        # A server without TLS takes the greeting for the length of a message, and waits for that.
        return "it speaks no TLS, as it seems: unset broker.tls and broker.tls_ca, or have the server speak it"
    return None


def _verdict(code: int, text: str, host: str, ca: str | None) -> str:
    if code in _OTHER_NAME:
        return f"its certificate is not made out to {host}: write a name or address into broker.url for which it is"
    if code in (_EXPIRED, _TOO_EARLY):
        return f"its certificate is of no use: {text} ({'expired' if code == _EXPIRED else 'the clock may be wrong'})"
    if ca is None:
        return f"no authority that is known here has signed its certificate: set broker.tls_ca ({text})"
    return f"no authority in broker.tls_ca ({ca}) has signed its certificate ({text})"


async def _shakes_hands(host: str, port: int) -> bool:
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    try:
        await _handshake(host, port, context)
    except (TimeoutError, ssl.SSLError, OSError):
        return False
    return True


async def _handshake(host: str, port: int, context: ssl.SSLContext) -> None:
    async with asyncio.timeout(LIMIT):
        _, writer = await asyncio.open_connection(host, port, ssl=context, server_hostname=host)
    writer.close()
    with contextlib.suppress(ssl.SSLError, OSError, TimeoutError):
        async with asyncio.timeout(LIMIT):
            await writer.wait_closed()
