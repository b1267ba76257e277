"""The oracle outside the system: what was acknowledged, what must have become of it, and whether all the witnesses agree.

The witnesses are the operator API, the files of the store and the origin's journal. The oracle itself knows only what was posted and
which bytes each URL gives.
"""

from __future__ import annotations

import hashlib
import json
import os
import threading
import zlib
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Final, TextIO, cast
from urllib.parse import unquote, urlsplit

from tests.process.client import Client, Json
from tests.process.load import Load, Wanted
from tests.process.origins import Journal
from tests.process.waiting import wait_for

OUTCOMES: Final = {
    "stored": "resource_completed",
    "reused": "resource_reused",
    "filtered": "resource_filtered",
    "failed": "resource_failed",
    "cancelled": "resource_cancelled",
}
"""The count of a job that each state of a resource adds to."""
SETTLED: Final = ("completed", "partial", "failed", "cancelled")
REQUESTS_PER_TASK: Final = 1.5
"""Most requests that the origin may see for a task, kills and all."""
RESTART_LIMIT: Final = 30.0

Snapshots = dict[str, bytes]
"""Every job with its resources, packed: those of a million resources are some hundred megabytes."""


@dataclass(frozen=True, slots=True)
class Report:
    """What `Oracle.check` counted when everything was right."""

    jobs: int
    resources: int
    files: int
    requests: int
    samples: int

    def __str__(self) -> str:
        return (
            f"{self.jobs} jobs, {self.resources} resources, {self.files} files in the store, {self.requests} requests at the origin"
            f" ({self.requests / max(1, self.resources):.3f} a task), {self.samples} snapshots sampled:"
            " 0 lost, 0 counted twice, 0 partial or left over"
        )


class Oracle:
    """Journals what was acknowledged and checks everything against it. Thread-safe.

    `acknowledgements` gets a line for each acknowledgement as it comes: key, job, status. `asked_before` is how many requests of others
    the journal already held.
    """

    def __init__(
        self, client: Client, store: Path, journal: Journal, acknowledgements: TextIO | None = None, asked_before: int = 0
    ) -> None:
        self.client = client
        self.store = store
        self.journal = journal
        self._asked_before = asked_before
        self._root = os.path.realpath(store)
        self._acknowledgements = acknowledgements
        self.acknowledged: dict[str, Load] = {}
        self.samples = 0
        self._by_key: dict[str, str] = {}
        self._seen: dict[str, Json] = {}
        self._lock = threading.Lock()
        self._sampling = threading.Lock()

    # ---- posts --------------------------------------------------------------------------------------------------------------

    def post(self, load: Load, limit: float = 60.0) -> str:
        """Posts a job until it is acknowledged, journals that, and returns its id."""
        answer, status = self.client.post_until_acknowledged(load.body, load.key, headers=load.headers, limit=limit)
        self.acknowledge(load, answer, status)
        return str(answer["job_id"])

    def acknowledge(self, load: Load, answer: Json, status: int) -> None:
        """Journals an acknowledgement; the same key must always give the same job."""
        job_id = answer["job_id"]
        assert answer["resource_count"] == len(load.resources), f"key {load.key}: {answer}"
        with self._lock:
            earlier = self._by_key.setdefault(load.key, job_id)
            assert earlier == job_id, f"key {load.key} was acknowledged as {earlier}, and then with {status} as {job_id}"
            self.acknowledged[job_id] = load
            if self._acknowledgements is not None:
                print(load.key, job_id, status, file=self._acknowledgements, flush=True)

    @property
    def tasks(self) -> int:
        """Resources acknowledged so far."""
        with self._lock:
            return sum(len(load.resources) for load in self.acknowledged.values())

    @property
    def settled(self) -> int:
        """Resources that the last sample showed as settled."""
        with self._lock:
            return sum(job["resource_total"] - job["resource_pending"] for job in self._seen.values())

    # ---- while it runs ------------------------------------------------------------------------------------------------------

    def sample(self, limit: float = RESTART_LIMIT) -> list[Json]:
        """One look at all jobs: every acknowledged one is there, every sum is right, and nothing that was settled is pending again."""
        with self._lock:
            expected = set(self.acknowledged)
        # One look at a time: compared with a later one, an answer that was overtaken would seem to go back.
        with self._sampling:
            return self._look(expected, limit)

    def _look(self, expected: set[str], limit: float) -> list[Json]:
        jobs = self.client.jobs(limit=limit)
        with self._lock:
            self.samples += 1
            found = Counter(job["job_id"] for job in jobs)
            assert not expected - set(found), f"lost: acknowledged jobs that the list does not hold: {sorted(expected - set(found))[:5]}"
            twice = [job_id for job_id, count in found.items() if count > 1]
            assert not twice, f"listed more than once: {twice[:5]}"
            for job in jobs:
                conserved(job)
                self._monotone(job)
        return jobs

    def _monotone(self, job: Json) -> None:
        before = self._seen.get(job["job_id"])
        if before is not None:
            assert job["resource_pending"] <= before["resource_pending"], f"settled resources are pending again:\n{before}\n{job}"
            for name in OUTCOMES.values():
                assert job[name] >= before[name], f"{name} went down:\n{before}\n{job}"
        self._seen[job["job_id"]] = job

    def unsettled(self) -> int:
        """Resources of acknowledged jobs that are pending, as the operator API has it."""
        return sum(job["resource_pending"] for job in self.sample())

    def await_settled(self, limit: float) -> None:
        """Waits until nothing is pending; each look is a sample."""

        def settled() -> bool:
            jobs = self.sample()
            return all(job["status"] in SETTLED for job in jobs) and bool(jobs)

        wait_for("all jobs to be settled", settled, limit, every=0.1, describe=self._describe_pending)

    def _describe_pending(self) -> str:
        pending = [job for job in self.client.jobs(limit=5) if job["status"] not in SETTLED]
        lines = [f"{len(pending)} jobs are not settled; requests at the origin so far: {self.journal.total}"]
        lines += [json.dumps(job) for job in pending[:3]]
        for job in pending[:1]:
            waiting = [r for r in self.client.resources(job["job_id"], limit=5) if r["state"] == "pending"]
            lines += [json.dumps(resource) for resource in waiting[:3]]
        return "\n".join(lines)

    # ---- at the end ---------------------------------------------------------------------------------------------------------

    def check(self, *, ratio: float = REQUESTS_PER_TASK, leftovers_limit: float = 30.0) -> Report:
        """Everything is settled: holds all witnesses against what was posted. AssertionError naming the first thing that is wrong."""
        jobs = {job["job_id"]: job for job in self.sample()}
        strangers = set(jobs) - set(self.acknowledged)
        assert not strangers, f"jobs that nobody was told of: {sorted(strangers)[:5]}"
        objects: dict[str, Wanted] = {}
        manifests: dict[str, Load] = {}
        resources = 0
        for job_id, load in self.acknowledged.items():
            job = self.client.job(job_id, limit=RESTART_LIMIT)
            assert job == jobs[job_id], f"the list and the job differ:\n{jobs[job_id]}\n{job}"
            assert job["status"] in SETTLED, f"not settled: {job}"
            outcomes = self.client.resources(job_id, limit=RESTART_LIMIT)
            resources += len(outcomes)
            self._check_job(job, load, outcomes)
            for wanted, outcome in zip(load.resources, outcomes, strict=True):
                if outcome["state"] == "stored":
                    path = self._path(outcome["storage_url"])
                    assert path not in objects, f"two resources share {path}"
                    objects[path] = wanted
            manifests[self._path(job["manifest_key"])] = load
        self._check_files(objects, manifests, leftovers_limit)
        requests = self._check_requests(resources, ratio)
        return Report(len(jobs), resources, len(objects), requests, self.samples)

    def _check_job(self, job: Json, load: Load, outcomes: list[Json]) -> None:
        counted = Counter(outcome["state"] for outcome in outcomes)
        assert job["resource_total"] == len(outcomes) == len(load.resources), f"{len(outcomes)} resources of {len(load.resources)}: {job}"
        for state, name in OUTCOMES.items():
            assert job[name] == counted[state], f"{name} says {job[name]}, the outcomes {counted[state]}: {job}"
        assert job["bytes_stored"] == sum(o["size"] for o in outcomes if o["state"] == "stored"), f"bytes_stored is wrong: {job}"
        for index, (wanted, outcome) in enumerate(zip(load.resources, outcomes, strict=True)):
            assert outcome["index"] == index, f"resources are out of order: {outcome}"
            check_outcome(wanted, outcome)

    def _path(self, url: str) -> str:
        parts = urlsplit(url)
        assert parts.scheme == "file", f"not a file URL: {url}"
        path = os.path.normpath(unquote(parts.path))
        if not path.startswith(self._root + "/"):
            path = os.path.realpath(path)
        assert path.startswith(self._root + "/"), f"outside the store's root: {url}"
        return path

    def _check_files(self, objects: dict[str, Wanted], manifests: dict[str, Load], limit: float) -> None:
        wanted = set(objects) | set(manifests)

        def difference() -> list[str]:
            there = {os.path.join(directory, name) for directory, _, names in os.walk(self._root) for name in names}
            return [f"left over: {p}" for p in sorted(there - wanted)] + [f"missing: {p}" for p in sorted(wanted - there)]

        wait_for(
            "the store to hold the objects, the manifests and nothing else",
            lambda: not difference(),
            limit,
            every=0.5,
            describe=lambda: "\n".join(difference()[:20]),
        )
        for path, resource in objects.items():
            size, digest = digest_of(path)
            assert (size, digest) == (resource.size, resource.sha256), f"{path} holds {size} bytes, {digest}; its URL gives {resource}"
        for path, load in manifests.items():
            assert json.loads(Path(path).read_bytes()) == json.loads(load.body), f"{path} is not the manifest that was posted as {load.key}"

    def _check_requests(self, resources: int, ratio: float) -> int:
        seen = self.journal.copy()
        for load in self.acknowledged.values():
            for wanted in load.resources:
                if wanted.state == "stored" and not wanted.target.startswith("http"):
                    assert seen[wanted.target] > 0, f"stored, but never asked for: {wanted}"
        requests = seen.total() - self._asked_before
        assert requests <= ratio * resources, f"{requests} requests for {resources} tasks are more than {ratio} each"
        return requests

    def snapshots(self) -> Snapshots:
        """Every job with its resources, to be compared with `difference`: the same before and after a restart."""

        def snapshot(job: Json) -> bytes:
            known = {"job": job, "resources": self.client.resources(job["job_id"], limit=RESTART_LIMIT)}
            return zlib.compress(json.dumps(known).encode(), 1)

        return {job["job_id"]: snapshot(job) for job in self.client.jobs(limit=RESTART_LIMIT)}


def conserved(job: Json) -> None:
    """The sum that holds at any moment, and the state that follows from it (docs/states.md)."""
    counts = {state: job[name] for state, name in OUTCOMES.items()}
    pending = job["resource_pending"]
    assert min(pending, *counts.values()) >= 0, f"a negative count: {job}"
    assert job["resource_total"] == sum(counts.values()) + pending, f"the counts do not add up: {job}"
    if pending:
        states = {"queued", "in_progress"}
    elif counts["cancelled"]:
        states = {"cancelled"}
    elif not counts["failed"]:
        states = {"completed"}
    elif counts["stored"] + counts["reused"]:
        states = {"partial"}
    else:
        states = {"failed"}
    assert job["status"] in states, f"with these counts the state is one of {states}: {job}"
    assert (job["finished_at"] is None) == (pending > 0), f"finished_at does not fit: {job}"


def check_outcome(wanted: Wanted, outcome: Json) -> None:
    """One resource against what was wanted of it."""
    assert outcome["id"] == wanted.id, f"the id changed from {wanted.id!r}: {outcome}"
    assert outcome["state"] == wanted.state, f"{wanted.state} was expected: {outcome}"
    if wanted.code:
        assert outcome["code"] == wanted.code, f"{wanted.code} was expected: {outcome}"
    if wanted.state == "stored":
        assert (outcome["size"], outcome["sha256"]) == (wanted.size, wanted.sha256), f"wrong bytes for {wanted}: {outcome}"


def digest_of(path: str) -> tuple[int, str]:
    """Size and SHA-256 of a file."""
    with open(path, "rb") as file:
        digest = hashlib.file_digest(file, "sha256")
        return file.tell(), digest.hexdigest()


def difference(before: Snapshots, after: Snapshots) -> str:
    """The first thing in which two snapshots differ, "" when they are the same."""
    for job_id in sorted(set(before) | set(after)):
        if job_id not in before or job_id not in after:
            return f"job {job_id} is only in one of them"
        if before[job_id] != after[job_id]:
            return _difference(job_id, unpack(before[job_id]), unpack(after[job_id]))
    return ""


def unpack(snapshot: bytes) -> Json:
    """The `job` and the `resources` of a snapshot."""
    return cast("Json", json.loads(zlib.decompress(snapshot)))


def _difference(job_id: str, before: Json, after: Json) -> str:
    pairs = [(before["job"], after["job"]), *zip(before["resources"], after["resources"], strict=False)]
    for old, new in pairs:
        if old != new:
            return f"before: {old}\nafter:  {new}"
    return f"the resources of {job_id} differ in number"
