"""What is done when a job is settled, or a resource of it failed: its handler's `finalize_job`, and its callbacks. Each at least once.

The workers read `jobs.events` as a group. How far they are is committed only behind jobs that are done with, so that those of a worker
that dies come to another one. What fails is tried again with growing pauses, and given up after an hour.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import urlsplit

import orjson
import structlog

from fetchbox._core import Follower
from fetchbox.broker import Streams
from fetchbox.broker.topics import EVENTS, FINISH
from fetchbox.config import Config, url_without_secrets
from fetchbox.errors import HandlerError, Refused, Unavailable
from fetchbox.worker.failures import Failures, Place

if TYPE_CHECKING:
    from fetchbox.handler_host import HandlerHost, HandlerSpec
    from fetchbox.worker.callbacks import Callbacks, Event

log = structlog.get_logger("fetchbox.worker")

T = TypeVar("T")

HOOK = "finalize_job"
READ_MESSAGES = 256
READ_WAIT_MS = 10_000
OUTSTANDING = 4096
"""Jobs that may wait to be done with; more are not read before."""
AT_ONCE = 32
"""Handlers and callbacks under way."""
FAILED = "resource.failed"
"""The event that a manifest asks for to hear of each failed resource; as in `callbacks`, which is imported when it is needed."""
PER_RECEIVER = 8
"""Callbacks under way to one host."""
FAILURES = 200
"""Failed resources asked for at a time."""
PAUSES = (1.0, 5.0, 30.0, 120.0, 300.0, 600.0, 1200.0, 1200.0)
"""Seconds before each further try."""
COMMIT_INTERVAL = 0.1
LAST_COMMIT_SECONDS = 1.0
"""How long the hub may take at the end to hear what is done with."""
RETRY_FIRST = 0.05
RETRY_MOST = 2.0


class Finisher:
    """Finishes settled jobs until it is cancelled. `specs` are the handlers that define `finalize_job`, by job type."""

    def __init__(self, config: Config, hub: Streams, member: str, specs: dict[str, HandlerSpec], host: HandlerHost | None) -> None:
        self._config = config
        self._hub = hub
        self._specs = specs
        self._host = host
        self._follower = Follower(EVENTS, FINISH, member)
        self._joined = False
        self._places: dict[int, deque[Place]] = {}
        self._uncommitted: dict[int, int] = {}
        self._room = asyncio.Semaphore(OUTSTANDING)
        self._slots = asyncio.Semaphore(AT_ONCE)
        self._receivers: dict[str, tuple[asyncio.Semaphore, int]] = {}
        self._moved = asyncio.Event()
        self._callbacks: Callbacks | None = None
        self._failures = Failures(self._room, PAUSES, self._tell_failed, self._failed, self._done)
        hub.on_connected(self._connection_changed)

    def reload(self, config: Config, blocked: list[str], specs: dict[str, HandlerSpec], host: HandlerHost | None) -> None:
        """From now on it is these handlers, and the callbacks' secret and networks of this configuration."""
        self._config, self._specs, self._host = config, specs, host
        if self._callbacks is not None:
            self._callbacks.reload(config, blocked)

    async def run(self) -> None:
        """Reads, finishes and commits. What is under way when it is cancelled comes again, to another worker; what is done does not."""
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._commit_forever())
                while True:
                    for partition, place, entry, failed in await self._again_until_answered(self._read):
                        self._places.setdefault(partition, deque()).append(place)
                        if entry is None:
                            self._done(place)
                        elif failed:
                            await self._failures.add(group, entry, failed, place)
                        else:
                            await self._room.acquire()
                            group.create_task(self._finish(place, entry))
        finally:
            # Without an answer it is done once more, which is allowed.
            with contextlib.suppress(Unavailable, Refused, TimeoutError):
                async with asyncio.timeout(LAST_COMMIT_SECONDS):
                    await self._commit()
            if self._callbacks is not None:
                await self._callbacks.close()

    def _connection_changed(self, connected: bool) -> None:
        if not connected:
            self._joined = False

    async def _read(self) -> list[tuple[int, Place, dict[str, Any] | None, list[tuple[int, int]]]]:
        """The next messages, with what there is to do for each: a job that is settled, or resources of it that failed."""
        if not self._joined:
            await self._hub.follow(self._follower)
            self._joined = True
        told = await self._hub.read(self._follower, READ_MESSAGES, READ_WAIT_MS)
        if not told:
            return []
        # From here on the follower has moved on: the question is repeated until it is answered.
        asked = {"job_ids": list({job_id for _, _, job_id, _ in told if job_id}), "job_types": list(self._specs), "failures": True}
        answer = await self._again_until_answered(lambda: self._hub.query("finished", asked))
        jobs = {entry["job"]["job_id"]: entry for entry in orjson.loads(answer)["jobs"]}

        def wanted(job_id: str, failed: list[tuple[int, int]]) -> dict[str, Any] | None:
            # One that was replayed meanwhile is told of when it is settled again.
            entry: dict[str, Any] | None = jobs.get(job_id)
            events = entry["callback_events"] if entry is not None else []
            return entry if entry is not None and (FAILED in events if failed else entry.get("over", True)) else None

        return [(partition, Place(behind), wanted(job_id, failed), failed) for partition, behind, job_id, failed in told]

    async def _again_until_answered(self, call: Callable[[], Awaitable[T]]) -> T:
        pause = RETRY_FIRST
        while True:
            try:
                return await call()
            except (Unavailable, Refused) as error:
                self._joined = False
                # An absence is told by the connection; a refusal is told here, or nobody would hear of it.
                (log.info if isinstance(error, Refused) else log.debug)("the hub did not answer, trying again", error=str(error))
                await asyncio.sleep(pause)
                pause = min(pause * 2, RETRY_MOST)

    async def _finish(self, place: Place, entry: dict[str, Any]) -> None:
        job, url = entry["job"], entry["callback_url"]
        try:
            spec = self._specs.get(job["job_type"])
            if spec is not None and self._host is not None:
                host = self._host
                await self._try(HOOK, job, lambda: self._finalize(host, spec, job))
            if url is not None and not self._failures.has_ended(job["job_id"]):
                await self._tell(url, entry, job)
        finally:
            self._room.release()
        self._done(place)

    async def _tell(self, url: str, entry: dict[str, Any], job: dict[str, Any]) -> None:
        """Calls the receiver of a settled job, and for each failure that had no event of its own: those that an older hub counted. Once it
        was given up for one event, it is tried once for the others."""
        from fetchbox.worker.callbacks import SETTLED, settled

        events: list[str] = entry["callback_events"]
        pauses: Sequence[float] = PAUSES
        if not events or SETTLED in events:
            end = await self._call(url, settled(job), job, PAUSES)
            if end is not None and end.is_final:
                self._failures.end(job["job_id"])
                return
            pauses = PAUSES if end is None else ()
        if FAILED not in events or not job["resource_failed"] or not entry.get("untold", True):
            return
        async for resources in self._all_failed(job["job_id"]):
            ends = await asyncio.gather(*(self._tell_failed(entry, resource, pauses) for resource in resources))
            if any(end is not None and end.is_final for end in ends):
                return
            pauses = pauses if all(end is None for end in ends) else ()

    async def _tell_failed(self, entry: dict[str, Any], resource: dict[str, Any], pauses: Sequence[float]) -> _Failed | None:
        from fetchbox.worker.callbacks import failed

        return await self._call(entry["callback_url"], failed(entry["job"], resource), entry["job"], pauses)

    async def _call(self, url: str, event: Event, job: dict[str, Any], pauses: Sequence[float]) -> _Failed | None:
        return await self._try("callback", job, lambda: self._post(url, event, job), pauses, url=url_without_secrets(url))

    async def _failed(self, job_id: str, indexes: list[int]) -> list[dict[str, Any]]:
        """Of these resources those that have failed."""
        found: list[dict[str, Any]] = (await self._resources(job_id, {"limit": len(indexes), "indexes": indexes}))["resources"]
        return found

    async def _all_failed(self, job_id: str) -> AsyncIterator[list[dict[str, Any]]]:
        """A job's failed resources, as many at a time as its receiver is called with."""
        asked: dict[str, Any] = {"limit": FAILURES}
        while True:
            page = await self._resources(job_id, asked)
            for first in range(0, len(page["resources"]), PER_RECEIVER):
                yield page["resources"][first : first + PER_RECEIVER]
            if page["next_cursor"] is None:
                return
            asked["cursor"] = page["next_cursor"]

    async def _resources(self, job_id: str, asked: dict[str, Any]) -> dict[str, Any]:
        async def ask() -> bytes:
            try:
                return await self._hub.query("resources", {"job_id": job_id, "state": "failed", **asked})
            except Refused as error:
                if error.code != "NOT_FOUND":
                    raise
                # Forgotten meanwhile, and nobody can ask what became of it any more.
                return b'{"resources":[],"next_cursor":null}'

        page: dict[str, Any] = orjson.loads(await self._again_until_answered(ask))
        return page

    async def _try(
        self, what: str, job: dict[str, Any], call: Callable[[], Awaitable[None]], pauses: Sequence[float] = PAUSES, **told: Any
    ) -> _Failed | None:
        """Calls until it succeeds or is given up; why it was."""
        for pause in (*pauses, None):
            try:
                await call()
                return None
            except _Failed as error:
                final = error.is_final or pause is None
                level = log.error if final else log.warning
                level(f"{what} failed", job_id=job["job_id"], error=str(error), again_in=None if final else pause, **told)
                if error.is_final or pause is None:
                    return error
                await asyncio.sleep(pause)
        return None

    async def _post(self, url: str, event: Event, job: dict[str, Any]) -> None:
        # Imported when the first manifest asks for it: most workers never need an HTTP client of Python's.
        from fetchbox.worker.callbacks import CallbackFailed, Callbacks

        if self._callbacks is None:
            self._callbacks = Callbacks(self._config)
        # A slot only when the receiver's turn has come: one that hangs holds up itself.
        async with self._receiver(urlsplit(url).netloc), self._slots:
            try:
                await self._callbacks.post(url, event)
            except CallbackFailed as error:
                raise _Failed(str(error), is_final=error.is_final) from error
        log.debug("called back", job_id=job["job_id"])

    async def _finalize(self, host: HandlerHost, spec: HandlerSpec, job: dict[str, Any]) -> None:
        async with self._slots:
            try:
                await host.call(spec, HOOK, dict(job))
            except HandlerError as error:
                raise _Failed(f"{error.code}: {error}") from error

    @contextlib.asynccontextmanager
    async def _receiver(self, name: str) -> AsyncIterator[None]:
        slots, users = self._receivers.get(name, (asyncio.Semaphore(PER_RECEIVER), 0))
        self._receivers[name] = (slots, users + 1)
        try:
            async with slots:
                yield
        finally:
            users = self._receivers[name][1] - 1
            if users:
                self._receivers[name] = (slots, users)
            else:
                del self._receivers[name]

    def _done(self, place: Place) -> None:
        place.is_done = True
        self._moved.set()

    async def _commit_forever(self) -> None:
        while True:
            await self._moved.wait()
            await asyncio.sleep(COMMIT_INTERVAL)
            self._moved.clear()
            await self._again_until_answered(self._commit)

    async def _commit(self) -> None:
        mine = set(self._follower.partitions())
        for partition in (self._places.keys() | self._uncommitted.keys()) - mine:
            # Whoever has it now begins where we committed.
            self._places.pop(partition, None)
            self._uncommitted.pop(partition, None)
        self._uncommitted |= {partition: behind for partition in mine if (behind := self._advance(partition)) is not None}
        if offsets := dict(self._uncommitted):
            await self._hub.commit(self._follower, list(offsets.items()))
            self._uncommitted = {partition: behind for partition, behind in self._uncommitted.items() if offsets.get(partition) != behind}

    def _advance(self, partition: int) -> int | None:
        places, behind = self._places.get(partition), None
        while places and places[0].is_done:
            behind = places.popleft().behind
        return behind


class _Failed(Exception):
    def __init__(self, reason: str, *, is_final: bool = False) -> None:
        super().__init__(reason)
        self.is_final = is_final
