"""Processes as /proc shows them: who is whose child, what role it plays, and signals that cannot hit a stranger."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from tests.process.waiting import wait_for

ROLES = ("supervisor", "hub", "api", "worker")


@dataclass(frozen=True, slots=True)
class Process:
    """One process. `started` (clock ticks after boot) tells it apart from a later one with the same number."""

    pid: int
    parent: int
    started: int
    state: str
    command: str

    @property
    def role(self) -> str:
        """One of ROLES, or "" for a process that is something else, or not yet anything."""
        if self.command.startswith("fetchbox: "):
            return self.command.removeprefix("fetchbox: ").split()[0]
        words = self.command.split()
        if "fetchbox._child" in words[:-1]:
            return words[words.index("fetchbox._child") + 1]
        return ""

    @property
    def alive(self) -> bool:
        """Whether this very process still runs; a zombie does not."""
        now = look(self.pid)
        return now is not None and now.started == self.started and now.state not in "ZX"

    def send(self, number: signal.Signals) -> bool:
        """Sends a signal to this very process; False when it is gone."""
        try:
            handle = os.pidfd_open(self.pid)
        except ProcessLookupError:
            return False
        try:
            if not self.alive:
                return False
            signal.pidfd_send_signal(handle, number)
        except ProcessLookupError:
            return False
        finally:
            os.close(handle)
        return True

    def __str__(self) -> str:
        return f"{self.pid} ({self.state}, parent {self.parent}) {self.command[:120]}"


def look(pid: int) -> Process | None:
    """What a process is at the moment, None when there is none."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
        command = Path(f"/proc/{pid}/cmdline").read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        return None
    fields = stat[stat.rindex(")") + 2 :].split()
    return Process(pid, int(fields[1]), int(fields[19]), fields[0], command.replace(b"\0", b" ").decode(errors="replace").strip())


def descendants(pid: int) -> list[Process]:
    """All processes below `pid`, zombies left out, parents before children."""
    by_parent: dict[int, list[Process]] = {}
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            process = look(int(entry))
            if process is not None and process.state not in "ZX":
                by_parent.setdefault(process.parent, []).append(process)
    found: list[Process] = []
    queue = [pid]
    while queue:
        below = by_parent.get(queue.pop(0), [])
        found += below
        queue += [process.pid for process in below]
    return found


def await_end(processes: Iterable[Process], limit: float) -> None:
    """Waits until none of them runs any more."""
    watched = list(processes)
    wait_for(
        f"the end of {[str(process) for process in watched]}",
        lambda: not any(process.alive for process in watched),
        limit,
        describe=lambda: "still there: " + "; ".join(str(look(p.pid)) for p in watched if p.alive),
    )


def kill_all(processes: Iterable[Process]) -> None:
    """SIGKILL for each, the wreck of a failed test included; it is no error when one is gone."""
    for process in processes:
        with contextlib.suppress(OSError):
            process.send(signal.SIGKILL)
