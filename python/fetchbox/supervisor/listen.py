"""Listening sockets. The supervisor binds the API's: a taken port is one clear error, and a dying api process refuses no connection."""

from __future__ import annotations

import asyncio
import errno
import socket
import time

import structlog

from fetchbox.config import format_address, parse_address
from fetchbox.errors import ProcessError

log = structlog.get_logger("fetchbox.supervisor")

BACKLOG = 1024
RETRY_INTERVAL = 0.1


async def bind(address: str, key: str, patience: float) -> tuple[socket.socket, str]:
    """A listening socket and the address it has, with the port that was chosen for 0.

    A taken port is tried again for `patience` seconds: the children of a supervisor that was killed may still be ending. Raises
    ProcessError that names `key`.
    """
    host, port = parse_address(address)
    deadline = time.monotonic() + patience
    said = False
    while True:
        try:
            return _bind(host, port)
        except OSError as error:
            if error.errno != errno.EADDRINUSE or time.monotonic() >= deadline:
                raise ProcessError(f"cannot listen on {address} ({key}): {error.strerror or error}") from error
        if not said:
            log.warning("the port is taken, trying for a moment", address=address, seconds=patience)
            said = True
        await asyncio.sleep(RETRY_INTERVAL)


def _bind(host: str, port: int) -> tuple[socket.socket, str]:
    family, kind, protocol, _, target = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
    sock = socket.socket(family, kind, protocol)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(target)
        sock.listen(BACKLOG)
        sock.setblocking(False)
    except BaseException:
        sock.close()
        raise
    name = sock.getsockname()
    return sock, format_address(name[0], name[1])
