"""What hosts that never answer cost the good ones: the same files alone and among 100,000 tasks of dead hosts, in alternating rounds.

Half of the dead hosts refuse every connection, half never answer a SYN; a single one never answers. The dead tasks are posted first, and
the good files twice: when nobody knows yet that the hosts are dead, and again when that is known.
"""

from __future__ import annotations

import sys

from common import HERE, finish, parser, say

from fetchbox.bench.dead import Plan, compare
from fetchbox.bench.nginx import Files
from fetchbox.bench.results import Result

COLUMNS = (
    "files",
    "dead tasks",
    "dead hosts",
    "alone files/s",
    "among files/s",
    "ratio",
    "alone files/s again",
    "among files/s again",
    "ratio again",
    "alone worker MiB",
    "worker MiB",
    "dead pending",
    "lag",
)


def main() -> int:
    """Runs the comparison."""
    made = parser(__doc__)
    made.add_argument("--files", type=int, default=40_000)
    made.add_argument("--size", type=int, default=10 << 10)
    made.add_argument("--dead", type=int, default=100_000)
    made.add_argument("--hosts", type=int, nargs="+", default=[1, 1000], help="numbers of dead hosts, one run each")
    made.add_argument("-j", "--concurrency", type=int, default=64)
    arguments = made.parse_args()
    share = 10 if arguments.quick else 1
    files = Files(arguments.files // share, arguments.size)
    name = "dead_hosts-quick" if arguments.quick else "dead_hosts"
    result = Result(name, {"files": files.label(), "dead": arguments.dead // share, "concurrency": arguments.concurrency}, HERE)
    for hosts in arguments.hosts:
        rounds = 1 if arguments.quick else arguments.rounds
        plan = Plan(files, arguments.dead // share, hosts, arguments.concurrency, rounds=rounds, disk=arguments.disk)
        result.rows.append(compare(plan, say))
    return finish(result, arguments, COLUMNS)


if __name__ == "__main__":
    sys.exit(main())
