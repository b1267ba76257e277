"""Writes what a bench found, with the machine and the commit it belongs to."""

from __future__ import annotations

import datetime as dt
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fetchbox.bench import machine, plot, table


@dataclass(slots=True)
class Result:
    """One run of one bench. Made before the first round, so that `load_before` is that of the machine without it."""

    name: str
    parameters: Mapping[str, Any]
    repository: Path | None = None
    rows: list[dict[str, Any]] = field(default_factory=list)
    rounds: list[dict[str, Any]] = field(default_factory=list)
    """Every single measurement behind the rows."""
    notes: list[str] = field(default_factory=list)
    started: dt.datetime = field(default_factory=lambda: dt.datetime.now(dt.UTC))
    load_before: float = field(default_factory=machine.load_average)
    commit: str = ""

    def __post_init__(self) -> None:
        self.commit = self.commit or machine.commit(self.repository)

    def as_dict(self) -> dict[str, Any]:
        """Everything, ready for JSON."""
        return {
            "bench": self.name,
            "commit": self.commit,
            "started": self.started.isoformat(timespec="seconds"),
            "machine": machine.describe().as_dict(),
            "load_before": self.load_before,
            "parameters": dict(self.parameters),
            "rows": self.rows,
            "rounds": self.rounds,
            "notes": self.notes,
        }

    def markdown(self, columns: Sequence[str] | None = None) -> str:
        """The rows as a table under one line that says where and when."""
        head = f"{self.name} · commit {self.commit} · {machine.describe()} · load before {self.load_before:g} · {self.started:%Y-%m-%d}\n\n"
        settings = ", ".join(f"{name} {value}" for name, value in self.parameters.items())
        notes = "".join(f"- {note}\n" for note in self.notes)
        return head + (f"{settings}\n\n" if settings else "") + table.markdown(self.rows, columns) + (f"\n{notes}" if notes else "")

    def write(self, directory: Path, columns: Sequence[str] | None = None, chart: plot.Chart | None = None) -> Path:
        """`<name>-<commit>.json`, `.md` and, with a chart, `.svg` in `directory`; returns the path of the JSON."""
        directory.mkdir(parents=True, exist_ok=True)
        path = directory / f"{self.name}-{self.commit}.json"
        path.write_text(json.dumps(self.as_dict(), indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        path.with_suffix(".md").write_text(self.markdown(columns), encoding="utf-8")
        if chart is not None:
            path.with_suffix(".svg").write_text(plot.bars(chart), encoding="utf-8")
        return path
