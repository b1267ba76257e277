"""What a worker leaves in a bucket when it is killed in the middle of a multipart upload: nothing, half a minute later."""

from __future__ import annotations

import itertools
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from fetchbox.origin import content_sha256
from tests.process.load import Wanted, of
from tests.process.object_stores import PART, S3, front, moto
from tests.process.origins import OriginProcess
from tests.process.service import Service
from tests.process.waiting import wait_for

BUCKETS = itertools.count()
GONE_WITHIN = 60.0
LARGE = 3 * PART + 1234


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3]:
    with moto(tmp_path_factory.mktemp("s3")) as running:
        yield running


@pytest.mark.timeout(180)
def test_a_worker_that_is_killed_in_a_multipart_upload_leaves_nothing_although_its_job_goes_on(
    server: S3, tmp_path: Path, origin: OriginProcess
) -> None:
    store = server.with_bucket(f"bucket-{next(BUCKETS)}")
    # Everything else is at its default. moto says of every upload that it began in 2010: by their age all would go, used or not.
    overrides: dict[str, Any] = {"ledger": {"abort_uploads_after": "36500d"}}
    killed: list[int] = []
    with front(store) as through, Service(tmp_path / "service") as service:

        def kill(what: str) -> None:
            """kill -9 for the worker when its first part is stored, before it hears of it."""
            if what == "part" and not killed:
                worker = service.a_process("worker")
                killed.append(worker.pid)
                worker.send(signal.SIGKILL)

        through.done = kill
        service.configure({**overrides, "storage": {"url": f"s3://{store.bucket}/pre/fix", **through.store().storage()}})
        service.start()
        large = Wanted("large", f"/bytes/{LARGE}?seed=3", LARGE, 3)
        waiting = Wanted("waiting", "/delay/600/bytes/10?seed=1", 10, 1)
        load = of(origin.base_url, "leftovers", [large, waiting])
        job_id = str(service.http.post_until_acknowledged(load.body, load.key)[0]["job_id"])
        wait_for("the kill", lambda: killed, 30, every=0.01, describe=service.dump)
        assert len(store.uploads()) == 1, "what the killed worker had begun"
        wait_for(
            "the large one to be stored by another worker",
            lambda: service.http.job(job_id, limit=10)["resource_completed"] == 1,
            30,
            every=0.05,
            describe=service.dump,
        )
        assert through.count("create") == 2
        wait_for("the dead worker's upload to be aborted", lambda: not store.uploads(), GONE_WITHIN, every=0.2, describe=service.dump)
        # By its resource's outcome, not by its job's: that goes on.
        job = service.http.job(job_id)
        assert (job["status"], job["resource_pending"]) == ("in_progress", 1)
        (outcome,) = [one for one in service.http.resources(job_id) if one["id"] == "large"]
        assert (outcome["sha256"], outcome["state"]) == (content_sha256(3, LARGE), "stored")
        assert len(store.object(outcome["storage_url"]).content) == LARGE
        assert len(store.listed()) == 2, "the manifest and the object"
        service.http.http.post(f"/operators/jobs/{job_id}/cancel").raise_for_status()
        service.http.await_job(job_id, 30)
        service.end()
