"""What a long run reads off its processes again and again, and whether that stays where it was: memory, descriptors, threads, disk."""

from __future__ import annotations

import os
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.process.processes import descendants, look

MIB = 1 << 20
PER_TASKS = 100_000
"""Memory's slope is told per so many tasks."""


@dataclass(frozen=True, slots=True)
class Reading:
    """One process at one moment. Memory in bytes: `pss` is its own and its share of what several map, `anonymous` its own alone."""

    pss: int
    anonymous: int
    descriptors: int
    threads: int


@dataclass(frozen=True, slots=True)
class Sample:
    """All processes of a service at one moment, by title; `seconds` since the run began, `tasks` settled until then, bytes on disk."""

    seconds: float
    tasks: int
    processes: dict[str, Reading]
    ledger: int
    log: int


def read(pid: int) -> Reading:
    """What /proc tells of a process. OSError when it is gone."""
    directory = Path(f"/proc/{pid}")
    memory = {}
    for line in (directory / "smaps_rollup").read_text(encoding="ascii").splitlines()[1:]:
        name, _, rest = line.partition(":")
        memory[name] = int(rest.split()[0]) << 10
    return Reading(memory["Pss"], memory["Pss_Anon"], len(os.listdir(directory / "fd")), len(os.listdir(directory / "task")))


def read_service(pid: int) -> dict[str, Reading]:
    """A supervisor and all below it, by title; two of one title (there are none) would be told as one."""
    top = look(pid)
    assert top is not None, "the supervisor is gone"
    return {process.command.removeprefix("fetchbox: ").strip(): read(process.pid) for process in [top, *descendants(pid)]}


def slope(points: Sequence[tuple[float, float]]) -> float:
    """Least squares: how much the second coordinate grows for one of the first. 0 when the first does not change."""
    if len(points) < 2:
        return 0.0
    x, y = zip(*points, strict=True)
    if len(set(x)) < 2:
        return 0.0
    return statistics.linear_regression(x, y).slope


def rises(values: Sequence[float], *, share: float = 0.1, spare: float = 8) -> bool:
    """Whether the last third of a series lies higher than the first one: its median by more than a share and a few."""
    third = max(1, len(values) // 3)
    before, after = statistics.median(values[:third]), statistics.median(values[-third:])
    return after > before * (1 + share) + spare


@dataclass(frozen=True, slots=True)
class Row:
    """One process, or all together, over a run after its warm-up. Memory in MiB, the slope per PER_TASKS."""

    process: str
    first_mib: float
    last_mib: float
    peak_mib: float
    slope: float
    descriptors: tuple[int, int]
    threads: tuple[int, int]
    descriptors_rise: bool
    threads_rise: bool
    of_several: bool = False
    """One of several that share their work: which of them holds what waits may change, so memory is judged for them together."""

    def as_dict(self) -> dict[str, object]:
        """For a table."""
        return {
            "process": self.process,
            "first MiB": round(self.first_mib, 1),
            "last MiB": round(self.last_mib, 1),
            "peak MiB": round(self.peak_mib, 1),
            f"MiB per {PER_TASKS:,} tasks": round(self.slope, 4),
            "descriptors": "{} to {}".format(*self.descriptors),
            "threads": "{} to {}".format(*self.threads),
        }


def rows(samples: Sequence[Sample]) -> list[Row]:
    """A row for each process of the first sample, one for those of one role together, and one for all."""
    names = list(samples[0].processes)
    for sample in samples:
        assert set(sample.processes) == set(names), f"at {sample.seconds:.0f} s there were {list(sample.processes)}, at first {names}"
    roles: dict[str, list[str]] = {}
    for name in names:
        roles.setdefault(name.split()[0], []).append(name)
    made = []
    for role, members in roles.items():
        several = len(members) > 1
        made += [_row(name, samples, [name], of_several=several) for name in members]
        if several:
            made.append(_row(f"{role}s together", samples, members))
    return [*made, _row("all", samples, names)]


def _row(title: str, samples: Sequence[Sample], names: Sequence[str], *, of_several: bool = False) -> Row:
    readings = [[sample.processes[name] for name in names] for sample in samples]
    memory = [sum(one.pss for one in reading) / MIB for reading in readings]
    descriptors = [sum(one.descriptors for one in reading) for reading in readings]
    threads = [sum(one.threads for one in reading) for reading in readings]
    return Row(
        process=title,
        first_mib=memory[0],
        last_mib=memory[-1],
        peak_mib=max(memory),
        slope=slope([(sample.tasks / PER_TASKS, value) for sample, value in zip(samples, memory, strict=True)]),
        descriptors=(min(descriptors), max(descriptors)),
        threads=(min(threads), max(threads)),
        descriptors_rise=rises(descriptors),
        threads_rise=rises(threads, spare=2),
        of_several=of_several,
    )


def broken(table: Sequence[Row], most_slope: float | None) -> list[str]:
    """The bounds that a run broke, in words; without `most_slope` memory is only told."""
    found = []
    for row in table:
        if most_slope is not None and not row.of_several and row.slope >= most_slope:
            found.append(f"{row.process}: memory grows by {row.slope:.3f} MiB per {PER_TASKS:,} tasks, {most_slope:g} is the bound")
        if row.descriptors_rise:
            found.append(f"{row.process}: descriptors rise, {row.descriptors[0]} to {row.descriptors[1]}")
        if row.threads_rise:
            found.append(f"{row.process}: threads rise, {row.threads[0]} to {row.threads[1]}")
    return found
