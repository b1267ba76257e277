"""`reuse` in the library: a second run transfers nothing that has not changed, and what is remembered survives crashes and nonsense."""

from __future__ import annotations

import asyncio
import sqlite3
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest
from obstore.store import MemoryStore

import fetchbox
from fetchbox import DownloadTask, Outcome
from fetchbox.errors import StoreError, UsageError
from fetchbox.memory import FILE, MOST, Memory
from fetchbox.testing import Origin, running_origin

LOOPBACK = ["127.0.0.0/8"]


@pytest.fixture
def origin() -> Iterator[Origin]:
    with running_origin() as server:
        yield server


def run(urls: Any, out: Any, **options: Any) -> list[Outcome]:
    outcomes = fetchbox.fetch(urls, store=out, allow_networks=LOOPBACK, reuse=True, **options)
    return sorted(outcomes, key=lambda outcome: outcome.index)


def states(outcomes: list[Outcome]) -> Counter[str]:
    return Counter(outcome.state for outcome in outcomes)


def test_a_second_run_asks_and_transfers_nothing(origin: Origin, tmp_path: Path) -> None:
    urls = [origin.url(f"/bytes/10240?seed={seed}") for seed in range(300)]
    first = run(urls, tmp_path / "out")
    sent = origin.bytes_sent
    second = run(urls, tmp_path / "out")
    assert (states(first), states(second)) == ({"stored": 300}, {"reused": 300})
    told = [(o.url, o.size, o.sha256, o.storage_url, o.etag, o.content_type, o.sniffed_type) for o in first]
    assert told == [(o.url, o.size, o.sha256, o.storage_url, o.etag, o.content_type, o.sniffed_type) for o in second]
    assert {(o.http_status, o.message) for o in second} == {(304, "not modified")}
    assert origin.bytes_sent - sent < sent / 30
    asked = origin.counts.total()
    third = run(urls, tmp_path / "out", reuse_max_age="1h")
    assert states(third) == {"reused": 300}
    assert origin.counts.total() == asked
    files = [path for path in (tmp_path / "out").rglob("*") if path.is_file()]
    assert len(files) == 301, "the objects and the file that remembers"


def test_afetch_and_a_kept_engine_remember_too(origin: Origin, tmp_path: Path) -> None:
    urls = [origin.url(f"/bytes/1000?seed={seed}") for seed in range(20)]

    async def both() -> list[str]:
        found = [o.state async for o in fetchbox.afetch(urls, store=tmp_path / "a", allow_networks=LOOPBACK, reuse=True)]
        return found + [o.state async for o in fetchbox.afetch(urls, store=tmp_path / "a", allow_networks=LOOPBACK, reuse=True)]

    assert asyncio.run(both()) == ["stored"] * 20 + ["reused"] * 20
    with fetchbox.Engine(tmp_path / "b", allow_networks=LOOPBACK, reuse=True) as engine:
        # Not written yet, and known all the same.
        assert [states(list(engine.fetch(urls))) for _ in range(2)] == [{"stored": 20}, {"reused": 20}]


def test_what_is_gone_or_changed_or_asked_otherwise_is_fetched(origin: Origin, tmp_path: Path) -> None:
    url = origin.url("/bytes/1000?seed=1")
    [first] = run([url], tmp_path)
    assert first.storage_url is not None
    path = Path(unquote(urlsplit(first.storage_url).path))
    path.write_bytes(b"x" * 1000)
    assert states(run([url], tmp_path)) == {"stored": 1}
    path.unlink()
    assert states(run([url], tmp_path)) == {"stored": 1}
    assert states(run([url], tmp_path)) == {"reused": 1}
    # Under another name the file is the same.
    [named] = run([DownloadTask(url, key="elsewhere/x")], tmp_path)
    assert (named.state, (tmp_path / "elsewhere" / "x").stat().st_nlink) == ("reused", 2)
    # Another question, whose answer takes the place of the first one's: that is noticed.
    assert states(run([DownloadTask(url, headers={"cookie": "a=b"})], tmp_path)) == {"stored": 1}
    path.unlink()
    assert states(run([url], tmp_path)) == {"reused": 1}, "under its other name it is still there"
    assert path.stat().st_nlink == 2


def test_a_run_that_is_left_early_remembers_what_it_had(origin: Origin, tmp_path: Path) -> None:
    urls = [origin.url(f"/bytes/1000?seed={seed}") for seed in range(200)]
    outcomes = fetchbox.fetch(urls, store=tmp_path, allow_networks=LOOPBACK, reuse=True, concurrency=2)
    early = [next(outcomes) for _ in range(50)]
    outcomes.close()
    again = {outcome.url: outcome.state for outcome in run(urls, tmp_path)}
    assert all(again[outcome.url] == "reused" for outcome in early)


def test_a_bucket_wants_a_file_named(origin: Origin, tmp_path: Path) -> None:
    url, store = origin.url("/bytes/1000?seed=1"), MemoryStore()
    with pytest.raises(UsageError, match="reuse_file"):
        fetchbox.fetch([url], store="s3://bucket/x", reuse=True)
    with pytest.raises(UsageError, match="reuse=True"):
        fetchbox.fetch([url], store=tmp_path, reuse_file=tmp_path / "remembered.db")
    with pytest.raises(UsageError, match="MemoryStore"):
        list(fetchbox.fetch([url], store=store, reuse=True, reuse_file=tmp_path / "remembered.db"))
    run([url], tmp_path / "out", reuse_file=tmp_path / "sub" / "remembered.db")
    assert (tmp_path / "sub" / "remembered.db").stat().st_mode & 0o777 == 0o600, "URLs may be signed"
    assert not (tmp_path / "out" / FILE).exists()


def test_a_file_that_is_no_memory_is_named(tmp_path: Path) -> None:
    (tmp_path / FILE).write_bytes(b"no database, but long enough to look like one could be in here" * 20)
    with pytest.raises(StoreError, match=FILE.replace(".", r"\.")):
        run(["http://127.0.0.1:1/"], tmp_path)


def test_what_was_not_written_is_asked_again(tmp_path: Path) -> None:
    memory = Memory(tmp_path / "m")
    memory.keep([(b"a", b"1")])
    assert memory.known([b"a", None, b"b"])[b"a"][0] == b"1"
    # Another process sees what is written, and this one goes on beside it.
    other = Memory(tmp_path / "m")
    assert other.known([b"a"]) == {}
    memory.flush()
    value, age = other.known([b"a", b"a"])[b"a"]
    assert (value, 0 <= age < 60_000) == (b"1", True)
    other.keep([(b"a", b"2")])
    other.close()
    assert memory.known([b"a"])[b"a"][0] == b"2"
    memory.keep((index.to_bytes(4, "big"), b"v") for index in range(MOST))
    assert len(Memory(tmp_path / "m").known(index.to_bytes(4, "big") for index in range(MOST))) == MOST
    memory.close()
    memory.close()


def test_ages_follow_no_clock_that_was_set_back(tmp_path: Path) -> None:
    memory = Memory(tmp_path / "m")
    memory.keep([(b"a", b"1")])
    memory.close()
    with sqlite3.connect(tmp_path / "m") as connection:
        connection.execute("UPDATE urls SET at = at + 10000000")
    connection.close()
    memory = Memory(tmp_path / "m")
    assert memory.known([b"a"])[b"a"][1] > 1 << 60
    memory.close()


def test_a_file_that_fails_later_is_warned_of_and_the_run_goes_on(origin: Origin, tmp_path: Path) -> None:
    urls = [origin.url(f"/bytes/100?seed={seed}") for seed in range(10)]
    with fetchbox.Engine(tmp_path, allow_networks=LOOPBACK, reuse=True) as engine:
        with sqlite3.connect(tmp_path / FILE) as connection:
            connection.execute("DROP TABLE urls")
        connection.close()
        with pytest.warns(RuntimeWarning, match="nothing is remembered"):
            assert states(list(engine.fetch(urls))) == {"stored": 10}
