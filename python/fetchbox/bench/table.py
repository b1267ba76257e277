"""Numbers of rounds as medians, ratios and Markdown tables."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

Row = Mapping[str, Any]


def medians(rounds: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """The median of each figure over the rounds that have it. Empty for no rounds."""
    names = {name: None for values in rounds for name in values}
    return {name: statistics.median([values[name] for values in rounds if name in values]) for name in names}


def spread(values: Sequence[float]) -> float:
    """How far the rounds are apart: (largest - smallest) / median; 0 for one round, or a median of 0."""
    middle = statistics.median(values)
    return (max(values) - min(values)) / middle if middle else 0.0


def ratio(value: float, base: float) -> float | None:
    """`value` as a multiple of `base`; None when there is nothing to divide by."""
    return value / base if base else None


def percentile(values: Sequence[float], share: float) -> float:
    """The smallest value that at least `share` (0 to 1) of the values do not exceed. ValueError for no values."""
    if not values:
        raise ValueError("no values to rank")
    ordered = sorted(values)
    rank = max(int(-(-share * len(ordered) // 1)), 1)
    return ordered[min(rank, len(ordered)) - 1]


def markdown(rows: Sequence[Row], columns: Sequence[str] | None = None) -> str:
    """A Markdown table with aligned columns; numbers to the right. Missing values are empty."""
    if not rows:
        return "(no rows)\n"
    names = list(columns) if columns is not None else list({name: None for row in rows for name in row})
    numeric = [all(isinstance(row.get(name), int | float) or row.get(name) in (None, "") for row in rows) for name in names]
    cells = [[_text(row.get(name)) for name in names] for row in rows]
    widths = [max(len(name), 3, *(len(line[i]) for line in cells)) for i, name in enumerate(names)]
    head = [name.rjust(width) if right else name.ljust(width) for name, width, right in zip(names, widths, numeric, strict=True)]
    rule = ["-" * (width - 1) + ":" if right else "-" * width for width, right in zip(widths, numeric, strict=True)]
    body = [[cell.rjust(w) if right else cell.ljust(w) for cell, w, right in zip(line, widths, numeric, strict=True)] for line in cells]
    return "".join("| " + " | ".join(line) + " |\n" for line in (head, rule, *body))


def _text(value: object) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        if value == 0:
            return "0"
        if abs(value) >= 1000:
            return f"{value:,.0f}"
        return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"
    if isinstance(value, int):
        return f"{value:,}"
    return str(value).replace("|", "\\|").replace("\n", " ")
