"""What `fetchbox get` reads and how it names what it stores."""

from __future__ import annotations

import gzip
import io
import itertools
import os
import re
import sys
from pathlib import Path

import pytest

from fetchbox.cli.inputs import Item, Source
from fetchbox.cli.pipes import lines
from fetchbox.errors import UsageError
from fetchbox.keys import object_key
from fetchbox.library import NOT_YET

A, B = "http://a.example/1.jpg", "http://b.example/2.jpg"


def read(source: Source) -> list[Item]:
    items = []
    for item in source.items():
        assert isinstance(item, str | Item), "a file never lets anybody wait"
        items.append(Item(item) if isinstance(item, str) else item)
    return items


def write(path: Path, text: str) -> str:
    if path.suffix == ".gz":
        path.write_bytes(gzip.compress(text.encode()))
    else:
        path.write_text(text)
    return str(path)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("list.txt", f"{A}\n\n# a comment\n  {B}  \n"),
        ("list", f"{A}\r\n{B}"),
        ("list.txt.gz", f"{A}\n{B}\n"),
        ("list.jsonl", f'{{"url": "{A}"}}\n\n{{"url": "{B}", "other": 1}}\n'),
        ("list.unknown", f'{{"url": "{A}"}}\n{{"url": "{B}"}}\n'),
        ("list.ndjson.gz", f'"{A}"\n{{"link": "{B}"}}\n'),
        ("list.csv", f'name,url\nx,{A}\n"y, z",{B}\n'),
        ("list.tsv", f"url\tname\n{A}\tx\n{B}\ty\n"),
        ("bom.csv", f"\ufeffurl\n{A}\n{B}\n"),
    ],
)
def test_every_format_gives_the_same_urls(tmp_path: Path, name: str, text: str) -> None:
    assert [item.url for item in read(Source(write(tmp_path / name, text)))] == [A, B]


def test_columns_can_be_named(tmp_path: Path) -> None:
    name = write(tmp_path / "x.csv", f"sku,photo,url\n7,{A},other\n,{B},other\n")
    assert read(Source(name, "photo", "sku")) == [Item(A, "7"), Item(B, None)]


def test_json_lines_carry_ids_headers_tags_and_keys(tmp_path: Path) -> None:
    line = f'{{"url": "{A}", "id": 5, "headers": {{"x-a": "1"}}, "tags": {{"checksum_hint": "md5:0"}}, "key": "k/v"}}'
    assert read(Source(write(tmp_path / "x.jsonl", line))) == [Item(A, "5", {"x-a": "1"}, {"checksum_hint": "md5:0"}, "k/v")]


def test_standard_input_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BufferedReader(io.BytesIO(f"{A}\n{B}\n".encode()))))
    assert [item.url for item in read(Source("-"))] == [A, B]
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BufferedReader(io.BytesIO(gzip.compress(f'{{"url":"{A}"}}\n'.encode())))))
    assert [item.url for item in read(Source("-"))] == [A]


def test_a_pipe_is_read_as_it_fills() -> None:
    reading, writing = os.pipe()
    with os.fdopen(writing, "w") as pipe:
        items = Source(f"/dev/fd/{reading}").items()
        pipe.write(f"{A}\n{B}\n")
        pipe.flush()
        # The pipe is still open: a reader that waits for its end would hang here.
        assert next(items) == A
    os.close(reading)


def test_parquet_is_read_or_asks_for_pyarrow(tmp_path: Path) -> None:
    path = tmp_path / "x.parquet"
    try:
        import pyarrow as pa  # type: ignore[import-not-found,import-untyped,unused-ignore]
        import pyarrow.parquet as pq  # type: ignore[import-not-found,import-untyped,unused-ignore]
    except ImportError:
        path.write_bytes(b"PAR1")
        with pytest.raises(UsageError, match="pip install pyarrow"):
            read(Source(str(path)))
        return
    pq.write_table(pa.table({"url": [A, B], "id": [1, 2]}), path)
    assert read(Source(str(path))) == [Item(A, "1"), Item(B, "2")]
    assert Source(str(path)).count() == 2


@pytest.mark.parametrize(
    ("name", "text", "complaint"),
    [
        ("x.jsonl", f'{{"url": "{A}"}}\n{{"url": \n', r"x\.jsonl:2: not JSON"),
        ("x.jsonl", "[1]\n", r"x\.jsonl:1: an object"),
        ("x.jsonl", '{"href2": 1}\n', r"no column url; there are href2: .*--url-col"),
        ("x.csv", "a,b\n1,2\n", r"x\.csv:2: no column url; there are a, b"),
        ("x.csv", f'url,t\n{A},x\n{B},"y\n', r"x\.csv:3: not CSV: "),
        ("x.csv", f'url,t\n{A},"x"y\n', r"x\.csv:2: not CSV: "),
        ("x.csv", f"sku\n{A}\n", r"no column url; there are sku"),
        ("x.json", f'["{A}"]', r"x\.json:1: an object"),
        ("x.json", f'[\n"{A}"]', r"x\.json:1: not JSON: .*jq"),
        ("x.parquet", "PAR1 and no more", r"x\.parquet cannot be read to its end: "),
    ],
)
def test_a_line_that_cannot_be_read_is_named(tmp_path: Path, name: str, text: str, complaint: str) -> None:
    with pytest.raises(UsageError, match=complaint):
        read(Source(write(tmp_path / name, text)))


def test_counts_are_right_or_unknown(tmp_path: Path) -> None:
    assert Source(write(tmp_path / "a.txt", f"{A}\n{B}\n")).count() == 2
    assert Source(write(tmp_path / "b.txt", f"{A}\n{B}")).count() == 2
    assert Source(write(tmp_path / "c.csv", f"url\n{A}\n")).count() == 1
    assert Source(write(tmp_path / "d.txt", "")).count() == 0
    assert Source(write(tmp_path / "e.txt.gz", A)).count() is None
    assert Source("-").count() is None


def test_a_long_list_is_read_lazily(tmp_path: Path) -> None:
    path = tmp_path / "long.txt"
    path.write_text("http://x.example/a\n" * 200_000)
    items = Source(str(path)).items()
    assert len(list(itertools.islice(items, 10))) == 10


PLAIN = re.compile(r"[0-9a-f]{2}/[A-Za-z0-9_~-][A-Za-z0-9._~-]{0,254}")
URLS = [
    "http://x.example/photo.JPG?size=1",
    "http://x.example/",
    "http://x.example",
    "http://x.example/a/..%2f..%2fetc/passwd",
    "http://x.example/%00%0a.png",
    "http://x.example/" + "n" * 5000 + ".png",
    "http://x.example/.htaccess",
    "http://x.example/ä ö.tar.gz",
    "http://[::1",
    "",
]
IDS = ["7", "..", ".", "a/b", "../../etc/passwd", "ä", "x" * 500, "~x", ".hidden", "a b", "a_b", " ", "con", "x.jpg", "\ud800"]


def test_names_stay_inside_and_apart() -> None:
    keys = [object_key(url, None) for url in URLS] + [object_key("http://x.example/p.jpg", name) for name in IDS]
    for key in keys:
        assert PLAIN.fullmatch(key), key
    assert len(set(keys)) == len(keys)


def test_names_are_stable_and_speaking() -> None:
    assert object_key("http://x.example/photo.JPG?size=1", None) == object_key("http://x.example/photo.JPG?size=1", None)
    assert re.fullmatch(r"[0-9a-f]{2}/photo~[0-9a-f]{16}\.jpg", object_key("http://x.example/photo.JPG?size=1", None))
    assert object_key("http://x.example/p.jpg", "cat-7").endswith("/cat-7.jpg")
    assert object_key("http://x.example/p.jpg", "cat-7.jpg").endswith("/cat-7.jpg")
    assert object_key("http://x.example/p.jpg", "cat-7")[:2] == object_key("http://y.example/q", "cat-7")[:2]


def test_a_record_without_a_url_is_a_fault_and_no_end(tmp_path: Path) -> None:
    name = write(tmp_path / "x.csv", f"id,url\n1,{A}\n2, \n3\n4,{B}\n")
    items = read(Source(name))
    assert [item.url for item in items] == [A, "", "", B]
    assert [item.fault for item in items] == [
        None,
        f"{name}:3: the column url holds no URL",
        f"{name}:4: the column url holds no URL",
        None,
    ]


def test_a_torn_gzip_file_gives_what_it_holds_and_is_named(tmp_path: Path) -> None:
    path = tmp_path / "x.txt.gz"
    path.write_bytes(gzip.compress("".join(f"http://a.example/{os.urandom(8).hex()}\n" for _ in range(10_000)).encode())[:-1000])
    taken: list[str] = []
    with pytest.raises(UsageError, match=r"x\.txt\.gz cannot be read to its end"):  # noqa: PT012
        for item in Source(str(path)).items():
            assert isinstance(item, str)
            taken.append(item)
    assert len(taken) > 5000


def test_bytes_that_are_no_text_are_percent_encoded(tmp_path: Path) -> None:
    path = tmp_path / "x.txt"
    path.write_bytes(b"http://a.example/\xff?x=%20\n")
    assert [item.url for item in read(Source(str(path)))] == ["http://a.example/%FF?x=%20"]


def test_parquet_is_read_without_its_other_columns(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    path = tmp_path / "x.parquet"
    table = pa.table({"photo": [A, None, B], "sku": [1, 2, 3], "headers": [{"x-a": "1"}] * 3, "blob": [b"x" * 100_000] * 3})
    pq.write_table(table, path)
    source = Source(str(path), "photo", "sku")
    assert source.count() == 3
    items = read(source)
    assert [(item.url, item.id, dict(item.headers)) for item in items] == [
        (A, "1", {"x-a": "1"}),
        ("", "2", {"x-a": "1"}),
        (B, "3", {"x-a": "1"}),
    ]
    with pytest.raises(UsageError, match="no column url; there are photo, sku, headers, blob"):
        read(Source(str(path)))


def test_files_that_cannot_be_opened_are_told_at_once(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="there is no file"):
        Source(str(tmp_path / "missing")).check()
    with pytest.raises(UsageError, match="cannot be read: Is a directory"):
        Source(str(tmp_path)).check()


def test_a_pipe_is_not_waited_for() -> None:
    reader, writer = os.pipe()
    try:
        read = lines(reader)
        assert next(read) is NOT_YET
        os.write(writer, b"\xef\xbb\xbfone\ntw")
        assert next(read) == "one\n"
        assert next(read) is NOT_YET
        os.write(writer, b"o\n\xff")
        assert next(read) == "two\n"
        assert next(read) is NOT_YET
        os.close(writer)
        writer = -1
        assert list(read) == ["\udcff"]
    finally:
        os.close(reader)
        if writer >= 0:
            os.close(writer)


@pytest.mark.parametrize("cut", [0, 10])
def test_a_packed_pipe_is_unpacked_as_it_comes(cut: int) -> None:
    reader, writer = os.pipe()
    packed = b"".join(gzip.compress(f"{number}\n".encode()) for number in range(100))
    os.write(writer, packed[: len(packed) - cut])
    os.close(writer)
    read = lines(reader)
    try:
        if cut:
            with pytest.raises(EOFError):
                list(read)
        else:
            assert list(read) == [f"{number}\n" for number in range(100)]
    finally:
        os.close(reader)
