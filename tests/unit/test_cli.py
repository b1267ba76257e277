"""The command line as its users meet it: real processes, exit statuses, one clear line for a mistake."""

from __future__ import annotations

import io
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest

from fetchbox.cli import COMMANDS, run, whole
from fetchbox.testing import content, spawned_origin, to_toml

ROOT = Path(__file__).parents[2]


def fetchbox(*arguments: str, timeout: float = 30, **environment: str) -> subprocess.CompletedProcess[str]:
    """Runs a command to its end, away from any configuration of the machine."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("FETCHBOX")}
    command = [sys.executable, "-m", "fetchbox.cli", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=timeout, env={**kept, **environment}, cwd="/", check=False)


class Reluctant(io.RawIOBase):
    """Takes at most ten bytes at a time, as a pipe does whose writer is disturbed."""

    def __init__(self) -> None:
        self.taken = b""

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        some = bytes(data[:10])
        self.taken += some
        return len(some)


def test_without_a_buffer_nothing_of_a_long_text_is_lost() -> None:
    raw = Reluctant()
    bare = io.TextIOWrapper(raw, encoding="utf-8", write_through=True)  # type: ignore[type-var]  # what python -u makes of stdout
    text = "ä" * 1000
    whole(bare).write(f"{text}\n")
    assert raw.taken.decode() == f"{text}\n"
    buffered = io.TextIOWrapper(io.BytesIO())
    assert whole(buffered) is buffered


def test_get_loads_neither_models_nor_a_terminal(tmp_path: Path) -> None:
    heavy = "[m for m in ('pydantic', 'rich', 'asyncio', 'fetchbox.config') if m in sys.modules]"
    arguments = ["get", "http://127.0.0.1:1/", "-o", str(tmp_path), "-j", "3", "--retry", "0", "--allow-network", "127.0.0.0/8", "-q"]
    code = f"import sys; from fetchbox.cli import run; status = run({arguments!r}); print(status, {heavy})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=30, check=True)
    assert done.stdout.strip() == "1 []"


@pytest.mark.parametrize(
    ("options", "status", "message"),
    [
        (["-j", "0"], 2, "greater than or equal to 1"),
        (["-j", "many"], 2, "valid integer"),
        (["-j", "1.5"], 2, "valid integer"),
        (["--retry", "-1"], 2, "greater than or equal to 0"),
        (["--max-time", "0"], 2, "greater than or equal to 0.001"),
        (["--max-time", "1", "--retry", "000", "-j", "0007"], 1, ""),
    ],
)
def test_arguments_are_judged_as_typer_does(tmp_path: Path, options: list[str], status: int, message: str) -> None:
    done = fetchbox("get", "http://127.0.0.1:1/", "-o", str(tmp_path), "-q", "--allow-network", "127.0.0.0/8", *options)
    assert done.returncode == status, done.stderr
    assert message in done.stderr


def test_help_lists_every_command() -> None:
    done = fetchbox("--help")
    assert done.returncode == 0
    assert all(f"\n  {name} " in done.stdout for name in COMMANDS)


def test_help_imports_no_command() -> None:
    # What makes it quick.
    heavy = "[m for m in sys.modules if m.startswith(('typer', 'rich', 'httpx', 'fetchbox.'))]"
    script = f"import sys; from fetchbox.cli import run; run(['--help']); print({heavy})"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=30, check=True)
    assert done.stdout.splitlines()[-1] == "['fetchbox.cli']"


@pytest.mark.parametrize("name", sorted(COMMANDS))
def test_every_command_has_help(name: str) -> None:
    done = fetchbox(name, "--help")
    assert done.returncode == 0
    assert done.stdout.startswith(f"Usage: fetchbox {name}")
    assert done.stderr == ""


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["sumbit"], "no such command: sumbit; did you mean submit?"),
        (["--colour"], "no such option: --colour"),
        (["--config"], "--config needs a file"),
        (["--config", "/none.toml", "config", "check"], "there is no file /none.toml"),
        (["config", "check", "--config", "/none.toml"], "there is no file /none.toml"),
        (["origin", "--port", "http"], "'--port'"),
        (["origin", "--tls", "perfect"], "--tls is one of ca, self-signed, expired, wrong-host, not 'perfect'"),
        (["origin", "stray"], "stray"),
        (["jobs"], "Missing command"),
        (["jobs", "show"], "Missing argument 'ID'"),
        (["submit", "/none.json"], "there is no file /none.json"),
        (["submit", __file__, "--server", "ftp://x"], "begins with http:// or https://"),
        (["get"], "nothing to download"),
        (["get", "-i", "/none.txt"], "-i: there is no file /none.txt"),
        (["get", "-H", "no colon", "http://x.example/"], "-H takes 'Name: value'"),
        (["up", "--workers", "-1"], "'--workers'"),
    ],
)
def test_bad_usage_is_one_clear_line_and_2(arguments: list[str], complaint: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(arguments) == 2
    done = capsys.readouterr()
    assert complaint in done.err
    assert done.err.startswith("fetchbox")
    assert done.err.count("\n") == 1
    assert done.out == ""


def test_no_command_shows_the_help_and_is_2() -> None:
    done = fetchbox()
    assert done.returncode == 2
    assert "Commands:" in done.stderr


def test_config_is_taken_before_and_after_the_command(tmp_path: Path) -> None:
    path = tmp_path / "c.toml"
    path.write_text(to_toml({"worker": {"concurrency": 7}, "client": {"token": "s3cret-token"}}))
    for arguments in (["--config", str(path), "config", "show", "--json"], ["config", "show", "--json", f"--config={path}"]):
        done = fetchbox(*arguments)
        assert done.returncode == 0, done.stderr
        settings = {entry["path"]: entry for entry in map(json.loads, done.stdout.splitlines())}
        assert settings["worker.concurrency"]["value"] == 7
        assert settings["worker.concurrency"]["source"].endswith("c.toml")
        assert settings["drain_timeout"]["source"] == "default"
        assert "s3cret-token" not in done.stdout


def test_a_bad_configuration_is_reported_whole(tmp_path: Path) -> None:
    path = tmp_path / "c.toml"
    path.write_text('[worker]\nconcurency = 1\n[fetch]\nconnect_timeout = "-3s"\n')
    done = fetchbox("config", "check", "--config", str(path))
    assert done.returncode == 1
    assert "concurrency" in done.stderr
    assert "connect_timeout" in done.stderr
    machine = fetchbox("config", "check", "--json", "--config", str(path))
    assert machine.returncode == 1
    report = json.loads(machine.stdout)
    assert report["ok"] is False
    assert len(report["problems"]) == 2
    assert fetchbox("up", "--config", str(path)).returncode == 1


def test_a_good_configuration_is_fine() -> None:
    done = fetchbox("config", "check")
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads(fetchbox("config", "check", "--json").stdout) == {"ok": True, "problems": []}


def test_a_reader_that_leaves_ends_it_quietly() -> None:
    command = f"{sys.executable} -m fetchbox.cli config show | head -1; echo ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=30, check=False)
    assert done.stderr == ""
    assert done.stdout.splitlines()[0].startswith("KEY")
    closed = f"{sys.executable} -m fetchbox.cli config show --json | true; echo ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", closed], capture_output=True, text=True, timeout=30, check=False)
    assert (done.stdout.strip(), done.stderr) in (("141", ""), ("0", ""))


def test_tables_hold_no_escapes_off_a_terminal() -> None:
    done = fetchbox("config", "show")
    assert "\x1b" not in done.stdout
    # Nothing is cut off or wrapped where a program may read.
    assert all(len(re.split(r"  +", line)) >= 3 for line in done.stdout.splitlines())


def test_origin_prints_its_url_serves_and_ends_on_sigterm(tmp_path: Path) -> None:
    import urllib.request

    journal = tmp_path / "journal"
    with spawned_origin(journal=journal, pace=1000) as origin:
        with urllib.request.urlopen(origin.url("/bytes/1000?seed=p"), timeout=10) as answer:
            assert answer.read() == content("p", 1000)
        assert [target for _, target in origin.requests()] == ["/bytes/1000?seed=p"]
        origin.process.send_signal(signal.SIGTERM)
        assert origin.process.wait(10) == 0


def test_the_origins_port_in_use_is_one_line() -> None:
    with spawned_origin() as origin:
        done = fetchbox("origin", "--port", origin.base_url.rsplit(":", 1)[1])
    assert done.returncode == 1
    assert "in use" in done.stderr
    assert done.stderr.count("\n") == 1


JOB = {
    "job_id": "01j", "job_type": "default", "tenant": "default", "status": "partial", "created_at": "2026-01-01T00:00:00Z",
    "resource_total": 3, "resource_completed": 2, "resource_reused": 0, "resource_filtered": 0, "resource_failed": 1,
    "resource_cancelled": 0, "resource_pending": 0, "bytes_stored": 2048, "last_error": {"code": "X", "message": "evil \x1b[31m"},
}  # fmt: skip


def _lower(headers: Any) -> dict[str, str]:
    return {name.lower(): value for name, value in headers.items()}


class Service(BaseHTTPRequestHandler):
    """Answers as the HTTP table of the contracts says; what was asked is kept on the server."""

    server: Any

    def log_message(self, format: str, *args: object) -> None:
        pass

    def do_POST(self) -> None:
        self.server.asked.append((self.path, _lower(self.headers), self.rfile.read(int(self.headers.get("Content-Length") or 0))))
        if self.path == "/jobs" and self.server.refuse:
            self._answer(*self.server.refuse.pop(0))
        elif self.path == "/jobs":
            self._answer(202, {"job_id": "01j", "manifest_key": "file:///m", "resource_count": 3})
        else:
            self._answer(200, {**JOB, "status": "cancelled", "resource_cancelled": 1})

    def do_GET(self) -> None:
        self.server.asked.append((self.path, _lower(self.headers), b""))
        path = self.path.partition("?")[0]
        if path.startswith("/operators") and self.server.tenant_only:
            self._answer(401, {"error": {"code": "UNAUTHORIZED", "message": "operators only"}})
        elif path.endswith("/jobs"):
            second = "cursor=two" in self.path
            self._answer(200, {"jobs": [{**JOB, "job_id": "01k" if second else "01j"}], "next_cursor": None if second else "two"})
        elif path.endswith("/resources"):
            rows = [
                {"id": "a", "state": "stored", "url": "http://x/\x1b]0;owned\x07", "size": 5, "attempts": 1, "storage_url": "file:///a"}
            ]
            self._answer(200, {"resources": rows, "next_cursor": None})
        elif path.endswith("/logs"):
            lines = [{"offset": i, "level": "INFO", "message": f"line {i}", "fields": {"n": str(i)}, "timestamp": "t"} for i in range(3)]
            self._answer(200, b"".join(json.dumps(line).encode() + b"\n" for line in lines))
        elif path.endswith("/gone"):
            self._answer(404, {"error": {"code": "NOT_FOUND", "message": "there is no such job"}})
        else:
            self._answer(200, JOB)

    def _answer(self, status: int, body: object) -> None:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.send_header("Retry-After", "1")
        self.end_headers()
        self.wfile.write(data)


@pytest.fixture
def service() -> Iterator[Any]:
    server: Any = ThreadingHTTPServer(("127.0.0.1", 0), Service)
    server.asked, server.refuse, server.tenant_only = [], [], False
    server.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join(10)


def test_jobs_are_listed_page_by_page(service: Any) -> None:
    done = fetchbox("jobs", "list", "--json", "--status", "partial", "--server", service.url)
    assert done.returncode == 0, done.stderr
    assert [json.loads(line)["job_id"] for line in done.stdout.splitlines()] == ["01j", "01k"]
    assert service.asked[0][0] == "/operators/jobs?status=partial&limit=50"
    table = fetchbox("jobs", "list", "-n", "1", FETCHBOX_URL=service.url)
    assert re.search(r"01j +default +default +partial +3 +2 +1 +0 +2.0 KiB", table.stdout)


def test_what_strangers_wrote_cannot_drive_the_terminal(service: Any) -> None:
    for arguments in (["jobs", "show", "01j"], ["jobs", "resources", "01j"]):
        done = fetchbox(*arguments, "--server", service.url)
        assert done.returncode == 0, done.stderr
        assert "\x1b" not in done.stdout
        assert "\\x1b" in done.stdout or "\\u001b" in done.stdout


def test_the_configuration_names_the_service_and_the_token(service: Any, tmp_path: Path) -> None:
    path = tmp_path / "c.toml"
    path.write_text(to_toml({"client": {"url": service.url, "token": "abc"}, "server": {"operator_token": "op"}}))
    assert fetchbox("--config", str(path), "jobs", "show", "01j", "--json").returncode == 0
    headers = service.asked[0][1]
    assert headers["authorization"] == "Bearer abc"
    assert headers["x-fetchbox-operator-token"] == "op"


def test_a_tenant_sees_its_own_job(service: Any) -> None:
    service.tenant_only = True
    done = fetchbox("jobs", "show", "01j", "--json", "--server", service.url)
    assert json.loads(done.stdout)["job_id"] == "01j"
    assert [path for path, _, _ in service.asked] == ["/operators/jobs/01j", "/jobs/01j"]
    assert fetchbox("jobs", "list", "--server", service.url).returncode == 1


def test_logs_end_with_a_settled_job(service: Any) -> None:
    for arguments in ([], ["-f"]):
        done = fetchbox("jobs", "logs", "01j", *arguments, "--server", service.url)
        assert done.returncode == 0, done.stderr
        assert [line.split()[3] for line in done.stdout.splitlines()] == ["0", "1", "2"]


def test_a_job_can_be_cancelled(service: Any) -> None:
    done = fetchbox("jobs", "cancel", "01j", "--server", service.url)
    assert done.stdout == "01j cancelled: 1 cancelled, 2 stored before\n"
    assert service.asked[-1][0] == "/operators/jobs/01j/cancel"


def test_a_refusal_is_one_line_and_1(service: Any) -> None:
    done = fetchbox("jobs", "show", "gone", "--server", service.url)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "fetchbox jobs: NOT_FOUND: there is no such job\n"


def test_nobody_there_is_one_line_and_1() -> None:
    done = fetchbox("jobs", "list", "--server", "127.0.0.1:9")
    assert done.returncode == 1
    assert "no service answers at http://127.0.0.1:9" in done.stderr
    assert done.stderr.count("\n") == 1


def test_submit_posts_the_bytes_with_a_key(service: Any, tmp_path: Path) -> None:
    path = tmp_path / "m.json"
    path.write_text('{"manifest_version":"v1"}')
    done = fetchbox("submit", str(path), "--job-type", "gallery", "--tenant", "t", "--server", service.url)
    assert (done.returncode, done.stdout) == (0, "01j\n")
    _, headers, body = service.asked[0]
    assert body == b'{"manifest_version":"v1"}'
    assert headers["x-fetchbox-job-type"] == "gallery"
    assert headers["x-fetchbox-tenant"] == "t"
    assert len(headers["idempotency-key"]) >= 32


def test_submit_tries_again_with_the_same_key(service: Any, tmp_path: Path) -> None:
    path = tmp_path / "m.json"
    path.write_text("{}")
    service.refuse = [
        (503, {"error": {"code": "HUB_UNAVAILABLE", "message": "away"}}),
        (429, {"error": {"code": "RATE_LIMITED", "message": "slow"}}),
    ]
    done = fetchbox("submit", str(path), "--json", "--server", service.url)
    assert json.loads(done.stdout)["job_id"] == "01j"
    assert len({headers["idempotency-key"] for _, headers, _ in service.asked}) == 1
    assert len(service.asked) == 3


def test_submit_gives_up_at_once_on_a_bad_manifest(service: Any, tmp_path: Path) -> None:
    path = tmp_path / "m.json"
    path.write_text("{}")
    details = [{"pointer": "/resources", "code": "VALIDATION_MISSING", "message": "is missing"}]
    service.refuse = [(400, {"error": {"code": "INVALID_PAYLOAD", "message": "bad", "details": details}})]
    done = fetchbox("submit", str(path), "--server", service.url)
    assert done.returncode == 1
    assert done.stderr == "fetchbox submit: INVALID_PAYLOAD: bad; /resources: is missing\n"
    assert len(service.asked) == 1


def test_submit_waits_and_says_how_it_ended(service: Any, tmp_path: Path) -> None:
    path = tmp_path / "m.json"
    path.write_text("{}")
    done = fetchbox("submit", str(path), "--wait", "--server", service.url)
    # Not everything was stored: the job is partial.
    assert done.returncode == 1
    assert done.stdout == "01j partial: 2 stored, 1 failed\n"


def test_run_returns_instead_of_ending_the_process(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["help"]) == 0
    assert run(["nothing-of-ours"]) == 2
    assert "no such command" in capsys.readouterr().err


def test_the_manual_names_every_command() -> None:
    manual = (ROOT / "docs/cli.md").read_text(encoding="utf-8")
    assert set(re.findall(r"^## `fetchbox (\w+)", manual, re.MULTILINE)) == set(COMMANDS)
