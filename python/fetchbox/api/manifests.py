"""Where manifests are kept, and under which URL."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import unquote

from fetchbox.api.problems import Problem, not_found

logger = logging.getLogger(__name__)

SESSION_TOKEN = "AWS_SESSION_TOKEN"  # noqa: S105  (a variable's name)
FOLDER = "manifests"
FILE = "manifest.json"

PUT_SECONDS = 20.0
"""How long one manifest may take to be stored, retries included."""
PROBE = "readiness"
"""A name in the manifests' folder that nothing ever has."""
PROBE_SECONDS = 5.0
FORGIVEN_AFTER = 15.0
"""Seconds after which a store that answers, and took no manifest before, is given the next one."""


def _unavailable(what: str) -> Problem:
    return Problem(502, "STORAGE_UNAVAILABLE", what)


class Manifests(Protocol):
    """A place for manifests."""

    local: bool
    """Whether the hub writes them with its commit, so that `put` is not needed."""

    @property
    def trouble(self) -> str | None:
        """Why manifests cannot be stored at the moment; None when nothing is known to be wrong."""

    async def probe(self) -> None:
        """Looks whether the store is there and lets us in; `trouble` tells. Raises nothing, and ends within PROBE_SECONDS."""

    def url(self, job_type: str, job_id: str) -> str:
        """The URL of a job's manifest, existing or not."""

    async def put(self, url: str, data: bytes) -> None:
        """Stores a manifest. Raises Problem 502."""

    async def discard(self, url: str) -> None:
        """Removes a manifest whose job was refused; a failure is logged, the collector finds what stays."""

    async def get(self, url: str) -> bytes:
        """The manifest's bytes. Raises Problem 404 or 502."""


class LocalManifests:
    """Below a directory, written by the hub."""

    local = True
    trouble: str | None = None

    def __init__(self, root: Path) -> None:
        self._root = root
        self._base = root.absolute().as_uri() + f"/{FOLDER}/"

    async def probe(self) -> None:
        """Nothing: the hub looks after the directory."""

    def url(self, job_type: str, job_id: str) -> str:
        # Job types are plain names and job ids UUIDs: nothing needs encoding.
        return f"{self._base}{job_type}/{job_id}/{FILE}"

    async def put(self, url: str, data: bytes) -> None:
        raise NotImplementedError("the hub writes local manifests")

    async def discard(self, url: str) -> None:
        """Nothing: what was not accepted was not written."""

    async def get(self, url: str) -> bytes:
        if not url.startswith(self._base):
            raise not_found()
        path = self._root.absolute() / FOLDER / Path(*(unquote(part) for part in url[len(self._base) :].split("/")))
        if ".." in path.parts:
            raise not_found()
        try:
            return await asyncio.to_thread(path.read_bytes)
        except FileNotFoundError:
            raise Problem(404, "NOT_FOUND", "the manifest is not in the store") from None
        except OSError as error:
            raise _unavailable(f"the manifest cannot be read: {error.strerror}") from error


class RemoteManifests:
    """In an object store, through obstore."""

    local = False

    def __init__(self, store: Any, base_url: str) -> None:
        self._store = store
        self._base = base_url.rstrip("/") + "/"
        self._refused: tuple[str, float] | None = None
        self._away: str | None = None

    @property
    def trouble(self) -> str | None:
        """What the last look complained of, else what the last manifest met, for a while: others are sent here only when this is None."""
        if self._away is None and self._refused is not None and time.monotonic() - self._refused[1] < FORGIVEN_AFTER:
            return self._refused[0]
        return self._away

    async def probe(self) -> None:
        """Asks for something that is not there: whoever says so has the bucket, and lets us read."""
        import obstore

        away: str | None = None
        try:
            async with asyncio.timeout(PROBE_SECONDS):
                await obstore.get_async(self._store, f"{FOLDER}/{PROBE}")
        except FileNotFoundError as error:
            away = "there is no such bucket" if "NoSuchBucket" in str(error) else None
        except TimeoutError:
            away = f"the store did not answer within {PROBE_SECONDS:g} s"
        except Exception as error:
            denied = type(error).__name__ in ("PermissionDeniedError", "UnauthenticatedError")
            away = "the store denies access" if denied else f"the store cannot be used ({type(error).__name__})"
        if away != self._away:
            if away is None:
                logger.info("the store is there")
            else:
                logger.warning("the store is of no use: %s", away)
            self._away = away

    def url(self, job_type: str, job_id: str) -> str:
        return f"{self._base}{FOLDER}/{job_type}/{job_id}/{FILE}"

    async def put(self, url: str, data: bytes) -> None:
        import obstore

        try:
            async with asyncio.timeout(PUT_SECONDS):
                await obstore.put_async(self._store, self._path(url), data, attributes={"Content-Type": "application/json"})
        except TimeoutError:
            raise self._failed("the store did not take the manifest in time") from None
        except Exception as error:
            raise self._failed("the store did not take the manifest", error) from error
        self._refused = self._away = None

    async def discard(self, url: str) -> None:
        import obstore

        try:
            async with asyncio.timeout(PUT_SECONDS):
                await obstore.delete_async(self._store, self._path(url))
        except Exception as error:
            logger.warning("a refused job's manifest stays in the store: %s", type(error).__name__)

    async def get(self, url: str) -> bytes:
        import obstore

        if not url.startswith(self._base):
            raise not_found()
        try:
            async with asyncio.timeout(PUT_SECONDS):
                result = await obstore.get_async(self._store, self._path(url))
                return bytes(await result.bytes_async())
        except FileNotFoundError:
            raise Problem(404, "NOT_FOUND", "the manifest is not in the store") from None
        except TimeoutError:
            raise self._failed("the store did not answer in time") from None
        except Exception as error:
            raise self._failed("the store did not give the manifest", error) from error

    def _path(self, url: str) -> str:
        return url[len(self._base) :]

    def _failed(self, message: str, error: Exception | None = None) -> Problem:
        if error is not None:
            # The store's own message may hold signed URLs: into the log its kind only.
            logger.warning("%s: %s", message, type(error).__name__)
        self._refused = (message, time.monotonic())
        return _unavailable(message)


def open_manifests(url: str, options: Mapping[str, Any]) -> Manifests:
    """The place that `storage.url` names. `options` are obstore's for that kind of store."""
    if url.startswith("file://"):
        return LocalManifests(Path(unquote(url.removeprefix("file://"))))
    from obstore.store import from_url

    with _own_credentials(options.get("config", {})):
        return RemoteManifests(from_url(url, **options), url)


@contextlib.contextmanager
def _own_credentials(config: Mapping[str, Any]) -> Iterator[None]:
    """A session token of the environment belongs to the environment's keys: it is hidden from a store that has keys of its own."""
    hidden = os.environ.pop(SESSION_TOKEN, None) if "access_key_id" in config else None
    try:
        yield
    finally:
        if hidden is not None:
            os.environ[SESSION_TOKEN] = hidden
