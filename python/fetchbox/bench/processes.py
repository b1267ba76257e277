"""What /proc says about the processes of a tree: CPU, memory, titles. Linux only."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

TICK_SECONDS = 1 / os.sysconf("SC_CLK_TCK")
"""The resolution of CPU times in /proc, 10 ms on most kernels; the sums behind it are exact."""

_PROC = Path("/proc")


@dataclass(frozen=True, slots=True)
class ProcessState:
    """One process at one moment; times in seconds, memory in bytes."""

    pid: int
    parent: int
    session: int
    started_ticks: int
    """Together with the pid this names a process for good: pids are used again."""
    title: str
    user: float
    system: float
    reaped_user: float
    """CPU of children that ended and were waited for, and of theirs."""
    reaped_system: float
    peak_rss: int
    rss: int

    @property
    def cpu(self) -> float:
        """User and system time of the process itself."""
        return self.user + self.system

    @property
    def identity(self) -> tuple[int, int]:
        """Pid and start time."""
        return self.pid, self.started_ticks


def read_process(pid: int) -> ProcessState | None:
    """The state of a process; None when it is gone or a zombie (whose memory is gone)."""
    directory = _PROC / str(pid)
    try:
        stat = (directory / "stat").read_text(errors="replace")
        status = (directory / "status").read_text(errors="replace")
        command = (directory / "cmdline").read_bytes()
    except OSError:
        return None
    # The name is in parentheses and may hold any character, parentheses among them.
    name = stat[stat.index("(") + 1 : stat.rindex(")")]
    fields = stat[stat.rindex(")") + 2 :].split()
    if fields[0] in "ZX":
        return None
    words = command.replace(b"\0", b" ").decode(errors="replace").strip()
    return ProcessState(
        pid=pid,
        parent=int(fields[1]),
        session=int(fields[3]),
        started_ticks=int(fields[19]),
        title=words or name,
        user=int(fields[11]) * TICK_SECONDS,
        system=int(fields[12]) * TICK_SECONDS,
        reaped_user=int(fields[13]) * TICK_SECONDS,
        reaped_system=int(fields[14]) * TICK_SECONDS,
        peak_rss=_status_bytes(status, "VmHWM:"),
        rss=_status_bytes(status, "VmRSS:"),
    )


def _status_bytes(status: str, name: str) -> int:
    start = status.find(name)
    return int(status[start + len(name) :].split(None, 1)[0]) * 1024 if start >= 0 else 0


def read_all(pids: Iterable[int] | None = None) -> dict[int, ProcessState]:
    """The states of these processes, or of all on the machine, those left out that are gone."""
    wanted = (int(entry.name) for entry in _PROC.iterdir() if entry.name.isdigit()) if pids is None else pids
    return {pid: state for pid in wanted if (state := read_process(pid)) is not None}


def read_tree(root: int) -> dict[int, ProcessState]:
    """The process `root`, its living descendants, and the rest of the session that it leads, if it leads one."""
    everything = read_all()
    found = {pid for pid, state in everything.items() if pid == root or state.session == root}
    grown = True
    while grown:
        more = {pid for pid, state in everything.items() if state.parent in found and pid not in found}
        found |= more
        grown = bool(more)
    return {pid: everything[pid] for pid in sorted(found)}


@dataclass(frozen=True, slots=True)
class TreeUsage:
    """What a tree used between two moments: seconds of CPU, also of each living process by title, and their peaks since they started."""

    user: float
    system: float
    per_process: dict[str, float]
    peak_rss: dict[str, int]

    @property
    def cpu(self) -> float:
        """Seconds of user and system time over all processes."""
        return self.user + self.system


def tree_usage(before: dict[int, ProcessState], after: dict[int, ProcessState]) -> TreeUsage:
    """The difference of two `read_tree`s of one tree.

    Processes that ended in between count through the parent that waited for them, less what they had used before.
    """
    known = {state.identity: state for state in before.values()}
    user = system = 0.0
    per_process: dict[str, float] = {}
    peak_rss: dict[str, int] = {}
    for state in after.values():
        earlier = known.pop(state.identity, None)
        own_user = state.user - (earlier.user if earlier else 0.0)
        own_system = state.system - (earlier.system if earlier else 0.0)
        user += own_user + state.reaped_user - (earlier.reaped_user if earlier else 0.0)
        system += own_system + state.reaped_system - (earlier.reaped_system if earlier else 0.0)
        per_process[state.title] = per_process.get(state.title, 0.0) + own_user + own_system
        peak_rss[state.title] = max(peak_rss.get(state.title, 0), state.peak_rss)
    for gone in known.values():
        user -= gone.user + gone.reaped_user
        system -= gone.system + gone.reaped_system
    return TreeUsage(max(user, 0.0), max(system, 0.0), per_process, peak_rss)
