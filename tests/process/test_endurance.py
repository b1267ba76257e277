"""The load of `tests.process.endurance` for some seconds: every resource has its outcome, and nothing piles up beyond its limits."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from tests.process.endurance import Plan, run

MOST_DESCRIPTORS = {"supervisor": 40, "hub": 100, "api": 120, "worker": 1200}
"""A worker keeps 512 directories of its store open, and a few descriptors for each download."""
MOST_THREADS = 40


@pytest.mark.slow
@pytest.mark.timeout(120)
def test_some_seconds_of_full_load(tmp_path: Path) -> None:
    plan = Plan(seconds=6, concurrency=32, ahead=2000, largest=50, sample_every=0.5, slope=None)
    outcome = run(tmp_path, tmp_path / "store", plan, threading.Event(), quick=False)
    assert outcome.tasks > 500
    table = {row.process: row for row in outcome.table}
    assert list(table) == ["supervisor", "hub", "api 0", "worker 0", "worker 1", "workers together", "all"]
    for process in ("supervisor", "hub", "api 0", "worker 0", "worker 1"):
        row = table[process]
        assert row.descriptors[1] <= MOST_DESCRIPTORS[process.split()[0]], row
        assert row.threads[1] <= MOST_THREADS, row
    print(f"\n{outcome.account}")
