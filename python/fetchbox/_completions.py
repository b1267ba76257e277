"""Native calls as awaitables: one descriptor per native object turns readable when any of its calls has finished."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, Protocol

from fetchbox._core import CoreError

Push = tuple[str, str]


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
        self._waiting: dict[int, asyncio.Future[Any]] = {}
        self._loop.add_reader(native.fileno(), self._drain)

    async def wait(self, token: int, timeout: float) -> Any:
        """The result of the call behind `token`. Raises its CoreError, or TimeoutError after `timeout` seconds."""
        future: asyncio.Future[Any] = self._loop.create_future()
        self._waiting[token] = future
        handle = self._loop.call_later(timeout, _expire, future)
        try:
            return await future
        finally:
            handle.cancel()
            self._waiting.pop(token, None)

    def close(self) -> None:
        """Stops listening; what still waits ends with CoreError("closed")."""
        self._loop.remove_reader(self._native.fileno())
        for future in self._waiting.values():
            if not future.done():
                future.set_exception(CoreError("closed", "CLOSED", "the connection was closed"))

    def _drain(self) -> None:
        for token, result in self._native.drain():
            if token == 0:
                if self._on_push is not None:
                    self._on_push(result)
                continue
            future = self._waiting.get(token)
            if future is None or future.done():
                continue
            if isinstance(result, CoreError):
                future.set_exception(result)
            else:
                future.set_result(result)


def _expire(future: asyncio.Future[Any]) -> None:
    if not future.done():
        future.set_exception(TimeoutError("the hub did not answer in time"))
