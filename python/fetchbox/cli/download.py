"""`fetchbox get` itself: bulk download without a service. Knows nothing of typer, so that a plain command line can do without it too."""

from __future__ import annotations

import contextlib
import os
import re
import resource
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType

from fetchbox.cli.existing import Found, existing
from fetchbox.cli.inputs import Item, Source
from fetchbox.cli.output import emit, emit_json
from fetchbox.cli.tally import Show, Tally
from fetchbox.errors import ConfigError, UsageError
from fetchbox.keys import object_key
from fetchbox.library import NOT_YET, Pause, batches, store_of
from fetchbox.plain import plain_fetch

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Literal

    from fetchbox._core import Outcome, OutcomeBatch
    from fetchbox.manifest import DownloadTask

    Make = Callable[[Item, int, str | None], DownloadTask | str]

PROXY_POOL = "get"
NO_URL = "VALIDATION_MISSING"
DESCRIPTORS = 1 << 18
"""Open files that are asked of the system."""
STORE_GONE = frozenset({"STORAGE_FULL", "STORAGE_UNAVAILABLE", "UPLOAD_ACCESS_DENIED", "UPLOAD_NO_BUCKET"})
"""Failures, after all tries, with which nothing else can be stored either."""
TOLD_FAILURES = 10
"""Failures of one code that get a line each; the rest is counted. -v has no such limit."""
_CURL_SIZE = re.compile(r"(\d+(?:\.\d+)?)([kKmMgG])")
_FLAGS = {
    "fetch.allow_networks": "--allow-network",
    "fetch.user_agent": "-A",
    "fetch.ca_file": "--cacert",
    "fetch.total_timeout": "--max-time",
    "fetch.connect_timeout": "--connect-timeout",
    "fetch.max_attempts": "--retry",
    "fetch.max_bytes": "--max-filesize",
    "fetch.limit_rate": "--limit-rate",
    "fetch.reuse_max_age": "--reuse-max-age",
    "proxy.pools.get": "-x",
    "job_types.default.transport": "--transport",
    "job_types.default.auth": "-u",
}
"""Where a setting came from when its flag was given."""
SHOW_CURSOR = b"\x1b[?25h"
_OUTCOME_KEYS = (
    *("id", "index", "url", "final_url", "state", "code", "message", "http_status", "size", "sha256", "content_type", "sniffed_type"),
    *("storage_url", "etag", "last_modified", "attempts", "proxy", "timings", "generation"),
)


def download(
    config: Path | None = None,
    *,
    urls: list[str] | None = None,
    inputs: list[str] | None = None,
    url_col: str | None = None,
    id_col: str | None = None,
    out: str = "fetched",
    concurrency: int | None = None,
    as_json: bool = False,
    overwrite: bool = False,
    reuse: bool = False,
    reuse_max_age: str | None = None,
    reuse_file: Path | None = None,
    allow_network: list[str] | None = None,
    header: list[str] | None = None,
    user_agent: str | None = None,
    proxy: str | None = None,
    transport: Literal["native", "curl"] | None = None,
    user: str | None = None,
    digest: bool = False,
    ntlm: bool = False,
    insecure: bool = False,
    cacert: str | None = None,
    max_time: float | None = None,
    connect_timeout: float | None = None,
    retry: int | None = None,
    limit_rate: str | None = None,
    max_filesize: str | None = None,
    quiet: bool = False,
    verbose: bool = False,
) -> int:
    """Does what these arguments say; the exit status. UsageError for what they cannot mean."""
    sources = [Source(name, url_col, id_col) for name in inputs or ()]
    if not urls and not sources:
        raise UsageError("nothing to download: give URLs, or a file of them with -i (-i - reads standard input)")
    for source in sources:
        source.check()
    store_of(out)
    if overwrite and (reuse or reuse_max_age):
        raise UsageError("--overwrite downloads everything and --reuse what has changed: give one of them")
    if reuse_file is not None and overwrite:
        raise UsageError("--overwrite downloads everything and remembers nothing: leave --reuse-file out")
    if (reuse or reuse_max_age) and reuse_file is None and "://" in out and not out.startswith("file:"):
        raise UsageError("--reuse with a bucket needs --reuse-file FILE: there it remembers what to ask the origins about")
    fetch = _given(
        reuse=False if overwrite else (True if reuse or reuse_max_age or reuse_file else None),
        reuse_max_age=reuse_max_age,
        allow_networks=allow_network or None,
        user_agent=user_agent,
        verify_tls=False if insecure else None,
        ca_file=cacert,
        total_timeout=max_time,
        connect_timeout=connect_timeout,
        max_attempts=None if retry is None else retry + 1,
        max_bytes=_size(max_filesize),
        limit_rate=_size(limit_rate),
    )
    job_type = _given(transport=transport, auth=_auth(user, digest=digest, ntlm=ntlm))
    tree = _configuration(config, fetch, proxy, job_type)
    headers = _headers(header or ())
    make = _tasks(headers, PROXY_POOL if proxy else None)
    counts = [source.count() for source in sources]
    total = None if None in counts else len(urls or ()) + sum(count or 0 for count in counts)
    run = _Run(out, tree, concurrency, Tally(total), reuse_file, as_json=as_json, quiet=quiet, verbose=verbose)
    # With reuse it is the origin that says whether what is there is complete and current.
    looks = not overwrite and not tree.get("fetch", {}).get("reuse")
    with _signals():
        run.go(_items(urls or (), sources), make, existing(out, tree) if looks else None, bare=not headers and proxy is None)
    return run.status


class _Ended(KeyboardInterrupt):
    """Ctrl-C, or SIGTERM."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.status = 128 + number


@contextlib.contextmanager
def _signals() -> Iterator[None]:
    """The first Ctrl-C or SIGTERM ends the run in order. The second kills the process at once, whatever it is waiting for."""

    def end(number: int, frame: FrameType | None) -> None:
        for each in before:
            signal.signal(each, signal.SIG_DFL)
        with contextlib.suppress(OSError):
            if os.isatty(2):
                os.write(2, SHOW_CURSOR)
        raise _Ended(number)

    # What was ignored stays ignored: a shell does that for what it runs in the background.
    numbers = [number for number in (signal.SIGINT, signal.SIGTERM) if signal.getsignal(number) is not signal.SIG_IGN]
    before = {number: signal.signal(number, end) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            if signal.getsignal(number) is end:
                signal.signal(number, handler)


class _Run:
    """One invocation: feeds the library, prints outcomes, keeps the tally."""

    def __init__(
        self,
        out: str,
        tree: dict[str, Any],
        concurrency: int | None,
        tally: Tally,
        reuse_file: Path | None,
        *,
        as_json: bool,
        quiet: bool,
        verbose: bool,
    ) -> None:
        self.status = 0
        self._out = out
        self._tree = tree
        self._concurrency = concurrency
        self._reuse_file = reuse_file
        self._tally = tally
        self._show = Show(tally, "get", quiet=quiet)
        self._as_json = as_json
        self._verbose = verbose
        # Place in the input of what is under way, by the library's own count: skipped ones make the two differ.
        self._places: dict[int, int] = {}
        self._input_error: UsageError | None = None
        self._store_gone: str | None = None

    def go(
        self,
        items: Iterator[str | Item | Pause],
        make: Make,
        existing: Callable[[str], Found | None] | None,
        *,
        bare: bool,
    ) -> None:
        """Downloads everything and sets `status`."""

        # A connection and a file for each download, and a usual limit is 1,024.
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, min(hard, DESCRIPTORS)), hard))
        interrupted: _Ended | None = None
        with self._show:
            try:
                tasks = self._feed(items, make, existing, bare=bare)
                run = batches(tasks, store=self._out, concurrency=self._concurrency, config=self._tree, reuse_file=self._reuse_file)
                with contextlib.closing(run) as finished:
                    for batch in finished:
                        self._count(batch)
                        if self._store_gone is not None:
                            # What is under way and what waits would end the same.
                            break
            except _Ended as error:
                interrupted = error
        if self._input_error is None or self._tally.done:
            self._show.summary(self._out)
        if interrupted is not None:
            if not self._show.quiet:
                self._show.say("interrupted: the same command again goes on from here")
            self.status = interrupted.status
        elif self._store_gone is not None:
            self._show.say(
                f"stopped, {self._out} takes nothing more ({self._store_gone}): the same command goes on from here once that is mended"
            )
            self.status = 1
        elif self._input_error is not None:
            raise self._input_error
        else:
            self.status = 0 if self._tally.good else 1

    def _feed(
        self,
        items: Iterator[str | Item | Pause],
        make: Make,
        existing: Callable[[str], Found | None] | None,
        *,
        bare: bool,
    ) -> Iterator[DownloadTask | str | Pause]:
        """What the library is to download; with `bare` nothing goes along with a URL."""
        sent = 0
        place = -1
        # Without a reason to know the name here the library gives the same one, for less.
        by_template = self._tree.get("storage", {}).get("key_template") is not None
        straight = bare and existing is None and not by_template
        while self._store_gone is None:
            try:
                item = next(items)
            except StopIteration:
                break
            except UsageError as error:
                # What was taken before is finished; then this is told.
                self._input_error = error
                break
            if item is NOT_YET:
                yield NOT_YET
                continue
            place += 1
            if isinstance(item, str):
                if straight and place == sent:
                    sent += 1
                    yield item
                    continue
                item = Item(item)
            if item.fault is not None:
                self._faulty(item, place, item.fault)
                continue
            key = item.key
            if key is None and (existing is not None or by_template or place != sent):
                key = object_key(item.url, item.id)
            if existing is not None and key is not None and (found := existing(key)) is not None:
                self._reused(item, place, found)
                continue
            if place != sent:
                self._places[sent] = place
            sent += 1
            yield make(item, place, key)
        else:
            return
        self._tally.total = place + 1

    def _count(self, batch: OutcomeBatch) -> None:
        if self._as_json or self._verbose:
            for outcome in batch.outcomes():
                self._outcome(outcome)
            return
        self._tally.add_stored(*batch.stored())
        for outcome in batch.unstored():
            self._outcome(outcome)
        self._show.update()

    def _outcome(self, outcome: Outcome) -> None:
        place = self._places.pop(outcome.index, outcome.index)
        self._tally.add(outcome.state, outcome.size, outcome.code, outcome.url, outcome.message)
        if self._as_json:
            if place == outcome.index:
                emit(outcome.to_json().decode())
            else:
                emit_json({**outcome.as_dict(), "index": place})
        if outcome.code in STORE_GONE:
            self._store_gone = outcome.code
        if outcome.state == "failed":
            self._failed(outcome.code, outcome.url, outcome.message)
        elif self._verbose:
            self._show.say(f"{outcome.state} {outcome.size} bytes: {outcome.url} -> {outcome.storage_url}")
        self._show.update()

    def _reused(self, item: Item, place: int, found: Found) -> None:
        size, storage_url = found
        self._tally.add("reused", size, None, item.url, None)
        if self._as_json:
            self._record(item, place, state="reused", message="stored before", size=size, storage_url=storage_url)
        elif self._verbose:
            self._show.say(f"reused {size} bytes: {item.url} -> {storage_url}")
        self._show.update()

    def _faulty(self, item: Item, place: int, message: str) -> None:
        self._tally.add("failed", 0, NO_URL, item.url, message)
        if self._as_json:
            self._record(item, place, state="failed", code=NO_URL, message=message)
        self._failed(NO_URL, item.url, message)
        self._show.update()

    def _failed(self, code: str | None, url: str, message: str | None) -> None:
        if self._show.quiet or self._as_json:
            return
        count = self._tally.codes[code or ""]
        if count <= TOLD_FAILURES or self._verbose:
            self._show.say(f"failed {code}: {url}: {message or ''}" if url else f"failed {code}: {message}")
        elif count == TOLD_FAILURES + 1:
            self._show.say(f"failed {code}: more of these are only counted (-v names all)")

    def _record(self, item: Item, place: int, **values: Any) -> None:
        """Prints an outcome that the engine had no part in."""
        record: dict[str, Any] = dict.fromkeys(_OUTCOME_KEYS)
        record |= {"id": item.id or str(place), "index": place, "url": item.url, "final_url": item.url, "size": 0}
        record |= {"attempts": 0, "timings": {}, "generation": 0}
        emit_json(record | values)


def _items(urls: list[str] | tuple[()], sources: list[Source]) -> Iterator[str | Item | Pause]:
    yield from urls
    for source in sources:
        yield from source.items()


def _tasks(headers: dict[str, str], pool: str | None) -> Make:
    def make(item: Item, place: int, key: str | None) -> DownloadTask | str:
        both = {**headers, **item.headers} if item.headers else headers
        if key is None and item.id is None and pool is None and item.deadline is None and not both and not item.tags:
            return item.url
        from fetchbox.manifest import DownloadTask

        # Named here: then its place may be another than the library counts. Named there: by the id that the input gave, if it gave one.
        name = item.id or (None if key is None else str(place))
        tags = dict(item.tags) if item.tags else {}
        return DownloadTask(item.url, id=name, headers=both, tags=tags, proxy=pool, key=key, deadline=item.deadline)

    return make


def _headers(given: list[str] | tuple[()]) -> dict[str, str]:
    headers = {}
    for line in given:
        name, colon, value = line.partition(":")
        if not colon or not re.fullmatch(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+", name.strip()):
            raise UsageError(f"-H takes 'Name: value', not {line!r}")
        if not value.isprintable():
            raise UsageError(f"-H: the value of {name.strip()} holds a character that no header may")
        headers[name.strip()] = value.strip()
    return headers


def _size(text: str | None) -> str | None:
    """curl's sizes are powers of 1024: 10k, 5M, 1G."""
    return text if text is None or not _CURL_SIZE.fullmatch(text) else f"{text}iB"


def _given(**values: Any) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value is not None}


def _auth(user: str | None, *, digest: bool, ntlm: bool) -> dict[str, str] | None:
    if digest and ntlm:
        raise UsageError("--digest and --ntlm: one of them")
    if user is None:
        if digest or ntlm:
            raise UsageError(f"--{'digest' if digest else 'ntlm'} needs -u USER:PASSWORD")
        return None
    name, colon, password = user.partition(":")
    if not colon or not name:
        raise UsageError("-u takes USER:PASSWORD")
    return {"type": "digest" if digest else "ntlm" if ntlm else "basic", "username": name, "password": password}


def _configuration(path: Path | None, fetch: dict[str, Any], proxy: str | None, job_type: dict[str, Any]) -> dict[str, Any]:
    """The environment, or the file that --config names, with the flags on top; checked. `job_type` is for the job type `default`, which
    all tasks here have."""
    if path is None and proxy is None and not job_type and (plain := plain_fetch(fetch, os.environ)) is not None:
        return {"fetch": plain}
    from fetchbox.config import load, load_library

    base = load(path, listens=False) if path is not None else load_library()
    tree = base.model_dump(exclude_unset=True)
    tree["fetch"] = {**tree.get("fetch", {}), **fetch}
    if proxy is not None:
        pools = tree.setdefault("proxy", {}).setdefault("pools", {})
        pools[PROXY_POOL] = {"endpoints": [proxy if "://" in proxy else f"http://{proxy}"]}
    if job_type:
        default = tree.setdefault("job_types", {}).setdefault("default", {})
        default.update(job_type)
    # Reports what is wrong with a flag before anything is opened.
    try:
        load_library(config=tree)
    except ConfigError as error:
        for setting, flag in _FLAGS.items():
            given = setting.removeprefix("fetch.") in fetch or (proxy is not None and setting.startswith("proxy."))
            given = given or setting.rpartition(".")[2] in job_type
            for problem in error.problems if given else ():
                if f"{problem.path}.".startswith(f"{setting}."):
                    raise UsageError(f"{flag}: {problem.message}") from error
        raise
    return tree
