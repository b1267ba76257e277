"""Every process killed at every named moment of a job's way, before and after it, under load: all stays exact.

One service lives through all of it. For each role a driver arms one point after the other, so that the hub, the api and a worker also die
at the same time, while the hub is away, and while another has only just come back.
"""

from __future__ import annotations

import os
import random
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path

import orjson
import pytest

from tests.process import crash
from tests.process.background import Background, posting, sampling
from tests.process.bucket import BucketOracle
from tests.process.failpoints import FailPoints, Point
from tests.process.hasty import HASTY
from tests.process.load import Load, Wanted, of, plain
from tests.process.oracle import Oracle, difference
from tests.process.origins import OriginProcess
from tests.process.s3 import s3_server
from tests.process.service import Service
from tests.process.waiting import pause, wait_for

TIMES = int(os.environ.get("FETCHBOX_FAILPOINT_TIMES", "10"))
"""Kills at each point of an api or a worker."""
HUB_TIMES = int(os.environ.get("FETCHBOX_FAILPOINT_TIMES", "3"))
"""Kills at each point of the hub, which rust/hub/tests/failpoints.rs kills ten times at each, without a service around it."""
LATEST_HIT = 3
"""A point kills at its first to so many-th hit."""
STRIKE_LIMIT = 90.0
"""Seconds in which somebody must come by an armed point."""
POSTERS = 4
CLIENTS = 2
"""Posters that post the same jobs under the same keys, so that they meet at one reservation."""
PACE = 300.0
"""Responses per second: what is under way has to drain in seconds."""
MOST_REQUESTS = 4.0
"""For each task: with a death every second a multiple of what the crash run allows, which measures it. A worker that is killed leaves what
it had begun to be done again."""
PER_JOB = 8

DEATH = "a process ended, starting it again"
"""How the supervisor tells of it."""

STEPS = (
    Point("hub::reserve"),
    Point("hub::accept"),
    Point("hub::manifest"),
    Point("hub::publish", "jobs.logs"),
    Point("hub::publish", "jobs.dlq"),
    Point("hub::publish", "jobs.status"),
    Point("hub::projection"),
    Point("hub::event"),
    Point("hub::commit"),
    Point("api::reserve"),
    Point("api::accept"),
    Point("worker::poll"),
    Point("engine::store"),
    Point("worker::report"),
)
"""Steps of a job's way, each with a point before and one after it."""
REMOTE_STEPS = (Point("api::reserve"), Point("api::accept"), Point("hub::reserve"), Point("hub::accept"))
"""With a remote store: the manifest is put after the reservation's answer and before the accept is sent, by the api itself."""


def around(steps: Sequence[Point]) -> list[Point]:
    """The points before and after each step."""
    return [Point(f"{step.name}::{side}", step.subject) for step in steps for side in ("before", "after")]


def times(point: Point) -> int:
    """How often to kill there."""
    return HUB_TIMES if point.role == "hub" else TIMES


def driver(role: str, points: FailPoints, plan: Sequence[tuple[Point, int]], done: Counter[Point], service: Service) -> Background:
    """Arms one point after the other, each when somebody has died of the one before."""

    def work(stopped: threading.Event) -> None:
        for point, hit in plan:
            if stopped.is_set():
                return
            token = points.arm(point, hit)
            wait_for(
                f"a process to die at {point}, hit {hit}, after {done.total()} kills",
                lambda token=token: points.struck(token),  # type: ignore[misc]
                STRIKE_LIMIT,
                every=0.005,
                describe=service.dump,
            )
            done[point] += 1

    return Background(f"killing at points of {role}", work)


def strike_all(
    service: Service,
    points: FailPoints,
    targets: Sequence[Point],
    chance: random.Random,
    done: Counter[Point],
    helpers: Sequence[Background],
) -> None:
    """Kills at each target, in an order and at hits that follow from `chance`. Raises what a helper died of meanwhile."""
    drivers = []
    for role in sorted({point.role for point in targets}):
        plan = [(point, chance.randint(1, LATEST_HIT)) for point in targets if point.role == role for _ in range(times(point))]
        chance.shuffle(plan)
        drivers.append(driver(role, points, plan, done, service))
    with ExitStack() as stack:
        for each in drivers:
            stack.enter_context(each)
        while any(each.running for each in drivers):
            for each in (*helpers, *drivers):
                each.raise_failure()
            pause(0.05)
        for each in helpers:
            each.raise_failure()


def loads(origin: str, poster: int, headers: dict[str, str]) -> Iterator[Load]:
    """Jobs without end, one in eight of their resources a failure for the dead letters; every other job has these headers."""
    for number in range(10_000):
        job = poster * 10_000 + number
        load = plain(origin, job, PER_JOB - 1, key="point")
        missing = Wanted(id="missing", target=f"/status/404?of={job}", state="failed", code="DOWNLOAD_HTTP_4XX")
        yield of(origin, load.key, [*load.resources, missing], job=job, headers=headers if number % 2 else {})


def restarted(service: Service) -> set[int]:
    """The processes that the supervisor saw die."""
    told = [orjson.loads(line) for line in service.log_path.read_text().splitlines() if DEATH in line]
    return {event["pid"] for event in told}


def run(service: Service, oracle: Oracle, points: FailPoints, targets: Sequence[Point], headers: dict[str, str], origin: str) -> None:
    """One service, its load, the kills and the account of it all."""
    seed = crash.chosen_seed()
    print(f"{crash.SEED_VARIABLE}={seed}", flush=True)
    chance = random.Random(seed)
    done: Counter[Point] = Counter()
    started = time.monotonic()
    with ExitStack() as stack:
        helpers = [sampling(oracle, every=1.0)]
        for poster in range(POSTERS):
            same = loads(origin, poster // CLIENTS, headers)
            helpers.append(posting(oracle, same, ahead=30 * PER_JOB, seed=seed + poster, limit=120))
        for helper in helpers:
            stack.enter_context(helper)
        strike_all(service, points, targets, chance, done, helpers)
    killing = time.monotonic() - started
    assert not points.armed
    assert all(done[point] == times(point) for point in targets)
    wait_for("every process to be back", service.all_ready, 30, every=0.1, describe=service.dump)
    oracle.await_settled(240)
    # Not all victims are the supervisor's: a point of a worker also kills the quarantine process that a worker started.
    saw = restarted(service)
    assert saw, "the supervisor tells of no death"
    assert saw <= points.victims(), f"somebody died who was not killed: {saw - points.victims()}"
    before = oracle.snapshots()
    report = oracle.check(ratio=MOST_REQUESTS)
    service.end()
    service.start()
    assert not (changed := difference(before, oracle.snapshots())), f"the restart changed what is known:\n{changed}"
    service.end()
    print(f"{done.total()} kills at {len(targets)} points in {killing:.1f} s; {report}; {service.http.refusals} posts repeated")


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_kill_before_and_after_every_step(tmp_path: Path) -> None:
    """The default path accepts with one commit; every other job has a handler, and so a reservation of its own."""
    points = FailPoints(tmp_path / "points")
    overrides = {
        "server": {"processes": 2},
        "worker": {"processes": 2, "concurrency": 16},
        "job_types": {"handled": {"handler": "fetchbox.handlers:Handler"}},
    }
    with (
        OriginProcess(tmp_path, pace=PACE) as origin,
        Service(tmp_path / "service", overrides, script=HASTY, environment=points.environment).start() as service,
    ):
        oracle = Oracle(service.http, service.assets, origin.journal)
        run(service, oracle, points, around(STEPS), {"x-fetchbox-job-type": "handled"}, origin.base_url)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_kill_around_the_manifest_of_a_remote_store(tmp_path: Path) -> None:
    """The api reserves, puts the manifest, and has the job accepted: three steps in two processes and a store."""
    points = FailPoints(tmp_path / "points")
    with (
        s3_server(tmp_path) as s3,
        OriginProcess(tmp_path, pace=PACE) as origin,
        Service(
            tmp_path / "service",
            {"storage": s3.settings(), "server": {"processes": 2}, "worker": {"concurrency": 8}},
            script=HASTY,
            environment=points.environment,
        ).start() as service,
    ):
        oracle = BucketOracle(service.http, s3, origin.journal)
        run(service, oracle, points, around(REMOTE_STEPS), {}, origin.base_url)
