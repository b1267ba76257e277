"""`make bench`: `fetchbox get` beside the ways one would otherwise download many URLs, in alternating rounds.

Python peers are looked for in the interpreter named by --python, by default `.venv-bench/bin/python` if that exists; `--install` makes it.
"""

from __future__ import annotations

import os
import subprocess
import sys

from common import HERE, finish, parser, say

from fetchbox.bench import download
from fetchbox.bench.machine import available_memory
from fetchbox.bench.nginx import Files, find_nginx, static_origin
from fetchbox.bench.peers import Peer, Stored, all_peers, engine_peer
from fetchbox.bench.results import Result

SIZES = {"10KiB": Files(20_000, 10 << 10), "1MiB": Files(500, 1 << 20), "256MiB": Files(8, 256 << 20)}
QUICK = {"10KiB": Files(2000, 10 << 10), "1MiB": Files(50, 1 << 20), "256MiB": Files(2, 256 << 20)}
BASES = {"10KiB": "pycurl multi"}
"""What ratios are to, by size: the cheapest bare loop where requests dominate, else curl, which moves bytes without Python."""
VENV = HERE.parent / ".venv-bench"


def memory_needed(files: Files) -> int:
    """Bytes: the origin's files, their copies, img2dataset's bodies in memory and its shards, and what all clients may take besides."""
    return 3 * files.total + (1 << 30)


def with_engine(python: str) -> list[Peer]:
    """Ours first, and our engine without the command around it."""
    ours, *others = all_peers(python)
    return [ours, engine_peer(), *others]


def install() -> str:
    """An environment with the pinned rivals, made when it is not there or their list changed; returns its interpreter."""
    python, done = VENV / "bin" / "python", VENV / ".installed"
    lists = HERE / "requirements.txt", HERE / "constraints.txt"
    wanted = b"".join(name.read_bytes() for name in lists)
    if not done.exists() or done.read_bytes() != wanted:
        say("installing the Python rivals of benches/requirements.txt into .venv-bench")
        subprocess.run([sys.executable, "-m", "venv", "--clear", str(VENV)], check=True)
        # FetchBox's own constraints are not theirs.
        environment = {name: value for name, value in os.environ.items() if name != "PIP_CONSTRAINT"}
        subprocess.run(
            [str(python), "-m", "pip", "install", "--quiet", "-r", str(lists[0]), "-c", str(lists[1])], check=True, env=environment
        )
        done.write_bytes(wanted)
    return str(python)


def main() -> int:
    """Runs the comparison."""
    made = parser(__doc__)
    made.add_argument("--sizes", default=",".join(SIZES), help=f"which of {', '.join(SIZES)}")
    made.add_argument("--only", default="", help="names of peers, by their beginnings, with commas")
    made.add_argument("-j", "--concurrency", type=int, default=64)
    made.add_argument(
        "--python", default=str(VENV / "bin" / "python") if VENV.exists() else sys.executable, help="interpreter of the Python peers"
    )
    made.add_argument("--install", action="store_true", help="make .venv-bench with the peers of benches/requirements.txt first")
    arguments = made.parse_args()
    # Clients run in directories of their own.
    arguments.python = os.path.abspath(arguments.python)
    if arguments.install:
        arguments.python = install()
    if find_nginx() is None:
        say("nginx is not installed; on Debian: apt-get install nginx-light (and curl aria2 for the rivals that are programs)")
        return 1
    rounds = 1 if arguments.quick else arguments.rounds
    wanted = tuple(name for name in arguments.only.split(",") if name)
    peers = [peer for peer in with_engine(arguments.python) if not wanted or peer.name.startswith(wanted)]
    result = Result("peers-quick" if arguments.quick else "peers", {"concurrency": arguments.concurrency, "rounds": rounds}, HERE)
    for name in arguments.sizes.split(","):
        files = (QUICK if arguments.quick else SIZES)[name]
        needed, free = memory_needed(files), available_memory()
        if needed > free:
            note = f"{files.label()}: left out, it needs {needed >> 30} GiB of memory and {free >> 30} are free"
            result.notes.append(note)
            say(note)
            continue
        say(f"{files.label()} from nginx on this machine, into memory")
        with static_origin(files) as origin:
            task = download.Task(files.label(), origin.urls(), Stored(files.count, files.total), arguments.concurrency, rounds)
            compared = download.compare(task, peers, BASES.get(name, "curl --parallel"), say=say)
        result.rows += compared.rows
        result.rounds += compared.rounds
        result.notes += [note for note in compared.notes if note not in result.notes]
    return finish(
        result, arguments, download.COLUMNS, download.chart(f"Downloading from nginx on one machine, {result.commit}", result.rows)
    )


if __name__ == "__main__":
    sys.exit(main())
