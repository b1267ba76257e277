"""What commands print: results on stdout, everything else on stderr, nothing that a hostile name could do to a terminal."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterable, Mapping, Sequence

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from rich.console import Console

_UNITS = ("B", "KiB", "MiB", "GiB", "TiB", "PiB")
_WIDE = 4000
_LOG_WIDTH = 160


def emit(text: str) -> None:
    """One line of result on stdout. BrokenPipeError becomes the quiet exit 141 of a tool whose reader has left."""
    try:
        sys.stdout.write(text + "\n")
        sys.stdout.flush()
    except BrokenPipeError:
        from fetchbox.cli import CLOSED_PIPE

        forget(1)
        raise SystemExit(CLOSED_PIPE) from None


def emit_json(value: object) -> None:
    """One object as one line of JSON."""
    emit(json.dumps(value, ensure_ascii=False, separators=(",", ":"), default=str))


def note(text: str) -> None:
    """One line for people, on stderr; when nobody reads it any more the work goes on without."""
    try:
        print(text, file=sys.stderr, flush=True)
    except BrokenPipeError:
        forget(2)


def console(*, stderr: bool = False) -> Console:
    """A rich console. It respects NO_COLOR; off a terminal it neither colours nor moves, and is wide enough for tables."""
    from rich.console import Console

    class Quiet(Console):
        def on_broken_pipe(self) -> None:
            # Whoever read our progress has left; the work itself goes on.
            self.quiet = True
            forget(2)

    stream = sys.stderr if stderr else sys.stdout
    kind = Quiet if stderr else Console
    return kind(stderr=stderr, highlight=False, width=None if stream is not None and stream.isatty() else _LOG_WIDTH)


def forget(descriptor: int) -> None:
    """Points a standard stream at nothing, so that the interpreter's last flush does not complain about a closed pipe again."""
    try:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, descriptor)
        os.close(nowhere)
    except OSError:
        pass


def stderr_console() -> Console:
    """The rich console for progress bars and remarks."""
    return console(stderr=True)


def emit_table(columns: Sequence[str], rows: Iterable[Sequence[object]], *, right: frozenset[str] = frozenset()) -> None:
    """An aligned table. On a terminal it fits the width; elsewhere nothing is cut off or wrapped, so that it can be grepped."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    terminal = sys.stdout.isatty()
    table = Table(box=None, pad_edge=False, header_style="bold" if terminal else "")
    for column in columns:
        table.add_column(column, justify="right" if column in right else "left", no_wrap=not terminal, overflow="fold")
    for row in rows:
        table.add_row(*(Text(clean(cell)) for cell in row))
    drawing = Console(width=None if terminal else _WIDE, highlight=False)
    with drawing.capture() as captured:
        drawing.print(table)
    emit("\n".join(line.rstrip() for line in captured.get().rstrip("\n").split("\n")))


def emit_fields(record: Mapping[str, Any]) -> None:
    """A record as aligned `name  value` lines; nested values as JSON, absent ones left out."""
    shown = {key: value for key, value in record.items() if value not in (None, "", {}, [])}
    width = max((len(key) for key in shown), default=0)
    for key, value in shown.items():
        emit(f"{key:<{width}}  {clean(value)}")


def clean(value: object) -> str:
    """A value as text, its control characters made visible: names and messages come from strangers."""
    if value is None:
        return ""
    if isinstance(value, dict | list):
        value = json.dumps(value, ensure_ascii=False)
    return "".join(c if c.isprintable() else f"\\x{ord(c):02x}" if ord(c) < 256 else f"\\u{ord(c):04x}" for c in str(value))


def size(count: float | None) -> str:
    """Bytes for people: 1536 → "1.5 KiB"."""
    if count is None:
        return ""
    value = float(count)
    for unit in _UNITS:
        if abs(value) < 1024 or unit == _UNITS[-1]:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1024
    return ""


def plural(count: int, noun: str) -> str:
    """ "1 file", "2 files"."""
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"
