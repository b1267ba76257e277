"""The bench's idle worker against a real service: it settles every job, and downloads and stores nothing."""

from __future__ import annotations

from pathlib import Path

from fetchbox.bench.fill import fill
from fetchbox.bench.idle_worker import idle_worker
from fetchbox.bench.service import Caller, manifest
from fetchbox.testing import running_service

JOBS = 300


def test_an_idle_worker_settles_what_was_posted_and_filled_in_and_stores_nothing(tmp_path: Path) -> None:
    # A store beside the data directory: only manifests may come into it.
    with running_service(tmp_path, workers=0) as service, idle_worker(service.config_path):
        caller = Caller(service.url)
        posted = caller.submit(manifest([f"http://127.0.0.1:1/{number}" for number in range(1000)]))
        filled = fill(service.config_path, JOBS, 60)
        assert len(set(filled)) == JOBS
        answers = caller.wait_settled([posted, *filled], 60)
        caller.close()
        assert [answer["status"] for answer in answers] == ["completed"] * (JOBS + 1)
        assert sum(answer["resource_completed"] for answer in answers) == 1000 + JOBS
        assert not (service.assets / "resources").exists() or not any((service.assets / "resources").iterdir())
