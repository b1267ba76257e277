"""Reading what to download: URLs from arguments, text, JSON lines, CSV or Parquet, packed with gzip or not, from a file or a pipe.

Everything is read lazily, a line at a time: a list of ten million URLs takes no more memory than one of ten.
"""

from __future__ import annotations

import contextlib
import io
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import msgspec

from fetchbox.errors import UsageError

URL_COLUMNS = ("url", "URL", "uri", "link", "href", "image_url")
"""Column names that are taken for the URL when --url-col does not say which."""

_SUFFIXES = {".jsonl": "jsonl", ".ndjson": "jsonl", ".json": "jsonl", ".csv": "csv", ".tsv": "tsv", ".parquet": "parquet", ".pq": "parquet"}
_COUNTED_BYTES = 1 << 30
_GZIP_MAGIC = b"\x1f\x8b"


class Item(msgspec.Struct, frozen=True, gc=False):
    """One thing to download. `id` is what the input calls it, None when it has no name."""

    url: str
    id: str | None = None
    headers: Mapping[str, str] = {}
    tags: Mapping[str, str] = {}
    key: str | None = None


@dataclass(frozen=True, slots=True)
class Source:
    """An input file, `-` for standard input. `kind` is txt, jsonl, csv, tsv or parquet, guessed from the name when not given."""

    name: str
    url_column: str | None = None
    id_column: str | None = None

    @property
    def kind(self) -> str | None:
        """What the file's name says; None when that has to be seen from its first line."""
        path = Path(self.name)
        suffix = path.suffix.lower()
        if suffix in (".gz", ".gzip"):
            suffix = Path(path.stem).suffix.lower()
        if suffix in (".txt", ".urls", ".list"):
            return "txt"
        return _SUFFIXES.get(suffix)

    def items(self) -> Iterator[Item]:
        """What the file holds. UsageError names the line that cannot be understood; OSError when the file cannot be read."""
        if self.kind == "parquet":
            yield from self._parquet()
            return
        with _open(self.name) as lines:
            first = lines.readline()
            kind = self.kind or ("jsonl" if first.lstrip().startswith("{") else "csv" if self.url_column else "txt")
            chained: Iterable[str] = chain((first,), lines) if first else lines
            if kind == "txt":
                yield from (Item(line) for line in map(str.strip, chained) if line and not line.startswith("#"))
            elif kind == "jsonl":
                yield from self._json_lines(chained)
            else:
                yield from self._csv(chained, "\t" if kind == "tsv" else ",")

    def count(self) -> int | None:
        """How many there are when that is cheap to find out, for the time left; else None."""
        path = Path(self.name)
        if self.name == "-" or not path.is_file() or path.stat().st_size > _COUNTED_BYTES:
            return None
        if self.kind == "parquet":
            return int(_parquet_file(self.name).metadata.num_rows)
        with path.open("rb") as file:
            if file.read(2) == _GZIP_MAGIC:
                return None
            file.seek(0)
            lines, last = 0, b"\n"
            while piece := file.read(1 << 20):
                lines += piece.count(b"\n")
                last = piece
        if not last.endswith(b"\n"):
            lines += 1
        return max(0, lines - 1) if self.kind in ("csv", "tsv") else lines

    def _json_lines(self, lines: Iterable[str]) -> Iterator[Item]:
        import json  # each kind of input loads what it needs, and a list of URLs nothing

        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            try:
                record = json.loads(line)
            except ValueError as error:
                raise UsageError(f"{self.name}:{number}: not JSON: {error}") from None
            if isinstance(record, str):
                yield Item(record)
            elif isinstance(record, dict):
                yield self._record(record, number)
            else:
                raise UsageError(f"{self.name}:{number}: an object with a url is needed, or a string")

    def _csv(self, lines: Iterable[str], delimiter: str) -> Iterator[Item]:
        import csv

        reader = csv.DictReader(lines, delimiter=delimiter)
        for record in reader:
            yield self._record(record, reader.line_num)

    def _parquet(self) -> Iterator[Item]:
        number = 0
        for batch in _parquet_file(self.name).iter_batches(batch_size=4096):
            for record in batch.to_pylist():
                number += 1
                yield self._record(record, number)

    def _record(self, record: Mapping[str, Any], number: int) -> Item:
        column = self.url_column or next((name for name in URL_COLUMNS if name in record), None)
        if column is None or column not in record:
            known = ", ".join(str(name) for name in list(record)[:10])
            raise UsageError(f"{self.name}:{number}: no column {column or 'url'}; there are {known}: name the right one with --url-col")
        if self.id_column is not None and self.id_column not in record:
            raise UsageError(f"{self.name}:{number}: no column {self.id_column}")
        url = record[column]
        if not isinstance(url, str) or not url.strip():
            raise UsageError(f"{self.name}:{number}: the column {column} holds no URL")
        name = record.get(self.id_column or "id")
        # Only JSON lines carry these beside the URL; a CSV column that happens to be called `key` holds text, too.
        headers, tags, key = record.get("headers"), record.get("tags"), record.get("key")
        return Item(
            url.strip(),
            None if name in (None, "") else str(name),
            {str(k): str(v) for k, v in headers.items()} if isinstance(headers, dict) else {},
            {str(k): str(v) for k, v in tags.items()} if isinstance(tags, dict) else {},
            key if isinstance(key, str) and key else None,
        )


@contextlib.contextmanager
def _open(name: str) -> Iterator[io.TextIOWrapper]:
    """The file as lines of text, unpacked when it begins as gzip does, whatever its name."""
    with contextlib.ExitStack() as stack:
        raw: Any = sys.stdin.buffer if name == "-" else stack.enter_context(Path(name).open("rb"))
        packed = raw.peek(2)[:2] == _GZIP_MAGIC
        stream = stack.enter_context(_unpacked(raw)) if packed else raw
        text = io.TextIOWrapper(stream, encoding="utf-8-sig", errors="replace", newline=None)
        # What was opened is closed by its own owner; the wrapper must not close standard input.
        stack.callback(text.detach)
        yield text


def _unpacked(raw: Any) -> Any:
    import gzip

    return gzip.GzipFile(fileobj=raw)


def _parquet_file(name: str) -> Any:
    try:
        from pyarrow.parquet import ParquetFile  # type: ignore[import-not-found,import-untyped,unused-ignore]
    except ImportError as error:
        raise UsageError(f"{name}: Parquet needs the package pyarrow: pip install pyarrow") from error
    return ParquetFile(name)
