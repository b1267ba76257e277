"""What is new in the logs of all jobs that are followed here: one question to the hub for all of them, however many readers there are.

A reader reads by itself until it is at the end of its job's log, and then waits here. One that takes its lines too slowly is sent back to
reading by itself, so nothing piles up for it.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from typing import TYPE_CHECKING, Any

import orjson
from sse_starlette.event import ServerSentEvent

from fetchbox.errors import HubUnavailable, Refused

if TYPE_CHECKING:
    from fetchbox.api.types import Hub

logger = logging.getLogger(__name__)

TICK_SECONDS = 0.25
"""Between two looks at what is new."""
ALL_SECONDS = 15.0
"""How often jobs are looked at of which nothing was said: they may have been forgotten."""
MOST_WAITING = 256
"""Lines that may wait for one reader."""


class Line:
    """A record, encoded once for all of its readers."""

    __slots__ = ("_lines", "_sse", "offset", "record")

    def __init__(self, record: dict[str, Any]) -> None:
        self.record = record
        self.offset = int(record["offset"])
        self._sse: bytes | None = None
        self._lines: bytes | None = None

    def encoded(self, lines: bool) -> bytes:
        """As an event of the stream, or as a JSON line."""
        if lines:
            if self._lines is None:
                self._lines = orjson.dumps(self.record) + b"\n"
            return self._lines
        if self._sse is None:
            self._sse = ServerSentEvent(orjson.dumps(self.record).decode(), event="log", id=str(self.offset)).encode()
        return self._sse


class Follower:
    """A reader at the end of a job's log. `news` is set when there is something to take."""

    __slots__ = ("behind", "ended", "gone", "job_id", "lines", "news", "next", "partition")

    def __init__(self, job_id: str, partition: int, next_offset: int, news: asyncio.Event) -> None:
        self.job_id = job_id
        self.partition = partition
        self.next = next_offset
        self.news = news
        self.lines: deque[Line] = deque()
        self.behind = False
        """It has to read by itself again, from `next` on."""
        self.ended = False
        self.gone = False
        """The job is not there any more."""

    def fall_behind(self) -> None:
        """It reads by itself from here on."""
        self.behind = True
        self.lines.clear()
        self.news.set()

    def take(self) -> list[Line]:
        """What came since."""
        taken = list(self.lines)
        self.lines.clear()
        if taken:
            self.next = taken[-1].offset + 1
        return taken

    def add(self, lines: list[Line], *, end: bool, gone: bool) -> None:
        """What the hub said of its job. What was read already comes again when another reader of the partition was further back."""
        if self.behind:
            return
        fresh = [line for line in lines if line.offset >= (self.lines[-1].offset + 1 if self.lines else self.next)]
        if len(self.lines) + len(fresh) > MOST_WAITING:
            self.fall_behind()
            return
        self.lines.extend(fresh)
        if fresh or (end and not self.ended) or (gone and not self.gone):
            self.news.set()
        self.ended |= end
        self.gone |= gone


class LogTail:
    """All followers of this process. It works while there are any."""

    def __init__(self, hub: Hub) -> None:
        self._hub = hub
        self._followers: dict[int, dict[str, set[Follower]]] = {}
        self._next: dict[int, int] = {}
        self._task: asyncio.Task[None] | None = None
        self._refused: str | None = None
        """Why the hub does not answer for all at once, as it was last said."""

    def __len__(self) -> int:
        return sum(len(followers) for jobs in self._followers.values() for followers in jobs.values())

    def join(self, follower: Follower) -> bool:
        """Adds one; false when its partition is read further than it is, so that it has to read on by itself first."""
        jobs = self._followers.get(follower.partition)
        if jobs is None:
            jobs = self._followers[follower.partition] = {}
            self._next[follower.partition] = follower.next
        elif follower.next < self._next[follower.partition]:
            return False
        jobs.setdefault(follower.job_id, set()).add(follower)
        if self._task is None:
            self._task = asyncio.get_running_loop().create_task(self._run())
        return True

    def leave(self, follower: Follower) -> None:
        """Takes one out; one that is not there is none of ours."""
        jobs = self._followers.get(follower.partition, {})
        followers = jobs.get(follower.job_id, set())
        followers.discard(follower)
        if not followers:
            jobs.pop(follower.job_id, None)
        if not jobs:
            self._followers.pop(follower.partition, None)
            self._next.pop(follower.partition, None)
        if not self._followers and self._task is not None:
            self._task.cancel()
            self._task = None

    async def _run(self) -> None:
        looked = time.monotonic()
        while True:
            await asyncio.sleep(TICK_SECONDS)
            look_at_all = time.monotonic() - looked > ALL_SECONDS
            if look_at_all:
                looked = time.monotonic()
            try:
                while await self._look(all_=look_at_all):
                    look_at_all = False
                self._refused = None
            except HubUnavailable:
                # It comes back; everybody keeps its place.
                continue
            except Refused as error:
                # A hub of an older version: everybody reads by itself. Said once for each reason, not four times a second.
                if self._refused != error.message:
                    self._refused = error.message
                    logger.warning("logs cannot be followed together, so each reader asks by itself: %s", error.message)
                self._everybody()
            except Exception:
                logger.exception("logs cannot be followed together")
                self._everybody()

    async def _look(self, *, all_: bool) -> bool:
        """Asks once and hands out what is new; whether there may be more."""
        asked = {str(partition): (self._next[partition], list(jobs)) for partition, jobs in self._followers.items()}
        answer = orjson.loads(await self._hub.query("tail", {"partitions": asked, "all": all_}))
        for job_id, job in answer["jobs"].items():
            lines = [Line(record) for record in job["logs"]]
            for jobs in self._followers.values():
                for follower in jobs.get(job_id, ()):
                    follower.add(lines, end=job.get("end", False), gone=job.get("gone", False))
        moved = False
        for name, reached in answer["next"].items():
            partition, known = int(name), set(asked[name][1])
            # Who came while the hub was asked was not asked for.
            for job_id, followers in self._followers.get(partition, {}).items():
                for follower in followers if job_id not in known else ():
                    if follower.next < reached:
                        follower.fall_behind()
            if partition in self._next and reached > self._next[partition]:
                self._next[partition] = reached
                moved = True
        return moved and bool(answer["jobs"])

    def _everybody(self) -> None:
        for jobs in self._followers.values():
            for followers in jobs.values():
                for follower in followers:
                    follower.fall_behind()
