"""The examples are run as they stand."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from fetchbox.testing import content, content_sha256, running_origin, running_service
from tests.process.object_stores import moto

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


def test_gallery_handler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a bucket for films and a proxy for one host, as its comments have it; both are real."""
    monkeypatch.setenv("PYTHONPATH", str(EXAMPLES / "gallery_handler"))
    with running_origin(proxy_port=0) as origin, moto(tmp_path) as store:
        films = store.with_bucket("films")
        options = {"buckets": {"video": "films"}, "proxies": {"127.0.0.2": "residential"}, "signing_key": "k"}
        config: dict[str, Any] = {
            "storage": {"url": f"s3://{store.bucket}", **store.storage()},
            "proxy": {"pools": {"residential": {"endpoints": [origin.proxy_url()]}}},
            "job_types": {
                "gallery": {"handler": "gallery:GalleryHandler", "options": options},
                "films": {"storage": {"bucket": "films"}},
            },
        }
        manifest = {
            "manifest_version": "v1",
            "metadata": {"gallery": "sunsets", "page": "https://pictures.example/sunsets"},
            "resources": [
                {"id": "film", "url": origin.url("/bytes/300?seed=3&name=.mp4"), "tags": {"content_type": "video/mp4", "position": "1"}},
                {"id": "picture", "url": f"http://127.0.0.2:{origin.port}/bytes/200?seed=2", "tags": {"position": "0"}},
                {"id": "thumb", "url": origin.url("/bytes/1"), "tags": {"kind": "thumbnail"}},
            ],
        }
        with running_origin(host="127.0.0.2", port=origin.port) as other, running_service(tmp_path / "service", **config) as service:
            with service.client() as client:
                job = client.submit(manifest, job_type="gallery")
                assert client.wait(job.job_id, timeout=60).status == "completed"
                film, picture = sorted(client.resources(job.job_id), key=lambda resource: str(resource.id))
            assert "2 of 2 pictures" in service.log()
        assert films.object(film.storage_url).content == content(3, 300)
        assert store.object(picture.storage_url).content == content(2, 200)
        assert (film.proxy, picture.proxy) == (None, origin.proxy_url())
        requests = [request for server in (origin, other) for request in server.requests]
        assert len(requests) == 2
        for request in requests:
            assert request.headers["referer"] == "https://pictures.example/sunsets"
            assert request.headers["x-signature"]
