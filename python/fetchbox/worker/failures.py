"""Tells receivers of resources as they fail: one lane a job, so that a receiver that is down costs a few tasks and holds up nobody else.

A lane knows of its resources no more than index, generation and the message that named them. What is told of one is asked of the hub
shortly before; one that was put back to work meanwhile is told of when it fails again.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict, deque
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

HELD = 65_536
"""Failed resources that may wait to be told of; while there are as many nothing more is read."""
FIRST = 4
"""Calls at a time for one job, as long as none was taken."""
MOST = 8
PAGE = 16
"""Resources asked for at a time."""
GONE = 4096
"""Jobs remembered whose receiver wants no more."""


@dataclass(slots=True)
class Place:
    """A message of a partition."""

    behind: int
    """The offset that may be committed when it and all before it are done."""
    is_done: bool = False
    left: int = 0
    """Resources that it named and that are not told of yet."""


class End(Protocol):
    """Why a call was given up."""

    is_final: bool


Tell = Callable[[dict[str, Any], dict[str, Any], Sequence[float]], Awaitable[End | None]]
"""Calls the receiver of a job (what the hub said of it) for a resource, with these pauses between tries; None once it was taken."""
Fetch = Callable[[str, list[int]], Awaitable[list[dict[str, Any]]]]
"""The resources of a job by their indexes."""


@dataclass(slots=True)
class _Lane:
    entry: dict[str, Any]
    pauses: Sequence[float]
    waiting: deque[tuple[int, int, Place]] = field(default_factory=deque)
    ready: deque[tuple[dict[str, Any], Place]] = field(default_factory=deque)
    asking: asyncio.Lock = field(default_factory=asyncio.Lock)
    tellers: int = 0
    most: int = FIRST


class Failures:
    """Lanes by job. `room` is taken for each of them; `done` is called when all that a message named was told or given up."""

    def __init__(self, room: asyncio.Semaphore, pauses: Sequence[float], tell: Tell, fetch: Fetch, done: Callable[[Place], None]) -> None:
        self._room = room
        self._pauses = pauses
        self._tell = tell
        self._fetch = fetch
        self._done = done
        self._lanes: dict[str, _Lane] = {}
        self._gone: OrderedDict[str, None] = OrderedDict()
        self._held = 0
        self._eased = asyncio.Event()

    async def add(self, group: asyncio.TaskGroup, entry: dict[str, Any], failed: list[tuple[int, int]], place: Place) -> None:
        """Takes what a message named; waits while too much is held."""
        job_id = entry["job"]["job_id"]
        while self._held >= HELD:
            self._eased.clear()
            await self._eased.wait()
        lane = self._lanes.get(job_id)
        if lane is None:
            await self._room.acquire()
            lane = self._lanes[job_id] = _Lane(entry, self._pauses)
        place.left = len(failed)
        self._held += len(failed)
        lane.waiting.extend((index, generation, place) for index, generation in failed)
        self._man(group, job_id, lane)

    def end(self, job_id: str) -> None:
        """The receiver of this job wants to hear no more."""
        self._gone[job_id] = None
        while len(self._gone) > GONE:
            self._gone.popitem(last=False)

    def has_ended(self, job_id: str) -> bool:
        """Whether its receiver said so."""
        return job_id in self._gone

    def _man(self, group: asyncio.TaskGroup, job_id: str, lane: _Lane) -> None:
        while lane.tellers < min(lane.most, len(lane.waiting) + len(lane.ready)) or not lane.tellers:
            lane.tellers += 1
            group.create_task(self._work(group, job_id, lane))

    async def _work(self, group: asyncio.TaskGroup, job_id: str, lane: _Lane) -> None:
        while (item := await self._next(job_id, lane)) is not None:
            resource, place = item
            end = await self._tell(lane.entry, resource, lane.pauses)
            if end is None:
                lane.pauses, lane.most = self._pauses, MOST
                self._man(group, job_id, lane)
            elif end.is_final:
                self.end(job_id)
            else:
                # Given up after an hour: the others are tried once, until one is taken.
                lane.pauses = ()
            self._told(place)
        # Nothing waits from the last look on: no other task ran in between.
        lane.tellers -= 1
        if not lane.tellers:
            del self._lanes[job_id]
            self._room.release()

    async def _next(self, job_id: str, lane: _Lane) -> tuple[dict[str, Any], Place] | None:
        async with lane.asking:
            while not lane.ready or job_id in self._gone:
                if job_id in self._gone:
                    for place in [place for _, place in lane.ready] + [place for _, _, place in lane.waiting]:
                        self._told(place)
                    lane.ready.clear()
                    lane.waiting.clear()
                if not lane.waiting:
                    return None
                page = [lane.waiting.popleft() for _ in range(min(PAGE, len(lane.waiting)))]
                found = {resource["index"]: resource for resource in await self._fetch(job_id, [index for index, _, _ in page])}
                for index, generation, place in page:
                    resource = found.get(index)
                    if resource is None or resource["generation"] != generation:
                        self._told(place)
                    else:
                        lane.ready.append((resource, place))
            return lane.ready.popleft()

    def _told(self, place: Place) -> None:
        self._held -= 1
        self._eased.set()
        place.left -= 1
        if not place.left:
            self._done(place)
