"""`make bench`: `fetchbox get` beside the ways one would otherwise download many URLs, in alternating rounds.

Python peers are looked for in the interpreter named by --python, by default `.venv-bench/bin/python` if that exists; `--install` makes it.
"""

from __future__ import annotations

import subprocess
import sys
import tarfile
from pathlib import Path

from common import HERE, finish, parser, say

from fetchbox.bench import download
from fetchbox.bench.nginx import Files, static_origin
from fetchbox.bench.peers import Peer, Stored, count_files, engine_peer, fetchbox_peer, python_peer, simple_peers
from fetchbox.bench.results import Result

SIZES = {"10KiB": Files(20_000, 10 << 10), "1MiB": Files(500, 1 << 20), "256MiB": Files(8, 256 << 20)}
QUICK = {"10KiB": Files(2000, 10 << 10), "1MiB": Files(50, 1 << 20), "256MiB": Files(2, 256 << 20)}
BASES = {"10KiB": "pycurl multi"}
"""What ratios are to, by size: the cheapest bare loop where requests dominate, else curl, which moves bytes without Python."""
VENV = HERE.parent / ".venv-bench"


def count_shards(out: Path) -> Stored:
    """Bodies in img2dataset's tar shards."""
    files = size = 0
    for shard in sorted(out.glob("shards/*.tar")):
        with tarfile.open(shard) as archive:
            bodies = [member for member in archive if not member.name.endswith((".json", ".txt"))]
        files += len(bodies)
        size += sum(member.size for member in bodies)
    return Stored(files, size)


def all_peers(python: str) -> list[Peer]:
    """Ours first, and our engine without the command around it."""
    return [
        fetchbox_peer(),
        engine_peer(),
        *simple_peers(python),
        python_peer("img2dataset", HERE / "clients" / "img2dataset_shards.py", ["img2dataset"], python, count=count_shards, slow=True),
        python_peer("Scrapy FilesPipeline", HERE / "clients" / "scrapy_files.py", ["scrapy"], python, count=count_files, slow=True),
    ]


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
    if arguments.install:
        subprocess.run([sys.executable, "-m", "venv", str(VENV)], check=True)
        arguments.python = str(VENV / "bin" / "python")
        subprocess.run([arguments.python, "-m", "pip", "install", "--quiet", "-r", str(HERE / "requirements.txt")], check=True)
    rounds = 1 if arguments.quick else arguments.rounds
    wanted = tuple(name for name in arguments.only.split(",") if name)
    peers = [peer for peer in all_peers(arguments.python) if not wanted or peer.name.startswith(wanted)]
    result = Result("peers-quick" if arguments.quick else "peers", {"concurrency": arguments.concurrency, "rounds": rounds}, HERE)
    for name in arguments.sizes.split(","):
        files = (QUICK if arguments.quick else SIZES)[name]
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
