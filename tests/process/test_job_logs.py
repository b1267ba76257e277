"""What the log of a job holds."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from fetchbox.testing import running_origin
from tests.process.service import Service


@pytest.mark.parametrize("level", ["info", "debug"])
def test_files_that_were_stored_are_told_at_debug(tmp_path: Path, level: str) -> None:
    overrides = {"telemetry": {"log_level": level}, "job_types": {"default": {"fetch": {"max_attempts": 1}}}}
    with running_origin() as origin, Service(tmp_path / "service", overrides).start() as service:
        urls = [origin.url("/bytes/1000"), origin.url("/status/404")]
        resources = [{"id": f"r{number}", "url": url} for number, url in enumerate(urls)]
        posted = service.http.http.post("/jobs", json={"manifest_version": "v1", "metadata": {}, "resources": resources})
        job_id = posted.json()["job_id"]
        service.http.await_job(job_id, 30, describe=service.dump)
        answer = service.http.http.get(f"/operators/jobs/{job_id}/logs", headers={"accept": "application/x-ndjson"})
        records = [json.loads(line) for line in answer.text.splitlines() if line.strip()]
        told = {(record["resource_id"], record["level"]) for record in records if record.get("resource_id")}
        assert ("r1", "ERROR") in told
        assert (("r0", "DEBUG") in told) is (level == "debug")
        service.end()
