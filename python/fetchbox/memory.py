"""What is remembered of URLs from one run to the next, with `fetch.reuse`: a SQLite file beside the output.

Names and values are the native module's; here they are bytes. What a crash takes is what was not written in its last moments: that is
asked for again, and nothing else is lost.
"""

from __future__ import annotations

import contextlib
import os
import time
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from fetchbox.errors import StoreError

if TYPE_CHECKING:
    import sqlite3

FILE = ".fetchbox-reuse.db"
"""In the output's directory. No object has a name with a dot in front."""
EVERY = 2.0
"""Seconds that something may wait to be written."""
MOST = 4096
"""Names that may wait."""
ASKED = 500
"""Names of one query; SQLite takes 999 at least."""
BUSY_SECONDS = 30.0
"""How long another run may hold the file; it does for moments."""


class Memory:
    """Opens the file, made if missing. Raises StoreError, naming it, when it cannot be used.

    Used by one thread at a time. When the file fails later, that is warned of once, and the run goes on without it.
    """

    def __init__(self, path: Path) -> None:
        import sqlite3

        self._path = path
        self._waiting: dict[bytes, tuple[bytes, int]] = {}
        self._written = time.monotonic()
        self._error = sqlite3.Error
        self._connection: sqlite3.Connection | None = None
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            # It holds URLs, which may be signed ones.
            os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
            connection = sqlite3.connect(path, timeout=BUSY_SECONDS, isolation_level=None, check_same_thread=False)
            self._connection = connection
            # What the last moments before a power cut wrote may be lost; the file stays whole.
            connection.execute("PRAGMA synchronous = NORMAL")
            connection.execute(
                "CREATE TABLE IF NOT EXISTS urls (name BLOB PRIMARY KEY, value BLOB NOT NULL, at INTEGER NOT NULL) WITHOUT ROWID"
            )
            connection.execute("SELECT name, value, at FROM urls LIMIT 1").fetchall()
        except (sqlite3.Error, OSError) as error:
            self._drop()
            raise StoreError(f"{path}: what earlier runs remember cannot be read: {error}; remove the file to begin anew") from error

    def known(self, names: Iterable[bytes | None]) -> dict[bytes, tuple[bytes, int]]:
        """What is remembered under these names, and for how many milliseconds. None is skipped."""
        wanted = list({name for name in names if name is not None})
        now = time.time_ns() // 1_000_000
        found: dict[bytes, tuple[bytes, int]] = {}
        if self._connection is None:
            return found
        try:
            for start in range(0, len(wanted), ASKED):
                some = wanted[start : start + ASKED]
                query = f"SELECT name, value, at FROM urls WHERE name IN ({','.join('?' * len(some))})"  # noqa: S608
                for name, value, at in self._connection.execute(query, some):
                    found[name] = (value, at)
        except self._error as error:
            self._give_up(error)
        for name in wanted:
            if (waiting := self._waiting.get(name)) is not None:
                found[name] = waiting
        # What a clock that was wrong dated into the future is as old as can be.
        return {name: (value, now - at if at <= now else (1 << 63) - 1) for name, (value, at) in found.items()}

    def keep(self, remembered: Iterable[tuple[bytes, bytes]]) -> None:
        """Remembers from now on; what is under a name already is replaced."""
        now = time.time_ns() // 1_000_000
        self._waiting.update((name, (value, now)) for name, value in remembered)
        if len(self._waiting) >= MOST or time.monotonic() - self._written >= EVERY:
            self.flush()

    def flush(self) -> None:
        """Writes what waits."""
        rows = [(name, value, at) for name, (value, at) in self._waiting.items()]
        self._waiting.clear()
        self._written = time.monotonic()
        if not rows or self._connection is None:
            return
        try:
            self._connection.execute("BEGIN IMMEDIATE")
            self._connection.executemany("INSERT OR REPLACE INTO urls VALUES (?, ?, ?)", rows)
            self._connection.execute("COMMIT")
        except self._error as error:
            self._give_up(error)

    def close(self) -> None:
        """Writes what waits and closes the file. Harmless when it is closed already."""
        self.flush()
        self._drop()

    def _give_up(self, error: Exception) -> None:
        self._drop()
        warnings.warn(f"{self._path}: {error}; from here on nothing is remembered for the next run", RuntimeWarning, stacklevel=2)

    def _drop(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            with contextlib.suppress(self._error):
                connection.close()
