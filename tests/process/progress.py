"""How far a long run is and what it takes of the machine: told while it runs, bounded, and summed up at its end."""

from __future__ import annotations

import os
import resource
import threading
import time
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path

from tests.process.background import Background
from tests.process.kills import Kills
from tests.process.oracle import Oracle
from tests.process.processes import descendants
from tests.process.service import Service

MIB = 1 << 20
LOOK_EVERY = 1.0
KEEP_FREE = 1 << 30
"""Bytes of the file system that a run leaves alone."""


@dataclass(frozen=True, slots=True)
class Bounds:
    """What a long run may take, and how often it tells how far it is (seconds)."""

    seconds: float
    disk_bytes: int
    tell_every: float = 15.0


@dataclass(slots=True)
class Usage:
    """What the run took so far. Disk is what became less on its file system, so others who write there are counted too."""

    directory: Path
    peak_disk: int = 0
    peak_memory: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    """Resident bytes of the largest process, by role."""
    _free_before: int = 0
    _started: float = field(default_factory=time.monotonic)

    def __post_init__(self) -> None:
        self._free_before = free_bytes(self.directory)

    @property
    def seconds(self) -> float:
        """Since it began."""
        return time.monotonic() - self._started

    def look(self, service: Service) -> None:
        """Looks at disk and memory now."""
        self.peak_disk = max(self.peak_disk, self._free_before - free_bytes(self.directory))
        if service.running:
            for process in descendants(service.process.pid):
                if process.role:
                    self.peak_memory[process.role] = max(self.peak_memory[process.role], resident_bytes(process.pid))

    def __str__(self) -> str:
        memory = ", ".join(f"{role} {peak // MIB} MiB" for role, peak in sorted(self.peak_memory.items()))
        own = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
        return f"peaks: disk {self.peak_disk // MIB} MiB; memory of one process: {memory}, this harness {own} MiB"


def free_bytes(directory: Path) -> int:
    """Bytes that are free where the directory is."""
    disk = os.statvfs(directory)
    return disk.f_bavail * disk.f_frsize


def resident_bytes(pid: int) -> int:
    """Resident memory of a process, 0 when it is gone."""
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE")
    except (OSError, IndexError):
        return 0


def say(bounds: Bounds | None, text: str) -> None:
    """A line of progress, for runs that tell theirs."""
    if bounds is not None:
        print(text, flush=True)


def watching(usage: Usage, service: Service, oracle: Oracle, done: Kills, kills: int, tasks: int, bounds: Bounds | None) -> Background:
    """Looks at what the run takes, tells how far it is, and fails when it goes beyond its bounds."""

    def work(stopped: threading.Event) -> None:
        told = 0.0
        while not stopped.wait(LOOK_EVERY):
            usage.look(service)
            if bounds is None:
                continue
            assert usage.seconds <= bounds.seconds, f"it takes more than {bounds.seconds:.0f} s"
            assert usage.peak_disk <= bounds.disk_bytes, f"it takes more than {bounds.disk_bytes // MIB} MiB of disk: {usage}"
            assert free_bytes(usage.directory) >= KEEP_FREE, f"less than {KEEP_FREE // MIB} MiB are left on the disk: {usage}"
            if usage.seconds - told >= bounds.tell_every:
                told = usage.seconds
                acknowledged, settled, requests = oracle.tasks, oracle.settled, oracle.journal.total
                parts = [
                    f"{told:6.0f} s: {done.done.total()} of {kills} kills",
                    f"{acknowledged} of {tasks} tasks acknowledged, {settled} settled",
                    f"{requests} requests ({requests / max(1, settled):.2f} a settled task)",
                    f"{service.http.refusals} posts repeated",
                    str(usage),
                ]
                print("; ".join(parts), flush=True)

    return Background("watching", work)
