"""Runs a command as a process tree, or a callable, and says what it cost."""

from __future__ import annotations

import contextlib
import os
import resource
import select
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from fetchbox.bench.cgroup import Cgroup
from fetchbox.bench.processes import ProcessState, read_all, read_process, read_tree

SAMPLE_SECONDS = 0.05
"""How often the memory of a tree is looked at. The kernel keeps each process's peak, so only its last moments can be missed."""

TAIL_BYTES = 4000


class MeasureError(RuntimeError):
    """A measured command failed or took too long; the message holds the last line that it wrote to stderr."""


@dataclass(frozen=True, slots=True)
class Usage:
    """What a run cost: seconds of wall clock, of user and of system time over the whole tree, and bytes of memory."""

    wall: float
    user: float
    system: float
    peak_rss: dict[str, int] = field(default_factory=dict)
    """Peak resident memory of each process by title; several of one title count as their largest."""
    peak_rss_sum: int = 0
    """The largest sum over all processes alive at one time; pages shared between them count for each."""
    method: str = "cgroup"
    """How CPU was counted: "cgroup", "rusage" or "self"."""
    stdout: bytes = b""

    @property
    def cpu(self) -> float:
        """User and system time."""
        return self.user + self.system

    @property
    def peak_rss_max(self) -> int:
        """Peak memory of the largest process."""
        return max(self.peak_rss.values(), default=0)


def measure(
    work: Sequence[str] | Callable[[], object],
    *,
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    timeout: float = 900.0,
    allow_cgroup: bool = True,
    ok: Sequence[int] = (0,),
) -> Usage:
    """The cost of a command, all its children included, or of calling a function in this process.

    `env` is added to this process's environment. Whatever the command leaves running is ended. Raises MeasureError when its exit status
    is not in `ok` or it takes longer than `timeout` seconds, and OSError when it cannot be started.
    """
    if callable(work):
        return _measure_call(work)
    with contextlib.ExitStack() as stack:
        scope = Cgroup.create() if allow_cgroup else None
        if scope is not None:
            stack.enter_context(scope)
        return _measure_command(list(work), {**os.environ, **(env or {})}, cwd, timeout, scope, ok)


def _measure_call(work: Callable[[], object]) -> Usage:
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")  # the kernel's peak counter starts again from now
    before = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    start = time.perf_counter()
    work()
    wall = time.perf_counter() - start
    after = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    own = read_process(os.getpid())
    peak = own.peak_rss if own else 0
    return Usage(
        wall,
        sum(b.ru_utime - a.ru_utime for a, b in zip(before, after, strict=True)),
        sum(b.ru_stime - a.ru_stime for a, b in zip(before, after, strict=True)),
        {"self": peak},
        peak,
        "self",
    )


def _measure_command(
    command: list[str], env: dict[str, str], cwd: Path | None, timeout: float, scope: Cgroup | None, ok: Sequence[int]
) -> Usage:
    with tempfile.TemporaryFile() as errors, tempfile.TemporaryFile() as output:
        start = time.perf_counter()
        process = subprocess.Popen(
            scope.wrap(command) if scope else command,
            env=env,
            cwd=cwd,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=errors,
            start_new_session=True,
        )
        watch = _Watch(process.pid, scope)
        finished = watch.until_exit(timeout)
        if not finished:
            _kill_group(process.pid)
        _, status, usage = os.wait4(process.pid, 0)
        wall = time.perf_counter() - start
        process.returncode = os.waitstatus_to_exitcode(status)
        user, system = scope.cpu() if scope else (usage.ru_utime + watch.orphans_user, usage.ru_stime + watch.orphans_system)
        _kill_group(process.pid)
        if not finished:
            raise MeasureError(f"did not end within {timeout:g} s: {_tail(errors)}")
        if process.returncode not in ok:
            raise MeasureError(f"ended with {process.returncode}: {_tail(errors)}")
        # A process too short for one sample is known by what the kernel kept of it.
        peaks = watch.peaks or {command[0]: usage.ru_maxrss * 1024}
        output.seek(0)
        return Usage(wall, user, system, peaks, max(watch.peak_sum, max(peaks.values())), "cgroup" if scope else "rusage", output.read())


class _Watch:
    """Looks at a tree until its root ends."""

    def __init__(self, root: int, scope: Cgroup | None) -> None:
        self._root = root
        self._scope = scope
        self.peaks: dict[str, int] = {}
        self.peak_sum = 0
        own = read_process(os.getpid())
        self._own_title = own.title if own else ""
        self.orphans_user = 0.0
        self.orphans_system = 0.0

    def until_exit(self, timeout: float) -> bool:
        """Samples until the root has ended, at most `timeout` seconds; whether it did."""
        descriptor = os.pidfd_open(self._root)
        try:
            poller = select.poll()
            poller.register(descriptor, select.POLLIN)
            limit = time.monotonic() + timeout
            while time.monotonic() < limit:
                self._sample()
                if poller.poll(SAMPLE_SECONDS * 1000):
                    self._count_orphans()
                    return True
            return False
        finally:
            os.close(descriptor)

    def _members(self) -> dict[int, ProcessState]:
        return read_all(self._scope.pids()) if self._scope else read_tree(self._root)

    def _sample(self) -> None:
        # Neither the shell that enters the cgroup is measured, nor a copy of ourselves that has not become the command yet.
        members = {
            pid: state for pid, state in self._members().items() if "cgroup.procs" not in state.title and state.title != self._own_title
        }
        for state in members.values():
            name = short_title(state.title)
            self.peaks[name] = max(self.peaks.get(name, 0), state.peak_rss)
        self.peak_sum = max(self.peak_sum, sum(state.rss for state in members.values()))

    def _count_orphans(self) -> None:
        """CPU of what outlived the root: nobody waited for it, so it is in no rusage."""
        for state in self._members().values():
            if state.pid != self._root:
                self.orphans_user += state.user + state.reaped_user
                self.orphans_system += state.system + state.reaped_system


def short_title(title: str) -> str:
    """A process's name for tables: its own title, or the program's name without directories and arguments."""
    if title.startswith("fetchbox: "):
        return title
    program, _, rest = title.partition(" ")
    name = os.path.basename(program)
    if name.startswith("python") and rest:
        words = rest.split()
        name = f"{name} {os.path.basename(next((word for word in words if not word.startswith('-')), words[0]))}"
    return name


def _kill_group(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, signal.SIGKILL)


def _tail(file: IO[bytes]) -> str:
    """The last line that says something."""
    file.seek(0, os.SEEK_END)
    file.seek(max(file.tell() - TAIL_BYTES, 0))
    lines = [line.strip() for line in file.read().decode(errors="replace").splitlines() if line.strip()]
    return lines[-1] if lines else "it said nothing"
