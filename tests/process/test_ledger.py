"""The ledger looks after itself and the store: what a service leaves behind is found and removed, and nothing else is."""

from __future__ import annotations

import json
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.process.load import KIB, of, plain, sized
from tests.process.origins import OriginProcess
from tests.process.s3 import S3, passing, s3_server
from tests.process.service import Service, clean_environment, command
from tests.process.waiting import wait_for

COUNT = 20
FLUSH = 4.0
"""Seconds that a worker keeps finished downloads to itself: time to cancel their job."""


def ledger(service: Service, *arguments: str) -> tuple[int, Any]:
    """Exit status and answer of `fetchbox ledger … --json`."""
    whole = [*command("ledger", *arguments), "--json", "--config", str(service.config_path)]
    done = subprocess.run(whole, capture_output=True, text=True, timeout=60, env=clean_environment(), check=False)
    assert done.stdout, done.stderr
    return done.returncode, json.loads(done.stdout)


def files(service: Service) -> list[str]:
    """Everything in the local store, relative to its root."""
    return sorted(str(path.relative_to(service.assets)) for path in service.assets.rglob("*") if path.is_file())


def test_objects_of_a_cancelled_job_are_collected_and_what_is_kept_is_proven(tmp_path: Path, origin: OriginProcess) -> None:
    quiet = {"worker": {"flush_interval": FLUSH}, "ledger": {"collect_every": 0}}
    with Service(tmp_path / "service", quiet).start() as service:
        job_id = service.http.post_until_acknowledged(plain(origin.base_url, 1, COUNT).body, "cancelled")[0]["job_id"]
        folder = f"resources/default/{job_id}/"
        # Downloaded, but not reported yet.
        wait_for("all objects", lambda: len([f for f in files(service) if f.startswith(folder)]) == COUNT, 20, describe=service.dump)
        job = service.http.http.post(f"/operators/jobs/{job_id}/cancel").json()
        kept = service.http.post_until_acknowledged(plain(origin.base_url, 2, 2).body, "kept")[0]["job_id"]
        wait_for("the other job", lambda: service.http.job(kept)["status"] == "completed", 30, describe=service.dump)
        # The reports that came too late stand before those of the other job.
        assert (job["status"], job["resource_cancelled"]) == ("cancelled", COUNT)
        assert service.http.job(job_id) == job
        staged = service.assets / ".fetchbox-staging" / "left"
        staged.parent.mkdir(exist_ok=True)
        staged.write_bytes(b"half a file")
        status, collected = ledger(service, "collect")
        assert (status, collected["objects"], collected["files"]) == (0, COUNT, 1)
        manifests = [f"manifests/default/{name}/manifest.json" for name in (job_id, kept)]
        assert files(service) == sorted([*manifests, *(f"resources/default/{kept}/r{n}" for n in range(2))])
        status, checked = ledger(service, "check", "--deep")
        assert (status, checked["ok"], checked["jobs"], checked["resources"], checked["objects"]) == (0, True, 2, COUNT + 2, 4)
        # What is lost outside is found.
        (service.assets / f"resources/default/{kept}/r1").unlink()
        status, checked = ledger(service, "check", "--against-store")
        assert (status, [(f["kind"], f["job_id"], f["index"]) for f in checked["findings"]]) == (1, [("object_missing", kept, 1)])
        service.end()


def test_the_collector_comes_by_itself(tmp_path: Path, origin: OriginProcess) -> None:
    often = {"worker": {"processes": 0}, "ledger": {"collect_every": 0.2, "collect_after": 0.2}}
    with Service(tmp_path / "service", often).start() as service:
        job_id = service.http.post_until_acknowledged(plain(origin.base_url, 1, 2).body, "k")[0]["job_id"]
        assert service.http.http.post(f"/operators/jobs/{job_id}/cancel").json()["resource_cancelled"] == 2
        late = service.assets / f"resources/default/{job_id}/r1"
        late.parent.mkdir(parents=True)
        late.write_bytes(b"from a worker that did not know")
        wait_for("the late object to go", lambda: not late.exists(), 20, describe=service.dump)
        service.end()


def test_every_tool_on_a_running_service(tmp_path: Path, origin: OriginProcess) -> None:
    with Service(tmp_path / "service", {"worker": {"processes": 0}}).start() as service:
        job_id = service.http.post_until_acknowledged(plain(origin.base_url, 1, 3).body, "k")[0]["job_id"]
        assert ledger(service, "sweep") == (0, {"jobs": 0, "put_back": 0, "gone": 0})
        status, exported = ledger(service, "export")
        assert (status, exported["job"]["job_id"], len(exported["resources"])) == (0, job_id, 3)
        assert ledger(service, "prune") == (0, {"pruned": 0})
        assert ledger(service, "check", "--job", job_id, "--fix")[1]["ok"]
        copy = tmp_path / "copy"
        status, written = ledger(service, "backup", str(copy))
        assert (status, written["path"]) == (0, str(copy))
        again = [*command("ledger", "backup", str(copy)), "--config", str(service.config_path)]
        refused = subprocess.run(again, capture_output=True, text=True, timeout=60, env=clean_environment(), check=False)
        assert (refused.returncode, refused.stdout) == (2, "")
        assert "exists already" in refused.stderr
        service.end()
        nobody = [*command("ledger", "check"), "--config", str(service.config_path)]
        away = subprocess.run(nobody, capture_output=True, text=True, timeout=60, env=clean_environment(), check=False)
        assert (away.returncode, away.stderr.startswith("fetchbox ledger: no hub answers at unix://")) == (1, True), away.stderr
        # The copy is the ledger as it was.
        service.configure({"worker": {"processes": 0}, "hub": {"path": str(copy)}})
        service.start()
        assert service.http.job(job_id)["resource_pending"] == 3
        service.end()


def test_a_receipt_of_a_thousand_resources(tmp_path: Path, origin: OriginProcess) -> None:
    with Service(tmp_path / "service", {"worker": {"processes": 0}}).start() as service:
        load = of(origin.base_url, "large", sized([1] * 1000))
        job_id = service.http.post_until_acknowledged(load.body, load.key)[0]["job_id"]
        receipt = service.http.get(f"/operators/jobs/{job_id}/receipt")
        assert receipt["conservation"]["listed"]["pending"] == receipt["conservation"]["total"] == len(receipt["resources"]) == 1000
        assert receipt["conservation"]["holds"]
        service.http.http.post(f"/operators/jobs/{job_id}/cancel")
        whole = [*command("jobs", "receipt", job_id), "--config", str(service.config_path)]
        shown = subprocess.run(whole, capture_output=True, text=True, timeout=60, env=clean_environment(), check=True).stdout.splitlines()
        assert len(shown) == 1001
        assert shown[-1].startswith(f"{job_id}: 1000 accepted = 0 pending + 0 stored + 0 reused + 0 filtered + 0 failed + 1000 cancelled")
        service.end()


@pytest.fixture(scope="module")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3]:
    with s3_server(tmp_path_factory.mktemp("s3")) as server:
        yield server


def test_a_manifest_without_a_job_and_an_upload_without_an_end_are_collected_from_s3(tmp_path: Path, origin: OriginProcess, s3: S3) -> None:
    armed = [True]
    often = {"collect_every": 0.3, "collect_after": 2, "abort_uploads_after": 2}
    with Service(tmp_path / "service") as service:

        def kill_the_api(method: str, path: str) -> bool:
            """kill -9 once a manifest is stored, before its job is accepted."""
            if not armed or method != "PUT" or "/manifests/" not in path:
                return False
            armed.clear()
            for process in service.processes("api"):
                process.send(signal.SIGKILL)
            return True

        with passing(s3.url, kill_the_api) as endpoint:
            service.configure({"storage": s3.settings(endpoint), "ledger": often})
            service.start()
            load = plain(origin.base_url, 1, 3, size=2 * KIB)
            with pytest.raises(httpx.TransportError):
                service.http.post(load.body, key=load.key)
            assert len(s3.keys()) == 1
            s3.begin_upload("some/prefix/resources/default/0190b6d4-0000-7000-8000-000000000001/big")
            s3.begin_upload("somebody/elses/upload")
            wait_for("the manifest to go", lambda: not s3.keys(), 30, every=0.1, describe=service.dump)
            wait_for("the upload to end", lambda: s3.uploads() == ["somebody/elses/upload"], 30, every=0.1, describe=service.dump)
            service.wait_ready()
            # The same post again makes a whole job, and a post without a key leaves nothing but its own.
            job_id = service.http.post_until_acknowledged(load.body, load.key)[0]["job_id"]
            other = service.http.post(plain(origin.base_url, 2, 1).body).json()["job_id"]
            for each in (job_id, other):
                wait_for("the job", lambda each=each: service.http.job(each)["status"] == "completed", 30, describe=service.dump)  # type: ignore[misc]
            status, checked = ledger(service, "check", "--deep")
            assert (status, checked["findings"], checked["objects"]) == (0, [], 3 + 1 + 2)
            assert len(s3.keys()) == 6
            service.end()


def test_late_objects_are_collected_from_s3(tmp_path: Path, origin: OriginProcess, s3: S3) -> None:
    before = set(s3.keys())
    quiet = {"storage": s3.settings(), "worker": {"processes": 0}, "ledger": {"collect_every": 0}}
    with Service(tmp_path / "service", quiet).start() as service:
        job_id = service.http.post_until_acknowledged(plain(origin.base_url, 1, 3).body, "k")[0]["job_id"]
        service.http.http.post(f"/operators/jobs/{job_id}/cancel")
        folder = f"some/prefix/resources/default/{job_id}"
        for name in ("r0", "r2", "not-ours"):
            s3.put(f"{folder}/{name}", b"late")
        status, collected = ledger(service, "collect")
        assert (status, collected["objects"]) == (0, 2)
        expected = {f"some/prefix/manifests/default/{job_id}/manifest.json", f"{folder}/not-ours"}
        assert set(s3.keys()) - before == expected
        service.end()
