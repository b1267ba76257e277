"""Into an S3 bucket: downloads with everything around them beside a bare loop of puts from memory, on the same server (s3s-fs).

Needs s3s-fs: `cargo install s3s-fs --version 0.14.1 --features binary`; named with --server where it is not on the PATH.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from common import HERE, finish, parser, say

from fetchbox.bench import table
from fetchbox.bench.measure import Usage, measure
from fetchbox.bench.nginx import Files, memory_directory, size_label, static_origin
from fetchbox.bench.results import Result
from fetchbox.origin import free_port

COLUMNS = ("client", "objects", "wall s", "objects/s", "CPU us/object", "peak MiB", "CPU x", "base", "rounds", "spread")
BUCKET = "bench"
KEYS = {"AWS_ACCESS_KEY_ID": "bench", "AWS_SECRET_ACCESS_KEY": "bench-secret"}
START_SECONDS = 10.0
PUTS, OURS = "obstore put loop", "fetchbox.fetch"


@contextlib.contextmanager
def s3_server(program: str) -> Iterator[tuple[str, Path]]:
    """s3s-fs over a directory in memory: its URL and the bucket's directory."""
    with tempfile.TemporaryDirectory(prefix="fetchbox-bench-s3-", dir=memory_directory()) as name:
        bucket = Path(name) / BUCKET
        bucket.mkdir()
        port = free_port()
        keys = ["--access-key", KEYS["AWS_ACCESS_KEY_ID"], "--secret-key", KEYS["AWS_SECRET_ACCESS_KEY"]]
        process = subprocess.Popen([program, "--host", "127.0.0.1", "--port", str(port), *keys, name], stdout=subprocess.DEVNULL)
        try:
            limit = time.monotonic() + START_SECONDS
            while True:
                with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
                    break
                if time.monotonic() > limit or process.poll() is not None:
                    raise RuntimeError("s3s-fs did not start")
            yield f"http://127.0.0.1:{port}", bucket
        finally:
            process.terminate()
            process.wait(10)


def run(command: list[str], bucket: Path, files: Files) -> Usage:
    """One round, its objects counted and removed."""
    usage = measure([sys.executable, *command], env=KEYS)
    found = [path for path in bucket.rglob("*") if path.is_file() and path.stat().st_size == files.size]
    if len(found) != files.count:
        raise RuntimeError(f"{len(found)} objects in the bucket, not {files.count}")
    for entry in bucket.iterdir():
        shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
    return usage


def main() -> int:
    """Runs the comparison."""
    made = parser(__doc__)
    made.add_argument("--files", type=int, default=3000)
    made.add_argument("--size", type=int, default=10 << 10)
    made.add_argument("-j", "--concurrency", type=int, default=64)
    made.add_argument("--server", default=shutil.which("s3s-fs") or "s3s-fs", help="the program s3s-fs")
    arguments = made.parse_args()
    files = Files(arguments.files // 10 if arguments.quick else arguments.files, arguments.size)
    rounds = 1 if arguments.quick else arguments.rounds
    result = Result("s3-quick" if arguments.quick else "s3", {"concurrency": arguments.concurrency, "rounds": rounds}, HERE)
    taken: dict[str, list[Usage]] = {OURS: [], PUTS: []}
    with static_origin(files) as origin, s3_server(arguments.server) as (endpoint, bucket), tempfile.TemporaryDirectory() as scratch:
        listing = os.path.join(scratch, "urls.txt")
        Path(listing).write_text("\n".join(origin.urls()), encoding="utf-8")
        clients = HERE / "clients"
        commands = {
            OURS: [str(clients / "engine_s3.py"), listing, endpoint, BUCKET, str(arguments.concurrency)],
            PUTS: [str(clients / "obstore_put.py"), endpoint, BUCKET, str(files.count), str(files.size), str(arguments.concurrency)],
        }
        for number in range(rounds):
            for name, command in commands.items():
                usage = run(command, bucket, files)
                taken[name].append(usage)
                say(f"round {number + 1}: {name}: {usage.wall:.2f} s, {usage.cpu / files.count * 1e6:.0f} us CPU an object")
    middles = {
        name: table.medians([{"wall": u.wall, "cpu": u.cpu, "peak": u.peak_rss_max} for u in usages]) for name, usages in taken.items()
    }
    for name, middle in middles.items():
        result.rows.append(
            {
                "client": name,
                "objects": f"{files.count:,} x {size_label(files.size)}",
                "wall s": middle["wall"],
                "objects/s": files.count / middle["wall"],
                "CPU us/object": middle["cpu"] / files.count * 1e6,
                "peak MiB": middle["peak"] / 2**20,
                "CPU x": middle["cpu"] / middles[PUTS]["cpu"],
                "base": PUTS,
                "rounds": rounds,
                "spread": f"{table.spread([usage.wall for usage in taken[name]]) * 100:.0f} %",
            }
        )
    result.rounds += [{"client": name, "wall": u.wall, "cpu": u.cpu} for name, usages in taken.items() for u in usages]
    return finish(result, arguments, COLUMNS)


if __name__ == "__main__":
    sys.exit(main())
