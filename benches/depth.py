"""What depth costs: millions of tasks queued without a worker, and a million settled jobs of one resource.

Fills take minutes and gigabytes of disk (see --disk); everything is removed again. Queued tasks are measured once, whatever --rounds says.
"""

from __future__ import annotations

import sys

from common import HERE, finish, parser, say

from fetchbox.bench import pipeline, table
from fetchbox.bench.results import Result


def main() -> int:
    """Runs what is asked for."""
    made = parser(__doc__)
    made.add_argument("--depths", default="10000,1000000,10000000", help="tasks queued, with commas; empty for none")
    made.add_argument("--settled", type=int, default=1_000_000, help="settled jobs of one resource; 0 for none")
    made.add_argument("--rate", type=float, default=0.0, help="settled jobs a second at most (default: as fast as they are taken)")
    made.add_argument("--events", action="store_true", help="the worker of the settled jobs reads jobs.events as well, as workers do")
    made.add_argument("--drain-seconds", type=float, default=20.0)
    made.add_argument("-j", "--concurrency", type=int, default=64)
    made.set_defaults(rounds=1)
    arguments = made.parse_args()
    scale, rounds = (50, 1) if arguments.quick else (1, arguments.rounds)
    parameters = {
        "concurrency": arguments.concurrency,
        "drain seconds": arguments.drain_seconds,
        "scale": f"1/{scale}",
        "events": "read" if arguments.events else "not read",
    }
    suffix = (f"-{arguments.rate:g}" if arguments.rate else "") + ("-quick" if arguments.quick else "")
    queued, settled = (
        Result(f"depth{suffix}", parameters, HERE),
        Result(f"settled{suffix}", {**parameters, "jobs/s asked": arguments.rate or "all", "rounds": rounds}, HERE),
    )
    for depth in (int(text) for text in arguments.depths.split(",") if text):
        plan = pipeline.Depth(
            max(depth // scale, 10_000), drain_seconds=arguments.drain_seconds, concurrency=arguments.concurrency, disk=arguments.disk
        )
        queued.rows.append(pipeline.depth(plan, say))
    if arguments.settled:
        plan_settled = pipeline.Settled(arguments.settled // scale, arguments.rate, events=arguments.events, disk=arguments.disk)
        settled.rounds.extend(pipeline.settled_jobs(plan_settled, say) for _ in range(rounds))
        settled.rows.append(table.medians(settled.rounds))
    return max((finish(result, arguments) for result in (queued, settled) if result.rows), default=1)


if __name__ == "__main__":
    sys.exit(main())
