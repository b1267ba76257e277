"""The library: download any iterable of URLs into a store, outcomes as they finish. No service, no files of its own.

    for outcome in fetchbox.fetch(urls, store="out/"):
        print(outcome.url, outcome.state, outcome.size, outcome.sha256)

Objects are named by their `key`, by `storage.key_template`, or after their id or URL (`ab/photo~1f2e….jpg`).
Input is consumed lazily and never more than 10,000 tasks ahead of the outcomes. A failed download is an outcome; exceptions are for misuse
and broken stores, and what the input raises is raised at once.
"""

from __future__ import annotations

import contextlib
import enum
import json
import os
import select
import time
from collections.abc import AsyncGenerator, AsyncIterable, Generator, Iterable, Iterator, Mapping
from itertools import islice
from pathlib import Path
from types import TracebackType
from urllib.parse import unquote, urlsplit

from fetchbox import _core
from fetchbox._core import CoreError, Outcome, OutcomeBatch
from fetchbox.errors import ConfigError, StoreError, UsageError
from fetchbox.plain import plain_fetch, plain_options

TYPE_CHECKING = False
if TYPE_CHECKING:
    # `fetch` and the command line do without all of these: each takes as long to load as hundreds of small downloads.
    import asyncio
    from typing import Any, Unpack

    from obstore.store import ObjectStore

    from fetchbox.config import Config
    from fetchbox.curl.transport import CurlThread
    from fetchbox.given import Options
    from fetchbox.manifest import DownloadTask, Resource
    from fetchbox.memory import Memory

    Settings = Config | Mapping[str, Any] | Path
    """A configuration: checked already, as nested dictionaries, or a TOML file."""
    Task = str | DownloadTask | Resource
    """What may be downloaded: a URL, or a task with a name, headers and so on of its own."""

AHEAD_LIMIT = 10_000
"""Most tasks taken from the input and not given back as outcomes."""
AHEAD = 2048
"""As many are enough while the engine's slots are busy. What is not taken needs no memory, and what waits long is in no cache when its turn
comes."""
GATHER = 512
"""With so many under way, outcomes come one after the other: they are taken together."""
GATHER_MS = 3
CHUNK = 256
"""Most tasks handed to the engine at once."""
DRAIN_LIMIT = 1024
WAIT_MS = 1000
CLOSE_SECONDS = 5.0
"""How long open transfers may take to end when the iteration is left."""
PAUSE_MS = 50
"""How long an input that has said NOT_YET is left alone."""
JOB = "fetch"
"""The job that all of a library's tasks belong to, in the engine's eyes."""

SCHEMES = ("file", "s3", "gs", "az")
STORES = "give a directory, a URL, or obstore's S3Store, GCSStore, AzureStore or LocalStore"


class Pause(enum.Enum):
    """What an input yields instead of waiting."""

    NOT_YET = enum.auto()


NOT_YET = Pause.NOT_YET
"""Yielded by an input that has nothing at the moment: outcomes are given out meanwhile, and it is asked again soon."""


if TYPE_CHECKING:
    _Input = Iterator[Task | Pause] | AsyncIterable[Task | Pause]


def fetch(
    urls: Iterable[Task | Pause],
    *,
    store: str | os.PathLike[str] | ObjectStore = "fetched",
    config: Settings | None = None,
    concurrency: int | None = None,
    reuse_file: str | os.PathLike[str] | None = None,
    **options: Unpack[Options],
) -> Generator[Outcome, None, None]:
    """Downloads `urls` and yields an Outcome for each, in the order in which they finish.

    `urls` holds URLs or DownloadTasks. `store` is a directory, a URL (`s3://bucket/prefix`, `file:///…`) or an obstore store. `options` are
    keys of `[fetch]` (`max_bytes="50MB"`, `allow_networks=[…]`, …), laid over `config` or, without it, over `FETCHBOX__FETCH__*` in the
    environment. With `reuse=True` what has not changed since an earlier run is `reused`; what is remembered of that lies in `reuse_file`,
    for a directory by default in a hidden file there. Raises UsageError or ConfigError at once, StoreError before the first download.
    Leaving the loop early ends the downloads.
    """
    return _singly(batches(urls, store=store, config=config, concurrency=concurrency, reuse_file=reuse_file, **options))


def afetch(
    urls: Iterable[Task | Pause] | AsyncIterable[Task | Pause],
    *,
    store: str | os.PathLike[str] | ObjectStore = "fetched",
    config: Settings | None = None,
    concurrency: int | None = None,
    reuse_file: str | os.PathLike[str] | None = None,
    **options: Unpack[Options],
) -> AsyncGenerator[Outcome, None]:
    """`fetch` for asyncio and uvloop; `urls` may be an async iterable as well. Cancelling the task or leaving the loop ends the
    downloads."""
    engine = Engine(store, config=config, concurrency=concurrency, reuse_file=reuse_file, **options)
    return _aonce(engine, urls if isinstance(urls, AsyncIterable) else _iterator(urls))


def batches(
    urls: Iterable[Task | Pause],
    *,
    store: str | os.PathLike[str] | ObjectStore = "fetched",
    config: Settings | None = None,
    concurrency: int | None = None,
    reuse_file: str | os.PathLike[str] | None = None,
    **options: Unpack[Options],
) -> Generator[OutcomeBatch, None, None]:
    """`fetch` for those who only count: what finished together, without an object for each outcome."""
    engine = Engine(store, config=config, concurrency=concurrency, reuse_file=reuse_file, **options)
    return _once(engine, _iterator(urls))


def _once(engine: Engine, source: Iterator[Task | Pause]) -> Generator[OutcomeBatch, None, None]:
    # Everything native is made on the first step and closed by the same generator: an iterator that is never started owns nothing.
    with engine:
        yield from engine._run(source)


def _singly(finished: Generator[OutcomeBatch, None, None]) -> Generator[Outcome, None, None]:
    with contextlib.closing(finished):
        for batch in finished:
            yield from batch.outcomes()


async def _aonce(engine: Engine, urls: _Input) -> AsyncGenerator[Outcome, None]:
    async with engine:
        # Closed by hand: an async generator that is only dropped ends some time later, after the engine.
        run = engine._arun(urls)
        try:
            async for outcome in run:
                yield outcome
        finally:
            await run.aclose()


class Engine:
    """The engine behind `fetch`, to keep: its connections, name lookups and what it knows of slow hosts serve one run after the other.

        with fetchbox.Engine("out/", concurrency=512, max_bytes="50MB") as engine:
            for outcome in engine.fetch(urls): ...
            async for outcome in engine.afetch(more): ...

    Takes what `fetch` takes. One run at a time; for several at once make several engines. It does not survive `fork`.
    """

    def __init__(
        self,
        store: str | os.PathLike[str] | ObjectStore = "fetched",
        *,
        config: Settings | None = None,
        concurrency: int | None = None,
        reuse_file: str | os.PathLike[str] | None = None,
        **options: Unpack[Options],
    ) -> None:
        url, self._store = store_of(store)
        self._options = _engine_options(config, concurrency, {**options})
        self._options["storage"]["url"] = url
        reuses = bool(self._options["fetch"].get("reuse"))
        if reuse_file is not None and not reuses:
            raise UsageError("reuse_file says where to remember, and nothing is remembered without reuse=True")
        self._memory_path = _memory_path(url, reuse_file) if reuses else None
        self._memory: Memory | None = None
        # The same input finds its objects again, and two runs into one directory do not meet by their counting.
        self._named = self._options["storage"].get("key_template") is None
        self._chunk = min(CHUNK, max(int(self._options["concurrency"]), 1))
        self._ahead = 0
        self._window = self._first_window = min(max(AHEAD, 4 * int(self._options["concurrency"])), AHEAD_LIMIT)
        self._next_index = 0
        self._busy = False
        self._closed = False
        self._pid = 0
        self._native: _core.Engine | None = None
        self._curl: CurlThread | None = None

    def __enter__(self) -> Engine:
        self._start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    async def __aenter__(self) -> Engine:
        self._start()
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        import asyncio

        # Ending open transfers may take a moment that the loop should not have to wait.
        await asyncio.get_running_loop().run_in_executor(None, self.close)

    def close(self) -> None:
        """Ends open transfers and frees everything, within a few seconds. Harmless when it is closed already."""
        self._closed = True
        native, self._native = self._native, None
        curl, self._curl = self._curl, None
        # After a fork its threads are the parent's: there is nothing here that could be closed.
        if native is not None and self._pid == os.getpid():
            if curl is not None:
                curl.close()
            native.close(CLOSE_SECONDS)
            if self._memory is not None:
                self._memory.close()

    def fetch(self, urls: Iterable[Task | Pause]) -> Generator[Outcome, None, None]:
        """Downloads `urls` as `fetchbox.fetch` does. Leaving the loop early ends this run's downloads; the engine can be used again."""
        return self._kept(_iterator(urls))

    def afetch(self, urls: Iterable[Task | Pause] | AsyncIterable[Task | Pause]) -> AsyncGenerator[Outcome, None]:
        """The same for asyncio and uvloop."""
        return self._akept(urls if isinstance(urls, AsyncIterable) else _iterator(urls))

    def _kept(self, source: Iterator[Task | Pause]) -> Generator[Outcome, None, None]:
        self._start()
        try:
            yield from _singly(self._run(source))
        finally:
            self._abandon()

    async def _akept(self, urls: _Input) -> AsyncGenerator[Outcome, None]:
        import asyncio

        self._start()
        run = self._arun(urls)
        try:
            async for outcome in run:
                yield outcome
        finally:
            await run.aclose()
            await asyncio.get_running_loop().run_in_executor(None, self._abandon)

    def _start(self) -> None:
        if self._closed:
            raise UsageError("this engine is closed; make a new one")
        if self._native is not None:
            return
        try:
            self._native = _core.Engine(json.dumps(self._options).encode(), self._store)
        except CoreError as error:
            if error.code == "store":
                # Which of obstore's stores are taken, only the native module knows.
                raise UsageError(f"store is a {type(self._store).__name__}; {STORES}") from error
            if error.kind == "store":
                raise StoreError(error.message) from error
            raise ConfigError.single(error.code, error.message) from error
        self._pid = os.getpid()
        if self._memory_path is not None:
            from fetchbox.memory import Memory

            try:
                self._memory = Memory(self._memory_path)
            except StoreError:
                self.close()
                raise
        if any(kind.get("transport") == "curl" for kind in self._options.get("job_types", {}).values()):
            from fetchbox.curl.transport import CurlThread

            self._curl = CurlThread(self._native)

    def _begin(self) -> None:
        if self._busy:
            raise UsageError("this engine is busy with another run; finish that one first, or make a second engine")
        self._busy = True
        self._next_index = 0
        self._window = self._first_window

    @property
    def _engine(self) -> _core.Engine:
        if self._native is None:
            raise UsageError("this engine is closed; make a new one")
        if self._pid != os.getpid():
            raise UsageError("this engine was started before fork(); make it in the child, or start children by spawn")
        return self._native

    @property
    def _wants_more(self) -> bool:
        """Whether another chunk stays within the window ahead. It grows to the limit while slots stand free: tasks of bad hosts wait in it
        for their time, and those of good ones have to find room beside them."""
        if self._is_full and self._window < AHEAD_LIMIT and self._engine.has_room():
            self._window = min(self._window + self._chunk, AHEAD_LIMIT)
        return not self._is_full

    @property
    def _is_full(self) -> bool:
        return self._ahead + self._chunk > self._window

    @property
    def _next_chunk(self) -> int:
        """How many tasks to collect before the engine gets them: few at first, so that a slow input is not waited for."""
        return min(max(self._ahead // 4, 1), self._chunk)

    def _run(self, source: Iterator[Task | Pause]) -> Generator[OutcomeBatch, None, None]:
        self._begin()
        try:
            finished = select.poll()
            finished.register(self._engine.fileno(), select.POLLIN)
            pause = select.poll()
            exhausted = False
            while True:
                paused = False
                while not exhausted and not paused and self._wants_more:
                    size = self._next_chunk
                    chunk: list[Task] = []
                    for task in islice(source, size):
                        if task is NOT_YET:
                            paused = True
                            break
                        chunk.append(task)
                    exhausted = not paused and len(chunk) < size
                    self._submit(chunk)
                    if finished.poll(0):
                        break
                batch = self._drain()
                if len(batch):
                    yield batch
                    continue
                if exhausted and self._ahead == 0:
                    return
                if paused:
                    finished.poll(PAUSE_MS)
                elif exhausted or self._is_full:
                    if self._ahead > GATHER:
                        pause.poll(GATHER_MS)
                    finished.poll(WAIT_MS)
        finally:
            self._busy = False

    async def _arun(self, urls: _Input) -> AsyncGenerator[Outcome, None]:
        import asyncio

        self._begin()
        loop = asyncio.get_running_loop()
        descriptor = self._engine.fileno()
        wake, room = asyncio.Event(), asyncio.Event()
        taken: list[Task] = []

        def finished() -> None:
            # The descriptor stays readable until the engine is drained: watched meanwhile it would keep the loop spinning.
            loop.remove_reader(descriptor)
            wake.set()

        reader = asyncio.ensure_future(self._read(urls, taken, wake, room))
        reader.add_done_callback(lambda _: wake.set())
        try:
            while True:
                wake.clear()
                outcomes = self._drain().outcomes()
                loop.add_reader(descriptor, finished)
                if taken:
                    self._submit(taken)
                    taken.clear()
                if self._wants_more:
                    room.set()
                for outcome in outcomes:
                    yield outcome
                if reader.done():
                    reader.result()
                    if self._ahead == 0 and not taken:
                        return
                if not outcomes:
                    try:
                        async with asyncio.timeout(WAIT_MS / 1000):
                            await wake.wait()
                    except TimeoutError:
                        pass
        finally:
            self._busy = False
            loop.remove_reader(descriptor)
            reader.cancel()
            await asyncio.gather(reader, return_exceptions=True)

    async def _read(self, urls: _Input, taken: list[Task], wake: asyncio.Event, room: asyncio.Event) -> None:
        """Takes tasks from the input for as long as there is room for them; what it has taken when it pauses is started."""

        import asyncio

        async def pause() -> None:
            wake.set()
            room.clear()
            await room.wait()

        if isinstance(urls, AsyncIterable):
            async for task in urls:
                if task is NOT_YET:
                    continue
                taken.append(task)
                wake.set()
                if len(taken) >= self._chunk:
                    await pause()
        else:
            for task in urls:
                if task is NOT_YET:
                    wake.set()
                    await asyncio.sleep(PAUSE_MS / 1000)
                    continue
                taken.append(task)
                if len(taken) >= self._next_chunk:
                    await pause()

    def _submit(self, tasks: list[Task]) -> None:
        """Starts these tasks; their index is their place in the input."""
        if not tasks:
            return
        started = self._submit_urls(tasks) if self._memory is None and set(map(type, tasks)) == {str} else None
        if started is None:
            from fetchbox import given

            given.check(tasks, self._next_index)
            try:
                started = self._start_tasks(given.encode(tasks))
            except (TypeError, UnicodeEncodeError, CoreError):
                started = self._start_tasks(given.encode_checked(tasks, self._next_index))
        self._next_index += len(tasks)
        self._ahead += started

    def _submit_urls(self, urls: list[Any]) -> int | None:
        """The same for bare URLs; None when one of them is no Unicode."""
        try:
            return self._engine.submit_urls(urls, self._next_index, self._named)
        except UnicodeEncodeError:
            return None

    def _start_tasks(self, encoded: bytes) -> int:
        if self._memory is None:
            return self._engine.submit_tasks(encoded, self._next_index, self._named)
        names = self._engine.prepare_tasks(encoded, self._next_index, self._named)
        return self._engine.submit_prepared(self._memory.known(names))

    def _drain(self) -> OutcomeBatch:
        """The outcomes that wait, at most DRAIN_LIMIT."""
        batch = self._engine.drain(DRAIN_LIMIT)
        self._ahead -= len(batch)
        if self._memory is not None:
            self._memory.keep(batch.remembered())
        return batch

    def _abandon(self) -> None:
        """Ends what the last run left under way. An engine that cannot do that in time is closed."""
        if self._ahead == 0 or self._native is None or self._pid != os.getpid():
            return
        finished = select.poll()
        finished.register(self._native.fileno(), select.POLLIN)
        self._native.cancel(JOB)
        limit = time.monotonic() + CLOSE_SECONDS
        while self._ahead > 0 and (left := limit - time.monotonic()) > 0:
            if not len(self._drain()):
                finished.poll(min(left * 1000, WAIT_MS))
        if self._ahead > 0:
            self.close()


def _engine_options(config: Settings | None, concurrency: int | None, fetch: dict[str, Any]) -> dict[str, Any]:
    plain = None
    if config is None:
        plain = plain_fetch(fetch, os.environ)
    elif isinstance(config, Mapping) and config.keys() <= {"fetch"}:
        given = config.get("fetch", {})
        plain = plain_fetch({**given, **fetch}, {}) if isinstance(given, Mapping) else None
    if plain is not None and (options := plain_options(plain, concurrency)) is not None:
        return options
    from fetchbox.config import engine_options, load_library

    if concurrency is not None:
        fetch = {**fetch, "concurrency": concurrency}
    return engine_options(load_library(config=config, **fetch), library=True)


def _memory_path(url: str, reuse_file: str | os.PathLike[str] | None) -> Path:
    if reuse_file is not None:
        return Path(os.fsdecode(reuse_file)).absolute()
    if not url.startswith("file:"):
        raise UsageError("with reuse, what is remembered for the next run is kept in a file beside the output: name one with reuse_file")
    from fetchbox.memory import FILE

    return Path(unquote(urlsplit(url).path)) / FILE


def _iterator(urls: Iterable[Task | Pause]) -> Iterator[Task | Pause]:
    if isinstance(urls, str | bytes):
        raise UsageError("urls is one string; give an iterable of URLs: [url]")
    try:
        return iter(urls)
    except TypeError:
        raise UsageError(f"urls is a {type(urls).__name__}; give an iterable of URLs or fetchbox.DownloadTasks") from None


def store_of(store: Any) -> tuple[str, Any]:
    """The store's URL for the engine, or the obstore store itself. UsageError for anything else."""
    if not isinstance(store, str | os.PathLike):
        if not any(base.__module__.startswith("obstore") for base in type(store).__mro__):
            raise UsageError(f"store is a {type(store).__name__}; {STORES}")
        return "", store
    text = os.fspath(store)
    if isinstance(text, bytes):
        raise UsageError("store is a path of bytes; give it as str or Path")
    if not text:
        raise UsageError(f"store is empty; {STORES}")
    if "://" not in text:
        return Path(text).resolve().as_uri(), None
    scheme = text.partition("://")[0].lower()
    if scheme not in SCHEMES:
        raise UsageError(f"there is no store {scheme}://; the schemes are {', '.join(SCHEMES)}")
    return text, None
