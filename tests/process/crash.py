"""The crash run: random kills under load, held against the oracle. The test and the soak are the same run in two sizes."""

from __future__ import annotations

import os
import secrets
import time
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from tests.process import kills, progress
from tests.process.background import posting, sampling
from tests.process.load import KIB, plain
from tests.process.oracle import Oracle, Report, difference
from tests.process.origins import OriginProcess
from tests.process.service import Service

SEED_VARIABLE = "FETCHBOX_CRASH_SEED"
_GIVEN = os.environ.get(SEED_VARIABLE)
"""Read when this is imported: a test's own environment has none of our variables."""


@dataclass(frozen=True, slots=True)
class Size:
    """How large a run is. `pace` is in responses of the origin per second."""

    tasks: int = 10_000
    per_job: int = 100
    bytes: int = 10 * KIB
    kills: int = 60
    least: int = 10
    tree: int = 3
    pace: float = 150.0
    workers: int = 2
    api_processes: int = 1
    concurrency: int = 32
    sample_every: float = 0.25
    settle_limit: float = 120.0


@dataclass(frozen=True, slots=True)
class CrashReport:
    """What a run came to; printed at its end."""

    seed: int
    kills: kills.Kills
    oracle: Report
    refusals: int
    seconds: float
    usage: str

    def __str__(self) -> str:
        return "\n".join(
            [
                f"crash run of {self.seconds:.1f} s, replay with {SEED_VARIABLE}={self.seed}",
                f"  {self.kills}",
                f"  {self.oracle}",
                f"  {self.refusals} posts met a 5xx or a broken connection and were repeated with their key",
                f"  {self.usage}",
            ]
        )


def chosen_seed() -> int:
    """The seed of the environment, else a new one."""
    return int(_GIVEN) if _GIVEN else secrets.randbelow(2**31)


def run(directory: Path, size: Size, seed: int, bounds: progress.Bounds | None = None) -> CrashReport:
    """One run; with `bounds` it prints how far it is, and ends when it takes more. AssertionError, naming the seed, as soon as a witness
    disagrees."""
    print(f"{SEED_VARIABLE}={seed}", flush=True)
    overrides = {
        "server": {"processes": size.api_processes},
        "worker": {"processes": size.workers, "concurrency": size.concurrency},
        "fetch": {"per_host_concurrency": size.concurrency},
    }
    started = time.monotonic()
    usage = progress.Usage(directory)
    with (
        (directory / "acknowledgements.journal").open("w") as acknowledgements,
        OriginProcess(directory, pace=size.pace) as origin,
        Service(directory / "service", overrides) as service,
    ):
        oracle = Oracle(service.http, service.assets, origin.journal, acknowledgements)
        service.start()
        loads = (plain(origin.base_url, job, size.per_job, size=size.bytes, tenants=3) for job in range(size.tasks // size.per_job))
        # A few seconds of work ahead: every kill meets tasks in flight, on a slow machine too, and posts on their way.
        ahead = max(4 * size.per_job, int(size.pace * 4))
        done = kills.Kills(seed)
        schedule = kills.plan(seed, size.kills, size.tasks, least=size.least, tree=size.tree)
        try:
            poster = posting(oracle, loads, ahead=ahead, released=lambda: done.next_at, seed=seed)
            sampler = sampling(oracle, every=size.sample_every)
            watcher = progress.watching(usage, service, oracle, done, size.kills, size.tasks, bounds)
            with ExitStack() as stack:
                for helper in (poster, sampler, watcher):
                    stack.enter_context(helper)
                # A second's work is always under way, and seen by the sampler a moment later.
                kills.carry_out(service, oracle, schedule, done, (poster, sampler, watcher), int(size.pace * (1 + size.sample_every)))
                poster.join(60 + size.tasks / size.pace)
            service.wait_ready()
            oracle.await_settled(size.settle_limit)
            progress.say(bounds, "all is settled; holding the witnesses against each other")
            before = oracle.snapshots()
            report = oracle.check()
            progress.say(bounds, "they agree; once more after a restart")
            service.end()
            service.start()
            assert not (changed := difference(before, oracle.snapshots())), f"the restart changed what is known:\n{changed}"
            service.end()
        except AssertionError as error:
            raise AssertionError(f"{SEED_VARIABLE}={seed}\n{error}\n{service.dump()}") from error
        return CrashReport(seed, done, report, service.http.refusals, time.monotonic() - started, str(usage))
