"""Fail points from outside: named moments of the native code at which a test has a process killed (rust/failpoint says how)."""

from __future__ import annotations

import itertools
import os
from dataclasses import dataclass
from pathlib import Path

VARIABLE = "FETCHBOX_FAILPOINTS"


@dataclass(frozen=True, slots=True)
class Point:
    """A moment: its name, and of those that have a subject (a topic's name, say) only hits whose subject contains `subject`."""

    name: str
    subject: str = ""

    @property
    def role(self) -> str:
        """Whose moment it is."""
        part = self.name.partition("::")[0]
        return "worker" if part == "engine" else part

    def __str__(self) -> str:
        return f"{self.name}({self.subject})" if self.subject else self.name


class FailPoints:
    """The directory that arms points. Every process that was started with `environment`, and its children, look at it."""

    def __init__(self, directory: Path) -> None:
        directory.mkdir(parents=True)
        self._directory = directory
        self._tokens = itertools.count(1)

    @property
    def environment(self) -> dict[str, str]:
        """What the processes must be started with."""
        return {VARIABLE: str(self._directory)}

    def arm(self, point: Point, hit: int = 1) -> str:
        """From now on the `hit`-th time that one process comes by, it dies, and the point is not armed any more. A token for `struck`."""
        token = f"{next(self._tokens)}"
        aside = self._directory / f".{token}"
        aside.write_text(f"{token} {hit}\n{point.subject}\n")
        # Whole or not there, also for a process that looks at this very moment.
        aside.rename(self._directory / point.name)
        return token

    def struck(self, token: str) -> int | None:
        """The process that died of an arming, None while nobody has."""
        hits = self._directory / "hit"
        if not hits.is_dir():
            return None
        pids = [int(name.partition(".")[2]) for name in os.listdir(hits) if name.partition(".")[0] == token]
        assert len(pids) <= 1, f"one arming killed {pids}"
        return pids[0] if pids else None

    def victims(self) -> set[int]:
        """The processes that died at a point."""
        hits = self._directory / "hit"
        return {int(name.partition(".")[2]) for name in os.listdir(hits)} if hits.is_dir() else set()

    @property
    def armed(self) -> list[str]:
        """Points that nobody has died of yet."""
        return sorted(path.name for path in self._directory.iterdir() if path.is_file() and not path.name.startswith("."))
