"""Counting outcomes and showing them: a progress bar while it runs, a table when it is over. All of it on stderr."""

from __future__ import annotations

import sys
import time
from collections import Counter
from collections.abc import Iterable
from types import TracebackType

from fetchbox.cli.output import clean, note, plural, size, stderr_console

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from rich.console import Console
    from rich.progress import Progress, ProgressColumn, TaskID

LINE_INTERVAL = 10.0
"""Seconds between two lines of progress where there is no terminal to draw a bar on."""

REFRESH = 5.0
"""Frames per second of the bar."""

BESIDE_DETAIL = 42
"""Columns of a terminal that a short bar, the counts and the time left take."""

SHOWN_CODES = 3
"""Failure codes in a line of progress, the most frequent ones."""

STATES = ("stored", "reused", "filtered", "failed", "cancelled")


class Tally:
    """Counts of outcomes by state and failure code, and bytes stored. `total` is None while nobody knows it."""

    def __init__(self, total: int | None = None) -> None:
        self.total = total
        self.states: Counter[str] = Counter()
        self.codes: Counter[str] = Counter()
        self.examples: dict[str, tuple[str, str]] = {}
        self.bytes = 0
        self.started = time.monotonic()

    @property
    def done(self) -> int:
        """Outcomes so far."""
        return sum(self.states.values())

    @property
    def good(self) -> bool:
        """Whether everything was stored or reused."""
        return self.done == self.states["stored"] + self.states["reused"]

    def add(self, state: str, stored_bytes: int, code: str | None, url: str, message: str | None) -> None:
        """Counts one outcome and keeps the first example of its failure code."""
        self.states[state] += 1
        if state == "stored":
            self.bytes += stored_bytes
        elif code:
            self.codes[code] += 1
            if code not in self.examples:
                self.examples[code] = (url, message or "")

    def add_stored(self, count: int, stored_bytes: int) -> None:
        """Counts many stored ones at once."""
        self.states["stored"] += count
        self.bytes += stored_bytes

    def line(self) -> str:
        """One line for people: how far, how fast, what failed."""
        seconds = max(time.monotonic() - self.started, 1e-6)
        of = f" of {self.total:,}" if self.total is not None else ""
        parts = [f"{self.done:,}{of} done", f"{self.done / seconds:,.0f}/s", f"{size(self.bytes)} ({size(self.bytes / seconds)}/s)"]
        if self.codes:
            parts.append("failed " + ", ".join(f"{code} {count:,}" for code, count in self.codes.most_common(SHOWN_CODES)))
        return " · ".join(parts)

    def detail(self, room: int) -> str:
        """Rate, bytes and failures by code in at most `room` characters; the first two go first when there is no room."""
        seconds = max(time.monotonic() - self.started, 1e-6)
        rate = f"{self.done / seconds:,.0f}/s"
        flow = f"{size(self.bytes / seconds)}/s"
        failed = f"{self.states['failed']:,} failed" if self.states["failed"] else ""
        codes = ", ".join(f"{code.removeprefix('DOWNLOAD_')} {count:,}" for code, count in self.codes.most_common(SHOWN_CODES))
        named = f"{failed}: {codes}" if failed and codes else failed
        choices = ((rate, f"{size(self.bytes)}, {flow}", named), (rate, flow, named), (rate, flow, failed), (flow, failed), (failed,), ())
        lines = (" · ".join(part for part in parts if part) for parts in choices)
        return next(line for line in lines if len(line) <= room or not line)


class Show:
    """Draws a Tally: a bar on a terminal, a line every ten seconds elsewhere, nothing when `quiet`."""

    def __init__(self, tally: Tally, what: str, *, quiet: bool = False) -> None:
        self.tally = tally
        self.quiet = quiet
        self._console: Console | None = None
        self._what = what
        self._bar: Progress | None = None
        self._task: TaskID | None = None
        self._next_look = 0.0
        self._next_line = time.monotonic() + LINE_INTERVAL

    @property
    def console(self) -> Console:
        """Made when something needs it: rich takes as long to load as a thousand small downloads."""
        if self._console is None:
            self._console = stderr_console()
        return self._console

    def __enter__(self) -> Show:
        if not self.quiet and sys.stderr.isatty() and self.console.is_terminal:
            from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeRemainingColumn
            from rich.table import Column

            # The bar has what the others leave.
            bar = BarColumn(bar_width=None, table_column=Column(ratio=1))
            left = TimeRemainingColumn(compact=True)
            # What goes to stdout is a result, and none of the bar's business unless both are the same terminal.
            self._bar = Progress(
                *("{task.description}", bar, MofNCompleteColumn(), _detail_column(self.tally, self.console), left),
                console=self.console,
                refresh_per_second=REFRESH,
                transient=True,
                expand=True,
                redirect_stdout=sys.stdout is not None and sys.stdout.isatty(),
            )
            self._task = self._bar.add_task(self._what, total=self.tally.total)
            self._bar.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._bar is not None:
            self._bar.stop()

    def update(self) -> None:
        """Call it after every outcome or batch of them; it looks at the clock and draws when it is time."""
        now = time.monotonic()
        if now < self._next_look or self.quiet:
            return
        self._next_look = now + 1 / REFRESH
        tally = self.tally
        if self._bar is not None and self._task is not None:
            self._bar.update(self._task, completed=tally.done, total=tally.total)
        elif now >= self._next_line:
            self._next_line = now + LINE_INTERVAL
            self.say(tally.line())

    def say(self, text: str) -> None:
        """A line above the bar, control characters made visible."""
        if self._bar is None:
            note(clean(text))
        else:
            self.console.print(clean(text), markup=False, soft_wrap=True)

    def summary(self, where: str) -> None:
        """The table at the end: what was stored where, and what failed with which code and why."""
        if self.quiet:
            return
        tally = self.tally
        if tally.total == 0 and not tally.done:
            self.say("the input holds no URL: nothing to do")
            return
        seconds = max(time.monotonic() - tally.started, 1e-6)
        counts = ", ".join(f"{tally.states[state]:,} {state}" for state in STATES if tally.states[state]) or "nothing done"
        self.say(
            f"{counts} · {size(tally.bytes)} in {seconds:.1f} s ({tally.done / seconds:,.0f}/s, {size(tally.bytes / seconds)}/s) · {where}"
        )
        if tally.codes:
            rows = [(code, f"{count:,}", *tally.examples[code]) for code, count in tally.codes.most_common()]
            print_table(self.console, ("code", "count", "first URL", "why"), rows)


def _detail_column(tally: Tally, console: Console) -> ProgressColumn:
    from rich.progress import ProgressColumn
    from rich.text import Text

    class Detail(ProgressColumn):
        max_refresh = None

        def render(self, task: Any) -> Text:
            return Text(tally.detail(max(console.width - BESIDE_DETAIL, 0)), no_wrap=True)

    return Detail()


def print_table(console: Console, columns: Iterable[str], rows: Iterable[Iterable[object]]) -> None:
    """A small table for people."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table
    from rich.text import Text

    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    for column in columns:
        table.add_column(column, justify="right" if column in ("count", "size") else "left", overflow="fold")
    for row in rows:
        table.add_row(*(Text(clean(cell)) for cell in row))
    console.print(table)


def exit_line(tally: Tally) -> str:
    """What went wrong, in one line."""
    return f"{plural(tally.states['failed'], 'download')} failed"
