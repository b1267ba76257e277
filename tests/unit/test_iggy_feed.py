"""What the hub's feed makes of what an Iggy server holds, with neither a server nor a hub."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any

import pytest

from fetchbox.broker.iggy import SEND_BYTES, Polled, _split
from fetchbox.broker.iggy_feed import READ_MESSAGES, IggyFeed
from fetchbox.broker.topics import STATUS
from fetchbox.config import load
from fetchbox.errors import HubUnavailable


class Link:
    """Partitions with so many messages each."""

    def __init__(self, ends: list[int]) -> None:
        self._ends = ends
        self.polled: list[tuple[int, int]] = []

    async def ends(self, topic: str) -> list[int]:
        assert topic == STATUS
        return self._ends

    async def poll(self, topic: str, partition: int, offset: int, count: int) -> list[Polled]:
        self.polled.append((partition, offset))
        return [Polled(partition, offset, [b"x"] * min(count, self._ends[partition] - offset))]


class Hub:
    """Takes what it is fed once all that came with it is there, and refuses one partition."""

    def __init__(self, together: int, broken: int | None = None) -> None:
        self._together = asyncio.Barrier(together)
        self._broken = broken
        self.fed: list[tuple[int, int, int]] = []

    async def feed(self, topic: str, partition: int, base_offset: int, messages: list[bytes]) -> None:
        await self._together.wait()
        if partition == self._broken:
            raise HubUnavailable("away")
        await asyncio.sleep(0)
        self.fed.append((partition, base_offset, len(messages)))


def _feed(link: Link, hub: Hub) -> IggyFeed:
    made: Any = IggyFeed(load(env={}, overrides={"broker": {"url": "iggy://user:password@127.0.0.1:1"}}), hub)  # type: ignore[arg-type]
    made._in = link
    return made  # type: ignore[no-any-return]


async def test_what_is_new_is_fed_together_and_read_on_behind_it() -> None:
    link, hub = Link([5, 0, 9, 4]), Hub(together=2)
    at = [2, 0, 0, 4]
    async with asyncio.timeout(5):
        assert await _feed(link, hub)._take(STATUS, at)
    assert sorted(hub.fed) == [(0, 2, 3), (2, 0, 9)]
    assert at == [5, 0, 9, 4]
    assert not await _feed(link, hub)._take(STATUS, at)
    assert link.polled == [(0, 2), (2, 0)]


async def test_more_than_one_poll_brings_is_read_on_at_once() -> None:
    link, hub = Link([READ_MESSAGES + 5]), Hub(together=1)
    at = [0]
    async with asyncio.timeout(5):
        assert await _feed(link, hub)._take(STATUS, at)
    assert hub.fed == [(0, 0, READ_MESSAGES), (0, READ_MESSAGES, 5)]
    assert at == [READ_MESSAGES + 5]


async def test_what_the_server_has_no_more_is_not_waited_for() -> None:
    class Emptied(Link):
        async def poll(self, topic: str, partition: int, offset: int, count: int) -> list[Polled]:
            return []

    async with asyncio.timeout(5):
        assert not await _feed(Emptied([3]), Hub(together=1))._take(STATUS, [0])


async def test_a_failure_is_told_when_all_have_ended_and_what_failed_is_not_read() -> None:
    hub = Hub(together=3, broken=0)
    at = [0, 0, 0]
    async with asyncio.timeout(5):
        with pytest.raises(HubUnavailable):
            await _feed(Link([1, 2, 3]), hub)._take(STATUS, at)
    assert sorted(hub.fed) == [(1, 0, 2), (2, 0, 3)]
    assert at == [0, 2, 3]


@pytest.mark.parametrize("broken", [None, 0])
async def test_runs_of_a_partition_are_fed_one_after_another_and_none_behind_one_that_failed(broken: int | None) -> None:
    class Torn(Link):
        async def poll(self, topic: str, partition: int, offset: int, count: int) -> list[Polled]:
            return [Polled(partition, 2, [b"x"] * 3), Polled(partition, 7, [b"x"])]

    hub, at = Hub(together=1, broken=broken), [0]
    async with asyncio.timeout(5):
        with contextlib.suppress(HubUnavailable):
            await _feed(Torn([8]), hub)._take(STATUS, at)
    assert (hub.fed, at) == (([], [0]) if broken == 0 else ([(0, 2, 3), (0, 7, 1)], [8]))


@pytest.mark.parametrize(
    ("sizes", "parts"),
    [
        ([], []),
        ([3, 4], [2]),
        ([SEND_BYTES], [1]),
        ([SEND_BYTES, 1], [1, 1]),
        ([SEND_BYTES // 2] * 5, [2, 2, 1]),
        ([SEND_BYTES + 1, 1], [1, 1]),
    ],
)
def test_a_send_has_a_limit_in_bytes(sizes: list[int], parts: list[int]) -> None:
    split = _split([bytes(size) for size in sizes])
    assert [len(part) for part in split] == parts
    assert [len(message) for part in split for message in part] == sizes
