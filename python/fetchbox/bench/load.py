"""An HTTP load generator on raw sockets: cheap enough not to be the bottleneck, in processes of its own.

As a program (`python -m fetchbox.bench.load`) it reads one `Spec` as JSON from standard input and prints one JSON object.
"""

from __future__ import annotations

import asyncio
import json
import random
import subprocess
import sys
import time
import urllib.parse
import uuid
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import cast

from fetchbox.bench.table import percentile

GRACE_SECONDS = 60.0
"""How long answers may take after the load has ended."""


@dataclass(frozen=True, slots=True)
class Spec:
    """What to send: for `seconds`, or `count` requests in all, whatever ends first; each connection has one request in flight."""

    url: str
    targets: Sequence[str] = ("/jobs",)
    """Request targets, taken at random."""
    method: str = "POST"
    body: str = ""
    headers: dict[str, str] = field(default_factory=dict)
    connections: int = 16
    seconds: float = 10.0
    count: int | None = None
    keys: bool = False
    """Whether each request has an idempotency key of its own."""
    collect: bool = False
    """Whether the job ids in the answers are kept."""


@dataclass(slots=True)
class Report:
    """What came back. `latencies` are seconds from the first byte sent to the last received; `wall` ends with the last answer."""

    wall: float
    statuses: dict[str, int]
    latencies: list[float]
    errors: int = 0
    """Connections lost with a request in flight."""
    job_ids: list[str] = field(default_factory=list)
    cpu: float = 0.0
    """Seconds of CPU that the generator itself used."""

    @property
    def answered(self) -> int:
        """Requests answered with 2xx."""
        return sum(count for status, count in self.statuses.items() if status.startswith("2"))

    @property
    def refused(self) -> int:
        """Requests answered otherwise, or not at all."""
        return self.errors + sum(count for status, count in self.statuses.items() if not status.startswith("2"))

    def latency(self, share: float) -> float:
        """This percentile (0 to 1) in seconds; 0 without any answer."""
        return percentile(self.latencies, share) if self.latencies else 0.0


def run_load(spec: Spec, processes: int = 1) -> Report:
    """Sends the load from so many processes and adds up what they saw; connections and count are shared among them."""
    shares = _split(spec, processes)
    children = [
        subprocess.Popen([sys.executable, "-m", "fetchbox.bench.load"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        for _ in shares
    ]
    reports = []
    try:
        for child, share in zip(children, shares, strict=True):
            assert child.stdin is not None
            child.stdin.write(json.dumps(asdict(share)))
            child.stdin.close()
            child.stdin = None
        for child in children:
            output, _ = child.communicate(timeout=spec.seconds + 2 * GRACE_SECONDS)
            if child.returncode:
                raise RuntimeError(f"the load generator ended with {child.returncode}")
            reports.append(Report(**json.loads(output)))
    finally:
        for child in children:
            if child.poll() is None:
                child.kill()
                child.wait(10)
    statuses: Counter[str] = Counter()
    for report in reports:
        statuses.update(report.statuses)
    return Report(
        max(report.wall for report in reports),
        dict(statuses),
        [value for report in reports for value in report.latencies],
        sum(report.errors for report in reports),
        [job for report in reports for job in report.job_ids],
        sum(report.cpu for report in reports),
    )


def _split(spec: Spec, processes: int) -> list[Spec]:
    processes = max(min(processes, spec.connections), 1)
    values = asdict(spec)
    shares = []
    for number in range(processes):
        values["connections"] = spec.connections // processes + (number < spec.connections % processes)
        if spec.count is not None:
            values["count"] = spec.count // processes + (number < spec.count % processes)
        shares.append(Spec(**values))
    return shares


class _Run:
    """One process's share of a load."""

    def __init__(self, spec: Spec) -> None:
        self.spec = spec
        parts = urllib.parse.urlsplit(spec.url)
        self.host, self.port = parts.hostname or "127.0.0.1", parts.port or 80
        self.report = Report(0.0, {}, [])
        self.statuses: Counter[str] = Counter()
        self.left = sys.maxsize if spec.count is None else spec.count
        self.ends = time.perf_counter() + spec.seconds
        self.open = 0
        self.done = asyncio.Event()
        self.key = uuid.uuid4().hex
        body = spec.body.encode()
        fixed = {"Host": f"{self.host}:{self.port}", **spec.headers} | ({"Content-Length": str(len(body))} if spec.method == "POST" else {})
        lines = "".join(f"{name}: {value}\r\n" for name, value in fixed.items())
        self.heads = [f"{spec.method} {target} HTTP/1.1\r\n{lines}".encode() for target in spec.targets]
        self.tail = b"\r\n" + body
        self.whole = [head + self.tail for head in self.heads]

    def next_request(self) -> bytes | None:
        """The next request, or None when the load has ended."""
        if self.left <= 0 or time.perf_counter() >= self.ends:
            return None
        self.left -= 1
        choice = random.randrange(len(self.heads)) if len(self.heads) > 1 else 0
        if self.spec.keys:
            return self.heads[choice] + f"Idempotency-Key: {self.key}-{self.left}\r\n".encode() + self.tail
        return self.whole[choice]

    def closed(self) -> None:
        """A connection has ended."""
        self.open -= 1
        if self.open == 0:
            self.done.set()


class _Connection(asyncio.Protocol):
    def __init__(self, run: _Run) -> None:
        self.run = run
        self.buffer = bytearray()
        self.waiting = False
        self.sent = 0.0
        self.transport: asyncio.WriteTransport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.WriteTransport", transport)  # uvloop's is one by behaviour, not by its class
        self._send()

    def _send(self) -> None:
        request = self.run.next_request()
        if request is None:
            self.transport.close()
            return
        self.waiting = True
        self.sent = time.perf_counter()
        self.transport.write(request)

    def data_received(self, data: bytes) -> None:
        self.buffer += data
        end = response_end(self.buffer)
        if end is None:
            return
        run = self.run
        run.report.latencies.append(time.perf_counter() - self.sent)
        status = self.buffer[9:12].decode("latin-1")
        run.statuses[status] += 1
        if run.spec.collect and status.startswith("2"):
            run.report.job_ids.append(json.loads(self.buffer[self.buffer.index(b"\r\n\r\n") + 4 : end])["job_id"])
        del self.buffer[:end]
        self.waiting = False
        self._send()

    def connection_lost(self, exc: Exception | None) -> None:
        if self.waiting:
            self.run.report.errors += 1
        self.run.closed()


def response_end(buffer: bytes | bytearray) -> int | None:
    """Where the first HTTP/1.1 response in the buffer ends, or None while it is incomplete. Chunked bodies have no trailers here."""
    head_end = buffer.find(b"\r\n\r\n")
    if head_end < 0:
        return None
    head = bytes(buffer[:head_end]).lower()
    at = head.find(b"\r\ncontent-length:")
    if at >= 0:
        end = head_end + 4 + int(head[at + 17 :].split(b"\r\n", 1)[0])
        return end if len(buffer) >= end else None
    if b"\r\ntransfer-encoding: chunked" in head:
        last = buffer.find(b"0\r\n\r\n", head_end + 4)
        return last + 5 if last >= 0 else None
    return head_end + 4


async def _serve(spec: Spec) -> Report:
    run = _Run(spec)
    loop = asyncio.get_running_loop()
    started = time.perf_counter()
    run.ends = started + spec.seconds
    run.open = spec.connections
    for _ in range(spec.connections):
        try:
            await loop.create_connection(lambda: _Connection(run), run.host, run.port)
        except OSError:
            run.report.errors += 1
            run.closed()
    async with asyncio.timeout(spec.seconds + GRACE_SECONDS):
        await run.done.wait()
    run.report.wall = time.perf_counter() - started
    run.report.statuses = dict(run.statuses)
    run.report.cpu = time.process_time()
    return run.report


def main() -> None:
    """One process's share of a load: a Spec from standard input, a Report to standard output."""
    import uvloop

    print(json.dumps(asdict(uvloop.run(_serve(Spec(**json.load(sys.stdin)))))))


if __name__ == "__main__":
    main()
