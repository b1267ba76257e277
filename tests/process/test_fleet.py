"""The proof of the fleet: a hub, two apis and three workers, each in a network of its own, on a real Iggy server and a real S3 server, and
everything that can die dies while ten thousand tasks are under way.

At full size it is run by hand: `FETCHBOX_FLEET_TASKS=10000`, and `FETCHBOX_FLEET_STORE=s3s-fs` for the other S3 server.
"""

from __future__ import annotations

import itertools
import os
import time
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.process.background import Background, sampling
from tests.process.far_fleet import FarFleet, FarOracle, far_fleet
from tests.process.iggy import needs_iggy
from tests.process.load import Load, plain
from tests.process.netns import in_own_network
from tests.process.oracle import Oracle, difference
from tests.process.waiting import pause, wait_for

# Read when this is imported: a test's own environment has none of our variables.
TASKS = int(os.environ.get("FETCHBOX_FLEET_TASKS", "3000"))
STORE = os.environ.get("FETCHBOX_FLEET_STORE", "moto")
PACE = float(os.environ.get("FETCHBOX_FLEET_PACE", "90"))
"""Responses of the origin a second."""
PER_JOB = 50
AHEAD_SECONDS = 8.0
"""Work that waits at any moment: a restart is never awaited by idle workers."""
CUT_SECONDS = 30.0
HUB_BACK_WITHIN = 10.0
LIMIT = 120.0 + TASKS / 25

pytestmark = [needs_iggy, pytest.mark.timeout(LIMIT + 60)]


@dataclass(slots=True)
class Faults:
    """What was done to the fleet, and how much was under way then: asked of the origin, and not known to be settled."""

    under_way: dict[str, int] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def strike(self, what: str, fleet: FarFleet, oracle: Oracle) -> None:
        """Notes a fault that is about to happen."""
        settled = sum(job["resource_total"] - job["resource_pending"] for job in oracle.sample())
        self.under_way[what] = fleet.origin.journal.asked - settled

    def __str__(self) -> str:
        lines = [f"  {what}: {count} tasks under way" for what, count in self.under_way.items()]
        return "\n".join([*lines, *(f"  {note}" for note in self.notes)])


def posting(fleet: FarFleet, oracle: Oracle, jobs: int) -> Background:
    """Posts the jobs to the apis in turn, so that some seconds' work waits; every third once more, to the other api and with its key."""

    def work(stopped: object) -> None:
        there = itertools.cycle(fleet.apis)
        for job in range(jobs):
            while oracle.tasks - fleet.origin.journal.asked > PACE * AHEAD_SECONDS:
                pause(0.02)
            load: Load = plain(fleet.origin.base_url, job, PER_JOB)
            for _ in range(2 if job % 3 == 0 else 1):
                answer, status = next(there).host.http.post_until_acknowledged(load.body, load.key, headers=load.headers)
                oracle.acknowledge(load, answer, status)

    return Background("posting", work, limit=LIMIT)


def test_everything_dies_once_and_every_resource_is_stored_and_counted_once(tmp_path: Path) -> None:
    in_own_network(lambda: break_everything(tmp_path), LIMIT)


def break_everything(directory: Path) -> None:
    began = time.monotonic()
    with far_fleet(directory, STORE, pace=PACE) as fleet:
        oracle = FarOracle(fleet.apis[0].host.http, fleet)
        faults = Faults()
        started = time.monotonic()

        def asked(share: float) -> None:
            posts.raise_failure()
            wait_for(
                f"{share:.0%} of the tasks", lambda: fleet.origin.journal.asked >= share * TASKS, LIMIT, every=0.02, describe=fleet.dump
            )

        with sampling(oracle, every=0.5), posting(fleet, oracle, TASKS // PER_JOB) as posts:
            asked(0.08)
            faults.strike("a worker host was killed", fleet, oracle)
            fleet.workers[0].host.kill_tree()
            fleet.workers[0].host.launch()
            asked(0.2)
            faults.strike("the Iggy server was killed", fleet, oracle)
            fleet.iggy.kill()
            away = time.monotonic()
            fleet.iggy.start()
            faults.notes.append(f"the Iggy server answered {time.monotonic() - away:.1f} s after its kill")
            asked(0.35)
            faults.strike("a worker's link was cut", fleet, oracle)
            cut_at, at = time.monotonic(), fleet.origin.journal.asked
            fleet.workers[1].link.cut()
            wait_for("the time of the cut", lambda: time.monotonic() - cut_at >= CUT_SECONDS, CUT_SECONDS + 10, every=0.1)
            fleet.workers[1].link.mend()
            more = fleet.origin.journal.asked - at
            faults.notes.append(f"the others asked for {more} tasks while the link was cut for {time.monotonic() - cut_at:.0f} s")
            assert more > CUT_SECONDS * PACE / 4
            # One fault at a time: a worker that is back from a cut and finds no hub does what it holds, although others may have it by now.
            wait_for("the worker to be back", fleet.workers[1].host.all_ready, 30, every=0.05, describe=fleet.dump)
            assert fleet.origin.journal.asked < 0.95 * TASKS, "too few tasks for all that is to happen"
            faults.strike("the hub's host was killed", fleet, oracle)
            fleet.hub.host.kill_tree()
            away = time.monotonic()
            fleet.hub.host.launch()
            late = plain(fleet.origin.base_url, TASKS, 1)
            oracle.acknowledge(late, *fleet.apis[1].host.http.post_until_acknowledged(late.body, late.key, headers=late.headers))
            back = time.monotonic() - away
            faults.notes.append(f"the hub took jobs again {back:.1f} s after its kill")
            assert back < HUB_BACK_WITHIN
            posts.join(LIMIT)
            oracle.await_settled(LIMIT)
        seconds = time.monotonic() - started
        requests = fleet.origin.journal.total
        again, bound = requests - oracle.tasks, sum(faults.under_way.values())
        report = oracle.check(ratio=2.0)
        before = oracle.snapshots()
        print(f"\n{oracle.tasks} tasks on Iggy and {STORE} in {seconds:.1f} s, started and ended in {time.monotonic() - began:.1f} s")
        print(f"  {report}")
        print(faults)
        print(f"  redelivered: {again} requests beyond one a task; under way at the faults: {bound}")
        print(f"  left over in the bucket: {len(fleet.store.uploads())} uploads, no object (checked above)")
        assert again <= bound
        assert fleet.store.uploads() == []
        for far in fleet.hosts:
            wait_for(f"{far.host.directory.name} to be well", far.host.ready, 20, every=0.1, describe=fleet.dump)
        fleet.hub.host.end()
        fleet.hub.host.start()
        assert difference(before, oracle.snapshots()) == ""
        fleet.stop()
