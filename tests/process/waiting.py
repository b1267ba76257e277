"""Waiting for something that can be seen, with a limit, and with the state of things when it did not come."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TypeVar

from fetchbox.testing import wait_until

T = TypeVar("T")


def pause(seconds: float) -> None:
    """Lets time pass between two looks. Never a way to order things: whoever calls it looks again afterwards."""
    threading.Event().wait(seconds)


def wait_for(what: str, probe: Callable[[], T | None], limit: float, *, every: float = 0.0, describe: Callable[[], str] | None = None) -> T:
    """The first true value of `probe`, which is asked at least `every` seconds apart for at most `limit`.

    AssertionError afterwards, naming `what` and with what `describe` tells of the state of things.
    """

    def look() -> T | None:
        value = probe()
        if not value and every:
            pause(every)
        return value

    try:
        value = wait_until(look, limit, what=what)
    except AssertionError as error:
        if describe is None or what not in str(error):
            raise
        raise AssertionError(f"{error}\n{describe()}") from None
    assert value is not None
    return value
