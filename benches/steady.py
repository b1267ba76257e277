"""How far the hub is behind at a steady rate of outcomes, and how soon it is back after kill -9, on either broker."""

from __future__ import annotations

import sys

from common import HERE, finish, parser, say

from fetchbox.bench import table
from fetchbox.bench.iggy import SERVER
from fetchbox.bench.results import Result
from fetchbox.bench.steady import Steady, steady


def main() -> int:
    """Runs both brokers in turn, as often as asked for."""
    made = parser(__doc__)
    made.add_argument("--rate", type=int, default=5000, help="tasks a second")
    made.add_argument("--seconds", type=float, default=20.0)
    arguments = made.parse_args()
    rounds = 1 if arguments.quick else arguments.rounds
    seconds = arguments.seconds / 2 if arguments.quick else arguments.seconds
    result = Result("steady-quick" if arguments.quick else "steady", {"seconds": seconds, "rounds": rounds}, HERE)
    brokers = (False, True) if SERVER else (False,)
    for _ in range(rounds):
        for iggy in brokers:
            plan = Steady(arguments.rate, seconds, seconds * 0.6, iggy=iggy, disk=arguments.disk)
            result.rounds.append(steady(plan, say))
    for broker in dict.fromkeys(row["broker"] for row in result.rounds):
        rows = [row for row in result.rounds if row["broker"] == broker]
        numbers = [{key: value for key, value in row.items() if not isinstance(value, str)} for row in rows]
        result.rows.append({"broker": broker, **table.medians(numbers)})
    return finish(result, arguments)


if __name__ == "__main__":
    sys.exit(main())
