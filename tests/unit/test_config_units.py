"""Durations, sizes and rates: what people write and what it means."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fetchbox.config.units import parse_duration, parse_rate, parse_size


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        (30, 30.0),
        (0.25, 0.25),
        ("30", 30.0),
        ("30s", 30.0),
        ("500ms", 0.5),
        ("5m", 300.0),
        ("1h30m", 5400.0),
        ("30d", 2_592_000.0),
        ("2w", 1_209_600.0),
        (" 1.5S ", 1.5),
    ],
)
def test_durations_are_seconds(text: object, seconds: float) -> None:
    assert parse_duration(text) == pytest.approx(seconds)


@pytest.mark.parametrize("text", ["", "s", "5 minutes", "1y", "5m30", True, None, [], float("nan"), float("inf"), "1e3s", "--1"])
def test_what_is_no_duration_is_refused_with_examples(text: object) -> None:
    with pytest.raises(ValueError, match="30s"):
        parse_duration(text)


@pytest.mark.parametrize(
    ("text", "size"),
    [
        (8_000_000, 8_000_000),
        ("8000", 8000),
        ("8MB", 8_000_000),
        ("8 mb", 8_000_000),
        ("8MiB", 8_388_608),
        ("5GiB", 5_368_709_120),
        ("1.5KB", 1500),
        ("1K", 1000),
        ("10KB/s", 10_000),
        ("7b", 7),
        ("2TB", 2 * 10**12),
    ],
)
def test_sizes_are_bytes(text: object, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "MB", "8XB", 1.5, True, None, "8 M B", "8MBs"])
def test_what_is_no_size_is_refused_with_examples(text: object) -> None:
    with pytest.raises(ValueError, match="8MB"):
        parse_size(text)


@pytest.mark.parametrize(
    ("text", "rate"), [(20, 20.0), ("20", 20.0), ("20/s", 20.0), ("600/m", 10.0), ("3600 / h", 1.0), (0, 0.0), (0.5, 0.5)]
)
def test_rates_are_per_second(text: object, rate: float) -> None:
    assert parse_rate(text) == pytest.approx(rate)


@pytest.mark.parametrize("text", ["20/", "20/y", "/s", "fast", None, False])
def test_what_is_no_rate_is_refused_with_examples(text: object) -> None:
    with pytest.raises(ValueError, match="20/s"):
        parse_rate(text)


@given(st.integers(0, 10**15))
def test_a_number_in_quotes_means_the_number(number: int) -> None:
    assert parse_size(str(number)) == parse_size(number) == number


@given(st.text(max_size=12))
def test_no_text_raises_anything_but_value_error(text: str) -> None:
    for parse in (parse_duration, parse_size, parse_rate):
        with contextlib.suppress(ValueError):
            assert parse(text) >= 0 or text.strip().startswith("-")
