"""Ports that do not answer: one where SYNs vanish, one where they are refused."""

from __future__ import annotations

import contextlib
import socket


def free_port(host: str = "127.0.0.1") -> int:
    """A TCP port that nothing listened on a moment ago, so a connection to it is refused."""
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.bind((host, 0))
        return int(probe.getsockname()[1])


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
