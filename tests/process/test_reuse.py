"""`fetch.reuse`: what has not changed is not transferred again, by the origin's own count, and all stays exact whoever is killed."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

from fetchbox.testing import running_origin
from tests.process.client import Json
from tests.process.kills import TREE, strike
from tests.process.load import Load, plain
from tests.process.oracle import OUTCOMES, conserved, digest_of
from tests.process.service import Service
from tests.process.waiting import wait_for

REUSE = {"fetch": {"reuse": True}}


def post(service: Service, loads: Sequence[Load], run: int) -> list[str]:
    """Posts the same manifests as jobs of their own."""
    return [service.http.post_until_acknowledged(load.body, f"{load.key}-{run}", headers=load.headers)[0]["job_id"] for load in loads]


def settled(service: Service, jobs: Sequence[str], limit: float) -> list[Json]:
    def done() -> list[Json] | None:
        seen = [service.http.job(job, limit=30) for job in jobs]
        for job in seen:
            conserved(job)
        return seen if all(job["resource_pending"] == 0 for job in seen) else None

    return wait_for("all jobs to be settled", done, limit, every=0.1, describe=service.dump)


def metric(service: Service, sample: str) -> float:
    """The value of the one sample that this expression finds."""
    text = service.http.http.get(service.metrics_url + "/metrics").text
    [value] = re.findall(rf"^{sample} (\S+)$", text, re.MULTILINE)
    return float(value)


def check(service: Service, loads: Sequence[Load], jobs: Sequence[str]) -> Counter[str]:
    """Each resource has its own object with the right bytes, the counts are those of the outcomes, and the store holds nothing else that is
    theirs. How many are in which state."""
    states: Counter[str] = Counter()
    for load, job_id in zip(loads, jobs, strict=True):
        job, outcomes = service.http.job(job_id), service.http.resources(job_id)
        counted = Counter(outcome["state"] for outcome in outcomes)
        assert {name: job[name] for name in OUTCOMES.values()} == {name: counted[state] for state, name in OUTCOMES.items()}
        assert job["bytes_stored"] == sum(outcome["size"] for outcome in outcomes if outcome["state"] == "stored")
        paths = set()
        for wanted, outcome in zip(load.resources, outcomes, strict=True):
            assert outcome["state"] in ("stored", "reused"), outcome
            assert (outcome["id"], outcome["size"], outcome["sha256"]) == (wanted.id, wanted.size, wanted.sha256)
            path = unquote(urlsplit(outcome["storage_url"]).path)
            assert f"/{job_id}/" in path, "every job has objects of its own"
            assert digest_of(path) == (wanted.size, wanted.sha256)
            paths.add(path)
        here = (service.assets / "resources" / "default" / job_id).resolve()
        assert {str(path) for path in here.iterdir()} == paths
        states += counted
    return states


@pytest.mark.slow
@pytest.mark.timeout(180)
def test_ten_thousand_unchanged_resources_are_not_transferred_again(tmp_path: Path) -> None:
    with running_origin() as origin, Service(tmp_path / "service", REUSE) as service:
        service.start()
        loads = [plain(origin.base_url, number, 1000) for number in range(10)]
        body_bytes = sum(wanted.size for load in loads for wanted in load.resources)

        def run(number: int) -> tuple[list[str], int, int]:
            bytes_before, requests_before = origin.bytes_sent, origin.counts.total()
            jobs = post(service, loads, number)
            assert {job["status"] for job in settled(service, jobs, 90)} == {"completed"}
            return jobs, origin.bytes_sent - bytes_before, origin.counts.total() - requests_before

        first, sent_first, asked_first = run(1)
        assert check(service, loads, first) == {"stored": 10_000}
        second, sent_second, asked_second = run(2)
        assert check(service, loads, second) == {"reused": 10_000}
        assert asked_first == asked_second == 10_000
        print(f"10,000 resources, {body_bytes:,} bytes: the origin sent {sent_first:,} bytes the first time, {sent_second:,} the second")
        assert sent_first > body_bytes
        assert sent_second < body_bytes / 40, "heads and nothing else"
        # Files of both runs share their blocks.
        one = Path(unquote(urlsplit(service.http.resources(first[0])[0]["storage_url"]).path))
        two = Path(unquote(urlsplit(service.http.resources(second[0])[0]["storage_url"]).path))
        assert one.stat().st_ino == two.stat().st_ino

        # Within reuse_max_age nobody is even asked, and that survives a restart of everything.
        service.end()
        service.configure({"fetch": {"reuse": True, "reuse_max_age": "1h"}})
        service.start()
        third, sent_third, asked_third = run(3)
        assert check(service, loads, third) == {"reused": 10_000}
        assert (sent_third, asked_third) == (0, 0)
        assert metric(service, 'fetchbox_resources_settled_total{[^}]*state="reused"[^}]*}') == 20_000
        assert metric(service, 'fetchbox_worker_reused_total{[^}]*how="max_age"[^}]*}') == 10_000
        assert metric(service, "fetchbox_worker_download_bytes_total{[^}]*}") == 0
        service.end()


def test_another_tenants_object_is_not_reused_and_nothing_is_without_the_setting(tmp_path: Path) -> None:
    with (
        running_origin() as origin,
        Service(tmp_path / "service", {**REUSE, "job_types": {"fresh": {"fetch": {"reuse": False}}}}) as service,
    ):
        service.start()
        load = plain(origin.base_url, 0, 20)

        def run(number: int, tenant: str, job_type: str = "default") -> Counter[str]:
            headers = {"x-fetchbox-tenant": tenant, "x-fetchbox-job-type": job_type}
            job_id = service.http.post_until_acknowledged(load.body, f"k{number}", headers=headers)[0]["job_id"]
            settled(service, [job_id], 30)
            return Counter(outcome["state"] for outcome in service.http.resources(job_id))

        assert run(1, "a") == {"stored": 20}
        assert run(2, "b") == {"stored": 20}
        assert run(3, "a", "fresh") == {"stored": 20}
        assert run(4, "a") == {"reused": 20}
        assert run(5, "b") == {"reused": 20}
        service.end()


@pytest.mark.parametrize("whom", ["worker", "hub", TREE])
def test_a_kill_in_the_second_run(tmp_path: Path, whom: str) -> None:
    with running_origin(pace=400) as origin, Service(tmp_path / "service", REUSE) as service:
        service.start()
        loads = [plain(origin.base_url, number, 100) for number in range(6)]
        first = post(service, loads, 1)
        settled(service, first, 60)
        assert check(service, loads, first) == {"stored": 600}
        asked = origin.counts.total()
        second = post(service, loads, 2)
        wait_for("a third of the requests", lambda: origin.counts.total() >= asked + 200, 30, describe=service.dump)
        strike(service, whom)
        service.wait_ready()
        settled(service, second, 60)
        # What was remembered in the first run is on disk: nobody fetches it again.
        assert check(service, loads, second) == {"reused": 600}
        assert check(service, loads, first) == {"stored": 600}
        third = post(service, loads, 3)
        settled(service, third, 60)
        assert check(service, loads, third) == {"reused": 600}
