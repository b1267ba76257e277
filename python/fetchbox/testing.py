"""Real things for tests: a running origin, a running service, waiting with a limit.

Nothing here is a fake: the service is `python -m fetchbox.cli up` in processes of its own, the origin a web server on a socket.
"""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict, TypeVar, Unpack

from fetchbox.origin import BlackHole, Origin, content, content_sha256, free_port

if TYPE_CHECKING:
    from fetchbox.client import Client
    from fetchbox.origin.certificates import TlsMode

__all__ = [
    "BlackHole",
    "Origin",
    "Service",
    "content",
    "content_sha256",
    "free_port",
    "running_origin",
    "running_service",
    "spawned_origin",
    "start_service",
    "to_toml",
    "wait_until",
    "wait_until_async",
]

T = TypeVar("T")

READY_TIMEOUT = 30.0
"""Seconds that a service may take to become ready."""

STOP_TIMEOUT = 40.0
"""Seconds that a service may take to drain and end after SIGTERM: its own `drain_timeout` of 25 and then some."""


def wait_until(predicate: Callable[[], T], timeout: float = 10.0, *, what: str = "") -> T:
    """Asks again and again until the answer is true and returns it. AssertionError after `timeout` seconds, naming `what` was awaited.

    The pauses grow from 1 to 50 ms, so short waits are short. An exception of the predicate is raised at once.
    """
    limit = time.monotonic() + timeout
    pause = 0.001
    while True:
        answer = predicate()
        if answer:
            return answer
        if time.monotonic() >= limit:
            raise AssertionError(f"{what or 'the condition'} did not come true within {timeout:g} s; last answer: {answer!r}")
        time.sleep(pause)  # noqa: TID251  (a poll with a limit is what this function is)
        pause = min(pause * 1.5, 0.05)


async def wait_until_async(predicate: Callable[[], T | Awaitable[T]], timeout: float = 10.0, *, what: str = "") -> T:
    """`wait_until` for coroutines; the predicate may be one."""
    limit = time.monotonic() + timeout
    pause = 0.001
    while True:
        answer = predicate()
        result: T = await answer if isinstance(answer, Awaitable) else answer
        if result:
            return result
        if time.monotonic() >= limit:
            raise AssertionError(f"{what or 'the condition'} did not come true within {timeout:g} s; last answer: {result!r}")
        await asyncio.sleep(pause)
        pause = min(pause * 1.5, 0.05)


class OriginOptions(TypedDict, total=False):
    """What `Origin` takes."""

    host: str
    port: int
    tls: TlsMode | None
    journal: Path | str | None
    pace: float | None
    proxy_port: int | None


@contextlib.contextmanager
def running_origin(**options: Unpack[OriginOptions]) -> Iterator[Origin]:
    """An Origin on a thread of this process, for tests that are not coroutines; its counters can be read at any time."""
    started = threading.Event()
    failure: list[BaseException] = []
    origin = Origin(**options)
    loop = asyncio.new_event_loop()
    stop = asyncio.Event()

    async def serve() -> None:
        try:
            await origin.start()
        except BaseException as error:
            failure.append(error)
            return
        finally:
            started.set()
        await stop.wait()
        await origin.close()

    def run() -> None:
        try:
            loop.run_until_complete(serve())
        finally:
            loop.close()

    thread = threading.Thread(target=run, name="origin", daemon=True)
    thread.start()
    if not started.wait(15):
        raise TimeoutError("the origin did not start within 15 s")
    if failure:
        raise failure[0]
    try:
        yield origin
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join(10)
        if thread.is_alive():
            raise TimeoutError("the origin did not stop within 10 s")


@dataclass(frozen=True, slots=True)
class SpawnedOrigin:
    """An origin in a process of its own."""

    base_url: str
    process: subprocess.Popen[str]
    journal: Path | None

    def url(self, path: str) -> str:
        """The URL of a path of this origin."""
        return self.base_url + path

    def requests(self) -> list[tuple[float, str]]:
        """Time and target (path and query) of every request in the journal so far."""
        if self.journal is None or not self.journal.exists():
            return []
        lines = self.journal.read_text(encoding="utf-8", errors="replace").splitlines()
        return [(float(time_), target) for time_, target in (line.split(" ")[:2] for line in lines if line.count(" ") >= 2)]


@contextlib.contextmanager
def spawned_origin(*, journal: Path | None = None, pace: float | None = None, tls: str | None = None) -> Iterator[SpawnedOrigin]:
    """`fetchbox origin` as a real subprocess on a free port; ended on leaving, whatever happened."""
    command = [sys.executable, "-m", "fetchbox.cli", "origin", "--port", "0", "--quiet"]
    for name, value in (("--journal", journal), ("--pace", pace), ("--tls", tls)):
        if value is not None:
            command += [name, str(value)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        assert process.stderr is not None
        line = _line_within(process, 15)
        if not line.startswith("http"):
            process.kill()
            raise RuntimeError(f"fetchbox origin did not start: {line}{process.stderr.read()}")
        yield SpawnedOrigin(line.strip(), process, journal)
    finally:
        _end(process, 10)


def _line_within(process: subprocess.Popen[str], timeout: float) -> str:
    """The first line of a process's standard output; killed (so that reading ends) when none comes in time."""
    assert process.stdout is not None
    watch = threading.Timer(timeout, process.kill)
    watch.start()
    try:
        return process.stdout.readline()
    finally:
        watch.cancel()


def _end(process: subprocess.Popen[str], timeout: float) -> int:
    """SIGTERM, and SIGKILL when that does not help within `timeout` seconds."""
    if process.poll() is None:
        process.terminate()
    try:
        return process.wait(timeout)
    except subprocess.TimeoutExpired:
        process.kill()
        return process.wait(10)
    finally:
        for pipe in (process.stdout, process.stderr):
            if pipe is not None:
                pipe.close()


def to_toml(config: Mapping[str, Any]) -> str:
    """A mapping of sections as TOML, enough of it for configurations: scalars, lists, nested tables."""
    lines: list[str] = []

    def key(name: str) -> str:
        return name if re.fullmatch(r"[\w-]+", name, re.ASCII) else json.dumps(name)

    def value(item: object) -> str:
        if isinstance(item, Mapping):
            return "{" + ", ".join(f"{key(str(k))} = {value(v)}" for k, v in item.items() if v is not None) + "}"
        if isinstance(item, list | tuple):
            return "[" + ", ".join(value(part) for part in item) + "]"
        if isinstance(item, bool | int | float):
            return json.dumps(item)
        return json.dumps(str(item), ensure_ascii=False)

    def table(path: list[str], items: Mapping[str, Any]) -> None:
        plain = {k: v for k, v in items.items() if not isinstance(v, Mapping) and v is not None}
        if path:
            lines.append("[" + ".".join(key(part) for part in path) + "]")
        lines.extend(f"{key(k)} = {value(v)}" for k, v in plain.items())
        for k, v in items.items():
            if isinstance(v, Mapping):
                table([*path, k], v)

    table([], config)
    return "\n".join(lines) + "\n"


@dataclass(slots=True)
class Service:
    """A FetchBox started by `start_service`: where it listens, where its files are, and its top process."""

    url: str
    metrics_url: str
    process: subprocess.Popen[str]
    directory: Path
    data_dir: Path
    config_path: Path
    log_path: Path
    config: dict[str, Any] = field(default_factory=dict)
    command: list[str] = field(default_factory=list)
    _seen: dict[int, str] = field(default_factory=dict, repr=False)

    @property
    def assets(self) -> Path:
        """The root of the local store."""
        return self.data_dir / "assets"

    def log(self) -> str:
        """Everything the service has written to stderr and stdout so far."""
        return self.log_path.read_text(encoding="utf-8", errors="replace")

    def client(self, **options: Any) -> Client:
        """A `fetchbox.Client` of this service."""
        from fetchbox.client import Client

        return Client(self.url, **options)

    def get(self, path: str, *, timeout: float = 10.0) -> tuple[int, bytes]:
        """Status and body of a GET on the API, without any client library. OSError when nobody listens."""
        return _get(self.url + path, timeout)

    def json(self, path: str) -> Any:
        """The JSON answer of a GET that must be 200."""
        status, body = self.get(path)
        if status != 200:
            raise AssertionError(f"GET {path} answered {status}: {body[:500]!r}")
        return json.loads(body)

    def ready(self) -> bool:
        """Whether /health/ready says so now."""
        try:
            return self.get("/health/ready", timeout=2)[0] == 200
        except (OSError, http.client.HTTPException):
            return False

    def wait_ready(self, timeout: float = READY_TIMEOUT) -> None:
        """Waits until it is ready; AssertionError with the end of its log when it ends or takes too long."""
        limit = time.monotonic() + timeout
        while not self.ready():
            if self.process.poll() is not None:
                raise AssertionError(f"the service ended with {self.process.returncode}:\n{self._tail()}")
            if time.monotonic() > limit:
                raise AssertionError(f"the service was not ready within {timeout:g} s:\n{self._tail()}")
            time.sleep(0.02)  # noqa: TID251  (a poll with a limit)
        self.children()

    def stop(self, timeout: float = STOP_TIMEOUT) -> int:
        """SIGTERM and the exit status. AssertionError when it has to be killed."""
        if self.process.poll() is None:
            self.process.terminate()
        try:
            return self.process.wait(timeout)
        except subprocess.TimeoutExpired:
            self.kill()
            raise AssertionError(f"the service did not end within {timeout:g} s of SIGTERM:\n{self._tail()}") from None

    def kill(self) -> None:
        """SIGKILL to every process of the tree at once, as a power cut would."""
        self.children()
        # The supervisor first, so that it starts nothing again; children have sessions of their own.
        self.process.kill()
        for pid in self.left():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.process.wait(10)
        wait_until(lambda: not self.left(), 10, what="the end of every process")

    def restart(self) -> None:
        """Starts it again with the same files after stop() or kill(), and waits until it is ready."""
        self.process = _spawn(self.command, self.log_path)
        self.wait_ready()

    def children(self) -> dict[int, str]:
        """Process ids and titles of the supervisor's living children. None once it has ended."""
        found = {}
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit():
                with contextlib.suppress(OSError, IndexError):
                    fields = _stat(int(entry.name))
                    if int(fields[1]) == self.process.pid and fields[0] != "Z":
                        found[int(entry.name)] = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
                        self._seen[int(entry.name)] = fields[19]
        return found

    def left(self) -> list[int]:
        """Children that were seen at some time and still live, also when the supervisor does not any more."""
        return [pid for pid, started in self._seen.items() if _started(pid) == started]

    def _tail(self) -> str:
        return self.log()[-4000:]


def _stat(pid: int) -> list[str]:
    """The fields of /proc/PID/stat after the name: state, parent, …, the start time at 19. OSError when there is no such process."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()


def _started(pid: int) -> str | None:
    """What tells a process from a later one with its id; None for one that has ended."""
    try:
        fields = _stat(pid)
    except OSError:
        return None
    return fields[19] if fields[0] != "Z" else None


def _get(url: str, timeout: float) -> tuple[int, bytes]:
    address, _, path = url.removeprefix("http://").partition("/")
    connection = http.client.HTTPConnection(address, timeout=timeout)
    try:
        connection.request("GET", "/" + path)
        response = connection.getresponse()
        return response.status, response.read()
    finally:
        connection.close()


def _spawn(command: list[str], log_path: Path) -> subprocess.Popen[str]:
    # A session of its own: a Ctrl-C in the terminal of the test run does not reach it.
    with open(log_path, "ab") as log:
        return subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, text=True, start_new_session=True)


def start_service(directory: Path, *, workers: int = 1, api_processes: int = 1, **config: Any) -> Service:
    """Starts `fetchbox up` on free loopback ports with its files under `directory`, and returns when it is ready.

    Keywords are sections of the configuration (`fetch={"max_attempts": 2}`). Loopback downloads are allowed unless `fetch.allow_networks`
    says otherwise. The caller must stop it; `running_service` does so by itself.
    """
    directory.mkdir(parents=True, exist_ok=True)
    merged: dict[str, Any] = {
        "data_dir": str(directory / "data"),
        "server": {"bind_addr": f"127.0.0.1:{free_port()}", "rate_limit": "100000/s"},
        "telemetry": {"metrics_addr": f"127.0.0.1:{free_port()}"},
        "fetch": {"allow_networks": ["127.0.0.0/8", "::1/128"], "per_host_rate": 100_000, "per_host_concurrency": 64},
    }
    for section, values in config.items():
        if isinstance(values, Mapping):
            merged[section] = {**merged.get(section, {}), **values}
        else:
            merged[section] = values
    config_path = directory / "fetchbox.toml"
    config_path.write_text(to_toml(merged), encoding="utf-8")
    command = [sys.executable, "-m", "fetchbox.cli", "up", "--config", str(config_path)]
    command += ["--workers", str(workers), "--api-processes", str(api_processes)]
    log_path = directory / "service.log"
    service = Service(
        url=f"http://{merged['server']['bind_addr']}",
        metrics_url=f"http://{merged['telemetry']['metrics_addr']}",
        process=_spawn(command, log_path),
        directory=directory,
        data_dir=Path(merged["data_dir"]),
        config_path=config_path,
        log_path=log_path,
        config=merged,
        command=command,
    )
    try:
        service.wait_ready()
    except BaseException:
        service.kill()
        raise
    return service


@contextlib.contextmanager
def running_service(directory: Path, *, workers: int = 1, api_processes: int = 1, **config: Any) -> Iterator[Service]:
    """`start_service`, ended on leaving: by SIGTERM, and whatever is left of the tree by SIGKILL. A tree that does not end is an error."""
    service = start_service(directory, workers=workers, api_processes=api_processes, **config)
    try:
        yield service
        service.stop()
    except KeyboardInterrupt:
        service.stop()
        raise
    finally:
        service.kill()
