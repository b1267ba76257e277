"""Native calls as awaitables: one descriptor per native object turns readable when any of its calls has finished."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, Protocol

from fetchbox._core import CoreError

Push = tuple[str, str]

SWEEP_SECONDS = 0.5
"""How often calls that take too long are looked for: a timer for each call would cost more than many a call itself."""


class Native(Protocol):
    """A native object with a completion queue."""

    def fileno(self) -> int: ...
    def drain(self) -> list[tuple[int, Any]]: ...


class Completions:
    """Resolves the tokens of one native object on the running loop.

    Create it inside the loop and `close` it there. A call that is given up keeps running natively; its late result is dropped.
    """

    def __init__(self, native: Native, on_push: Callable[[Push], None] | None = None) -> None:
        self._native = native
        self._on_push = on_push
        self._loop = asyncio.get_running_loop()
        self._waiting: dict[int, tuple[asyncio.Future[Any], float]] = {}
        self._sweeper: asyncio.TimerHandle | None = None
        self._loop.add_reader(native.fileno(), self._drain)

    async def wait(self, token: int, timeout: float) -> Any:
        """The result of the call behind `token`. Raises its CoreError, or TimeoutError after `timeout` seconds (or half a second more)."""
        future: asyncio.Future[Any] = self._loop.create_future()
        self._waiting[token] = (future, self._loop.time() + timeout)
        if self._sweeper is None:
            self._sweeper = self._loop.call_later(min(timeout, SWEEP_SECONDS), self._sweep)
        try:
            return await future
        finally:
            self._waiting.pop(token, None)

    def close(self) -> None:
        """Stops listening; what still waits ends with CoreError("closed")."""
        self._loop.remove_reader(self._native.fileno())
        if self._sweeper is not None:
            self._sweeper.cancel()
        for future, _ in self._waiting.values():
            if not future.done():
                future.set_exception(CoreError("closed", "CLOSED", "the connection was closed"))

    def _drain(self) -> None:
        for token, result in self._native.drain():
            if token == 0:
                if self._on_push is not None:
                    self._on_push(result)
                continue
            waiting = self._waiting.get(token)
            if waiting is None or waiting[0].done():
                continue
            future = waiting[0]
            if isinstance(result, CoreError):
                future.set_exception(result)
            else:
                future.set_result(result)

    def _sweep(self) -> None:
        self._sweeper = None
        now = self._loop.time()
        for future, deadline in self._waiting.values():
            if deadline <= now and not future.done():
                future.set_exception(TimeoutError("the hub did not answer in time"))
        if self._waiting:
            self._sweeper = self._loop.call_later(SWEEP_SECONDS, self._sweep)
