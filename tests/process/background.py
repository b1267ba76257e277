"""Threads that work beside a test: posting and sampling. A failure in one of them is the test's."""

from __future__ import annotations

import random
import sys
import threading
from collections.abc import Callable, Iterable
from types import TracebackType

from tests.process.load import Load
from tests.process.oracle import Oracle
from tests.process.waiting import pause


class Background:
    """Runs `work(stopped)` in a thread until it ends by itself or the block is left, which raises what it raised."""

    def __init__(self, name: str, work: Callable[[threading.Event], None], *, limit: float = 120.0) -> None:
        self.stopped = threading.Event()
        self.failure: BaseException | None = None
        self._work = work
        self._limit = limit
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    def _run(self) -> None:
        try:
            self._work(self.stopped)
        except BaseException as error:
            self.failure = error

    def raise_failure(self) -> None:
        """Raises what the thread died of, if it did."""
        if self.failure is not None:
            raise self.failure

    @property
    def running(self) -> bool:
        """Whether it has not ended."""
        return self._thread.is_alive()

    def join(self, limit: float) -> None:
        """Waits until it ended by itself."""
        self._thread.join(limit)
        self.raise_failure()
        assert not self._thread.is_alive(), f"{self._thread.name} did not end within {limit:g} s"

    def __enter__(self) -> Background:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.stopped.set()
        self._thread.join(self._limit)
        if error is None:
            self.raise_failure()


def sampling(oracle: Oracle, *, every: float = 0.25) -> Background:
    """Takes a sample of all jobs again and again, and so sees any moment at which the sums are wrong."""

    def work(stopped: threading.Event) -> None:
        while not stopped.is_set():
            oracle.sample()
            stopped.wait(every)

    return Background("sampling", work)


def posting(
    oracle: Oracle,
    loads: Iterable[Load],
    *,
    ahead: int,
    released: Callable[[], int] = lambda: sys.maxsize,
    seed: int = 0,
    limit: float = 60.0,
) -> Background:
    """Posts the jobs so that about `ahead` tasks wait at any moment, going by the journal, and at most `released` and `ahead` in all.

    Now and then it repeats an earlier post, whose answer must be the same job.
    """
    chance = random.Random(seed)

    def work(stopped: threading.Event) -> None:
        posted: list[Load] = []
        for load in loads:
            while oracle.tasks - min(oracle.journal.total, released()) > ahead and not stopped.is_set():
                pause(0.02)
            if stopped.is_set():
                return
            oracle.post(load, limit)
            posted.append(load)
            if chance.random() < 0.3:
                oracle.post(chance.choice(posted), limit)

    return Background("posting", work)
