"""What the scripts of this directory share: where results go, and how progress is told."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fetchbox.bench import plot, table
from fetchbox.bench.iggy import SERVER
from fetchbox.bench.results import Result

HERE = Path(__file__).resolve().parent
RESULTS = HERE / "results"


def say(line: str) -> None:
    """Progress, on stderr."""
    print(line, file=sys.stderr, flush=True)


def parser(description: str | None) -> argparse.ArgumentParser:
    """Arguments that every script has."""
    made = argparse.ArgumentParser(description=description)
    made.add_argument("--rounds", type=int, default=3, help="alternating rounds; medians are reported (default %(default)s)")
    made.add_argument("--quick", action="store_true", help="a tenth of the work, one round: does it run at all")
    made.add_argument("--results", type=Path, default=RESULTS, help="directory for the result files (default benches/results)")
    made.add_argument("--no-write", action="store_true", help="print only")
    made.add_argument("--disk", type=Path, default=None, help="directory on the disk for ledgers (default /var/tmp)")
    return made


def on_brokers(result: Result, rounds: int, run: Callable[[bool], dict[str, Any]]) -> None:
    """Runs with the hub's own streams and with an Iggy server (`run(True)`, where there is one) in turn, and adds the medians of each."""
    for _ in range(rounds):
        result.rounds.extend(run(iggy) for iggy in ((False, True) if SERVER else (False,)))
    for broker in dict.fromkeys(row["broker"] for row in result.rounds):
        rows = [row for row in result.rounds if row["broker"] == broker]
        numbers = [{key: value for key, value in row.items() if not isinstance(value, str)} for row in rows]
        result.rows.append({"broker": broker, **table.medians(numbers)})


def finish(result: Result, arguments: argparse.Namespace, columns: tuple[str, ...] | None = None, chart: plot.Chart | None = None) -> int:
    """Prints the table and writes the files; the exit status."""
    print(result.markdown(columns))
    if not arguments.no_write and result.rows:
        say(f"written: {result.write(arguments.results, columns, chart).name}")
    return 0 if result.rows else 1
