"""The machine and the commit that a figure belongs to. No host name, no path, nothing that names a person."""

from __future__ import annotations

import os
import platform
import subprocess
from dataclasses import asdict, dataclass
from pathlib import Path

UNKNOWN_COMMIT = "unknown"


@dataclass(frozen=True, slots=True)
class Machine:
    """What decides about speed, as far as the kernel tells."""

    cores: int
    cpu: str
    memory_bytes: int
    kernel: str
    python: str

    def as_dict(self) -> dict[str, object]:
        """For results."""
        return asdict(self)

    def __str__(self) -> str:
        return f"{self.cores} cores of {self.cpu}, {self.memory_bytes / 2**30:.0f} GiB, {self.kernel}, Python {self.python}"


def describe() -> Machine:
    """This machine."""
    cores = len(os.sched_getaffinity(0))
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    release = platform.release().split("-")[0]
    return Machine(cores, _cpu_model(), memory, f"{platform.system()} {release} {platform.machine()}", platform.python_version())


def available_memory() -> int:
    """Bytes that programs may take now without anything being thrown out that is needed."""
    with open("/proc/meminfo", encoding="ascii") as lines:
        for line in lines:
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) << 10
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_AVPHYS_PAGES")


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or "unknown"
    return next(
        (line.partition(":")[2].strip() for line in lines if line.lower().startswith("model name")), platform.processor() or "unknown"
    )


def load_average() -> float:
    """Processes that ran or wanted to, over the last minute: a figure from a busy machine shows it."""
    return round(os.getloadavg()[0], 2)


def commit(directory: Path | None = None) -> str:
    """The commit of the source tree around `directory`, marked `-dirty` when code differs from it; UNKNOWN_COMMIT outside a repository."""
    try:
        head = _git(directory, "rev-parse", "--short=10", "HEAD")
        changed = _git(
            directory, "status", "--porcelain", "--untracked-files=no", "--", ":/rust", ":/python", ":/Cargo.toml", ":/Cargo.lock"
        )
    except (OSError, subprocess.SubprocessError):
        return UNKNOWN_COMMIT
    return f"{head}-dirty" if changed else head


def _git(directory: Path | None, *arguments: str) -> str:
    return subprocess.run(["git", *arguments], cwd=directory, capture_output=True, text=True, check=True, timeout=30).stdout.strip()  # noqa: S607
