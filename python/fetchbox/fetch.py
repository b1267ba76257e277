"""The library: download any iterable of URLs into a store, outcomes as they finish. No service, no files of its own.

    for outcome in fetchbox.fetch(urls, store="out/"):
        print(outcome.url, outcome.state, outcome.size, outcome.sha256)

Objects are named by their `key`, by `storage.key_template`, or after their id or URL (`ab/photo~1f2e….jpg`).
Input is consumed lazily and never more than 10,000 tasks ahead of the outcomes. A failed download is an outcome; exceptions are for misuse
and broken stores.
"""

from __future__ import annotations

import contextlib
import os
import select
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Generator, Iterable, Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from fetchbox._core import CoreError, Engine, Outcome, OutcomeBatch
from fetchbox.errors import ConfigError, StoreError, UsageError
from fetchbox.manifest import DownloadTask, Resource
from fetchbox.plain import plain_fetch, plain_options

if TYPE_CHECKING:
    import asyncio

    from fetchbox.config import Config

AHEAD_LIMIT = 10_000
"""Most tasks taken from the input and not given back as outcomes."""
CHUNK = 256
"""Tasks handed to the engine at once."""
DRAIN_LIMIT = 1024
WAIT_MS = 1000
CLOSE_SECONDS = 5.0
"""How long open transfers may take to end when the iteration is left."""

Task = str | DownloadTask | Resource
_TASKS = (str, DownloadTask, Resource)
_encoder = msgspec.json.Encoder()


def fetch(
    urls: Iterable[Task],
    *,
    store: Any = "fetched",
    config: Config | Mapping[str, Any] | Path | None = None,
    concurrency: int | None = None,
    **options: Any,
) -> Iterator[Outcome]:
    """Downloads `urls` and yields an Outcome for each, in the order in which they finish.

    `urls` holds URLs or DownloadTasks. `store` is a directory, a URL (`s3://bucket/prefix`, `file:///…`) or an obstore store. `options` are
    keys of `[fetch]`
    (`max_bytes="50MB"`, `allow_networks=[…]`, …), laid over `config` (a Config, nested dictionaries or a file) or, without it, over
    `FETCHBOX__FETCH__*` in the
    environment. Raises UsageError, ConfigError or StoreError before the first download. Leaving the loop early ends the downloads.
    """
    return _singly(batches(urls, store=store, config=config, concurrency=concurrency, **options))


def batches(
    urls: Iterable[Task],
    *,
    store: Any = "fetched",
    config: Config | Mapping[str, Any] | Path | None = None,
    concurrency: int | None = None,
    **options: Any,
) -> Generator[OutcomeBatch]:
    """`fetch` for those who only count: what finished together, without an object for each outcome."""
    session = _Session(store, config, concurrency, options)
    return _run(session, iter(_iterable(urls)))


def _singly(finished: Generator[OutcomeBatch]) -> Iterator[Outcome]:
    with contextlib.closing(finished):
        for batch in finished:
            yield from batch.outcomes()


def _run(session: _Session, source: Iterator[Task]) -> Generator[OutcomeBatch]:
    # Everything native is made on the first step and closed by the same generator: an iterator that is never started owns nothing.
    with session:
        readable = select.poll()
        readable.register(session.fileno(), select.POLLIN)
        exhausted = False
        while True:
            while not exhausted and session.wants_more:
                chunk = list(islice(source, session.chunk))
                exhausted = len(chunk) < session.chunk
                session.submit(chunk)
                if session.has_finished():
                    break
            batch = session.drain()
            if len(batch):
                yield batch
                continue
            if exhausted and session.ahead == 0:
                return
            readable.poll(WAIT_MS)


async def afetch(
    urls: Iterable[Task] | AsyncIterable[Task],
    *,
    store: Any = "fetched",
    config: Config | Mapping[str, Any] | Path | None = None,
    concurrency: int | None = None,
    **options: Any,
) -> AsyncIterator[Outcome]:
    """`fetch` for asyncio and uvloop; `urls` may be an async iterable as well. Cancelling the task or leaving the loop ends the
    downloads."""
    import asyncio  # `fetch` and the command line do without

    session = _Session(store, config, concurrency, options)
    source = _chunks(urls, session.chunk)
    loop = asyncio.get_running_loop()
    finished = asyncio.Event()
    with session:
        descriptor = session.fileno()

        def wake() -> None:
            # The descriptor stays readable until the engine is drained: watched meanwhile it would keep the loop spinning.
            loop.remove_reader(descriptor)
            finished.set()

        feeder: asyncio.Task[list[Task] | None] | None = None
        try:
            exhausted = False
            while True:
                finished.clear()
                outcomes = session.drain().outcomes()
                loop.add_reader(descriptor, wake)
                for outcome in outcomes:
                    yield outcome
                if not exhausted and feeder is None and session.wants_more:
                    feeder = asyncio.ensure_future(anext(source, None))
                if exhausted and session.ahead == 0:
                    return
                waiter = asyncio.ensure_future(finished.wait())
                try:
                    waiting = {waiter} if feeder is None else {waiter, feeder}
                    await asyncio.wait(waiting, timeout=WAIT_MS / 1000, return_when=asyncio.FIRST_COMPLETED)
                finally:
                    waiter.cancel()
                if feeder is not None and feeder.done():
                    chunk = feeder.result()
                    feeder = None
                    exhausted = chunk is None
                    session.submit(chunk or [])
        finally:
            loop.remove_reader(descriptor)
            if feeder is not None:
                feeder.cancel()
                await asyncio.gather(feeder, return_exceptions=True)
            await source.aclose()


class _Session:
    """One engine for the length of an iteration, and how far the input is ahead of the outcomes."""

    def __init__(
        self, store: Any, config: Config | Mapping[str, Any] | Path | None, concurrency: int | None, options: dict[str, Any]
    ) -> None:
        url, self._store = _store(store)
        self._options = _engine_options(config, concurrency, options)
        self._options["storage"]["url"] = url
        self.chunk = min(CHUNK, max(int(self._options["concurrency"]), 1))
        self.ahead = 0
        self._next_index = 0
        self._engine: Engine | None = None

    def __enter__(self) -> _Session:
        try:
            self._engine = Engine(_encoder.encode(self._options), self._store)
        except CoreError as error:
            if error.kind == "store":
                raise StoreError(error.message) from error
            raise ConfigError.single(error.code, error.message) from error
        return self

    def __exit__(self, *_: object) -> None:
        self.engine.close(CLOSE_SECONDS)
        self._engine = None

    @property
    def engine(self) -> Engine:
        """The running engine."""
        if self._engine is None:
            raise UsageError("this iteration has ended")
        return self._engine

    @property
    def wants_more(self) -> bool:
        """Whether another chunk stays within the limit ahead. Idle engines are fed first; beyond that a few rounds of work are enough."""
        return self.ahead + self.chunk <= min(AHEAD_LIMIT, max(8 * int(self._options["concurrency"]), 2 * self.chunk))

    def fileno(self) -> int:
        """Turns readable when something finished."""
        return self.engine.fileno()

    def submit(self, tasks: list[Task]) -> None:
        """Starts these tasks; their index is their place in the input."""
        if not tasks:
            return
        for index, task in enumerate(tasks, self._next_index):
            if not isinstance(task, _TASKS):
                raise UsageError(f"item {index} is a {type(task).__name__}; give URLs as str, or fetchbox.DownloadTask")
        try:
            encoded = _encoder.encode(tasks)
        except UnicodeEncodeError as error:
            raise UsageError(f"a task among items {self._next_index} to {self._next_index + len(tasks) - 1} is no text: {error}") from None
        # The same input finds its objects again, and two runs into one directory do not meet by their counting.
        named = self._options["storage"].get("key_template") is None
        self.ahead += self.engine.submit_tasks(encoded, self._next_index, named)
        self._next_index += len(tasks)

    def has_finished(self) -> bool:
        """Whether outcomes wait."""
        return bool(select.select([self.fileno()], [], [], 0)[0])

    def drain(self) -> OutcomeBatch:
        """The outcomes that wait, at most DRAIN_LIMIT."""
        batch = self.engine.drain(DRAIN_LIMIT)
        self.ahead -= len(batch)
        return batch


def _engine_options(config: Config | Mapping[str, Any] | Path | None, concurrency: int | None, fetch: dict[str, Any]) -> dict[str, Any]:
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


def _iterable(urls: Iterable[Task]) -> Iterable[Task]:
    if isinstance(urls, str | bytes):
        raise UsageError("urls is one string; give an iterable of URLs: [url]")
    return urls


async def _chunks(urls: Iterable[Task] | AsyncIterable[Task], size: int) -> AsyncGenerator[list[Task], None]:
    chunk: list[Task] = []
    if isinstance(urls, AsyncIterable):
        async for task in urls:
            chunk.append(task)
            if len(chunk) == size:
                yield chunk
                chunk = []
    else:
        for task in _iterable(urls):
            chunk.append(task)
            if len(chunk) == size:
                yield chunk
                chunk = []
    if chunk:
        yield chunk


def _store(store: Any) -> tuple[str, Any]:
    """The store's URL for the engine, or the obstore store itself."""
    if isinstance(store, str | os.PathLike):
        text = os.fspath(store)
        if isinstance(text, bytes):
            raise UsageError("store is a bytes path; give it as str or Path")
        return (text if "://" in text else Path(text).resolve().as_uri()), None
    return "", store
