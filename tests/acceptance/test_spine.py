"""The main job, end to end: ten thousand files of all sizes under all kinds of names, every byte and every sum right."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from fnmatch import fnmatch
from pathlib import Path

import pytest

from tests.process.background import sampling
from tests.process.load import KIB, Load, of, plain, sized
from tests.process.oracle import Oracle, difference, unpack
from tests.process.origins import OriginProcess
from tests.process.service import Service

MIB = KIB * KIB
SIZES = [0, 1, 2, 4095, 4096, 65_535, 65_536, 65_537, MIB, 7_999_999, 8_000_000, 8_000_001, 8 * MIB, 16 * MIB + 1, 64 * MIB]
"""Around every threshold there is: nothing, a block, a stamp of the pattern, the multipart threshold in both countings, many parts."""
IDS = [
    "..",
    ".",
    "...",
    "../../../etc/passwd",
    "..\\..\\windows",
    "/etc/passwd",
    "/",
    "//",
    "a/b/c",
    "a//b",
    "a/../b",
    "%2e%2e",
    "%2F",
    "%",
    "%~",
    "~",
    ".hidden",
    ".fetchbox",
    "space in it",
    " leading and trailing ",
    "q?x=1#y",
    "Ä",
    "ä",
    "A",
    "a",
    "日本語",
    "𝄞 clef",
    "e\u0301",
    "é",
    "é" * 128,
    "𝄞" * 128,
    "x" * 128,
    "CON",
    "nul",
    "a:b",
    "*",
    '"quoted"',
    "'",
    "`id`",
    "$(id)",
    "-rf",
    "manifest.json",
]
"""Ids that would leave their place, meet another's, or be too long if they were taken as names."""


def spine_loads(origin: str) -> list[Load]:
    """100 manifests of 100 resources: one of all sizes, one of all ids, the rest of 10 KiB."""
    sizes = SIZES + [10 * KIB] * (100 - len(SIZES))
    ids = IDS + [f"filler-{n}" for n in range(100 - len(IDS))]
    return [
        of(origin, "sizes", sized(sizes, job=0)),
        of(origin, "ids", sized([10 * KIB] * 100, ids.__getitem__, job=1), job=1),
        *(plain(origin, job, 100) for job in range(2, 100)),
    ]


@pytest.mark.slow
@pytest.mark.timeout(240)
def test_a_hundred_manifests_of_a_hundred_resources(tmp_path: Path) -> None:
    with OriginProcess(tmp_path) as origin, Service(tmp_path / "service").start() as service:
        oracle = Oracle(service.http, service.assets, origin.journal)
        with sampling(oracle, every=0.1), ThreadPoolExecutor(4) as posters:
            list(posters.map(oracle.post, spine_loads(origin.base_url)))
            oracle.await_settled(150)
        before = oracle.snapshots()
        entries = [unpack(snapshot) for snapshot in before.values()]
        assert all(entry["job"]["status"] == "completed" for entry in entries)
        report = oracle.check(ratio=1.0)
        print(report)
        assert (report.jobs, report.resources, report.files) == (100, 10_000, 10_000)
        assert report.samples >= 10, "too few snapshots were sampled to say anything"
        assert all(outcome["attempts"] == 1 for entry in entries for outcome in entry["resources"])
        assert not strangers(tmp_path, service.assets)
        service.end()
        service.start()
        assert not difference(before, oracle.snapshots())
        oracle.check(ratio=1.0)
        service.end()


def strangers(root: Path, store: Path) -> list[Path]:
    """Files that are neither in the store nor of a kind that belongs to the service or to this test."""
    kinds = ("*.toml", "*.log", "*.journal", "*.sock", "*.lock", "*/data/hub/*", "*/data/flight/*")
    return [
        path
        for path in root.rglob("*")
        if path.is_file() and not path.is_relative_to(store) and not any(fnmatch(str(path), kind) for kind in kinds)
    ]


def test_the_answers_about_a_job(service: Service, origin: OriginProcess) -> None:
    oracle = Oracle(service.http, service.assets, origin.journal)
    load = plain(origin.base_url, 7000, 3, key="answers")
    answer, status = service.http.post_until_acknowledged(load.body, load.key)
    assert status == 202
    assert sorted(answer) == ["job_id", "manifest_key", "resource_count"]
    oracle.acknowledge(load, answer, status)
    job_id = answer["job_id"]
    repeated = service.http.post(load.body, key=load.key)
    assert repeated.status_code == 200
    assert repeated.headers["location"] == f"/jobs/{job_id}"
    oracle.await_settled(30)
    job = service.http.job(job_id)
    assert {"job_id", "job_type", "tenant", "status", "created_at", "updated_at", "finished_at", "resource_total", "bytes_stored"} <= set(
        job
    )
    assert (job["job_type"], job["origin"], job["manifest_key"]) == ("default", "api", answer["manifest_key"])
    assert service.http.get(f"/jobs/{job_id}") == job
    assert service.http.get(f"/operators/jobs/{job_id}/manifest") == json.loads(load.body)
    resources = service.http.resources(job_id)
    assert [r["url"] for r in resources] == [origin.url(wanted.target) for wanted in load.resources]
    assert {"final_url", "http_status", "content_type", "sniffed_type", "etag", "attempts", "timings", "generation"} <= set(resources[0])
    assert [r["index"] for r in service.http.pages(f"/operators/jobs/{job_id}/resources", "resources", page=1)] == [0, 1, 2]
    assert service.http.get(f"/jobs/{job_id}/resources", params={"state": "stored"})["resources"] == resources
    assert service.http.get(f"/jobs/{job_id}/resources", params={"state": "failed"})["resources"] == []


def test_every_job_has_a_log(service: Service, origin: OriginProcess) -> None:
    oracle = Oracle(service.http, service.assets, origin.journal)
    job_id = oracle.post(plain(origin.base_url, 7001, 2, key="log"))
    oracle.await_settled(30)
    response = service.http.http.get(f"/operators/jobs/{job_id}/logs", headers={"accept": "application/x-ndjson"})
    events = [json.loads(line) for line in response.text.splitlines() if line]
    assert events, "a job has at least one log event"
    assert all(event["job_id"] == job_id for event in events)
    offsets = [event["offset"] for event in events]
    assert offsets == sorted(set(offsets))
    stream = service.http.http.get(f"/operators/jobs/{job_id}/logs").text
    assert stream.count("event: log") == len(events)
    assert "event: end" in stream


def test_lists_filter_and_page(service: Service, origin: OriginProcess) -> None:
    oracle = Oracle(service.http, service.assets, origin.journal)
    ids = [oracle.post(plain(origin.base_url, 7100 + n, 1, key="listed", tenants=1_000_000)) for n in range(5)]
    oracle.await_settled(30)
    listed = [job["job_id"] for job in service.http.pages("/operators/jobs", "jobs", page=2)]
    assert [job_id for job_id in listed if job_id in ids] == ids[::-1], "newest first"
    one = service.http.get("/operators/jobs", params={"tenant": "tenant-7102"})["jobs"]
    assert [job["job_id"] for job in one] == [ids[2]]
    assert not set(ids) & {job["job_id"] for job in service.http.get("/operators/jobs", params={"status": "failed"})["jobs"]}
    assert service.http.http.get("/operators/jobs", params={"cursor": "nonsense"}).status_code == 400
