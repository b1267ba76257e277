"""Our ingress beside the one that one would otherwise build, in alternating rounds: rates, latency, CPU of all processes."""

from __future__ import annotations

import sys

import reference_ingress
from common import HERE, finish, parser, say

from fetchbox.bench.ingest import COLUMNS, Shape, compare, fetchbox_ingress
from fetchbox.bench.results import Result
from fetchbox.bench.wrk import find_wrk


def main() -> int:
    """Runs the comparison."""
    made = parser(__doc__)
    made.add_argument("--resources", default="1,100,1000", help="resources a manifest, with commas")
    made.add_argument("-c", "--connections", type=int, default=16, help="posts in flight")
    made.add_argument("--seconds", type=float, default=10.0, help="length of each load")
    made.add_argument("--keys", action="store_true", help="an idempotency key with every post (our own generator instead of wrk)")
    made.add_argument("--generators", type=int, default=1, help="processes (or wrk's threads) that send")
    made.add_argument("--api-processes", type=int, default=1)
    made.add_argument("--only", default="", help="names of ingresses, by their beginnings, with commas")
    arguments = made.parse_args()
    seconds = 2.0 if arguments.quick else arguments.seconds
    rounds = 1 if arguments.quick else arguments.rounds
    shapes = [
        Shape(int(number), arguments.connections, seconds, arguments.keys, arguments.generators)
        for number in arguments.resources.split(",")
    ]
    generator = "wrk" if find_wrk() and not arguments.keys else "own"
    parameters = {
        "connections": arguments.connections,
        "seconds": seconds,
        "rounds": rounds,
        "keys": arguments.keys,
        "generator": generator,
    }
    result = Result("ingest-quick" if arguments.quick else "ingest", parameters, HERE)
    ingresses = [fetchbox_ingress(arguments.api_processes, arguments.disk)]
    reason = reference_ingress.missing()
    if reason:
        result.notes.append(f"reference: {reason}")
    else:
        ingresses += [reference_ingress.reference(fsync, arguments.disk) for fsync in ("everysec", "always")]
    wanted = tuple(name for name in arguments.only.split(",") if name)
    chosen = [ingress for ingress in ingresses if not wanted or ingress.name.startswith(wanted)]
    result.rows, result.rounds = compare(chosen, shapes, rounds, say)
    return finish(result, arguments, COLUMNS)


if __name__ == "__main__":
    sys.exit(main())
