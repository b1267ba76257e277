"""A host's limit on the whole fleet: with tasks partitioned by host one worker has all of a host's, however many workers there are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from fetchbox.testing import running_service, spawned_origin

RATE = 40
JOBS = 5
TASKS = 32
"""A job."""


@pytest.mark.timeout(120)
def test_four_workers_keep_one_hosts_rate(tmp_path: Path) -> None:
    config: dict[str, Any] = {"tasks": {"partition_by": "host"}, "fetch": {"allow_networks": ["127.0.0.0/8"], "per_host_rate": RATE}}
    journal = tmp_path / "requests.log"
    with spawned_origin(journal=journal) as origin, running_service(tmp_path / "service", workers=4, **config) as service:
        with service.client() as client:
            manifests = [
                {"manifest_version": "v1", "metadata": {}, "resources": [{"url": origin.url(f"/bytes/10?{job}.{n}")} for n in range(TASKS)]}
                for job in range(JOBS)
            ]
            jobs = [client.submit(manifest) for manifest in manifests]
            for job in jobs:
                assert client.wait(job.job_id, timeout=60).status == "completed"
        times = sorted(time for time, _ in origin.requests())
    assert len(times) == JOBS * TASKS
    # Whatever delays requests on their way only makes this longer; four workers at this rate each would take a quarter of it.
    assert times[-1] - times[0] >= 0.95 * (len(times) - 1) / RATE
