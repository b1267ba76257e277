"""A service for benches: `fetchbox up` on fresh directories, what it uses, and waiting for its jobs."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import shutil
import tempfile
import threading
import time
import urllib.parse
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from fetchbox.bench.measure import short_title
from fetchbox.bench.nginx import memory_directory
from fetchbox.bench.processes import ProcessState, TreeUsage, read_tree, tree_usage
from fetchbox.testing import Service, running_service

DISK = Path("/var/tmp")  # noqa: S108 - by definition on disk, where /tmp may be memory; every use makes a private directory in it
POLL_SECONDS = 0.02
"""How often a waiting client asks: often enough for one part in a hundred of a run of two seconds, seldom enough to cost nothing."""
SETTLED = frozenset({"completed", "partial", "failed", "cancelled"})
_never = threading.Event()


def pause(seconds: float) -> None:
    """Waits."""
    _never.wait(seconds)


@contextlib.contextmanager
def bench_service(*, workers: int, api_processes: int = 1, disk: Path | None = None, **config: Any) -> Iterator[Service]:
    """A fresh `fetchbox up`: the ledger on disk, the store in memory, no limit on jobs a second. All of it is gone on leaving."""
    with contextlib.ExitStack() as stack:
        ledger = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="fetchbox-bench-", dir=disk or DISK)))
        store = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="fetchbox-bench-store-", dir=memory_directory())))
        fixed: dict[str, dict[str, Any]] = {
            "server": {"rate_limit": "1000000/s"},
            "storage": {"url": store.as_uri()},
            "fetch": {"per_host_concurrency": 64, "allow_networks": ["127.0.0.0/8"]},
        }
        merged = {section: {**fixed.get(section, {}), **config.get(section, {})} for section in fixed | config}
        service = stack.enter_context(running_service(ledger, workers=workers, api_processes=api_processes, **merged))
        yield service


class ServiceMeter:
    """What the processes of a service use from `start` to `stop`."""

    def __init__(self, *roots: int) -> None:
        self._roots = roots
        self._before: dict[int, ProcessState] = {}
        self._started = 0.0
        self.wall = 0.0

    def start(self) -> None:
        """From now."""
        self._before = self._read()
        self._started = time.perf_counter()

    def stop(self) -> TreeUsage:
        """Until now; may be called again."""
        self.wall = time.perf_counter() - self._started
        usage = tree_usage(self._before, self._read())
        return TreeUsage(usage.user, usage.system, _by_role(usage.per_process, sum), _by_role(usage.peak_rss, max))

    def _read(self) -> dict[int, ProcessState]:
        return {pid: state for root in self._roots for pid, state in read_tree(root).items()}


def _by_role(values: dict[str, Any], join: Any) -> dict[str, Any]:
    """Processes of one kind as one: `fetchbox: worker 0` and `worker 1` are `worker`."""
    groups: dict[str, list[Any]] = {}
    for title, value in values.items():
        name = short_title(title).removeprefix("fetchbox: ")
        groups.setdefault(name.removesuffix(" idle").rstrip("0123456789 ") or name, []).append(value)
    return {name: join(group) for name, group in groups.items()}


class Caller:
    """One keep-alive connection to a service's API."""

    def __init__(self, url: str, timeout: float = 60.0) -> None:
        parts = urllib.parse.urlsplit(url)
        self._connection = http.client.HTTPConnection(parts.hostname or "127.0.0.1", parts.port, timeout=timeout)

    def call(self, method: str, target: str, body: bytes | None = None, headers: dict[str, str] | None = None) -> tuple[int, bytes]:
        """Status and body; reconnects once when an idle connection was closed."""
        for attempt in (1, 2):
            try:
                self._connection.request(method, target, body, headers or {})
                response = self._connection.getresponse()
                return response.status, response.read()
            except (http.client.RemoteDisconnected, ConnectionError):
                self._connection.close()
                if attempt == 2:
                    raise
        raise AssertionError("unreachable")

    def json(self, target: str) -> Any:
        """The JSON of a GET that must be 200."""
        status, body = self.call("GET", target)
        if status != 200:
            raise RuntimeError(f"GET {target} answered {status}: {body[:300]!r}")
        return json.loads(body)

    def submit(self, manifest: bytes) -> str:
        """Posts a manifest; returns the job's id. RuntimeError unless it is accepted."""
        status, body = self.call("POST", "/jobs", manifest, {"Content-Type": "application/json"})
        if status != 202:
            raise RuntimeError(f"POST /jobs answered {status}: {body[:300]!r}")
        return str(json.loads(body)["job_id"])

    def wait_settled(self, job_ids: Sequence[str], timeout: float) -> list[dict[str, Any]]:
        """Waits until every job is settled and returns their answers. TimeoutError after `timeout` seconds."""
        limit = time.monotonic() + timeout
        answers = []
        for job_id in job_ids:
            while (answer := self.json(f"/jobs/{job_id}"))["status"] not in SETTLED:
                if time.monotonic() > limit:
                    raise TimeoutError(
                        f"after {timeout:g} s job {job_id} is {answer['status']} with {answer.get('resource_pending')} pending"
                    )
                pause(POLL_SECONDS)
            answers.append(answer)
        return answers

    def close(self) -> None:
        """Ends the connection."""
        self._connection.close()


def manifest(urls: Sequence[str], **metadata: str) -> bytes:
    """A manifest of these URLs."""
    return json.dumps({"manifest_version": "v1", "metadata": metadata, "resources": [{"url": url} for url in urls]}).encode()


def disk_bytes(directory: Path) -> int:
    """What the files below a directory take on disk; files that vanish meanwhile do not count."""
    total = 0
    for root, _, names in os.walk(directory):
        for name in names:
            with contextlib.suppress(OSError):
                total += os.stat(os.path.join(root, name), follow_symlinks=False).st_blocks * 512
    return total


def free_bytes(directory: Path) -> int:
    """What is free where a directory is."""
    return shutil.disk_usage(directory).free
