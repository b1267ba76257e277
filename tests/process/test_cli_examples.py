"""The examples are run as they stand."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from fetchbox.testing import content_sha256, running_origin, running_service

EXAMPLES = Path(__file__).parents[2] / "examples"


def example(name: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "FETCHBOX__FETCH__ALLOW_NETWORKS": '["127.0.0.0/8"]'}
    command = [sys.executable, str(EXAMPLES / name), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, env=environment, check=False)


def test_fetch_urls(tmp_path: Path) -> None:
    with running_origin() as origin:
        listed = tmp_path / "urls.txt"
        listed.write_text(f"{origin.url('/bytes/1000?seed=1')}\n\n{origin.url('/status/404')}\n")
        done = example("fetch_urls.py", str(listed), str(tmp_path / "out"))
    assert done.returncode == 1
    assert content_sha256(1, 1000) in done.stdout
    assert "DOWNLOAD_HTTP_4XX" in done.stderr


def test_fetch_async(tmp_path: Path) -> None:
    with running_origin() as origin:
        done = example("fetch_async.py", origin.url("/"), str(tmp_path / "out"))
        assert {request.headers["referer"] for request in origin.requests} == {origin.url("/")}
    assert done.returncode == 0, done.stderr
    assert sorted(line.split()[:3] for line in done.stdout.splitlines()) == [[f"image-{i}", "stored", "image/png"] for i in (1, 2, 3)]


def test_fetch_engine(tmp_path: Path) -> None:
    with running_origin() as origin:
        done = example("fetch_engine.py", str(tmp_path / "out"), origin.url("/page.html?images=3"))
        assert len({request.peer for request in origin.requests if request.path.endswith(".png")}) <= 3
    assert done.returncode == 0, done.stderr
    assert sorted(line.split()[0] for line in done.stdout.splitlines()) == ["stored"] * 3


def test_post_manifest(tmp_path: Path) -> None:
    with running_origin() as origin, running_service(tmp_path) as service:
        done = example("post_manifest.py", service.url, origin.url("/bytes/1000?seed=1"), origin.url("/bytes/2000?seed=2"))
    assert done.returncode == 0, done.stderr
    assert "completed: 2 stored, 0 failed" in done.stdout
    assert content_sha256(2, 2000) in done.stdout
