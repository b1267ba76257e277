"""A bar chart as SVG text, so that a table can be seen at a glance without a plotting library."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from xml.sax.saxutils import escape

ROW_HEIGHT = 26
LABEL_WIDTH = 190
BAR_WIDTH = 420
VALUE_WIDTH = 110
OURS = "#2563eb"
OTHERS = "#9ca3af"


@dataclass(frozen=True, slots=True)
class Panel:
    """One group of bars: (label, value) pairs in one unit. Every panel has a scale of its own."""

    title: str
    unit: str
    values: Sequence[tuple[str, float]]


@dataclass(frozen=True, slots=True)
class Chart:
    """Panels below each other; bars whose label begins with `ours` stand out."""

    title: str
    panels: Sequence[Panel]
    ours: str = "fetchbox"


def bars(chart: Chart) -> str:
    """The chart as one SVG document. Bars are logarithmic in panels whose largest value is over 20 times the smallest."""
    width = LABEL_WIDTH + BAR_WIDTH + VALUE_WIDTH
    parts: list[str] = [_text(8, 22, chart.title, size=15, weight="bold")]
    y = 34
    for panel in chart.panels:
        shown = [(label, value) for label, value in panel.values if value > 0]
        if not shown:
            continue
        smallest, largest = min(value for _, value in shown), max(value for _, value in shown)
        logarithmic = largest / smallest > 20
        y += 22
        parts.append(_text(8, y, f"{panel.title} ({panel.unit}{', logarithmic' if logarithmic else ''})", weight="bold"))
        y += 6
        for label, value in shown:
            share = (math.log(value / smallest) + 1) / (math.log(largest / smallest) + 1) if logarithmic else value / largest
            colour = OURS if label.startswith(chart.ours) else OTHERS
            parts.append(
                f'<rect x="{LABEL_WIDTH}" y="{y + 4}" width="{max(share * BAR_WIDTH, 1):.1f}" height="{ROW_HEIGHT - 8}" fill="{colour}"/>'
            )
            parts.append(_text(LABEL_WIDTH - 8, y + ROW_HEIGHT - 9, label, anchor="end"))
            parts.append(_text(LABEL_WIDTH + share * BAR_WIDTH + 6, y + ROW_HEIGHT - 9, _number(value)))
            y += ROW_HEIGHT
    body = "\n".join(parts)
    root = f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{y + 12}" font-family="sans-serif">'
    return f'{root}\n<rect width="100%" height="100%" fill="white"/>\n{body}\n</svg>\n'


def _text(x: float, y: float, text: str, *, size: int = 12, anchor: str = "start", weight: str = "normal") -> str:
    return f'<text x="{x:.1f}" y="{y}" font-size="{size}" font-weight="{weight}" text-anchor="{anchor}">{escape(text)}</text>'


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
