"""A wall clock that a test can set while the service runs, by way of libfaketime."""

from __future__ import annotations

from pathlib import Path

import pytest

PLACES = ("/usr/lib/*/faketime/libfaketimeMT.so.1", "/usr/lib/faketime/libfaketimeMT.so.1", "/usr/local/lib/faketime/libfaketimeMT.so.1")


class FakeClock:
    """The wall clock of every process that is started with `prefix`; the monotonic one stays as it is."""

    def __init__(self, directory: Path) -> None:
        library = next((str(path) for place in PLACES for path in sorted(Path("/").glob(place[1:]))), None)
        if library is None:
            pytest.skip("libfaketime is not installed; on Debian: apt-get install faketime")
        self._offset = directory / "clock"
        self.jump_to(0)
        settings = {
            "LD_PRELOAD": library,
            "FAKETIME_TIMESTAMP_FILE": str(self._offset),
            "FAKETIME_DONT_FAKE_MONOTONIC": "1",
            "FAKETIME_NO_CACHE": "1",
        }
        self.prefix = ["env", *(f"{name}={value}" for name, value in settings.items())]

    def jump_to(self, seconds: int) -> None:
        """The clock is so many seconds ahead of the real one from here on; negative ones behind."""
        fresh = self._offset.with_suffix(".new")
        fresh.write_text(f"{seconds:+d}\n", encoding="ascii")
        # Never half written: it is read at each look at the clock.
        fresh.replace(self._offset)
