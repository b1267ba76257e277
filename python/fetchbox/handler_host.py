"""Runs handlers so that nothing they do can stop an api or a worker: not a hang, not a blocked loop, not an exit.

Async handlers run on an event loop in a thread of its own, sync ones in a daemon thread each. What does not come back in time is given
up and left behind; a loop that no longer turns is replaced. A thread cannot be killed, so what was left behind is counted, and beyond a
limit handlers are refused until some of it returns.
"""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import logging
import threading
import time
from collections.abc import AsyncIterable, Callable, Coroutine, Iterable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

from fetchbox.config import Config, JobType
from fetchbox.errors import HandlerError
from fetchbox.handlers import Handler, as_task, create_handler, defines, load_handler
from fetchbox.manifest import DownloadTask, Manifest

logger = logging.getLogger(__name__)

MAX_THREADS = 32
"""Sync handler calls at a time; more wait within their time limit."""
MAX_ABANDONED = 64
"""Threads and loops that may hang before handlers are refused outright."""
STALLED_AFTER = 1.0
"""Seconds without a turn after which a loop counts as blocked."""


@dataclass(frozen=True)
class HandlerSpec:
    """A job type's handler."""

    job_type: str
    target: str
    options: dict[str, Any] = field(default_factory=dict, hash=False)
    timeout: float = 30.0


def spec_of(job_type: str, kind: JobType) -> HandlerSpec | None:
    """What the configuration says of a job type's handler; None without one."""
    if kind.handler is None:
        return None
    return HandlerSpec(job_type=job_type, target=kind.handler, options=kind.options, timeout=kind.handler_timeout)


def specs_defining(hook: str, config: Config) -> dict[str, HandlerSpec]:
    """The handlers that define a worker hook, by job type. Raises HandlerError when one cannot be loaded."""
    specs = {name: spec_of(name, kind) for name, kind in config.job_types.items()}
    return {name: spec for name, spec in specs.items() if spec is not None and defines(load_handler(spec.target), hook)}


class HandlerHost:
    """Calls handlers off the process's own loop."""

    def __init__(self, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._runner: _Runner | None = None
        self._hung = _Counter()

    async def build(self, spec: HandlerSpec, manifest: Manifest, max_tasks: int) -> list[DownloadTask]:
        """The tasks that the job type's handler makes of `manifest`, at most `max_tasks`.

        Raises HandlerError: its own, HANDLER_TIMEOUT after `spec.timeout` seconds, HANDLER_ERROR for any other exception,
        HANDLER_BAD_TASK for too many tasks or things that are none.
        """
        tasks: list[DownloadTask] = await self._within(spec, lambda runner: runner.build(spec, manifest, max_tasks))
        return tasks

    async def call(self, spec: HandlerSpec, hook: str, argument: Any) -> None:
        """Calls a hook of the job type's handler, `before_fetch` with a task or `finalize_job` with a summary.

        Raises HandlerError: its own, HANDLER_TIMEOUT after `spec.timeout` seconds, HANDLER_ERROR for any other exception.
        """
        await self._within(spec, lambda runner: runner.call(spec, hook, argument))

    async def _within(self, spec: HandlerSpec, work: Callable[[_Runner], Coroutine[Any, Any, Any]]) -> Any:
        if self._hung.value >= MAX_ABANDONED:
            raise HandlerError("too many handler calls hang; handlers are refused until some come back", code="HANDLER_TIMEOUT")
        runner = self._running()
        future = asyncio.run_coroutine_threadsafe(work(runner), runner.loop)
        limit = asyncio.timeout(spec.timeout)
        try:
            async with limit:
                return await asyncio.wrap_future(future)
        except TimeoutError as error:
            if not limit.expired():
                raise HandlerError("the handler raised TimeoutError", code="HANDLER_ERROR") from error
            future.cancel()
            runner.ping(self._clock())
            logger.warning("handler %s of job type %s did not return within %s s", spec.target, spec.job_type, spec.timeout)
            raise HandlerError(f"the handler did not return within {spec.timeout:g} s", code="HANDLER_TIMEOUT") from None

    @property
    def hanging(self) -> int:
        """Threads and loops that were given up and have not come back."""
        return self._hung.value

    def close(self) -> None:
        """Stops the handlers' loop; what hangs in it dies with the process."""
        if self._runner is not None:
            self._runner.stop()
            self._runner = None

    def _running(self) -> _Runner:
        runner = self._runner
        now = self._clock()
        if runner is not None and runner.stalled(now):
            logger.error("the handlers' event loop is blocked by a handler; starting another")
            runner.abandon()
            runner = None
        if runner is None:
            runner = self._runner = _Runner(self._hung)
        runner.ping(now)
        return runner


class _Counter:
    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.value = 0

    def add(self, by: int) -> None:
        with self._lock:
            self.value += by


class _Runner:
    """An event loop in a daemon thread, with the handler instances that belong to it."""

    def __init__(self, hung: _Counter) -> None:
        self.loop = asyncio.new_event_loop()
        self.instances: dict[HandlerSpec, Handler] = {}
        self._hung = hung
        self._threads = asyncio.Semaphore(MAX_THREADS)
        self._pinged: float | None = None
        threading.Thread(target=self._run, name="fetchbox-handlers", daemon=True).start()

    def ping(self, now: float) -> None:
        if self._pinged is None:
            self._pinged = now
            self.loop.call_soon_threadsafe(self._pong)

    def stalled(self, now: float) -> bool:
        pinged = self._pinged
        return pinged is not None and now - pinged > STALLED_AFTER

    def stop(self) -> None:
        self.loop.call_soon_threadsafe(self.loop.stop)

    def abandon(self) -> None:
        """Counts the loop as hanging, and lets it end by itself should it ever turn again."""
        self._hung.add(1)
        self.loop.call_soon_threadsafe(self._hung.add, -1)
        self.stop()

    def _pong(self) -> None:
        self._pinged = None

    def _run(self) -> None:
        asyncio.set_event_loop(self.loop)
        try:
            self.loop.run_forever()
            unfinished = asyncio.all_tasks(self.loop)
            for task in unfinished:
                task.cancel()
            if unfinished:
                self.loop.run_until_complete(asyncio.wait(unfinished, timeout=STALLED_AFTER))
        finally:
            self.loop.close()

    async def build(self, spec: HandlerSpec, manifest: Manifest, max_tasks: int) -> list[DownloadTask]:
        with _as_handler_error(spec):
            handler = await self._instance(spec)
            prepared = await self._call(handler.prepare_manifest, manifest)
            if prepared is None:
                prepared = manifest
            if not isinstance(prepared, Manifest):
                raise HandlerError(f"prepare_manifest returned a {type(prepared).__name__}, not a manifest", code="HANDLER_ERROR")
            tasks = await self._collect(handler, prepared, max_tasks + 1)
        if len(tasks) > max_tasks:
            raise HandlerError(f"the handler built more than {max_tasks} tasks", code="HANDLER_BAD_TASK")
        return tasks

    async def call(self, spec: HandlerSpec, hook: str, argument: Any) -> None:
        with _as_handler_error(spec):
            await self._call(getattr(await self._instance(spec), hook), argument)

    async def _instance(self, spec: HandlerSpec) -> Handler:
        handler = self.instances.get(spec)
        if handler is None:
            created: Handler = await self._in_thread(create_handler, spec.target, spec.options)
            handler = self.instances.setdefault(spec, created)
        return handler

    async def _collect(self, handler: Handler, manifest: Manifest, limit: int) -> list[DownloadTask]:
        build = handler.build_tasks
        if inspect.isasyncgenfunction(build) or inspect.iscoroutinefunction(build):
            items: Any = build(manifest)
        else:
            items = await self._in_thread(_build_now, build, manifest, limit)
        if inspect.isawaitable(items):
            items = await items
        if isinstance(items, AsyncIterable):
            tasks: list[DownloadTask] = []
            async for item in items:
                tasks.append(as_task(item))
                if len(tasks) >= limit:
                    break
            return tasks
        if not isinstance(items, list):
            items = await self._in_thread(_take, items, limit)
        return [as_task(item) for item in items[:limit]]

    async def _call(self, method: Callable[..., Any], *args: Any) -> Any:
        if inspect.iscoroutinefunction(method):
            return await method(*args)
        result = await self._in_thread(method, *args)
        return await result if inspect.isawaitable(result) else result

    async def _in_thread(self, function: Callable[..., Any], *args: Any) -> Any:
        """Calls `function` in a daemon thread. When the wait is cancelled the thread is left behind and counted until it ends."""
        async with self._threads:
            future: asyncio.Future[Any] = self.loop.create_future()
            call = _ThreadCall(self.loop, future, self._hung, function, args)
            threading.Thread(target=call.run, name="fetchbox-handler", daemon=True).start()
            try:
                return await future
            except asyncio.CancelledError:
                call.give_up()
                raise


@contextlib.contextmanager
def _as_handler_error(spec: HandlerSpec) -> Iterator[None]:
    try:
        yield
    except (HandlerError, asyncio.CancelledError):
        raise
    except (SystemExit, KeyboardInterrupt) as error:
        # Let through, these would end the loop for all handlers.
        raise HandlerError("the handler tried to end the process", code="HANDLER_ERROR") from error
    except Exception as error:
        logger.exception("handler %s of job type %s failed", spec.target, spec.job_type)
        raise HandlerError(f"the handler failed with {type(error).__name__}", code="HANDLER_ERROR") from error


class _ThreadCall:
    """One call in a thread; either its result is delivered or it is given up, never both."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        future: asyncio.Future[Any],
        hung: _Counter,
        function: Callable[..., Any],
        args: tuple[Any, ...],
    ) -> None:
        self._loop = loop
        self._future = future
        self._hung = hung
        self._function = function
        self._args = args
        self._lock = threading.Lock()
        self._finished = False
        self._given_up = False

    def run(self) -> None:
        result: Any = None
        error: BaseException | None = None
        try:
            result = self._function(*self._args)
        except BaseException as raised:
            error = raised
        with self._lock:
            self._finished = True
            if self._given_up:
                self._hung.add(-1)
                return
        # A loop that has ended has nobody who waits.
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self._deliver, result, error)

    def give_up(self) -> None:
        with self._lock:
            if not self._finished:
                self._given_up = True
                self._hung.add(1)

    def _deliver(self, result: Any, error: BaseException | None) -> None:
        if self._future.done():
            return
        if error is None:
            self._future.set_result(result)
        elif isinstance(error, StopIteration):
            # A future refuses to carry it.
            self._future.set_exception(RuntimeError("StopIteration"))
        else:
            self._future.set_exception(error)


def _build_now(build: Callable[[Manifest], Any], manifest: Manifest, limit: int) -> Any:
    items = build(manifest)
    if inspect.isawaitable(items) or isinstance(items, AsyncIterable):
        return items
    return _take(items, limit)


def _take(items: Iterable[Any], limit: int) -> list[Any]:
    return list(islice(items, limit))
