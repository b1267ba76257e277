"""Alternating rounds of downloaders over one set of URLs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from fetchbox.bench import plot, table
from fetchbox.bench.measure import MeasureError, Usage
from fetchbox.bench.peers import IncompleteError, Peer, Stored, run_peer

COLUMNS = (
    "client",
    "files",
    "wall s",
    "files/s",
    "MiB/s",
    "CPU us/file",
    "CPU s/GiB",
    "peak MiB",
    "wall x",
    "CPU x",
    "base",
    "rounds",
    "spread",
)


@dataclass(frozen=True, slots=True)
class Task:
    """What every client downloads. Without `expected` (URLs of strangers) nothing is checked and failures of single URLs are allowed."""

    label: str
    urls: Sequence[str]
    expected: Stored | None
    concurrency: int
    rounds: int


@dataclass(slots=True)
class Comparison:
    """What came out: rows for a table, the single rounds behind them, and who could not take part."""

    rows: list[dict[str, Any]]
    rounds: list[dict[str, Any]]
    notes: list[str]


def compare(
    task: Task, peers: Sequence[Peer], base: str, *, say: Callable[[str], None] = lambda _line: None, directory: str | None = None
) -> Comparison:
    """Runs every peer `task.rounds` times, taking turns; ratios are to the peer named `base`.

    A peer that is missing or fails is named in the notes and does not end the comparison.
    """
    notes: list[str] = []
    present: list[Peer] = []
    for peer in peers:
        reason = peer.missing()
        if reason:
            notes.append(f"{peer.name}: {reason}")
            say(f"{peer.name}: {reason}")
        else:
            present.append(peer)
    taken: dict[str, list[Usage]] = {peer.name: [] for peer in present}
    failed: set[str] = set()
    for number in range(task.rounds):
        for peer in present:
            if peer.name in failed or (peer.slow and number):
                continue
            try:
                usage = run_peer(peer, task.urls, task.concurrency, task.expected, directory)
            except (MeasureError, IncompleteError, OSError) as error:
                failed.add(peer.name)
                notes.append(f"{peer.name}, {task.label}: {error}")
                say(f"{peer.name}: {error}")
                continue
            taken[peer.name].append(usage)
            rate, cost = len(task.urls) / usage.wall, usage.cpu / len(task.urls) * 1e6
            say(f"round {number + 1}: {peer.name}: {usage.wall:.2f} s, {rate:,.0f} files/s, {cost:.0f} us CPU a file")
    names = [name for name, usages in taken.items() if usages]
    rows = [_row(name, task, taken[name], taken.get(base) or []) | {"base": base} for name in names]
    rounds = [_round(name, task, usage) for name in names for usage in taken[name]]
    return Comparison(rows, rounds, notes)


def _figures(usage: Usage) -> dict[str, float]:
    return {"wall": usage.wall, "cpu": usage.cpu, "peak": usage.peak_rss_max}


def _row(name: str, task: Task, usages: Sequence[Usage], base: Sequence[Usage]) -> dict[str, Any]:
    middle = table.medians([_figures(usage) for usage in usages])
    reference = table.medians([_figures(usage) for usage in base])
    count = len(task.urls)
    size = task.expected.size if task.expected else 0
    return {
        "client": name,
        "files": task.label,
        "wall s": middle["wall"],
        "files/s": count / middle["wall"],
        "MiB/s": size / middle["wall"] / 2**20 if size else None,
        "CPU us/file": middle["cpu"] / count * 1e6,
        "CPU s/GiB": middle["cpu"] / size * 2**30 if size else None,
        "peak MiB": middle["peak"] / 2**20,
        "wall x": table.ratio(middle["wall"], reference.get("wall", 0.0)),
        "CPU x": table.ratio(middle["cpu"], reference.get("cpu", 0.0)),
        "rounds": len(usages),
        "spread": f"{table.spread([usage.wall for usage in usages]) * 100:.0f} %",
    }


def _round(name: str, task: Task, usage: Usage) -> dict[str, Any]:
    return {
        "client": name,
        "files": task.label,
        "wall": round(usage.wall, 4),
        "user": round(usage.user, 4),
        "system": round(usage.system, 4),
        "peak_rss": usage.peak_rss,
        "peak_rss_sum": usage.peak_rss_sum,
        "method": usage.method,
    }


def chart(title: str, rows: Sequence[dict[str, Any]]) -> plot.Chart:
    """Three panels a set of files: CPU a file, rate and memory."""
    panels = []
    for label in {row["files"]: None for row in rows}:
        chosen = [row for row in rows if row["files"] == label]
        panels.append(plot.Panel(f"{label}: CPU a file, less is better", "us", [(row["client"], row["CPU us/file"]) for row in chosen]))
        panels.append(
            plot.Panel(f"{label}: files a second, more is better", "files/s", [(row["client"], row["files/s"]) for row in chosen])
        )
        panels.append(plot.Panel(f"{label}: largest process, less is better", "MiB", [(row["client"], row["peak MiB"]) for row in chosen]))
    return plot.Chart(title, panels)
