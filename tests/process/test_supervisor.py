"""The supervisor over real processes with fake roles: starting, restarting, giving up, draining, dying."""

from __future__ import annotations

import json
import os
import select
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

HERE = Path(__file__).parent
LIMIT = 20.0
"""Seconds that anything may take here."""


class Run:
    """A supervisor in a process of its own, with its log lines and the notes of its children."""

    def __init__(self, directory: Path, roles: dict[str, int], env: dict[str, Any], config: dict[str, Any], policy: dict[str, Any]) -> None:
        self.notes_file = directory / "notes"
        self.notes_file.touch()
        overrides = {
            "data_dir": str(directory / "data"),
            "drain_timeout": 5,
            "server": {"bind_addr": "127.0.0.1:0"},
            "telemetry": {"metrics_addr": ""},
            **config,
        }
        environment = {**os.environ, "FAKE_LOG": str(self.notes_file), **{f"FAKE_{role}": json.dumps(plan) for role, plan in env.items()}}
        command = [sys.executable, str(HERE / "supervise.py"), json.dumps(overrides), json.dumps(roles), json.dumps(policy)]
        self.process = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, stdin=subprocess.DEVNULL, start_new_session=True)
        assert self.process.stderr is not None
        os.set_blocking(self.process.stderr.fileno(), False)
        self.output = ""

    def notes(self) -> list[dict[str, Any]]:
        """What the children wrote down so far."""
        return [json.loads(line) for line in self.notes_file.read_text().splitlines()]

    def pids(self) -> set[int]:
        """Every child that ever lived."""
        return {note["pid"] for note in self.notes()}

    def read(self) -> str:
        """All of the supervisor's standard error so far."""
        assert self.process.stderr is not None
        while chunk := self.process.stderr.read():
            self.output += chunk.decode()
        return self.output

    def until(self, what: Callable[[], Any]) -> Any:
        """Waits for something to become true, woken by output or a tick, and returns it."""
        assert self.process.stderr is not None
        deadline = time.monotonic() + LIMIT
        while not (found := what()):
            assert time.monotonic() < deadline, f"waited too long; notes: {self.notes()}; output:\n{self.read()}"
            select.select([self.process.stderr], [], [], 0.05)
            self.read()
        return found

    def event(self, name: str) -> dict[str, Any]:
        """Waits for a log line of the supervisor."""

        def found() -> dict[str, Any] | None:
            lines = (json.loads(line) for line in self.read().splitlines() if line.startswith("{"))
            return next((line for line in lines if line["event"] == name), None)

        result: dict[str, Any] = self.until(found)
        return result

    def count(self, role: str, what: str, number: int = 1) -> list[dict[str, Any]]:
        """Waits for so many notes of a role."""
        result: list[dict[str, Any]] = self.until(
            lambda: (found := [n for n in self.notes() if n["role"] == role and n["what"] == what]) and len(found) >= number and found
        )
        return result

    def end(self, number: signal.Signals = signal.SIGTERM) -> int:
        """Signals the supervisor and waits; the exit code."""
        self.process.send_signal(number)
        return self.wait()

    def wait(self) -> int:
        """Waits for the supervisor's end."""
        code = self.process.wait(LIMIT)
        self.read()
        return code

    def no_child_lives(self) -> bool:
        """Waits until nothing is left of the children (a zombie of init's counts as gone)."""
        return bool(self.until(lambda: not any(alive(pid) for pid in self.pids())))


def alive(pid: int) -> bool:
    """Whether the process runs."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state not in "ZX"


Start = Callable[..., Run]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Starts a supervisor; whatever it leaves is killed at the end."""
    runs: list[Run] = []

    def begin(
        roles: dict[str, int], env: dict[str, Any] | None = None, config: dict[str, Any] | None = None, policy: dict[str, Any] | None = None
    ) -> Run:
        directory = tmp_path / str(len(runs))
        directory.mkdir()
        run = Run(directory, roles, env or {}, config or {}, policy or {})
        runs.append(run)
        return run

    yield begin
    for run in runs:
        run.process.kill()
        run.process.wait(LIMIT)
        for pid in run.pids():
            if alive(pid):
                os.kill(pid, signal.SIGKILL)
        assert run.process.stderr is not None
        run.process.stderr.close()


def free_port() -> int:
    """A port that was free a moment ago."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port: int = sock.getsockname()[1]
        return port


def get(url: str) -> tuple[int, str]:
    """Status and body."""
    try:
        with urllib.request.urlopen(url, timeout=LIMIT) as response:
            return response.status, response.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()


def test_the_hub_is_ready_before_the_others_start_and_all_have_sessions_and_titles(start: Start) -> None:
    run = start({"worker": 2, "api": 1, "hub": 1})
    ready = run.event("ready")
    assert ready["api"].startswith("http://127.0.0.1:")
    assert run.event("starting")["data_dir"].endswith("/data")
    notes = run.notes()
    order = [(note["role"], note["what"]) for note in notes]
    assert order[:2] == [("hub", "start"), ("hub", "ready")]
    starts = [note for note in notes if note["what"] == "start"]
    assert all(note["sid"] == note["pid"] for note in starts), "a terminal's Ctrl-C reaches the supervisor alone"
    titles = {Path(f"/proc/{note['pid']}/cmdline").read_bytes().rstrip(b"\0").decode().strip() for note in starts}
    assert titles == {"fetchbox: hub", "fetchbox: api 0", "fetchbox: worker 0", "fetchbox: worker 1"}
    assert run.end() == 0


def test_draining_goes_from_api_over_workers_to_the_hub(start: Start) -> None:
    run = start({"hub": 1, "api": 2, "worker": 1}, {"API": {"drain": 0.3}, "WORKER": {"drain": 0.3}})
    run.event("ready")
    assert run.end() == 0
    order = [(note["role"], note["what"]) for note in run.notes() if note["what"] in ("drain", "end")]
    assert sorted(order[:4]) == [("api", "drain"), ("api", "drain"), ("api", "end"), ("api", "end")]
    assert order[4:] == [("worker", "drain"), ("worker", "end"), ("hub", "drain"), ("hub", "end")]
    assert run.no_child_lives()


def test_a_dead_child_comes_back_with_growing_pauses(start: Start) -> None:
    run = start({"worker": 1}, {"WORKER": {"die": 3}}, policy={"first_delay": 0.1, "longest_delay": 0.4})
    starts = run.count("worker", "start", 6)
    ends = [note["at"] for note in run.notes() if note["what"] == "ready"]
    pauses = [begin["at"] - end for begin, end in zip(starts[1:], ends, strict=False)]
    assert pauses[0] >= 0.1
    assert min(pauses[2:5]) >= 0.4, "0.1, 0.2, 0.4, then the limit"
    assert run.process.poll() is None
    assert run.end() == 0


def test_a_child_that_is_killed_again_and_again_comes_back_again_and_again(start: Start) -> None:
    run = start({"hub": 1, "worker": 1}, policy={"first_delay": 0.01, "longest_delay": 0.05, "tries": 2})
    for number in range(1, 9):
        victim = run.count("worker", "start", number)[-1]
        os.kill(victim["pid"], signal.SIGKILL)
    run.count("worker", "ready", 1)
    assert run.process.poll() is None
    assert run.end() == 0
    assert run.no_child_lives()


def test_a_dead_hub_comes_back_and_the_others_stay(start: Start) -> None:
    run = start({"hub": 1, "worker": 1})
    run.event("ready")
    os.kill(run.count("hub", "start")[0]["pid"], signal.SIGKILL)
    run.count("hub", "ready", 2)
    assert len(run.count("worker", "start")) == 1
    assert run.end() == 0


def test_a_child_that_never_becomes_ready_ends_everything_with_a_clear_message(start: Start) -> None:
    run = start({"hub": 1, "worker": 1}, {"WORKER": {"start": 4}}, policy={"first_delay": 0.01, "tries": 3})
    assert run.wait() == 1
    assert "worker 0 cannot start" in run.output, "the child's own words are seen"
    assert "fetchbox: worker 0 ended 3 times without becoming ready (last: exit code 4)" in run.output
    assert len(run.count("worker", "start")) == 3
    assert run.count("hub", "end"), "the others were drained"
    assert run.no_child_lives()


def test_a_child_that_hangs_before_it_is_ready_is_killed(start: Start) -> None:
    run = start({"hub": 1}, policy={"ready_timeout": 0.0, "first_delay": 0.01})
    run.event("does not become ready, killing it")
    assert run.end() == 0


def test_what_does_not_drain_in_time_is_killed_and_the_exit_code_is_0(start: Start) -> None:
    run = start({"hub": 1, "worker": 1}, {"WORKER": {"drain": 600}}, {"drain_timeout": 2})
    run.event("ready")
    began = time.monotonic()
    assert run.end() == 0
    assert time.monotonic() - began < 2.5
    assert run.event("did not end in time, killing it")["child"] == "worker 0"
    assert run.count("hub", "end"), "the hub has its own time"
    assert run.no_child_lives()


def test_a_second_ctrl_c_hastens(start: Start) -> None:
    run = start({"hub": 1, "worker": 1}, {"WORKER": {"drain": 600}}, {"drain_timeout": 600})
    run.event("ready")
    run.process.send_signal(signal.SIGINT)
    run.count("worker", "drain")
    began = time.monotonic()
    assert run.end(signal.SIGINT) == 0
    assert time.monotonic() - began < 5
    assert run.no_child_lives()


def test_sigterm_before_anything_is_ready_ends_everything(start: Start) -> None:
    run = start({"hub": 1, "api": 1})
    run.event("starting")
    assert run.end() == 0
    assert run.no_child_lives()


def test_kill_9_of_the_supervisor_leaves_no_child(start: Start) -> None:
    run = start({"hub": 1, "api": 1, "worker": 2})
    run.event("ready")
    run.process.kill()
    assert run.wait() == -signal.SIGKILL
    assert run.no_child_lives()
    assert len(run.count("worker", "end", 2)) == 2, "they drained"


def test_kill_9_of_the_supervisor_ends_a_child_that_does_not_drain(start: Start) -> None:
    run = start({"worker": 1}, {"WORKER": {"drain": 600}}, {"drain_timeout": 0.5})
    run.event("ready")
    run.process.kill()
    assert run.no_child_lives()


def test_sighup_hands_over_the_new_configuration(start: Start) -> None:
    run = start({"hub": 1, "api": 1})
    run.event("ready")
    run.process.send_signal(signal.SIGHUP)
    assert run.count("api", "reload")[0]["rate"] == 7.0
    assert len(run.count("api", "start")) == 1
    assert run.end() == 0


def test_a_taken_port_is_one_clear_error(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        sock.listen()
        port = sock.getsockname()[1]
        run = start({"api": 1}, config={"server": {"bind_addr": f"127.0.0.1:{port}"}})
        assert run.wait() == 1
    assert f"cannot listen on 127.0.0.1:{port} (server.bind_addr): Address already in use" in run.output
    assert run.notes() == []


def test_sigterm_ends_the_wait_for_a_taken_port(start: Start) -> None:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        sock.listen()
        run = start({"api": 1}, config={"server": {"bind_addr": f"127.0.0.1:{sock.getsockname()[1]}"}})
        run.event("the port is taken, trying for a moment")
        began = time.monotonic()
        assert run.end() == 0
        assert time.monotonic() - began < 2


def test_api_processes_share_the_socket_that_the_supervisor_bound(start: Start) -> None:
    run = start({"api": 2})
    address = run.event("ready")["api"].removeprefix("http://")
    host, _, port = address.rpartition(":")
    assert all(note["listen_fd"] is not None for note in run.count("api", "start", 2))
    for note in run.count("api", "start", 2):
        os.kill(note["pid"], signal.SIGKILL)
    # Nobody accepts at the moment, and still nobody is refused.
    with socket.create_connection((host, int(port)), LIMIT):
        pass
    assert run.end() == 0


def test_two_hubs_of_one_data_dir_are_refused(start: Start, tmp_path: Path) -> None:
    data = tmp_path / "shared"
    data.mkdir()
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(str(data / "hub.sock"))
        other.listen()
        run = start({"hub": 1}, config={"data_dir": str(data)})
        assert run.wait() == 1
    assert f"another FetchBox serves {data}" in run.output


def test_the_telemetry_port_shows_health_and_metrics_of_all_processes(start: Start) -> None:
    port = free_port()
    run = start(
        {"hub": 1, "worker": 2},
        {"WORKER": {"health": ["hub", "degraded", "the hub is away"]}},
        {"telemetry": {"metrics_addr": f"127.0.0.1:{port}"}},
    )
    run.event("ready")
    base = f"http://127.0.0.1:{port}"
    assert get(f"{base}/health/live") == (200, '{"status":"ok"}')
    status, body = get(f"{base}/health/ready")
    assert status == 503
    assert json.loads(body)["processes"]["worker 1"]["reason"] == "hub: the hub is away"
    assert json.loads(body)["processes"]["hub"]["status"] == "ok"
    status, page = get(f"{base}/metrics")
    assert status == 200
    assert 'fake_lives{kind="worker",process="worker 1"} 1.0' in page
    assert 'fetchbox_process_restarts_total{process="hub"} 0.0' in page
    assert 'fetchbox_service_ready{service="worker"} 0.0' in page
    assert "fetchbox_build_info{" in page
    assert 'fetchbox_process_resident_memory_bytes{process="worker 0"}' in page
    os.kill(run.count("hub", "start")[0]["pid"], signal.SIGKILL)
    run.count("hub", "ready", 2)
    run.until(lambda: 'fetchbox_process_restarts_total{process="hub"} 1.0' in get(f"{base}/metrics")[1])
    assert get(f"{base}/elsewhere")[0] == 404
    assert run.end() == 0


def test_children_do_not_pass_their_descriptors_or_secrets_on(start: Start) -> None:
    run = start({"api": 1}, config={"server": {"bind_addr": "127.0.0.1:0", "operator_token": "hush"}})
    run.event("ready")
    pid = run.count("api", "start")[0]["pid"]
    for name in ("environ", "cmdline"):
        assert b"hush" not in Path(f"/proc/{pid}/{name}").read_bytes()
    assert run.end() == 0
