"""A service at full load for hours, by hand: `python -m tests.process.endurance --seconds 3600`.

Its memory, descriptors and threads must stay where they are.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import shutil
import signal
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from fetchbox.bench import machine
from fetchbox.bench.nginx import Files, find_nginx, memory_directory, static_origin
from fetchbox.bench.results import Result
from fetchbox.bench.service import disk_bytes
from tests.process import gauges
from tests.process.background import Background
from tests.process.busy import FILE_BYTES, Busy, Origins, overrides
from tests.process.origins import OriginProcess
from tests.process.progress import KEEP_FREE, free_bytes
from tests.process.service import Service
from tests.process.waiting import pause, wait_for

ROOT = Path(__file__).parents[2]
MOST_SLOPE = 1.0
"""MiB per gauges.PER_TASKS that memory may grow by."""
PLAIN_FILES = 4096
REST_LIMIT = 600.0
"""Seconds until what was accepted last is settled and checked."""


@dataclass(frozen=True, slots=True)
class Plan:
    """How long, how much, and how often it is looked at."""

    seconds: float = 3600.0
    workers: int = 2
    concurrency: int = 64
    ahead: int = 40_000
    largest: int = 1000
    """Most resources of a manifest."""
    sample_every: float = 10.0
    warm_up: float = 0.15
    """The share of the run that no bound counts."""
    tell_every: float = 30.0
    seed: int = 1
    slope: float | None = MOST_SLOPE


@dataclass(slots=True)
class Outcome:
    """What a run came to."""

    samples: list[gauges.Sample]
    table: list[gauges.Row]
    account: str
    tasks: int
    seconds: float
    broken: list[str]


@contextlib.contextmanager
def origins(directory: Path, quick: bool) -> Iterator[Origins]:
    """nginx for the plain files where it is installed, so that the service is what is busy; else, or unless `quick`, the bundled origin."""
    with contextlib.ExitStack() as stack:
        odd = stack.enter_context(OriginProcess(directory, name="odd"))
        if quick and find_nginx() is not None:
            yield Origins(stack.enter_context(static_origin(Files(PLAIN_FILES, FILE_BYTES))), odd)
        else:
            yield Origins(stack.enter_context(OriginProcess(directory, name="plain")), odd)


def run(directory: Path, store: Path, plan: Plan, over: threading.Event, *, quick: bool = True, tell: bool = False) -> Outcome:
    """The run, which `over` ends before its time.

    AssertionError when the accounting is wrong, an answer is not as it must be, or a process was restarted.
    """
    samples: list[gauges.Sample] = []
    service = Service(directory / "service", overrides(plan.workers, plan.concurrency, store))
    with origins(directory, quick) as made, service.start():
        wait_for("every process to be ready", service.all_ready, 30, every=0.1, describe=service.dump)
        busy = Busy(service, made, store, ahead=plan.ahead, largest=plan.largest, seed=plan.seed)
        began = time.monotonic()
        with contextlib.ExitStack() as stack:
            journal = stack.enter_context((directory / "samples.jsonl").open("w"))
            others = [stack.enter_context(Background(work.__name__, work)) for work in (busy.scrape, busy.check, busy.operate)]
            with Background("following", busy.follow, limit=REST_LIMIT) as follow, Background("posting", busy.post) as post:
                told = -plan.tell_every
                while (now := time.monotonic() - began) < plan.seconds and not over.is_set():
                    if samples and now < samples[-1].seconds + plan.sample_every:
                        for one in (*others, follow, post):
                            one.raise_failure()
                        pause(0.1)
                        continue
                    samples.append(sample(service, busy, now))
                    print(json.dumps(asdict(samples[-1])), file=journal, flush=True)
                    assert free_bytes(directory) >= KEEP_FREE, "the disk is nearly full"
                    if tell and now - told >= plan.tell_every:
                        told = now
                        print(progress(samples, busy), flush=True)
            # When the last post had been answered: it may have waited for a busy hub.
            seconds, tasks = time.monotonic() - began, busy.settled

            def all_checked() -> bool:
                for one in others:
                    one.raise_failure()
                return busy.unchecked == 0

            wait_for("the last jobs to be settled and checked", all_checked, REST_LIMIT, every=0.1, describe=service.dump)
        account = busy.account()
        service.end()
    warm = [one for one in samples if one.seconds >= plan.warm_up * seconds]
    assert warm, "it was ended before there was anything to see"
    table = gauges.rows(warm)
    return Outcome(samples, table, account, tasks, seconds, gauges.broken(table, plan.slope))


def sample(service: Service, busy: Busy, seconds: float) -> gauges.Sample:
    """What is to be seen now."""
    processes = gauges.read_service(service.process.pid)
    return gauges.Sample(seconds, busy.settled, processes, disk_bytes(service.data_dir / "hub"), service.log_path.stat().st_size)


def progress(samples: list[gauges.Sample], busy: Busy) -> str:
    """A line of how far it is."""
    last = samples[-1]
    before = samples[max(0, len(samples) - 4)]
    rate = (last.tasks - before.tasks) / max(0.001, last.seconds - before.seconds)
    memory = ", ".join(
        f"{name.partition(' --')[0][:12]} {one.pss / gauges.MIB:.0f}/{one.descriptors}/{one.threads}"
        for name, one in last.processes.items()
    )
    return (
        f"{last.seconds:6.0f} s: {last.tasks:,} settled, {rate:,.0f}/s, {busy.pending:,} pending, {busy.inflight} under way,"
        f" {busy.unchecked} jobs unchecked, ledger {last.ledger / gauges.MIB:.0f} MiB, log {last.log / gauges.MIB:.1f};"
        f" MiB/fds/threads {memory}"
    )


def flat(one: gauges.Sample) -> dict[str, float]:
    """A sample for the result file, memory and disk in MiB."""
    figures: dict[str, float] = {"seconds": round(one.seconds, 1), "tasks": one.tasks, "ledger MiB": round(one.ledger / gauges.MIB, 1)}
    for name, reading in one.processes.items():
        figures[f"{name} MiB"] = round(reading.pss / gauges.MIB, 1)
        figures[f"{name} descriptors"] = reading.descriptors
        figures[f"{name} threads"] = reading.threads
    return figures


def write(outcome: Outcome, plan: Plan, commit: str, results: Path | None) -> str:
    """The report as a table; also as files when `results` is a directory."""
    parameters = {name: value for name, value in asdict(plan).items() if name not in ("tell_every", "seed")}
    result = Result("endurance", parameters, ROOT, commit=commit)
    result.rows = [row.as_dict() for row in outcome.table]
    result.rounds = [flat(one) for one in outcome.samples[:: max(1, len(outcome.samples) // 60)]]
    ledger = [one.ledger / gauges.MIB for one in outcome.samples if one.seconds >= plan.warm_up * outcome.seconds]
    result.notes = [
        f"{outcome.tasks:,} tasks in {outcome.seconds:,.0f} s, {outcome.tasks / outcome.seconds:,.0f} a second",
        f"after the first {plan.warm_up:.0%}: ledger and streams on disk {min(ledger):,.0f} to {max(ledger):,.0f} MiB",
        outcome.account,
        *(f"BROKEN: {one}" for one in outcome.broken),
    ]
    if results is not None:
        result.write(results)
    return result.markdown()


def main() -> int:
    """Runs it, prints the table and writes it; exit status 1 when a bound is broken or something is wrong."""
    parser = argparse.ArgumentParser(prog="python -m tests.process.endurance", description=__doc__)
    default = Plan()
    parser.add_argument("--seconds", type=float, default=default.seconds)
    parser.add_argument("--workers", type=int, default=default.workers)
    parser.add_argument("--concurrency", type=int, default=default.concurrency, help="downloads at once in each worker")
    parser.add_argument("--ahead", type=int, default=default.ahead, help="resources that wait at any moment")
    parser.add_argument("--sample-every", type=float, default=default.sample_every, metavar="SECONDS")
    parser.add_argument("--warm-up", type=float, default=default.warm_up, metavar="SHARE", help="of the run, that no bound counts")
    parser.add_argument("--tell-every", type=float, default=default.tell_every, metavar="SECONDS")
    parser.add_argument("--seed", type=int, default=default.seed)
    parser.add_argument("--no-slope", action="store_true", help="memory is told but not judged: for short runs, which are all warm-up")
    parser.add_argument("--directory", type=Path, default=None, help="an empty or new one for the data; default: a temporary one")
    parser.add_argument(
        "--results", type=Path, default=None, help="directory for the result files, benches/results say; default: print only"
    )
    parser.add_argument("--commit", default="", help="what the installed build was made from, when it is not this tree")
    parser.add_argument("--memory-store", action="store_true", help="the store lies in memory, so that no slow disk is what is busy")
    options = parser.parse_args()
    plan = Plan(
        seconds=options.seconds,
        workers=options.workers,
        concurrency=options.concurrency,
        ahead=options.ahead,
        sample_every=options.sample_every,
        warm_up=options.warm_up,
        tell_every=options.tell_every,
        seed=options.seed,
        slope=None if options.no_slope else MOST_SLOPE,
    )
    if options.seconds < 3 * options.sample_every or not 0 <= options.warm_up < 1:
        parser.error("--seconds: at least three times --sample-every; --warm-up: a share of them, 0.15 say")
    if options.directory is not None:
        options.directory.mkdir(parents=True, exist_ok=True)
        if any(options.directory.iterdir()):
            parser.error(f"--directory: {options.directory} is not empty")
    directory = options.directory or Path(tempfile.mkdtemp(prefix="fetchbox-endurance-"))
    store = Path(tempfile.mkdtemp(prefix="fetchbox-endurance-", dir=memory_directory())) if options.memory_store else directory / "store"
    store.mkdir(exist_ok=True)
    print(f"in {directory} and {store}, on {machine.describe()}", flush=True)
    over = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: over.set())
    try:
        outcome = run(directory, store, plan, over, tell=True)
    except Exception:
        traceback.print_exc()
        print(f"FAILED\nthe data is kept in {directory}", file=sys.stderr, flush=True)
        return 1
    print(write(outcome, plan, options.commit, options.results), flush=True)
    shutil.rmtree(directory, ignore_errors=True)
    shutil.rmtree(store, ignore_errors=True)
    return 1 if outcome.broken else 0


if __name__ == "__main__":
    sys.exit(main())
