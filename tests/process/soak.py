"""The crash run at length, by hand: `python -m tests.process.soak --kills 1000 --tasks 1000000`."""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
from pathlib import Path

from tests.process import crash, progress
from tests.process.load import KIB

BLOCK = 4 * KIB
PER_TASK = 2 * KIB
"""Bytes that a task takes beside its file: directory entry and inode, ledger, streams, the origin's journal."""
SPARE = 1 << 30
"""Journals of the database, the service's log."""


def disk_needed(size: crash.Size) -> int:
    """Bytes that a run may take, by a generous estimate."""
    blocks = -(-size.bytes // BLOCK) * BLOCK
    return size.tasks * (blocks + PER_TASK) + SPARE


def time_needed(size: crash.Size) -> float:
    """Seconds that the part with the kills may take: the origin's pace, and a few seconds for each kill."""
    return 300 + 3 * size.tasks / size.pace + 8 * size.kills


def main() -> int:
    """Runs it and prints the report; exit status 1 and the seed when a witness disagrees or it takes too much."""
    parser = argparse.ArgumentParser(prog="python -m tests.process.soak", description=__doc__)
    parser.add_argument("--kills", type=int, default=1000, help="SIGKILLs, one in twenty of them of the whole tree")
    parser.add_argument("--tasks", type=int, default=1_000_000)
    parser.add_argument("--per-job", type=int, default=1000, help="resources of a manifest")
    parser.add_argument("--bytes", type=int, default=KIB, help="size of a file, about")
    parser.add_argument("--pace", type=float, default=600.0, help="responses of the origin per second")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--api-processes", type=int, default=2)
    parser.add_argument("--seed", type=int, default=None, help=f"default: {crash.SEED_VARIABLE}, else a new one")
    parser.add_argument("--directory", type=Path, default=None, help="an empty or new one for the data; default: a temporary one")
    parser.add_argument(
        "--max-disk", type=float, default=None, metavar="GIB", help="end when it takes more; default: by the number of tasks"
    )
    parser.add_argument("--max-seconds", type=float, default=None, help="end when the kills take longer; default: by tasks and kills")
    parser.add_argument("--tell-every", type=float, default=15.0, metavar="SECONDS", help="how often it says how far it is")
    options = parser.parse_args()
    per_job = min(options.per_job, options.tasks)
    size = crash.Size(
        tasks=options.tasks // per_job * per_job,
        per_job=per_job,
        bytes=options.bytes,
        kills=options.kills,
        least=options.kills // 5,
        tree=max(1, options.kills // 20),
        pace=options.pace,
        workers=options.workers,
        api_processes=options.api_processes,
        sample_every=2.0,
        settle_limit=600.0,
    )
    seed = crash.chosen_seed() if options.seed is None else options.seed
    if options.directory is not None:
        options.directory.mkdir(parents=True, exist_ok=True)
        if any(options.directory.iterdir()):
            parser.error(f"--directory: {options.directory} is not empty")
    directory = options.directory or Path(tempfile.mkdtemp(prefix="fetchbox-soak-"))
    bounds = progress.Bounds(
        seconds=options.max_seconds or time_needed(size),
        disk_bytes=int((options.max_disk or 0) * (1 << 30)) or disk_needed(size),
        tell_every=options.tell_every,
    )
    free = progress.free_bytes(directory)
    if free < bounds.disk_bytes + progress.KEEP_FREE:
        wanted = (bounds.disk_bytes + progress.KEEP_FREE) / (1 << 30)
        if options.directory is None:
            directory.rmdir()
        parser.error(f"{directory} has {free / (1 << 30):.1f} GiB free, the run may need {wanted:.1f}: choose --directory or fewer --tasks")
    print(f"in {directory}, at most {bounds.seconds:.0f} s and {bounds.disk_bytes / (1 << 30):.1f} GiB", flush=True)
    try:
        print(crash.run(directory, size, seed, bounds), flush=True)
    except AssertionError as error:
        print(f"FAILED: {error}\nthe data is kept in {directory}", file=sys.stderr, flush=True)
        return 1
    except BaseException:
        if options.directory is None:
            shutil.rmtree(directory, ignore_errors=True)
        raise
    if options.directory is None:
        shutil.rmtree(directory, ignore_errors=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
