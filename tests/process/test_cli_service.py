"""A real service, started, used and stopped by the command line alone."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from fetchbox.testing import Origin, Service, running_origin, running_service, wait_until

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def origin() -> Iterator[Origin]:
    with running_origin() as server:
        yield server


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    with running_service(tmp_path_factory.mktemp("service"), fetch={"max_attempts": 1}) as running:
        yield running


def fetchbox(service: Service, *arguments: str) -> subprocess.CompletedProcess[str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("FETCHBOX")}
    command = [sys.executable, "-m", "fetchbox.cli", "--config", str(service.config_path), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, env=kept, check=False)


def manifest(path: Path, *urls: str) -> str:
    path.write_text(json.dumps({"manifest_version": "v1", "metadata": {}, "resources": [{"url": url} for url in urls]}))
    return str(path)


def test_submit_waits_for_a_job_that_completes(service: Service, origin: Origin, tmp_path: Path) -> None:
    done = fetchbox(service, "submit", manifest(tmp_path / "m.json", *(origin.url(f"/bytes/{n}") for n in (0, 10, 100_000))), "--wait")
    assert done.returncode == 0, done.stderr
    assert re.fullmatch(r"[0-9a-f-]{36} completed: 3 stored\n", done.stdout)
    assert "3 resources accepted" in done.stderr


def test_a_job_seen_from_every_side(service: Service, origin: Origin, tmp_path: Path) -> None:
    posted = fetchbox(
        service, "submit", manifest(tmp_path / "m.json", origin.url("/bytes/5"), origin.url("/status/404")), "--wait", "--json"
    )
    assert posted.returncode == 1
    job = json.loads(posted.stdout)
    assert (job["status"], job["resource_completed"], job["resource_failed"]) == ("partial", 1, 1)
    job_id = job["job_id"]
    shown = fetchbox(service, "jobs", "show", job_id)
    assert re.search(r"^status +partial$", shown.stdout, re.MULTILINE)
    listed = [json.loads(line)["job_id"] for line in fetchbox(service, "jobs", "list", "--json").stdout.splitlines()]
    assert listed[0] == job_id
    rows = [json.loads(line) for line in fetchbox(service, "jobs", "resources", job_id, "--json").stdout.splitlines()]
    assert [(row["state"], row["code"]) for row in rows] == [("stored", None), ("failed", "DOWNLOAD_HTTP_4XX")]
    assert "DOWNLOAD_HTTP_4XX" in fetchbox(service, "jobs", "resources", job_id, "--state", "failed").stdout
    for arguments in ([], ["-f"]):
        log = fetchbox(service, "jobs", "logs", job_id, "--json", *arguments)
        assert log.returncode == 0, log.stderr
        assert [json.loads(line) for line in log.stdout.splitlines()]


def test_a_running_job_can_be_cancelled(service: Service, origin: Origin, tmp_path: Path) -> None:
    posted = fetchbox(service, "submit", manifest(tmp_path / "m.json", origin.url("/delay/120/bytes/5")))
    job_id = posted.stdout.strip()
    log = fetchbox(service, "jobs", "logs", job_id)
    assert log.returncode == 0, log.stderr
    assert log.stdout
    done = fetchbox(service, "jobs", "cancel", job_id)
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"{job_id} cancelled: 1 cancelled, 0 stored before\n"


def test_a_bad_manifest_names_its_faults(service: Service, tmp_path: Path) -> None:
    done = fetchbox(service, "submit", manifest(tmp_path / "m.json", "http://x.example/", "not a url"))
    assert done.returncode == 1
    assert "/resources/1/url" in done.stderr
    assert done.stderr.count("\n") == 1


def test_every_process_carries_its_name_and_none_is_left(tmp_path: Path) -> None:
    with running_service(tmp_path, workers=1) as service:
        assert sorted(service.children().values()) == ["fetchbox: api 0", "fetchbox: hub", "fetchbox: worker 0"]
        title = Path(f"/proc/{service.process.pid}/cmdline").read_bytes().replace(b"\0", b" ").decode().strip()
        assert title == "fetchbox: supervisor"
        assert str(service.data_dir) in service.log()
        assert service.stop() == 0
        wait_until(lambda: not service.children(), 5, what="the end of every child")


def test_a_second_service_of_the_same_directory_is_refused(service: Service) -> None:
    done = fetchbox(service, "up")
    assert done.returncode == 1
    assert str(service.data_dir) in done.stderr
    assert "Traceback" not in done.stderr


def test_the_demonstration_ends_as_its_manifest_says(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "fetchbox.cli.demo", str(ROOT / "examples/manifest.json")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100, cwd=tmp_path, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "unexpected" not in done.stdout
    assert "every process has ended" in done.stdout
    kept = next((tmp_path / "fetchbox-data").iterdir())
    assert len([path for path in (kept / "data" / "assets" / "resources").rglob("*") if path.is_file()]) > 40
