"""Faults that tests bring about: frozen processes, a hub that is away, disks that are full or fail."""

from __future__ import annotations

import contextlib
import errno
import os
import resource
import shutil
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.process.load import Load
from tests.process.processes import Process, look
from tests.process.service import Service
from tests.process.waiting import wait_for


@contextmanager
def frozen(process: Process) -> Iterator[None]:
    """SIGSTOP for the block."""
    assert process.send(signal.SIGSTOP)
    try:
        yield
    finally:
        process.send(signal.SIGCONT)


@contextmanager
def no_hub(service: Service) -> Iterator[None]:
    """The hub is killed, and the supervisor held so that it brings back none before the block ends."""
    top = look(service.process.pid)
    assert top is not None
    with frozen(top):
        service.kill_one("hub")
        yield


def refused(service: Service, load: Load, limit: float) -> tuple[int, str, str]:
    """Status, code and Retry-After of the first 5xx to a post that is made again and again."""

    def attempt() -> tuple[int, str, str] | None:
        response = service.http.post(load.body, key=load.key, headers=load.headers, limit=limit)
        if response.status_code < 500:
            return None
        return response.status_code, response.json()["error"]["code"], response.headers.get("retry-after", "")

    return wait_for("a post to be refused with 5xx", attempt, limit, every=0.05, describe=service.dump)


@contextmanager
def small_disk(directory: Path, size: str) -> Iterator[Path]:
    """A tmpfs of that size; the test is skipped where none can be mounted."""
    if os.geteuid() != 0 or shutil.which("mount") is None:
        pytest.skip("mounting a tmpfs needs root")
    directory.mkdir()
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(directory)], capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        pytest.skip(f"no tmpfs can be mounted here: {done.stderr.strip()}")
    try:
        yield directory
    finally:
        subprocess.run(["umount", "--lazy", str(directory)], check=True)


FILL_TRIES = 100


def fill(disk: Path, leave: int) -> Path:
    """A file that leaves `leave` bytes free."""
    ballast = disk / "ballast"
    with ballast.open("wb") as file:
        # Others may write in between: what they took is counted anew.
        for _ in range(FILL_TRIES):
            free = os.statvfs(disk)
            size = max(1, free.f_bavail * free.f_frsize - leave)
            try:
                os.posix_fallocate(file.fileno(), 0, size)
            except OSError as error:
                if error.errno != errno.ENOSPC:
                    raise
                file.truncate(0)
            else:
                return ballast
    raise AssertionError(f"{disk} filled up faster than it could be filled")


@contextmanager
def limited(process: Process, which: int, soft: int) -> Iterator[None]:
    """The process has this soft limit (resource.RLIMIT_…) for the block; nothing happens to what it starts later or has already."""
    before = resource.prlimit(process.pid, which)
    resource.prlimit(process.pid, which, (soft, before[1]))
    try:
        yield
    finally:
        # It may have died of it.
        with contextlib.suppress(ProcessLookupError):
            resource.prlimit(process.pid, which, before)


def open_files(process: Process) -> int:
    """How many descriptors it has."""
    return len(os.listdir(f"/proc/{process.pid}/fd"))


@contextmanager
def failing_syncs(process: Process, log: Path) -> Iterator[None]:
    """From now on every fsync and fdatasync of the process fails with EIO."""
    strace = shutil.which("strace")
    if strace is None:
        pytest.skip("strace is not installed")
    tracer = subprocess.Popen(
        [strace, "-f", "-p", str(process.pid), "-o", str(log), "-e", "trace=fsync,fdatasync", "-e", "inject=fsync,fdatasync:error=EIO"],
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert tracer.stderr is not None
        line = tracer.stderr.readline()
        if "ttached" not in line:
            pytest.skip(f"strace cannot attach here: {line.strip()}")
        yield
    finally:
        tracer.terminate()
        try:
            tracer.wait(3)
        except subprocess.TimeoutExpired:
            # It waits for a process that is half dead; the kernel lets go of that by itself.
            tracer.kill()
            tracer.wait(10)
        if tracer.stderr is not None:
            tracer.stderr.close()
