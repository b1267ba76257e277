"""What a long run makes of its samples: slopes, what rises, which bounds are broken."""

from __future__ import annotations

import mmap
import os
from collections.abc import Sequence
from pathlib import Path

import pytest
from tests.process.busy import metrics
from tests.process.gauges import MIB, PER_TASKS, Reading, Sample, broken, read, rises, rows, slope

from fetchbox.bench.service import disk_bytes


@pytest.mark.parametrize(
    ("points", "expected"),
    [
        ([], 0.0),
        ([(1, 5)], 0.0),
        ([(1, 5), (1, 9)], 0.0),
        ([(0, 1), (1, 3), (2, 5)], 2.0),
        ([(0, 7), (5, 7), (9, 7)], 0.0),
        ([(0, 0), (1, 2), (2, 0), (3, 2)], 0.4),
    ],
)
def test_slope(points: list[tuple[float, float]], expected: float) -> None:
    assert slope(points) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([20, 21, 20, 22, 21, 20], False),
        ([20, 30, 40, 50, 60, 70], True),
        # Up and down is not up.
        ([200, 500, 250, 480, 220, 490], False),
        # One peak at the end is none.
        ([20, 20, 20, 20, 20, 20, 20, 20, 90], False),
        ([7], False),
    ],
)
def test_what_rises(values: Sequence[float], expected: bool) -> None:
    assert rises(values) is expected


def samples(leak: float) -> list[Sample]:
    """A hub that grows by `leak` MiB for each PER_TASKS and opens as many descriptors, beside an api that stays."""
    made = []
    for number in range(12):
        hub = Reading(int((100 + leak * number) * MIB), 0, int(20 + leak * number), 19)
        made.append(Sample(10.0 * number, PER_TASKS * number, {"hub": hub, "api 0": Reading(50 * MIB, 0, 30, 6)}, 0, 0))
    return made


def test_a_leak_is_found_and_named() -> None:
    table = rows(samples(2.0))
    assert [row.process for row in table] == ["hub", "api 0", "all"]
    assert [round(row.slope, 3) for row in table] == [2.0, 0.0, 2.0]
    told = broken(table, 1.0)
    assert len(told) == 4, told
    assert told[0] == "hub: memory grows by 2.000 MiB per 100,000 tasks, 1 is the bound"
    assert told[1] == "hub: descriptors rise, 20 to 42"
    assert len(broken(table, None)) == 2, "descriptors only"


def test_what_stays_breaks_nothing() -> None:
    assert broken(rows(samples(0.5)), 1.0) == []


def test_what_one_worker_takes_over_from_another_is_no_leak() -> None:
    made = []
    for number in range(12):
        workers = {"worker 0": Reading((70 + 3 * number) * MIB, 0, 100, 5), "worker 1": Reading((110 - 3 * number) * MIB, 0, 100, 5)}
        made.append(Sample(10.0 * number, PER_TASKS * number, workers, 0, 0))
    table = rows(made)
    assert [(row.process, round(row.slope)) for row in table] == [("worker 0", 3), ("worker 1", -3), ("workers together", 0), ("all", 0)]
    assert broken(table, 1.0) == []


def test_a_process_that_was_restarted_or_is_new_is_told() -> None:
    series = samples(0.0)
    series[5].processes["worker 0"] = series[5].processes["hub"]
    with pytest.raises(AssertionError, match="worker 0"):
        rows(series)


def test_this_very_process_is_read(tmp_path: Path) -> None:
    before = read(os.getpid())
    with (tmp_path / "file").open("wb") as file:
        file.write(bytes(100_000))
        file.flush()
        # Pages of its own: an allocator may answer from memory that this process has long had.
        with mmap.mmap(-1, 32 * MIB, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as ballast:
            ballast.write(bytes([1]) * len(ballast))
            after = read(os.getpid())
        assert disk_bytes(tmp_path) >= 100_000
    assert after.descriptors == before.descriptors + 1
    assert after.pss - before.pss > 24 * MIB < after.anonymous - before.anonymous
    assert before.threads >= 1


def test_metrics_of_several_processes_are_added_up() -> None:
    page = """# HELP fetchbox_a_total x
fetchbox_a_total{process="worker 0",state="stored"} 3.0
fetchbox_a_total{process="worker 1",state="stored"} 4.0
fetchbox_a_total{process="worker 1",state="failed"} 1.0
fetchbox_b 2
other_total 9
"""
    assert metrics(page) == {'fetchbox_a_total{state="stored"}': 7.0, 'fetchbox_a_total{state="failed"}': 1.0, "fetchbox_b": 2.0}
