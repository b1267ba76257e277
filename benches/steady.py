"""How far the hub is behind at a steady rate of outcomes, and how soon it is back after kill -9, on either broker."""

from __future__ import annotations

import sys

from common import HERE, finish, on_brokers, parser, say

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
    on_brokers(result, rounds, lambda iggy: steady(Steady(arguments.rate, seconds, seconds * 0.6, iggy=iggy, disk=arguments.disk), say))
    return finish(result, arguments)


if __name__ == "__main__":
    sys.exit(main())
