"""A cgroup of our own for a measured command: exact CPU over everything it ever started, and a sure end for all of it."""

from __future__ import annotations

import contextlib
import itertools
import os
from pathlib import Path

_numbers = itertools.count(1)

ENTER = 'echo 0 > "$0" && exec "$@"'
"""Shell text that moves the shell into the cgroup whose `cgroup.procs` is its $0, and becomes the command."""


class Cgroup:
    """One child of the version 2 hierarchy. Use `create`; leaving the context ends what still runs in it and removes it."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @classmethod
    def create(cls) -> Cgroup | None:
        """A fresh cgroup, or None where the hierarchy is missing or not ours to write."""
        base = _mount_point()
        if base is None:
            return None
        path = base / f"fetchbox-bench-{os.getpid()}-{next(_numbers)}"
        try:
            path.mkdir()
        except OSError:
            return None
        if not (path / "cpu.stat").exists() or not os.access(path / "cgroup.procs", os.W_OK):
            path.rmdir()
            return None
        return cls(path)

    def wrap(self, command: list[str]) -> list[str]:
        """The command, started inside."""
        return ["/bin/sh", "-c", ENTER, str(self.path / "cgroup.procs"), *command]

    def pids(self) -> list[int]:
        """The processes in it now."""
        return [int(line) for line in (self.path / "cgroup.procs").read_text().split()]

    def cpu(self) -> tuple[float, float]:
        """Seconds of user and system time used so far, of ended processes as well."""
        stat = dict(line.split() for line in (self.path / "cpu.stat").read_text().splitlines())
        return int(stat["user_usec"]) / 1e6, int(stat["system_usec"]) / 1e6

    def __enter__(self) -> Cgroup:
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(OSError):
            (self.path / "cgroup.kill").write_text("1")
        # Killed processes leave their cgroup in their own time; a directory that stays behind is empty and harmless.
        for _attempt in range(1000):
            try:
                self.path.rmdir()
            except OSError:
                os.sched_yield()
            else:
                return


def _mount_point() -> Path | None:
    """Where this process's own cgroup of version 2 is, as a directory."""
    try:
        mounts = Path("/proc/self/mounts").read_text().splitlines()
        groups = Path("/proc/self/cgroup").read_text().splitlines()
    except OSError:
        return None
    inside = next((line[3:] for line in groups if line.startswith("0::")), None)
    for line in mounts:
        _, where, kind, *_rest = line.split()
        if kind == "cgroup2" and inside is not None:
            path = Path(where + inside.rstrip("/"))
            return path if path.is_dir() else None
    return None
