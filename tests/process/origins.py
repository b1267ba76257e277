"""The origin as a process of its own (`fetchbox origin`), paced and journaling, and the reader of its journal."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections import Counter
from pathlib import Path
from types import TracebackType


class Journal:
    """What the origin was asked for, read from its file as it grows. May be used by several threads."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.targets: Counter[str] = Counter()
        self._offset = 0
        self._total = 0
        self._lock = threading.Lock()

    @property
    def total(self) -> int:
        """Requests so far."""
        with self._lock:
            self._read()
            return self._total

    @property
    def asked(self) -> int:
        """Targets that were asked for at least once."""
        with self._lock:
            self._read()
            return len(self.targets)

    def count(self, target: str) -> int:
        """Requests so far for a target (path and query, as sent)."""
        with self._lock:
            self._read()
            return self.targets[target]

    def copy(self) -> Counter[str]:
        """Requests so far by target."""
        with self._lock:
            self._read()
            return Counter(self.targets)

    def _read(self) -> None:
        if not self.path.exists():
            return
        with self.path.open("rb") as file:
            file.seek(self._offset)
            data = file.read()
        # A line under way is read next time.
        whole = data[: data.rfind(b"\n") + 1]
        self._offset += len(whole)
        for line in whole.decode().splitlines():
            self.targets[line.split(" ")[1]] += 1
            self._total += 1


class OriginProcess:
    """An origin in a process of its own, so that serving does not slow down the test. `pace` is in responses per second, 0 for no limit."""

    def __init__(self, directory: Path, *, host: str = "127.0.0.1", pace: float = 0.0, name: str = "origin") -> None:
        self.host = host
        self.journal = Journal(directory / f"{name}.journal")
        command = [
            sys.executable,
            "-m",
            "fetchbox.cli",
            "origin",
            "--host",
            host,
            "--port",
            "0",
            "--quiet",
            "--journal",
            str(self.journal.path),
        ]
        if pace:
            command += ["--pace", str(pace)]
        self._process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True)
        assert self._process.stdout is not None
        self.base_url = self._process.stdout.readline().strip()
        assert self.base_url.startswith("http"), f"fetchbox origin ended with {self._process.wait(10)} before it said where it is"
        self.port = int(self.base_url.rpartition(":")[2])

    def url(self, target: str) -> str:
        """The URL of a path and query."""
        return self.base_url + target

    def close(self) -> None:
        """Ends it."""
        self._process.terminate()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait(10)
        if self._process.stdout is not None:
            self._process.stdout.close()

    def __enter__(self) -> OriginProcess:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()
