"""The crash run at length, by hand: `python -m tests.process.soak --kills 1000 --tasks 1000000`."""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

from tests.process import crash
from tests.process.load import KIB


def main() -> None:
    """Runs it and prints the report; exit status 1 and the seed when a witness disagrees."""
    parser = argparse.ArgumentParser(prog="python -m tests.process.soak", description=__doc__)
    parser.add_argument("--kills", type=int, default=1000, help="SIGKILLs, one in twenty of them of the whole tree")
    parser.add_argument("--tasks", type=int, default=1_000_000)
    parser.add_argument("--per-job", type=int, default=1000, help="resources of a manifest")
    parser.add_argument("--bytes", type=int, default=KIB, help="size of a file, about")
    parser.add_argument("--pace", type=float, default=600.0, help="responses of the origin per second")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--api-processes", type=int, default=2)
    parser.add_argument("--seed", type=int, default=None, help=f"default: {crash.SEED_VARIABLE}, else a new one")
    parser.add_argument("--directory", type=Path, default=None, help="where the data lies; default: a temporary one, removed afterwards")
    options = parser.parse_args()
    size = crash.Size(
        tasks=options.tasks,
        per_job=options.per_job,
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
    with tempfile.TemporaryDirectory(prefix="fetchbox-soak-", ignore_cleanup_errors=True) as temporary:
        directory = options.directory or Path(temporary)
        directory.mkdir(parents=True, exist_ok=True)
        print(crash.run(directory, size, seed), flush=True)


if __name__ == "__main__":
    main()
