"""Reading what to download: URLs from arguments, text, JSON lines, CSV or Parquet, packed with gzip or not, from a file or a pipe.

Everything is read lazily, a line at a time: a list of ten million URLs takes no more memory than one of ten.
"""

from __future__ import annotations

import contextlib
import io
import os
import sys
import zlib
from collections.abc import Iterable, Iterator, Mapping
from itertools import chain
from pathlib import Path

from fetchbox.cli.pipes import GZIP_MAGIC, is_regular, lines, patiently
from fetchbox.errors import UsageError
from fetchbox.keys import as_unicode
from fetchbox.library import NOT_YET, Pause

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

URL_COLUMNS = ("url", "URL", "uri", "link", "href", "image_url")
"""Column names that are taken for the URL when --url-col does not say which."""

_SUFFIXES = {".jsonl": "jsonl", ".ndjson": "jsonl", ".json": "jsonl", ".csv": "csv", ".tsv": "tsv", ".parquet": "parquet", ".pq": "parquet"}
_COUNTED_BYTES = 1 << 30
_LONGEST_FIELD = 16 << 20
"""Characters of a CSV field; a longer one is a quotation mark that was never closed."""
_PARQUET_ROWS = 4096
_BESIDE_URL = ("id", "headers", "tags", "key", "deadline")


class Item:
    """One thing to download. `id` is what the input calls it, None when it has no name. A `fault` says why it cannot be downloaded."""

    __slots__ = ("deadline", "fault", "headers", "id", "key", "tags", "url")

    def __init__(
        self,
        url: str,
        id: str | None = None,
        headers: Mapping[str, str] | None = None,
        tags: Mapping[str, str] | None = None,
        key: str | None = None,
        deadline: str | float | None = None,
        fault: str | None = None,
    ) -> None:
        self.url = url
        self.id = id
        self.headers = headers or {}
        self.tags = tags or {}
        self.key = key
        self.deadline = deadline
        self.fault = fault

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Item) and all(getattr(self, name) == getattr(other, name) for name in self.__slots__)

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"Item({', '.join(f'{name}={getattr(self, name)!r}' for name in self.__slots__)})"


class Source:
    """An input file, `-` for standard input. `kind` is txt, jsonl, csv, tsv or parquet, guessed from the name when not given."""

    __slots__ = ("id_column", "name", "url_column")

    def __init__(self, name: str, url_column: str | None = None, id_column: str | None = None) -> None:
        self.name = name
        self.url_column = url_column
        self.id_column = id_column

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

    def check(self) -> None:
        """Raises UsageError when the file cannot even be opened. A pipe is not opened: that would take what it holds."""
        if self.name == "-":
            if sys.stdin is None:
                raise UsageError("-i -: standard input is closed")
            return
        try:
            if not os.path.exists(self.name):
                raise UsageError(f"-i: there is no file {self.name}")
            if os.path.isfile(self.name) or os.path.isdir(self.name):
                with open(self.name, "rb"):
                    pass
        except (OSError, ValueError) as error:
            raise UsageError(f"-i {self.name} cannot be read: {_why(error)}") from error

    def items(self) -> Iterator[str | Item | Pause]:
        """What the file holds, bare URLs as they are; NOT_YET where a pipe has nothing at the moment. UsageError names the file, and the
        line that is wrong."""
        try:
            if self.kind == "parquet":
                yield from self._parquet()
            else:
                with _open(self.name) as opened:
                    yield from self._text(opened)
        except (OSError, EOFError, zlib.error, ValueError) as error:
            raise UsageError(f"{self.name} cannot be read to its end: {_why(error)}") from error

    def _text(self, lines: Iterator[str | Pause]) -> Iterator[str | Item | Pause]:
        first: str | Pause = NOT_YET
        while first is NOT_YET:
            first = next(lines, "")
            if first is NOT_YET:
                yield NOT_YET
        kind = self.kind or ("jsonl" if first.lstrip().startswith("{") else "csv" if self.url_column else "txt")
        chained: Iterator[str | Pause] = chain((first,), lines) if first else lines
        if kind == "txt":
            for line in chained:
                if line is NOT_YET:
                    yield NOT_YET
                elif (url := line.strip()) and not url.startswith("#"):
                    yield url if url.isascii() else as_unicode(url)
        elif kind == "jsonl":
            yield from self._json_lines(chained)
        else:
            # A record may go over several lines: a table is waited for.
            yield from self._csv(map(_readable, patiently(chained)), "\t" if kind == "tsv" else ",")

    def count(self) -> int | None:
        """How many there are when that is cheap to find out, for the time left; else None."""
        path = Path(self.name)
        if self.name == "-" or not path.is_file() or path.stat().st_size > _COUNTED_BYTES:
            return None
        if self.kind == "parquet":
            try:
                with _parquet_file(self.name) as parquet:
                    return int(parquet.metadata.num_rows)
            except (OSError, ValueError) as error:
                raise UsageError(f"{self.name} cannot be read: {_why(error)}") from error
        with path.open("rb") as file:
            if file.read(2) == GZIP_MAGIC:
                return None
            file.seek(0)
            lines, last = 0, b"\n"
            while piece := file.read(1 << 20):
                lines += piece.count(b"\n")
                last = piece
        if not last.endswith(b"\n"):
            lines += 1
        return max(0, lines - 1) if self.kind in ("csv", "tsv") else lines

    def _json_lines(self, lines: Iterable[str | Pause]) -> Iterator[Item | Pause]:
        import json  # each kind of input loads what it needs, and a list of URLs nothing

        number = 0
        for line in lines:
            if line is NOT_YET:
                yield NOT_YET
                continue
            number += 1
            if not line.strip():
                continue
            try:
                record = json.loads(_readable(line))
            except ValueError as error:
                hint = "; an array is not JSON lines: jq -c '.[]' makes them of it" if line.lstrip().startswith("[") else ""
                raise UsageError(f"{self.name}:{number}: not JSON: {error}{hint}") from None
            if isinstance(record, str):
                yield Item(record)
            elif isinstance(record, dict):
                yield self._record(record, number)
            else:
                raise UsageError(f"{self.name}:{number}: an object with a url is needed, or a string")

    def _csv(self, lines: Iterable[str], delimiter: str) -> Iterator[Item]:
        import csv

        csv.field_size_limit(_LONGEST_FIELD)
        reader = csv.DictReader(lines, delimiter=delimiter, strict=True)
        try:
            for record in reader:
                yield self._record(record, reader.line_num)
        except csv.Error as error:
            raise UsageError(f"{self.name}:{reader.line_num + 1}: not CSV: {error}") from error

    def _parquet(self) -> Iterator[Item]:
        with _parquet_file(self.name) as parquet:
            names = parquet.schema_arrow.names
            column = self.url_column or next((name for name in URL_COLUMNS if name in names), None)
            # The other columns may be large: pictures, say.
            wanted = [name for name in names if name in {column, self.id_column, *_BESIDE_URL}] if column in names else names
            number = 0
            for batch in parquet.iter_batches(batch_size=_PARQUET_ROWS, columns=wanted):
                for record in batch.to_pylist():
                    number += 1
                    yield self._record(record, number)

    def _record(self, record: Mapping[str, Any], number: int) -> Item:
        column = self.url_column or next((name for name in URL_COLUMNS if name in record), None)
        if column is None or column not in record:
            known = ", ".join(str(name) for name in list(record)[:10])
            raise UsageError(f"{self.name}:{number}: no column {column or 'url'}; there are {known}: name the right one with --url-col")
        if self.id_column is not None and self.id_column not in record:
            known = ", ".join(str(name) for name in list(record)[:10])
            raise UsageError(f"{self.name}:{number}: no column {self.id_column}; there are {known}")
        url = record[column]
        fault = None
        if not isinstance(url, str) or not url.strip():
            # Catalogues have gaps; they are told like any other failure and stop nobody.
            url, fault = "", f"{self.name}:{number}: the column {column} holds no URL"
        name = record.get(self.id_column or "id")
        # Only JSON lines carry these beside the URL; a CSV column that happens to be called `key` holds text, too.
        headers, tags, key = record.get("headers"), record.get("tags"), record.get("key")
        return Item(
            as_unicode(url.strip()),
            None if name in (None, "") else str(name),
            {str(k): str(v) for k, v in headers.items()} if isinstance(headers, dict) else {},
            {str(k): str(v) for k, v in tags.items()} if isinstance(tags, dict) else {},
            key if isinstance(key, str) and key else None,
            record.get("deadline") or None,
            fault,
        )


@contextlib.contextmanager
def _open(name: str) -> Iterator[Iterator[str | Pause]]:
    """The file as lines of text, unpacked when it begins as gzip does. Bytes that are no UTF-8 are kept as surrogates."""
    with contextlib.ExitStack() as stack:
        raw: Any = sys.stdin.buffer if name == "-" else stack.enter_context(Path(name).open("rb"))
        if (descriptor := _waiting(raw)) is not None:
            yield lines(descriptor)
            return
        packed = raw.peek(2)[:2] == GZIP_MAGIC
        stream = stack.enter_context(_unpacked(raw)) if packed else raw
        text = io.TextIOWrapper(stream, encoding="utf-8-sig", errors="surrogateescape", newline=None)
        # What was opened is closed by its own owner; the wrapper must not close standard input.
        stack.callback(text.detach)
        yield text


def _unpacked(raw: Any) -> Any:
    import gzip

    return gzip.GzipFile(fileobj=raw)


def _waiting(raw: Any) -> int | None:
    """The descriptor of a pipe or a terminal; None for files, and for what only stands in for one."""
    try:
        descriptor = int(raw.fileno())
    except OSError:
        return None
    return None if is_regular(descriptor) else descriptor


def _parquet_file(name: str) -> Any:
    try:
        from pyarrow.parquet import ParquetFile  # type: ignore[import-not-found,import-untyped,unused-ignore]
    except ImportError as error:
        raise UsageError(f"{name}: Parquet needs the package pyarrow: pip install 'fetchbox[parquet]'") from error
    return ParquetFile(name)


def _readable(line: str) -> str:
    """Bytes that are no UTF-8 as question marks in a box: in records nobody knows what they stand for."""
    return line if line.isascii() else line.encode("utf-8", "surrogateescape").decode("utf-8", "replace")


def _why(error: BaseException) -> str:
    return (error.strerror if isinstance(error, OSError) else None) or str(error) or type(error).__name__
