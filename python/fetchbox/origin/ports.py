"""Ports that do not answer: one where SYNs vanish, one where they are refused."""

from __future__ import annotations

import contextlib
import secrets
import socket
from pathlib import Path

RANGE = Path("/proc/sys/net/ipv4/ip_local_port_range")
"""First and last of the ports that the system gives away by itself, for IPv6 too."""
LOWEST = 10_000
"""Below it services have their ports."""
TRIES = 100

_given: set[int] = set()


def free_port(host: str = "127.0.0.1") -> int:
    """A TCP port that nothing listened on a moment ago, so a connection to it is refused.

    It lies below those that the system gives to outgoing connections and to sockets that ask for any port, so that none of them takes it
    before its user does, and this process is given it once. Where the system leaves no such range it is any free port.
    """
    try:
        first = int(RANGE.read_text().split()[0])
    except (OSError, ValueError):
        first = 0
    for _ in range(TRIES if first > LOWEST + TRIES else 0):
        port = secrets.choice(range(LOWEST, first))
        if port not in _given and _is_free(host, port):
            _given.add(port)
            return port
    with _socket(host) as probe:
        probe.bind((host, 0))
        return int(probe.getsockname()[1])


def _socket(host: str) -> socket.socket:
    return socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)


def _is_free(host: str, port: int) -> bool:
    with _socket(host) as probe:
        try:
            probe.bind((host, port))
        except OSError:
            return False
        return True


class BlackHole:
    """A port whose queue of connections is full and never emptied: the kernel drops further SYNs, as a dead host's network would."""

    def __init__(self, host: str = "127.0.0.1") -> None:
        self.host = host
        self._listener: socket.socket | None = None
        self._fillers: list[socket.socket] = []

    @property
    def port(self) -> int:
        """The port, opened on first use."""
        if self._listener is None:
            self._open()
        assert self._listener is not None
        return int(self._listener.getsockname()[1])

    def _open(self) -> None:
        self._listener = socket.socket()
        self._listener.bind((self.host, 0))
        self._listener.listen(0)
        # Linux completes backlog + 1 connections; a few more fill the queue of half-open ones.
        for _ in range(4):
            filler = socket.socket()
            filler.setblocking(False)
            with contextlib.suppress(BlockingIOError):
                filler.connect(self._listener.getsockname())
            self._fillers.append(filler)

    def close(self) -> None:
        """Gives the port back."""
        for filler in self._fillers:
            filler.close()
        self._fillers.clear()
        if self._listener is not None:
            self._listener.close()
            self._listener = None
