"""The library in this process, against the bundled origin: lazy input, early ends, errors of the caller, several engines at once."""

from __future__ import annotations

import asyncio
import os
import pickle  # noqa: TID251
import resource
import socket
import threading
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest
import uvloop
from obstore.store import LocalStore, MemoryStore

import fetchbox
import fetchbox.library
from fetchbox import DownloadTask, Outcome
from fetchbox.config.fetching import Fetch
from fetchbox.errors import ConfigError, FetchboxError, StoreError, UsageError
from fetchbox.given import Options
from fetchbox.library import AHEAD_LIMIT
from fetchbox.testing import Origin, content, content_sha256, running_origin, wait_until, wait_until_async

LOOPBACK = ["127.0.0.0/8"]
RESOURCE_KEYS = {
    *("id", "index", "url", "final_url", "state", "code", "message", "http_status", "size", "sha256", "content_type", "sniffed_type"),
    *("storage_url", "etag", "last_modified", "attempts", "proxy", "timings", "generation"),
}
Runner = Callable[[Coroutine[Any, Any, None]], None]
RUNNERS = pytest.mark.parametrize("run", [asyncio.run, uvloop.run], ids=["asyncio", "uvloop"])


@pytest.fixture(scope="module")
def server() -> Iterator[Origin]:
    with running_origin() as origin:
        yield origin


@pytest.fixture
def origin(server: Origin) -> Origin:
    server.counts.clear()
    return server


def stored(outcome: Outcome) -> bytes:
    assert outcome.storage_url is not None
    return Path(unquote(urlsplit(outcome.storage_url).path)).read_bytes()


def threads() -> int:
    """Threads of engines in this process."""
    names = [Path(f"/proc/self/task/{task}/comm") for task in os.listdir("/proc/self/task")]
    return sum(name.exists() and name.read_text().startswith("fetchbox-engine") for name in names)


def test_an_outcome_has_everything_and_survives_pickling(origin: Origin, tmp_path: Path) -> None:
    url = origin.url("/redirect-to?url=/bytes/3000?seed=1")
    (outcome,) = fetchbox.fetch([DownloadTask(url, id="a/b", key="x/y.bin")], store=tmp_path, allow_networks=LOOPBACK)
    assert set(outcome.as_dict()) == RESOURCE_KEYS
    assert (outcome.id, outcome.index, outcome.url, outcome.state, outcome.code) == ("a/b", 0, url, "stored", None)
    assert (outcome.size, outcome.sha256, outcome.http_status, outcome.attempts) == (3000, content_sha256(1, 3000), 200, 1)
    assert outcome.final_url == origin.url("/bytes/3000?seed=1")
    assert outcome.etag == '"1-3000"'
    assert outcome.storage_url == (tmp_path / "x/y.bin").as_uri()
    assert set(outcome.timings) == {"dns", "connect", "tls", "first_byte", "body", "store", "queued"}
    assert outcome.timings["first_byte"] > 0
    copy = pickle.loads(pickle.dumps(outcome))
    assert copy.as_dict() == outcome.as_dict()
    assert {name: getattr(copy, name) for name in RESOURCE_KEYS} == outcome.as_dict()


def test_any_fetch_key_is_a_keyword() -> None:
    assert set(Options.__annotations__) == set(Fetch.model_fields) | {"memory_budget", "transport", "auth", "known_hosts"}
    for name, field in Fetch.model_fields.items():
        given = {name: field.default}
        fetchbox.fetch([], **given)


def test_store_may_be_a_path_a_url_or_an_obstore_store(origin: Origin, tmp_path: Path) -> None:
    url = origin.url("/bytes/100?seed=1")
    kinds: list[Callable[[Path], Any]] = [str, Path, Path.as_uri, lambda path: LocalStore(path, mkdir=True)]
    for number, make in enumerate(kinds):
        place = tmp_path / str(number)
        (outcome,) = fetchbox.fetch([url], store=make(place), allow_networks=LOOPBACK)
        assert outcome.state == "stored", outcome.message
        (found,) = [path for path in place.rglob("*") if path.is_file()]
        assert found.read_bytes() == content(1, 100)


def test_the_environment_counts_unless_a_configuration_is_given(origin: Origin, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "fetchbox.toml").write_text("[fetch]\nallow_networks = ['127.0.0.0/8']\n")
    monkeypatch.chdir(tmp_path)
    url = origin.url("/bytes/100")

    def code(**options: Any) -> str | None:
        (outcome,) = fetchbox.fetch([url], store=tmp_path / "out", **options)
        return outcome.code

    # A file that happens to lie there is not read.
    assert code() == "DOWNLOAD_BLOCKED_ADDRESS"
    monkeypatch.setenv("FETCHBOX__FETCH__ALLOW_NETWORKS", '["127.0.0.0/8"]')
    assert code() is None
    assert code(max_bytes=99) == "DOWNLOAD_TOO_LARGE"
    assert code(config={"fetch": {}}) == "DOWNLOAD_BLOCKED_ADDRESS"
    assert code(config=tmp_path / "fetchbox.toml") is None
    assert code(config={"fetch": {"allow_networks": LOOPBACK, "max_bytes": 99}}, max_bytes=100) is None


@pytest.mark.parametrize(
    ("arguments", "kind", "named"),
    [
        ({"max_byte": 1}, UsageError, "max_bytes"),
        ({"concurency": 1}, UsageError, "concurrency"),
        ({"nonsense": 1}, UsageError, "nonsense"),
        ({"max_bytes": "lots"}, ConfigError, "max_bytes"),
        ({"max_attempts": 0}, ConfigError, "max_attempts"),
        ({"concurrency": 0}, ConfigError, "concurrency"),
        ({"allow_networks": ["10.0.0.0/33"]}, ConfigError, "10.0.0.0/33"),
        ({"allow_networks": "10.0.0.0/8"}, ConfigError, "allow_networks"),
        ({"store": b"out"}, UsageError, "bytes"),
        ({"store": ""}, UsageError, "empty"),
        ({"store": None}, UsageError, "NoneType"),
        ({"store": "ftp://host/x"}, (StoreError, UsageError), "ftp"),
        ({"store": MemoryStore()}, (StoreError, UsageError), "MemoryStore"),
        ({"store": 5}, (StoreError, UsageError), "int"),
        ({"store": "/proc/nowhere"}, StoreError, "/proc/nowhere"),
        ({"config": 5}, UsageError, "config"),
        ({"config": {"fetch": {"max_byte": 1}}}, ConfigError, "max_bytes"),
        ({"config": Path("/no/such/file.toml")}, (ConfigError, UsageError), "/no/such/file.toml"),
        ({"urls": "http://a.example/"}, UsageError, "one string"),
        ({"urls": None}, UsageError, "NoneType"),
        ({"urls": [b"http://a.example/"]}, UsageError, "item 0 is a bytes"),
        ({"urls": ["http://a.example/", None]}, UsageError, "item 1 is a NoneType"),
        ({"urls": [DownloadTask(5)]}, UsageError, "item 0: Expected `str`, got `int`"),  # type: ignore[arg-type]
        ({"urls": [DownloadTask("http://a/", id=7)]}, UsageError, "got `int` - at `$.id`"),  # type: ignore[arg-type]
        ({"urls": [DownloadTask("http://a/", headers={"x": 1})]}, UsageError, "$.headers"),  # type: ignore[dict-item]
        ({"urls": [DownloadTask("http://a/", deadline="soon")]}, UsageError, "item 0: the deadline 'soon'"),
        ({"urls": [DownloadTask("http://a/", deadline=datetime(2026, 1, 1))]}, UsageError, "no time zone"),  # noqa: DTZ001
    ],
)
def test_misuse_is_an_exception_that_names_what_is_wrong(
    arguments: dict[str, Any], kind: type[FetchboxError], named: str, tmp_path: Path
) -> None:
    with pytest.raises(kind) as caught:
        list(fetchbox.fetch(**{"urls": ["http://127.0.0.1:1/"], "store": tmp_path, **arguments}))
    assert named in str(caught.value)
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)


@pytest.mark.parametrize("url", ["", "nonsense", "ftp://a.example/x", "http://", "http://a b/", "http://u:p@a.example/", "http://\ud800/"])
def test_a_url_that_is_wrong_is_an_outcome(url: str, tmp_path: Path) -> None:
    (outcome,) = fetchbox.fetch([url], store=tmp_path)
    assert outcome.state == "failed"
    assert outcome.code in ("DOWNLOAD_BAD_URL", "DOWNLOAD_BAD_SCHEME"), outcome


def test_bytes_in_urls_that_are_no_text_are_percent_encoded(origin: Origin, tmp_path: Path) -> None:
    url = os.fsdecode(origin.url("/hostile/path/").encode() + b"\xff")
    (outcome,) = fetchbox.fetch([url], store=tmp_path, allow_networks=LOOPBACK)
    assert outcome.state == "stored"
    assert outcome.url == origin.url("/hostile/path/%FF")


def test_hints_and_deadlines_of_tasks_are_kept(origin: Origin, tmp_path: Path) -> None:
    url = origin.url("/bytes/1000?seed=1")
    now = datetime.now(UTC)
    tasks = [
        DownloadTask(url, id="good", tags={"checksum_hint": f"sha256:{content_sha256(1, 1000)}", "expected_size": "1000"}),
        DownloadTask(url, id="digest", tags={"checksum_hint": f"sha256:{'0' * 64}"}),
        DownloadTask(url, id="size", tags={"expected_size": "999"}),
        DownloadTask(url, id="later", deadline=now + timedelta(hours=1)),
        DownloadTask(url, id="over", deadline=(now - timedelta(seconds=1)).isoformat()),
        DownloadTask(url, id="long over", deadline=1.0),
    ]
    codes = {outcome.id: outcome.code for outcome in fetchbox.fetch(tasks, store=tmp_path, allow_networks=LOOPBACK)}
    expired = "DOWNLOAD_EXPIRED"
    assert codes == {
        "good": None,
        "digest": "DOWNLOAD_CHECKSUM_MISMATCH",
        "size": "DOWNLOAD_SIZE_MISMATCH",
        "later": None,
        "over": expired,
        "long over": expired,
    }
    assert origin.count("/bytes/1000") == 4


def test_input_is_taken_lazily(tmp_path: Path) -> None:
    taken = 0

    def urls() -> Iterator[str]:
        nonlocal taken
        while True:
            taken += 1
            yield "http://127.0.0.1:1/"

    run = fetchbox.fetch(urls(), store=tmp_path, concurrency=100_000)
    assert taken == 0
    for seen in range(1, 100_001):
        next(run)
        assert taken - seen <= AHEAD_LIMIT
    run.close()


def test_a_slow_input_is_not_waited_for(origin: Origin, tmp_path: Path) -> None:
    """What came before a pause of the input is downloaded during it."""

    def urls() -> Iterator[str]:
        for number in range(3):
            yield origin.url(f"/bytes/10?seed={number}")
            wait_until(lambda: origin.count("/bytes/10") == number + 1, 10, what="the request of the URL before")  # noqa: B023

    outcomes = list(fetchbox.fetch(urls(), store=tmp_path, allow_networks=LOOPBACK))
    assert [outcome.state for outcome in outcomes] == ["stored"] * 3


@RUNNERS
def test_a_slow_async_input_is_not_waited_for(run: Runner, origin: Origin, tmp_path: Path) -> None:
    arrived = 0

    async def urls() -> AsyncIterator[str]:
        for number in range(30):
            yield origin.url(f"/bytes/10?seed={number}")
        await wait_until_async(lambda: arrived == 30, 10, what="the outcomes of everything so far")

    async def main() -> None:
        nonlocal arrived
        async for outcome in fetchbox.afetch(urls(), store=tmp_path, allow_networks=LOOPBACK, per_host_concurrency=64):
            assert outcome.state == "stored"
            arrived += 1

    run(main())
    assert arrived == 30


@RUNNERS
def test_an_input_may_say_that_it_has_nothing_yet(run: Runner, origin: Origin, tmp_path: Path) -> None:
    arrived: list[str] = []

    def urls() -> Iterator[str | fetchbox.library.Pause]:
        for number in range(3):
            yield origin.url(f"/bytes/10?seed={number}")
            while len(arrived) == number:
                yield fetchbox.NOT_YET

    for outcome in fetchbox.fetch(urls(), store=tmp_path, allow_networks=LOOPBACK):
        arrived.append(outcome.state)  # noqa: PERF401  (the input looks at it)

    async def main() -> None:
        async for outcome in fetchbox.afetch(urls(), store=tmp_path, allow_networks=LOOPBACK):
            arrived.append(outcome.state)  # noqa: PERF401

    assert arrived == ["stored"] * 3
    arrived.clear()
    run(main())
    assert arrived == ["stored"] * 3


@RUNNERS
def test_async_runs_give_every_outcome(run: Runner, origin: Origin, tmp_path: Path) -> None:
    async def main() -> None:
        tasks = [DownloadTask(origin.url(f"/bytes/1000?seed={i}"), id=str(1000 + i)) for i in range(500)]
        outcomes = [outcome async for outcome in fetchbox.afetch(tasks, store=tmp_path, allow_networks=LOOPBACK, per_host_concurrency=64)]
        assert sorted(outcome.index for outcome in outcomes) == list(range(500))
        assert all(stored(outcome) == content(int(outcome.id) - 1000, 1000) for outcome in outcomes)

    run(main())
    assert threads() == 0


def test_leaving_the_loop_ends_the_downloads(origin: Origin, tmp_path: Path) -> None:
    urls = [origin.url("/bytes/10"), *(origin.url("/hostile/no-headers") for _ in range(20))]
    for outcome in fetchbox.fetch(urls, store=tmp_path, allow_networks=LOOPBACK, per_host_concurrency=64):
        assert outcome.state == "stored"
        break
    assert threads() == 0
    wait_until(lambda: origin.open_connections == 0, 10, what="the end of all connections")
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == [Path(urlsplit(str(outcome.storage_url)).path).name]


@RUNNERS
def test_cancelling_a_task_ends_its_downloads(run: Runner, origin: Origin, tmp_path: Path) -> None:
    async def main() -> None:
        async def work() -> None:
            urls = [origin.url("/hostile/no-headers")] * 5
            async for _ in fetchbox.afetch(urls, store=tmp_path, allow_networks=LOOPBACK):
                raise AssertionError("nothing can come")

        task = asyncio.create_task(work())
        await wait_until_async(lambda: origin.count("/hostile/no-headers") > 0, 10, what="a request")
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await wait_until_async(lambda: threads() == 0, 10, what="the end of the engine")

    run(main())


@RUNNERS
def test_what_the_input_raises_is_raised(run: Runner, origin: Origin, tmp_path: Path) -> None:
    class BrokenError(Exception):
        pass

    def urls() -> Iterator[str]:
        yield from [origin.url("/bytes/10")] * 100
        raise BrokenError

    async def slowly() -> AsyncIterator[str]:
        for url in urls():
            yield url
            await asyncio.sleep(0)

    async def main() -> None:
        for source in (urls(), slowly()):
            with pytest.raises(BrokenError):
                async for _ in fetchbox.afetch(source, store=tmp_path, allow_networks=LOOPBACK):
                    pass

    with pytest.raises(BrokenError):
        list(fetchbox.fetch(urls(), store=tmp_path, allow_networks=LOOPBACK))
    run(main())
    assert threads() == 0


def test_several_engines_run_at_once(origin: Origin, tmp_path: Path) -> None:
    results: dict[int, list[str]] = {}

    def work(number: int) -> None:
        urls = (origin.url(f"/bytes/1000?seed={number}-{i}") for i in range(100))
        outcomes = fetchbox.fetch(urls, store=tmp_path / str(number), allow_networks=LOOPBACK)
        results[number] = [outcome.state for outcome in outcomes]

    workers = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
    assert results == {number: ["stored"] * 100 for number in range(4)}
    # Nested: one run's input is another run's outcomes.
    first = fetchbox.fetch([origin.url("/bytes/10?seed=n")], store=tmp_path / "a", allow_networks=LOOPBACK)
    second = fetchbox.fetch((outcome.final_url for outcome in first), store=tmp_path / "b", allow_networks=LOOPBACK)
    assert [outcome.state for outcome in second] == ["stored"]


def test_an_engine_serves_many_runs(origin: Origin, tmp_path: Path) -> None:
    with fetchbox.Engine(tmp_path, allow_networks=LOOPBACK, per_host_concurrency=2) as engine:
        for run in range(3):
            outcomes = list(engine.fetch(origin.url(f"/bytes/10?seed={run}-{i}") for i in range(10)))
            assert sorted(outcome.index for outcome in outcomes) == list(range(10))
        ports = {request.peer for request in list(origin.requests)[-30:]}
        assert len(ports) <= 2, "connections are kept from run to run"
        first = engine.fetch([origin.url("/bytes/10")] * 2)
        next(first)
        with pytest.raises(UsageError, match="busy"):
            next(engine.fetch([origin.url("/bytes/10")]))
        first.close()
        for outcome in engine.fetch([origin.url("/bytes/10"), *[origin.url("/hostile/no-headers")] * 3]):
            assert outcome.state == "stored"
            break
        (after,) = engine.fetch([origin.url("/bytes/11")])
        assert (after.state, after.size) == ("stored", 11)
    assert threads() == 0
    engine.close()
    with pytest.raises(UsageError, match="closed"):
        list(engine.fetch([origin.url("/bytes/10")]))


@RUNNERS
def test_an_engine_serves_coroutines_too(run: Runner, origin: Origin, tmp_path: Path) -> None:
    async def main() -> None:
        async with fetchbox.Engine(tmp_path, allow_networks=LOOPBACK) as engine:
            for size in (10, 20):
                assert [outcome.size async for outcome in engine.afetch([origin.url(f"/bytes/{size}")])] == [size]
            stopped = engine.afetch([origin.url("/bytes/10"), origin.url("/hostile/no-headers")])
            async for outcome in stopped:
                assert outcome.state == "stored"
                break
            await stopped.aclose()
            assert [outcome.size async for outcome in engine.afetch([origin.url("/bytes/30")])] == [30]

    run(main())
    assert threads() == 0


def test_a_run_that_is_never_started_owns_nothing(tmp_path: Path) -> None:
    before = len(os.listdir("/proc/self/fd"))
    runs = [fetchbox.fetch(["http://127.0.0.1:1/"], store=tmp_path / "out") for _ in range(10)]
    assert (threads(), len(os.listdir("/proc/self/fd"))) == (0, before)
    assert not (tmp_path / "out").exists()
    del runs


def test_descriptors_beyond_a_thousand_do_no_harm(origin: Origin, tmp_path: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard < 2048:
        pytest.skip("needs 2,048 descriptors")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, 2048), hard))
    held = [socket.socket() for _ in range(1100)]
    try:
        (outcome,) = fetchbox.fetch([origin.url("/bytes/10")], store=tmp_path, allow_networks=LOOPBACK)
        assert outcome.state == "stored"
    finally:
        for each in held:
            each.close()
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
