"""What many slow, many bad and very many downloads cost the rest: memory of a transfer that hardly moves, memory of a long input, and the
speed that good origins keep beside bad ones. Each case is a process of its own on `fetchbox.fetch`, politeness as shipped unless said.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import resource
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from common import HERE, finish, parser, say

import fetchbox
from fetchbox.bench.nginx import FAN_OUT, Files, memory_directory, static_origin
from fetchbox.bench.results import Result

COLUMNS = ("case", "value", "aim", "detail", "rounds")
LOOPBACK = ["127.0.0.0/8", "::1/128"]
SLOW_ORIGINS = 1000
SLOW_SECONDS = 12.0
STATIC_FILES = 1000
GOOD_HOSTS = 50
"""Names below localhost stand for hosts: each has its own queue, limits and circuit."""
BAD_HOSTS = 50
CHILD_SECONDS = 150.0


def memory(field: str) -> int:
    """VmRSS or VmHWM of this process in bytes."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field):
            return int(line.split()[1]) << 10
    return 0


@contextlib.contextmanager
def server(handle: Any) -> Iterator[int]:
    """An asyncio server in a thread; its port."""
    loop = asyncio.new_event_loop()
    started = loop.run_until_complete(asyncio.start_server(handle, "127.0.0.1", 0, backlog=8192))
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    yield started.sockets[0].getsockname()[1]
    loop.call_soon_threadsafe(loop.stop)


async def trickle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """A megabyte, a byte a second."""
    with contextlib.suppress(OSError, asyncio.IncompleteReadError):
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n")
        while not writer.is_closing():
            writer.write(b"x")
            await asyncio.sleep(1)


async def silence(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Takes the request and says nothing."""
    with contextlib.suppress(OSError):
        await reader.read()
    writer.close()


def path(index: int) -> str:
    """One of the static origin's files under a name of its own."""
    number = index % STATIC_FILES
    return f"{number % FAN_OUT:02x}/{number}.bin?{index}"


def child_slow(store: str, port: str, count: str) -> dict[str, Any]:
    """Memory of `count` transfers that hardly move."""
    urls = [f"http://slow{index}.localhost:{port}/{index}" for index in range(int(count))]
    # One that fails at once: what is made only once is made before the first look.
    options = {"allow_networks": LOOPBACK, "max_attempts": 1}
    list(fetchbox.fetch(["http://127.0.0.1:1/"], store=store, concurrency=int(count), **options))
    before = memory("VmRSS")
    outcomes = fetchbox.fetch(urls, store=store, concurrency=int(count), total_timeout=SLOW_SECONDS, **options)
    peak: list[int] = []
    stop = threading.Event()

    def look() -> None:
        while not stop.wait(0.5):
            peak.append(memory("VmRSS"))

    watcher = threading.Thread(target=look)
    watcher.start()
    started = time.perf_counter()
    codes = {outcome.code for outcome in outcomes}
    stop.set()
    watcher.join()
    return {"bytes": max(peak) - before, "codes": sorted(map(str, codes)), "seconds": time.perf_counter() - started}


def child_input(store: str, base: str, count: str) -> dict[str, Any]:
    """Peak memory of a generator of `count` URLs."""
    urls = (f"{base}/{path(index)}" for index in range(int(count)))
    stored = sum(
        outcome.state == "stored"
        for outcome in fetchbox.fetch(urls, store=store, concurrency=64, per_host_concurrency=64, allow_networks=LOOPBACK)
    )
    return {"peak": memory("VmHWM"), "stored": stored}


def child_mixed(store: str, good: str, bad: str, count: str) -> dict[str, Any]:
    """Seconds until `count` good ones were stored, a bad one after every nine of them unless there are none."""
    _, _, good_port = good.rpartition(":")

    def urls() -> Iterator[str]:
        for index in range(int(count)):
            yield f"http://good{index % GOOD_HOSTS}.localhost:{good_port}/{path(index)}"
            if bad != "none" and index % 9 == 8:
                # One half refuses, the other takes the request and says nothing.
                port = bad if index % 2 else "1"
                yield f"http://bad{index // 9 % BAD_HOSTS}.localhost:{port}/{index}"

    started = time.perf_counter()
    stored = 0
    for outcome in fetchbox.fetch(urls(), store=store, concurrency=256, allow_networks=LOOPBACK, max_attempts=2):
        stored += outcome.state == "stored"
        if stored == int(count):
            break
    return {"seconds": time.perf_counter() - started, "stored": stored}


CHILDREN = {"slow": child_slow, "input": child_input, "mixed": child_mixed}


def run_child(case: str, *arguments: object) -> dict[str, Any]:
    """The case in a process of its own."""
    with tempfile.TemporaryDirectory(prefix="fetchbox-bench-", dir=memory_directory()) as store:
        command = [sys.executable, __file__, "--child", case, store, *map(str, arguments)]
        done = subprocess.run(command, stdout=subprocess.PIPE, timeout=CHILD_SECONDS, check=True)
        found: dict[str, Any] = json.loads(done.stdout)
        return found


def main() -> int:
    """Runs the cases."""
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(65536, resource.getrlimit(resource.RLIMIT_NOFILE)[1]),) * 2)
    if "--child" in sys.argv:
        case, *rest = sys.argv[sys.argv.index("--child") + 1 :]
        print(json.dumps(CHILDREN[case](*rest)))
        return 0
    arguments = parser(__doc__).parse_args()
    rounds = 1 if arguments.quick else arguments.rounds
    scale = 10 if arguments.quick else 1
    result = Result("stress-quick" if arguments.quick else "stress", {"rounds": rounds}, HERE)
    slow, short, long, mixed = [], [], [], []
    with server(trickle) as slow_port, server(silence) as bad_port, static_origin(Files(STATIC_FILES, 10 << 10)) as origin:
        for number in range(rounds):
            slow.append(run_child("slow", slow_port, SLOW_ORIGINS // scale))
            short.append(run_child("input", origin.base_url, 20_000 // scale))
            long.append(run_child("input", origin.base_url, 50_000 // scale))
            pair = [run_child("mixed", origin.base_url, bad, 20_000 // scale) for bad in ("none", bad_port)]
            mixed.append(pair)
            say(f"round {number + 1}: {slow[-1]} {short[-1]} {long[-1]} {pair}")
    result.rounds += [{"slow": a, "short": b, "long": c, "mixed": d} for a, b, c, d in zip(slow, short, long, mixed, strict=True)]
    middle = sorted(each["bytes"] / (SLOW_ORIGINS // scale) for each in slow)[rounds // 2]
    growth = sorted(b["peak"] - a["peak"] for a, b in zip(short, long, strict=True))[rounds // 2]
    kept = sorted(alone["seconds"] / beside["seconds"] for alone, beside in mixed)[rounds // 2]
    result.rows += [
        {
            "case": f"{SLOW_ORIGINS // scale:,} origins at 1 B/s: memory each",
            "value": f"{middle / 1024:.1f} KiB",
            "aim": "<= 128 KiB",
            "detail": f"ended as {', '.join(slow[0]['codes'])}",
            "rounds": rounds,
        },
        {
            "case": f"{50_000 // scale:,} URLs of a generator: peak beyond that of {20_000 // scale:,}",
            "value": f"{growth / 2**20:.1f} MiB",
            "aim": "flat",
            "detail": f"peak {max(each['peak'] for each in long) / 2**20:.0f} MiB",
            "rounds": rounds,
        },
        {
            "case": "10 % bad origins: speed that the good ones keep",
            "value": f"{kept * 100:.0f} %",
            "aim": ">= 90 %",
            "detail": f"{20_000 // scale:,} files of {GOOD_HOSTS} hosts, {BAD_HOSTS} hosts that refuse or say nothing",
            "rounds": rounds,
        },
    ]
    return finish(result, arguments, COLUMNS)


if __name__ == "__main__":
    sys.exit(main())
