"""What the way through api, hub and worker costs a task, and what very deep queues cost."""

from __future__ import annotations

import sys

from common import HERE, finish, parser, say

from fetchbox.bench import pipeline, table
from fetchbox.bench.results import Result


def main() -> int:
    """Runs the spine, or the depths that are asked for."""
    made = parser(__doc__)
    made.add_argument("--tasks", type=int, default=100_000, help="tasks of one byte for the spine")
    made.add_argument(
        "--bodies",
        choices=("stored", "blocked", "idle"),
        default="stored",
        help="blocked: refused by the address policy, no connection; idle: a worker that downloads nothing",
    )
    made.add_argument("--depths", default="", help="queue so many tasks without a worker instead, with commas: 10000,1000000")
    made.add_argument("--per-job", type=int, default=pipeline.PER_JOB, help="resources a job")
    made.add_argument("--drain-seconds", type=float, default=30.0)
    made.add_argument("-j", "--concurrency", type=int, default=64)
    arguments = made.parse_args()
    if arguments.depths:
        result = Result("depth", {"concurrency": arguments.concurrency, "drain seconds": arguments.drain_seconds}, HERE)
        for number in (int(text) for text in arguments.depths.split(",")):
            plan = pipeline.Depth(
                number, arguments.per_job, arguments.drain_seconds, concurrency=arguments.concurrency, disk=arguments.disk
            )
            result.rows.append(pipeline.depth(plan, say))
        return finish(result, arguments)
    rounds = 1 if arguments.quick else arguments.rounds
    name = "pipeline-quick" if arguments.quick else "pipeline"
    result = Result(
        name,
        {"bodies": arguments.bodies, "resources a job": arguments.per_job, "concurrency": arguments.concurrency, "rounds": rounds},
        HERE,
    )
    tasks = arguments.tasks // 10 if arguments.quick else arguments.tasks
    for _ in range(rounds):
        result.rounds.append(
            pipeline.spine(pipeline.Spine(tasks, arguments.bodies, arguments.per_job, arguments.concurrency, arguments.disk), say)
        )
    result.rows.append(table.medians([{key: value for key, value in row.items() if not isinstance(value, str)} for row in result.rounds]))
    return finish(result, arguments)


if __name__ == "__main__":
    sys.exit(main())
