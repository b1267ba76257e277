"""The whole service on the hub's own streams and on an Iggy server, in turn: files a second, and CPU a task of every process."""

from __future__ import annotations

import sys
from typing import Any

from common import HERE, finish, on_brokers, parser, say

from fetchbox.bench import pipeline
from fetchbox.bench.iggy import SERVER
from fetchbox.bench.results import Result


def main() -> int:
    """Runs both, as often as asked for."""
    made = parser(__doc__)
    made.add_argument("--tasks", type=int, default=200_000, help="files to download in each run")
    made.add_argument("--size", type=int, default=10 << 10, help="bytes of a file")
    made.add_argument("--per-job", type=int, default=pipeline.PER_JOB, help="resources a job")
    made.add_argument("-j", "--concurrency", type=int, default=64)
    arguments = made.parse_args()
    if SERVER is None:
        print("this bench needs iggy-server on the PATH", file=sys.stderr)
        return 1
    rounds = 1 if arguments.quick else arguments.rounds
    tasks = arguments.tasks // 10 if arguments.quick else arguments.tasks
    settings = {"bytes a file": arguments.size, "resources a job": arguments.per_job, "concurrency": arguments.concurrency}
    result = Result("brokers-quick" if arguments.quick else "brokers", {**settings, "rounds": rounds}, HERE)

    def run(iggy: bool) -> dict[str, Any]:
        plan = pipeline.Spine(tasks, "stored", arguments.per_job, arguments.concurrency, arguments.disk, size=arguments.size, iggy=iggy)
        return pipeline.spine(plan, say)

    on_brokers(result, rounds, run)
    return finish(result, arguments)


if __name__ == "__main__":
    sys.exit(main())
