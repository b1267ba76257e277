"""Which suspects run apart next, and which one is to blame when their process dies: pure decisions.

A group runs in one quarantine process. When that dies, the rest of the group is parted in halves, down to tasks that run alone; so one
task that kills is found among n in about log2(n) deaths, and the others, slow ones too, run side by side.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass

DEATHS_ALONE = 2
"""A process with a single task may have been killed by somebody else, once."""


@dataclass(slots=True)
class Suspect:
    """A task that was under way in several deaths. `place` is its own, `task` its message; `alone` counts deaths while it ran alone."""

    place: int
    task: bytes
    alone: int = 0


class Suspects:
    """The groups that wait and the one that runs."""

    def __init__(self) -> None:
        self._waiting: deque[list[Suspect]] = deque()
        self._running: dict[int, Suspect] = {}

    def __len__(self) -> int:
        return len(self._running) + sum(map(len, self._waiting))

    def add(self, tasks: Iterable[tuple[int, bytes]]) -> int:
        """Adds a group; how many of it were not there already (a partition that went and came back brings its tasks again)."""
        known = self._running.keys() | {suspect.place for group in self._waiting for suspect in group}
        group = [Suspect(place, task) for place, task in tasks if place not in known]
        if group:
            self._waiting.append(group)
        return len(group)

    def next(self) -> list[Suspect]:
        """The group to run now; empty when none waits. The one before has ended or died."""
        group = self._waiting.popleft() if self._waiting else []
        self._running = {suspect.place: suspect for suspect in group}
        return group

    def finished(self, place: int) -> bool:
        """One has ended; True when it was the last of its group."""
        self._running.pop(place, None)
        return not self._running

    def interrupted(self) -> None:
        """The process died before it began with anything: the group waits again as it is."""
        if self._running:
            self._waiting.appendleft(list(self._running.values()))
        self._running = {}

    def died(self) -> Suspect | None:
        """The process died with the rest of its group; the one that is to blame, when it was alone often enough."""
        group = list(self._running.values())
        self._running = {}
        if len(group) == 1:
            group[0].alone += 1
            if group[0].alone >= DEATHS_ALONE:
                return group[0]
        half = (len(group) + 1) // 2
        self._waiting.extendleft(part for part in (group[half:], group[:half]) if part)
        return None
