"""How long the worker waits for more outcomes before it reports."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import pytest

from fetchbox.worker.loop import WorkerLoop


class Engine:
    """Has something under way for so many looks."""

    def __init__(self, looks: int) -> None:
        self.looks = looks

    def standing(self) -> tuple[int, list[str]]:
        self.looks -= 1
        return max(self.looks, 0), []


def _loop(engine: Engine) -> WorkerLoop:
    class Streams:
        def on_connected(self, callback: Any) -> None:
            pass

    streams: Any = Streams()
    native: Any = engine
    quarantine: Any = None
    return WorkerLoop(native, streams, "member", 0.0, quarantine)


async def test_it_rests_while_something_is_under_way_and_no_longer_than_told() -> None:
    engine = Engine(10_000)
    begun = time.monotonic()
    async with asyncio.timeout(5):
        await _loop(engine)._rest(0.1)
    assert time.monotonic() - begun >= 0.1


@pytest.mark.parametrize("seconds", [0.0, -0.02])
async def test_no_rest_is_none(seconds: float) -> None:
    engine = Engine(10)
    await _loop(engine)._rest(seconds)
    assert engine.looks == 10


async def test_when_nothing_is_under_way_any_more_it_reports() -> None:
    engine = Engine(2)
    async with asyncio.timeout(5):
        await _loop(engine)._rest(3600.0)
    assert engine.looks == 0
