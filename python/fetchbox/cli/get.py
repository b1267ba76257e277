"""`fetchbox get`: bulk download without a service."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any
from urllib.parse import unquote, urlsplit

import typer

from fetchbox.cli.inputs import Item, Source
from fetchbox.cli.options import ConfigOption, JsonOption, config_path
from fetchbox.cli.output import emit, emit_json
from fetchbox.cli.tally import Show, Tally
from fetchbox.errors import UsageError
from fetchbox.keys import object_key
from fetchbox.plain import plain_fetch

if TYPE_CHECKING:
    from fetchbox._core import Outcome, OutcomeBatch
    from fetchbox.manifest import DownloadTask

app = typer.Typer(add_completion=False)

PROXY_POOL = "get"
_CURL_SIZE = re.compile(r"(\d+(?:\.\d+)?)([kKmMgG])")
_OUTCOME_KEYS = (
    *("id", "index", "url", "final_url", "state", "code", "message", "http_status", "size", "sha256", "content_type", "sniffed_type"),
    *("storage_url", "etag", "last_modified", "attempts", "proxy", "timings", "generation"),
)


@app.command()
def get(
    context: typer.Context,
    urls: Annotated[list[str] | None, typer.Argument(metavar="[URL]…", help="What to download.")] = None,
    inputs: Annotated[
        list[str] | None,
        typer.Option("--input", "-i", metavar="FILE", help="URLs from txt, JSON lines, CSV or Parquet, .gz of them, or - for stdin."),
    ] = None,
    url_col: Annotated[str | None, typer.Option("--url-col", metavar="NAME", help="The column or key that holds the URL.")] = None,
    id_col: Annotated[str | None, typer.Option("--id-col", metavar="NAME", help="The column or key that names each (default: id).")] = None,
    out: Annotated[str, typer.Option("--out", "-o", metavar="DIR-or-URL", help="A directory, file://, s3://, gs:// or az://.")] = "fetched",
    concurrency: Annotated[int | None, typer.Option("--concurrency", "-j", min=1, help="Downloads at once.")] = None,
    as_json: JsonOption = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Download again what is stored already.")] = False,
    allow_network: Annotated[
        list[str] | None, typer.Option("--allow-network", metavar="CIDR", help="Allow a private network; 127.0.0.0/8 for loopback.")
    ] = None,
    header: Annotated[list[str] | None, typer.Option("--header", "-H", metavar="'NAME: VALUE'", help="Send this header.")] = None,
    user_agent: Annotated[str | None, typer.Option("--user-agent", "-A", metavar="TEXT", help="The User-Agent header.")] = None,
    proxy: Annotated[str | None, typer.Option("--proxy", "-x", metavar="URL", help="http://, https:// or socks5:// proxy.")] = None,
    insecure: Annotated[bool, typer.Option("--insecure", "-k", help="Do not check certificates.")] = False,
    cacert: Annotated[str | None, typer.Option("--cacert", metavar="FILE", help="PEM file of further authorities.")] = None,
    max_time: Annotated[float | None, typer.Option("--max-time", min=0.001, help="Seconds for one download.")] = None,
    connect_timeout: Annotated[float | None, typer.Option("--connect-timeout", min=0.001, help="Seconds to connect.")] = None,
    retry: Annotated[int | None, typer.Option("--retry", min=0, help="Tries after the first failed.")] = None,
    max_filesize: Annotated[str | None, typer.Option("--max-filesize", metavar="SIZE", help="Give up on larger bodies: 10M, 5GiB.")] = None,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress, no summary.")] = False,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="A line for every download.")] = False,
    config: ConfigOption = None,
) -> int:
    """Download many URLs into a directory or a bucket, verified and retried, without a service.

    Names come from the URL or the id, so running the same command again goes on where it was interrupted. Exit status: 0 if all were
    stored or there already, 1 if some failed, 130 on Ctrl-C. The settings FETCHBOX__FETCH__* are honoured.
    """
    sources = [Source(name, url_col, id_col) for name in inputs or ()]
    if not urls and not sources:
        raise UsageError("nothing to download: give URLs, or a file of them with -i (-i - reads standard input)")
    for source in sources:
        if source.name != "-" and not os.path.exists(source.name):
            raise UsageError(f"-i: there is no file {source.name}")
    fetch = _given(
        allow_networks=allow_network or None,
        user_agent=user_agent,
        verify_tls=False if insecure else None,
        ca_file=cacert,
        total_timeout=max_time,
        connect_timeout=connect_timeout,
        max_attempts=None if retry is None else retry + 1,
        max_bytes=None
        if max_filesize is None
        else _CURL_SIZE.sub(r"\1\2iB", max_filesize)
        if _CURL_SIZE.fullmatch(max_filesize)
        else max_filesize,
    )
    tree = _configuration(config_path(context, config), fetch, proxy)
    make = _tasks(_headers(header or ()), PROXY_POOL if proxy else None)
    counts = [source.count() for source in sources]
    total = None if None in counts else len(urls or ()) + sum(count or 0 for count in counts)
    run = _Run(out, tree, concurrency, Tally(total), as_json=as_json, quiet=quiet, verbose=verbose)
    run.go(_items(urls or (), sources), make, _existing(out, tree) if not overwrite else None)
    return run.status


class _Run:
    """One invocation: feeds the library, prints outcomes, keeps the tally."""

    def __init__(
        self, out: str, tree: dict[str, Any], concurrency: int | None, tally: Tally, *, as_json: bool, quiet: bool, verbose: bool
    ) -> None:
        self.status = 0
        self._out = out
        self._tree = tree
        self._concurrency = concurrency
        self._tally = tally
        self._show = Show(tally, "get", quiet=quiet)
        self._as_json = as_json
        self._verbose = verbose
        # Place in the input of what is under way, by the library's own count: skipped ones make the two differ.
        self._places: dict[int, int] = {}

    def go(
        self, items: Iterator[Item], make: Callable[[Item, int, str | None], DownloadTask], existing: Callable[[str], Found | None] | None
    ) -> None:
        """Downloads everything and sets `status`."""
        from fetchbox.fetch import batches

        interrupted = False
        with self._show:
            try:
                tasks = self._feed(items, make, existing)
                with contextlib.closing(batches(tasks, store=self._out, concurrency=self._concurrency, config=self._tree)) as finished:
                    for batch in finished:
                        self._count(batch)
            except KeyboardInterrupt:
                interrupted = True
        self._show.summary(self._out)
        if interrupted:
            self._show.say("interrupted: the same command again goes on from here")
        self.status = 130 if interrupted else 0 if self._tally.good else 1

    def _feed(
        self, items: Iterator[Item], make: Callable[[Item, int, str | None], DownloadTask], existing: Callable[[str], Found | None] | None
    ) -> Iterator[DownloadTask]:
        sent = 0
        # Without a reason to know the name here the library gives the same one, for less.
        by_template = self._tree.get("storage", {}).get("key_template") is not None
        for place, item in enumerate(items):
            key = item.key
            if key is None and (existing is not None or by_template):
                key = object_key(item.url, item.id)
            if existing is not None and key is not None and (found := existing(key)) is not None:
                self._reused(item, place, found)
                continue
            if place != sent:
                self._places[sent] = place
            sent += 1
            yield make(item, place, key)

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
        if outcome.state == "failed":
            if not self._show.quiet and not self._as_json:
                self._show.say(f"failed {outcome.code}: {outcome.url}: {outcome.message or ''}")
        elif self._verbose:
            self._show.say(f"{outcome.state} {outcome.size} bytes: {outcome.url} -> {outcome.storage_url}")
        self._show.update()

    def _reused(self, item: Item, place: int, found: Found) -> None:
        size, storage_url = found
        self._tally.add("reused", size, None, item.url, None)
        if self._as_json:
            record: dict[str, Any] = dict.fromkeys(_OUTCOME_KEYS)
            record |= {"id": item.id or str(place), "index": place, "url": item.url, "final_url": item.url, "state": "reused"}
            record |= {"message": "stored before", "size": size, "storage_url": storage_url, "attempts": 0, "timings": {}, "generation": 0}
            emit_json(record)
        elif self._verbose:
            self._show.say(f"reused {size} bytes: {item.url} -> {storage_url}")
        self._show.update()


Found = tuple[int, str]
"""Size in bytes and URL of an object that is there already."""


def _items(urls: list[str] | tuple[()], sources: list[Source]) -> Iterator[Item]:
    for url in urls:
        yield Item(url)
    for source in sources:
        yield from source.items()


def _tasks(headers: dict[str, str], pool: str | None) -> Callable[[Item, int, str | None], DownloadTask]:
    from fetchbox.manifest import DownloadTask

    def make(item: Item, place: int, key: str | None) -> DownloadTask:
        both = {**headers, **item.headers} if item.headers else headers
        # Named here: then its place may be another than the library counts. Named there: by the id that the input gave, if it gave one.
        name = item.id or (None if key is None else str(place))
        return DownloadTask(item.url, id=name, headers=both, tags=dict(item.tags) if item.tags else {}, proxy=pool, key=key)

    return make


def _headers(given: list[str] | tuple[()]) -> dict[str, str]:
    headers = {}
    for line in given:
        name, colon, value = line.partition(":")
        if not colon or not re.fullmatch(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+", name.strip()):
            raise UsageError(f"-H takes 'Name: value', not {line!r}")
        headers[name.strip()] = value.strip()
    return headers


def _given(**values: Any) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value is not None}


def _configuration(path: Path | None, fetch: dict[str, Any], proxy: str | None) -> dict[str, Any]:
    """The environment, or the file that --config names, with the flags on top; checked."""
    if path is None and proxy is None and (plain := plain_fetch(fetch, os.environ)) is not None:
        return {"fetch": plain}
    from fetchbox.config import load, load_library

    base = load(path) if path is not None else load_library()
    tree = base.model_dump(exclude_unset=True)
    tree["fetch"] = {**tree.get("fetch", {}), **fetch}
    if proxy is not None:
        pools = tree.setdefault("proxy", {}).setdefault("pools", {})
        pools[PROXY_POOL] = {"endpoints": [proxy if "://" in proxy else f"http://{proxy}"]}
    # Reports what is wrong with a flag before anything is opened.
    load_library(config=tree)
    return tree


def _existing(out: str, tree: dict[str, Any]) -> Callable[[str], Found | None] | None:
    """Looks up whether an object is stored; None when nothing is. Objects appear whole or not at all, so one that is there is complete."""
    parts = urlsplit(out) if "://" in out else None
    if parts is None or parts.scheme == "file":
        root = Path(out if parts is None else unquote(parts.path)).resolve()
        empty = not root.is_dir() or next(root.iterdir(), None) is None
        return None if empty else _LocalIndex(root)
    return _RemoteIndex(out, tree)


class _LocalIndex:
    def __init__(self, root: Path) -> None:
        self._root = str(root)
        self._url = root.as_uri()

    def __call__(self, key: str) -> Found | None:
        try:
            return os.stat(f"{self._root}/{key}").st_size, f"{self._url}/{key}"
        except (OSError, ValueError):
            return None


class _RemoteIndex:
    """The sizes of all objects below the prefix, listed once: a request for a thousand objects instead of one for each."""

    def __init__(self, out: str, tree: dict[str, Any]) -> None:
        import obstore
        from obstore.store import from_url

        from fetchbox.api.configure import store_options
        from fetchbox.config import load_library
        from fetchbox.errors import StoreError

        self._url = out.rstrip("/")
        self._sizes: dict[str, int] = {}
        config = load_library(config={**tree, "storage": {**tree.get("storage", {}), "url": out}})
        try:
            for batch in obstore.list(from_url(out, **store_options(config))):
                self._sizes.update((entry["path"], entry["size"]) for entry in batch)
        except Exception as error:
            raise StoreError(f"{out} cannot be listed: {error}; --overwrite does without") from error

    def __call__(self, key: str) -> Found | None:
        size = self._sizes.get(key)
        return None if size is None else (size, f"{self._url}/{key}")
