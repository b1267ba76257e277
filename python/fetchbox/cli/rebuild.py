"""Makes jobs again that a ledger does not know, from their manifests in the store."""

from __future__ import annotations

import asyncio
import re
import time
import uuid
from collections.abc import AsyncIterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any

import orjson

from fetchbox.api.configure import settings_of, store_options
from fetchbox.api.ids import trace_of
from fetchbox.api.submit import Post, accept_facts
from fetchbox.broker.topics import TASKS
from fetchbox.errors import Refused, StoreError

if TYPE_CHECKING:
    from fetchbox._core import TaskBatch
    from fetchbox.broker import HubConnection
    from fetchbox.config import Config

PREFIX = "manifests"
MANIFEST = re.compile(r"manifests/([^/]+)/([0-9a-f]{8}-[0-9a-f]{4}-7[0-9a-f]{3}-[0-9a-f]{4}-[0-9a-f]{12})/manifest\.json")
TOGETHER = 16
"""Manifests in work at a time."""


@dataclass(slots=True)
class Rebuilt:
    """What came of it. `skipped` says why a manifest was left; with `restart` the hub must be restarted to read `jobs.status`."""

    manifests: int = 0
    known: int = 0
    older: int = 0
    jobs: int = 0
    stored: int = 0
    pending: int = 0
    reported: int = 0
    restart: bool = False
    skipped: list[dict[str, str]] = field(default_factory=list)

    def answer(self) -> dict[str, Any]:
        """As JSON."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Order:
    """What is wanted: only these job types or jobs not older than so many seconds, which tenant where the manifest names none."""

    tenant: str
    job_type: str | None = None
    newer_than: float | None = None
    digests: bool = False
    dry_run: bool = False


class Rebuilder:
    """One run. StoreError when the store cannot be read."""

    def __init__(self, config: Config, hub: HubConnection, order: Order) -> None:
        from obstore.store import from_url

        self._hub = hub
        self._order = order
        self._settings = settings_of(config)
        try:
            self._store: Any = from_url(config.storage.url, **store_options(config))
        except Exception as error:
            raise StoreError(f"{config.storage.url} cannot be opened: {_first_line(error)}") from error
        self._oldest = time.time() - (order.newer_than if order.newer_than is not None else config.retention.job_ttl)
        self._partitions = config.tasks.partitions
        self.rebuilt = Rebuilt()

    async def run(self) -> Rebuilt:
        """Every manifest once; then what `jobs.status` still holds is counted once more."""
        await self._learn_partitions()
        some: list[asyncio.Task[None]] = []
        async for job_type, job_id, path in self._manifests():
            some.append(asyncio.create_task(self._one(job_type, job_id, path)))
            if len(some) >= TOGETHER:
                await _all(some)
                some = []
        await _all(some)
        if self.rebuilt.jobs and not self._order.dry_run:
            told = orjson.loads(await self._hub.ledger("restate", {}))
            self.rebuilt.restart = told["restart"]
            self.rebuilt.reported = told["settled"]
            self.rebuilt.pending = max(0, self.rebuilt.pending - told["settled"])
        return self.rebuilt

    async def _learn_partitions(self) -> None:
        for topic in orjson.loads(await self._hub.query("topics", {}))["topics"]:
            if topic["topic"] == TASKS:
                self._partitions = len(topic["partitions"])

    async def _manifests(self) -> AsyncIterator[tuple[str, str, str]]:
        """Job type, job and path of each manifest that is wanted."""
        import obstore

        batches = obstore.list(self._store, prefix=PREFIX)
        while True:
            try:
                batch = await asyncio.to_thread(next, batches, None)
            except Exception as error:
                raise StoreError(f"the manifests cannot be listed: {_first_line(error)}") from error
            if batch is None:
                return
            for entry in batch:
                match = MANIFEST.fullmatch(entry["path"])
                if match is None or self._order.job_type not in (None, match[1]):
                    continue
                self.rebuilt.manifests += 1
                if created_ms(match[2]) / 1000 < self._oldest:
                    self.rebuilt.older += 1
                    continue
                yield match[1], match[2], entry["path"]

    async def _one(self, job_type: str, job_id: str, path: str) -> None:
        try:
            if await self._is_known(job_id):
                self.rebuilt.known += 1
                return
            await self._make(job_type, job_id, path)
        except _Skip as skip:
            self.rebuilt.skipped.append({"job_id": job_id, "job_type": job_type, "reason": str(skip)})

    async def _is_known(self, job_id: str) -> bool:
        try:
            await self._hub.query("job", {"job_id": job_id})
        except Refused as error:
            if error.code != "NOT_FOUND":
                raise
            return False
        return True

    async def _make(self, name: str, job_id: str, path: str) -> None:
        job_type = self._settings.job_types.get(name)
        if job_type is None:
            raise _Skip("the job type is not configured")
        if job_type.handler is not None:
            raise _Skip("its tasks were built by a handler, which is not run again: post it again")
        body = await self._read(path)
        post = Post(
            job_id, job_type, self._order.tenant, None, body, None, trace_of(None), created_ms(job_id), self._settings, self._partitions
        )
        batch, facts = _compile(post)
        if facts.get("tenant") not in (None, post.tenant):
            # As when it was posted: the manifest's own word, where the poster had none.
            post = replace(post, tenant=str(facts["tenant"]))
            batch, facts = _compile(post)
        if self._order.dry_run:
            self.rebuilt.jobs += 1
            self.rebuilt.pending += len(batch)
            return
        accepted = {**accept_facts(post, batch, facts, reserved=True), "reservation": None, "stores_manifest": False}
        reply = await self._hub.rebuild(accepted, batch, digests=self._order.digests)
        if reply["created"]:
            self.rebuilt.jobs += 1
            self.rebuilt.stored += reply["stored"]
            self.rebuilt.pending += reply["pending"]
        else:
            self.rebuilt.known += 1

    async def _read(self, path: str) -> bytes:
        import obstore

        try:
            result = await obstore.get_async(self._store, path)
            return bytes(await result.bytes_async())
        except FileNotFoundError:
            raise _Skip("the manifest is gone") from None
        except Exception as error:
            raise StoreError(f"{path} cannot be read: {_first_line(error)}") from error


def _compile(post: Post) -> tuple[TaskBatch, Mapping[str, Any]]:
    """The tasks as they were encoded when the manifest was posted, and what else the hub has to know."""
    from fetchbox import _core

    try:
        batch = _core.compile_manifest(post.body, post.context())
    except _core.CoreError as error:
        raise _Skip(f"the manifest is not valid: {error.message}") from error
    return batch, orjson.loads(batch.facts())


class _Skip(Exception):
    """Why a manifest is left."""


async def _all(tasks: list[asyncio.Task[None]]) -> None:
    """Waits for all of them, and then raises what one raised."""
    results = await asyncio.gather(*tasks, return_exceptions=True)
    for result in results:
        if isinstance(result, BaseException):
            raise result


def created_ms(job_id: str) -> int:
    """When a job was made: its id says so."""
    return uuid.UUID(job_id).int >> 80


def _first_line(error: Exception) -> str:
    # The rest of its text is for those who debug the store's client.
    return str(error).partition("\n")[0].partition(" Debug source")[0].strip()
