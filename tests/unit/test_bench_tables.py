"""Medians, ratios, percentiles, tables, charts and result files."""

from __future__ import annotations

import json
import re
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fetchbox.bench import machine, plot, table
from fetchbox.bench.results import Result


def test_medians_are_by_figure() -> None:
    rounds = [{"wall": 3.0, "cpu": 1.0}, {"wall": 1.0}, {"wall": 2.0, "cpu": 5.0}]
    assert table.medians(rounds) == {"wall": 2.0, "cpu": 3.0}
    assert table.medians([]) == {}


def test_ratio_and_spread() -> None:
    assert table.ratio(3.0, 2.0) == 1.5
    assert table.ratio(3.0, 0.0) is None
    assert table.spread([1.0, 2.0, 4.0]) == 1.5
    assert table.spread([7.0]) == 0.0


@pytest.mark.parametrize(("share", "value"), [(0.0, 1), (0.5, 50), (0.99, 99), (0.991, 100), (1.0, 100)])
def test_percentiles_of_one_to_a_hundred(share: float, value: int) -> None:
    assert table.percentile(list(range(100, 0, -1)), share) == value


@given(st.lists(st.floats(0, 1e6), min_size=1), st.floats(0.01, 1))
def test_a_percentile_covers_its_share(values: list[float], share: float) -> None:
    found = table.percentile(values, share)
    assert found in values
    assert sum(value <= found for value in values) >= share * len(values) - 1e-6


def test_no_values_have_no_percentile() -> None:
    with pytest.raises(ValueError, match="no values"):
        table.percentile([], 0.5)


def test_a_table_is_markdown_with_numbers_to_the_right() -> None:
    text = table.markdown([{"who": "a|b", "rate": 12345.6}, {"who": "c", "rate": None}], ["who", "rate"])
    assert text.splitlines() == ["| who  |   rate |", "| ---- | -----: |", "| a\\|b | 12,346 |", "| c    |        |"]
    assert table.markdown([]) == "(no rows)\n"


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.0, "0"), (0.01234, "0.0123"), (3.14159, "3.14"), (123.4, "123"), (1234.5, "1,234"), (20000, "20,000"), (True, "yes")],
)
def test_numbers_have_three_digits_that_matter(value: float, text: str) -> None:
    assert table.markdown([{"v": value}]).splitlines()[-1].strip("| ") == text


def test_results_are_written_with_commit_and_machine_and_no_path(tmp_path: Path) -> None:
    result = Result("sample", {"rounds": 1}, commit="abc123", rows=[{"client": "fetchbox get", "files/s": 10.0}])
    chart = plot.Chart("A & B", [plot.Panel("rate", "files/s", [("fetchbox get", 10.0), ("<other>", 5.0)])])
    path = result.write(tmp_path / "new", None, chart)
    assert path.name == "sample-abc123.json"
    data = json.loads(path.read_text())
    assert data["commit"] == "abc123"
    assert data["rows"] == [{"client": "fetchbox get", "files/s": 10.0}]
    assert set(data["machine"]) == {"cores", "cpu", "memory_bytes", "kernel", "python"}
    assert str(tmp_path) not in path.read_text()
    assert "| fetchbox get |" in path.with_suffix(".md").read_text()
    ET.fromstring(path.with_suffix(".svg").read_text())


def test_bars_are_as_long_as_their_values() -> None:
    svg = plot.bars(plot.Chart("t", [plot.Panel("p", "u", [("ours", 10.0), ("other", 5.0), ("none", 0.0)])], ours="ours"))
    widths = [float(width) for width in re.findall(r'<rect x="190" [^>]*? width="([\d.]+)"', svg)]
    assert widths == [plot.BAR_WIDTH, plot.BAR_WIDTH / 2]
    assert svg.count(plot.OURS) == 1


def test_bars_over_decades_are_logarithmic() -> None:
    svg = plot.bars(plot.Chart("t", [plot.Panel("p", "u", [("a", 1.0), ("b", 1000.0)])]))
    assert "logarithmic" in svg
    small, large = (float(width) for width in re.findall(r'<rect x="190" [^>]*? width="([\d.]+)"', svg))
    assert large == plot.BAR_WIDTH
    assert small > plot.BAR_WIDTH / 20


def test_the_machine_is_described() -> None:
    found = machine.describe()
    assert found.cores >= 1
    assert found.memory_bytes > 1 << 28
    assert found.kernel.startswith("Linux ")


def test_outside_a_repository_the_commit_is_unknown(tmp_path: Path) -> None:
    assert machine.commit(tmp_path) == machine.UNKNOWN_COMMIT
