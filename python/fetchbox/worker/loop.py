"""The worker's loop: poll, drop what is settled, download, report, commit. Everything goes by the batch; no task becomes a Python
object."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

import structlog

from fetchbox._core import Delivery, Engine, OutcomeBatch, Report
from fetchbox.broker import Streams
from fetchbox.errors import Refused, Unavailable
from fetchbox.worker.quarantine import Quarantine

if TYPE_CHECKING:
    from fetchbox.config import Config
    from fetchbox.handler_host import HandlerHost, HandlerSpec
    from fetchbox.tracing import Traces
    from fetchbox.worker.before import BeforeFetch
    from fetchbox.worker.finish import Finisher

log = structlog.get_logger("fetchbox.worker")

POLL_WAIT_MS = 1000
"""How long a poll may wait at the hub for something to arrive."""
POLL_MESSAGES = 2000
"""Most tasks that one poll brings."""
DRAIN_LIMIT = 2048
"""Most outcomes of one report."""
BACKLOG_LIMIT = 65_536
"""Most tasks that wait in the engine, over all partitions: about 64 MiB."""
REST_SHARE = 8.0
"""Between two reports it rests so many times as long as publishing the last took, where the streams are such that this pays."""
LOOK_SECONDS = 0.01
RETRY_FIRST = 0.05
RETRY_MOST = 2.0


class WorkerLoop:
    """Moves tasks from the hub to the engine and outcomes back until it is told to drain.

    The engine and the connection belong to the caller, who closes them afterwards. Tasks that may kill this process go to `quarantine`,
    those whose job type wants a look at them first to what `hook` names; what settled jobs ask for is the `finisher`'s.
    """

    def __init__(
        self,
        engine: Engine,
        hub: Streams,
        member: str,
        flush_interval: float,
        quarantine: Quarantine,
        finisher: Finisher | None = None,
        traces: Traces | None = None,
    ) -> None:
        self._engine = engine
        self._hub = hub
        self._member = member
        self._flush_interval = flush_interval
        self._quarantine = quarantine
        self._before: BeforeFetch | None = None
        self._hooked = asyncio.Event()
        self._finisher = finisher
        self._traces = traces
        self._finished = asyncio.Event()
        self._room = asyncio.Event()
        self._draining = asyncio.Event()
        self._connected = asyncio.Event()
        self._reporting = asyncio.Lock()
        self._publishing_took = 0.0
        self.reported = asyncio.Event()
        hub.on_connected(self._connection_changed)
        self._joined = False
        self._apart: asyncio.Task[None] | None = None

    async def run(self, draining: asyncio.Event, time_to_finish: Callable[[], float]) -> None:
        """Works until `draining` is set, then finishes what is under way for at most `time_to_finish()` seconds and leaves the group."""
        loop = asyncio.get_running_loop()
        self._listen()
        poller = asyncio.create_task(self._poll_forever())
        reporter = asyncio.create_task(self._report_forever())
        apart = asyncio.create_task(self._quarantine.run(self._settle_apart))
        stop = asyncio.create_task(draining.wait())
        tasks = {poller, reporter, apart, stop}
        tasks.add(asyncio.create_task(self._run_hooks()))
        if self._finisher is not None:
            tasks.add(asyncio.create_task(self._finisher.run()))
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in done - {stop}:
                task.result()
            for task in tasks - {poller, reporter, stop}:
                task.cancel()
            await self._drain(poller, time_to_finish())
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            loop.remove_reader(self._engine.fileno())

    def hook(self, config: Config, specs: Mapping[str, HandlerSpec], host: HandlerHost | None) -> None:
        """From now on these handlers have a look at their job types' tasks first. A second call replaces the first."""
        if self._before is not None:
            self._before.reload(config, specs)
        elif specs and host is not None:
            from fetchbox.worker.before import BeforeFetch

            self._before = BeforeFetch(config, self._engine, specs, host)
            self._hooked.set()

    async def _run_hooks(self) -> None:
        await self._hooked.wait()
        if self._before is not None:
            await self._before.run(self._take_aside)

    async def _drain(self, poller: asyncio.Task[None], limit: float) -> None:
        self._draining.set()
        self._engine.begin_close()
        poller.cancel()
        await asyncio.wait({poller}, timeout=1)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(limit):
                while self._engine.backlog() > 0:
                    self.reported.clear()
                    await self.reported.wait()
                async with self._reporting:
                    await self._hub.leave()

    def _listen(self) -> None:
        """Wakes the reporter once: the descriptor stays readable until the engine is drained, and would keep the loop spinning."""
        asyncio.get_running_loop().add_reader(self._engine.fileno(), self._wake)

    def _wake(self) -> None:
        asyncio.get_running_loop().remove_reader(self._engine.fileno())
        self._finished.set()

    def _connection_changed(self, connected: bool) -> None:
        if connected:
            self._connected.set()
        else:
            self._connected.clear()
            self._joined = False

    async def _pause(self, seconds: float) -> None:
        """Waits so long, or until a hub that is away is back: what a worker holds unreported would be done again if it died."""
        if self._hub.connected:
            await asyncio.sleep(seconds)
            return
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._connected.wait()

    async def _poll_forever(self) -> None:
        pause = RETRY_FIRST
        while not self._draining.is_set():
            while self._engine.backlog() >= BACKLOG_LIMIT:
                self._room.clear()
                await self._room.wait()
            try:
                await self._poll_once()
                pause = RETRY_FIRST
            except (Unavailable, Refused) as error:
                self._joined = False  # a hub that does not know this member says so: enter again
                log.info("poll failed, trying again", error=str(error), pause=pause)
                await self._pause(pause)
                pause = min(pause * 2, RETRY_MOST)

    async def _poll_once(self) -> None:
        if not self._joined:
            await self._hub.join(self._engine, self._member)
            self._joined = True
        if self._engine.to_release():
            await self._hub.release_partitions(self._engine)
        delivery = await self._hub.poll(self._engine, POLL_MESSAGES, POLL_WAIT_MS)
        admitted = self._engine.admit(delivery)
        if admitted:
            await self._submit(delivery, admitted)

    async def _submit(self, delivery: Delivery, admitted: int) -> None:
        """Admitted tasks must reach the engine: the window counts them as in flight already."""
        pause = RETRY_FIRST
        settled = None
        while settled is None:
            try:
                settled = await self._hub.settled(delivery)
            except Unavailable:
                await self._pause(pause)
                pause = min(pause * 2, RETRY_MOST)
        started = self._engine.submit(delivery, settled)
        if started < admitted:  # the rest is settled already, no task, suspect, or held back: offsets want to be committed
            self._finished.set()
            self._take_aside()
            if self._before is not None:
                self._before.take()

    def _take_aside(self) -> None:
        if aside := self._engine.set_aside():
            self._quarantine.add(aside)

    async def _settle_apart(self, outcomes: OutcomeBatch) -> None:
        """What the quarantine finished is settled like what the engine did.

        Not to be cut short between the two: the next report would commit past outcomes that nobody published.
        """
        self._apart = asyncio.create_task(self._report_apart(outcomes))
        await asyncio.shield(self._apart)

    async def _report_apart(self, outcomes: OutcomeBatch) -> None:
        async with self._reporting:
            await self._publish(self._engine.settle(outcomes))
        self._trace(outcomes)

    def _trace(self, outcomes: OutcomeBatch) -> None:
        if self._traces is not None:
            self._traces.settled(outcomes.sampled())

    async def _report_forever(self) -> None:
        while True:
            await self._finished.wait()
            # Outcomes that finish within the interval share one durable commit.
            await asyncio.sleep(self._flush_interval)
            await self._rest(min(self._publishing_took * REST_SHARE, self._hub.report_rest) - self._flush_interval)
            self._finished.clear()
            async with self._reporting:
                begun = time.monotonic()
                await self._report()
                self._publishing_took = time.monotonic() - begun
            self._listen()
            self._room.set()
            self.reported.set()

    async def _rest(self, seconds: float) -> None:
        """Waits for more outcomes, as long as there is something under way that may bring them."""
        until = time.monotonic() + seconds
        while True:
            left = until - time.monotonic()
            if left <= 0 or not self._engine.standing()[0]:
                return
            await asyncio.sleep(min(left, LOOK_SECONDS))

    async def _report(self) -> None:
        while True:
            outcomes = self._engine.drain(DRAIN_LIMIT)
            report = self._engine.settle(outcomes)
            if len(report):
                await self._publish(report)
            self._trace(outcomes)
            if len(outcomes) < DRAIN_LIMIT:
                return

    async def _publish(self, report: Report) -> None:
        """A report is repeated until the hub has it; a duplicate changes nothing there."""
        pause = RETRY_FIRST
        since = time.monotonic()
        while True:
            try:
                await self._hub.append(report)
                return
            except (Unavailable, Refused) as error:
                log.info("report not taken, trying again", error=str(error), waiting=round(time.monotonic() - since, 1))
                await self._pause(pause)
                pause = min(pause * 2, RETRY_MOST)
