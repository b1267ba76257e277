"""The oracle itself: it lets the truth pass and finds every kind of lie."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import cast

import pytest

from fetchbox.testing import content
from tests.process.client import Client, Json
from tests.process.load import Load, plain
from tests.process.oracle import Oracle, difference
from tests.process.origins import Journal

ORIGIN = "http://127.0.0.1:1"


class Ledger:
    """Answers as a service would that did everything right with two jobs of two resources; tests make it lie."""

    def __init__(self, root: Path) -> None:
        self.store = root / "store"
        self.journal_path = root / "journal"
        self.listed: list[Json] = []
        self.outcomes: dict[str, list[Json]] = {}
        self.loads: dict[str, Load] = {}
        for number in (1, 2):
            self._add(number)

    def _add(self, number: int) -> None:
        load = plain(ORIGIN, number, 2)
        job_id = f"job-{number}"
        manifest = self.store / "manifests" / job_id
        manifest.parent.mkdir(parents=True, exist_ok=True)
        manifest.write_bytes(load.body)
        outcomes = []
        for index, wanted in enumerate(load.resources):
            path = self.store / "resources" / job_id / wanted.id
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content(wanted.seed, wanted.size))
            outcome = {"id": wanted.id, "index": index, "state": "stored", "code": None, "size": wanted.size, "sha256": wanted.sha256}
            outcomes.append({**outcome, "storage_url": path.as_uri()})
            with self.journal_path.open("a") as journal:
                journal.write(f"1.0 {wanted.target} GET\n")
        counts = dict.fromkeys(("reused", "filtered", "failed", "cancelled", "pending"), 0)
        job: Json = {"job_id": job_id, "status": "completed", "finished_at": "2026-11-23T00:00:00Z", "manifest_key": manifest.as_uri()}
        job |= {"resource_total": 2, "resource_completed": 2, "bytes_stored": sum(w.size for w in load.resources)}
        self.listed.append(job | {f"resource_{name}": value for name, value in counts.items()})
        self.outcomes[job_id] = outcomes
        self.loads[job_id] = load

    # What Oracle asks a Client for.

    def jobs(self, *, limit: float = 0.0) -> list[Json]:
        return copy.deepcopy(self.listed)

    def job(self, job_id: str, *, limit: float = 0.0) -> Json:
        return copy.deepcopy(next(job for job in self.listed if job["job_id"] == job_id))

    def resources(self, job_id: str, *, limit: float = 0.0) -> list[Json]:
        return copy.deepcopy(self.outcomes[job_id])


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    """A truthful one."""
    return Ledger(tmp_path)


@pytest.fixture
def oracle(ledger: Ledger) -> Oracle:
    """An oracle that was told of both jobs."""
    oracle = Oracle(cast("Client", ledger), ledger.store, Journal(ledger.journal_path))
    for job_id, load in ledger.loads.items():
        oracle.acknowledge(load, {"job_id": job_id, "resource_count": 2}, 202)
    return oracle


def test_the_truth_passes(oracle: Oracle) -> None:
    report = oracle.check(leftovers_limit=0)
    assert (report.jobs, report.resources, report.files, report.requests) == (2, 4, 4, 4)


def first_object(ledger: Ledger) -> Path:
    """The file of the first resource."""
    return ledger.store / "resources" / "job-1" / "r0"


def forget_job(ledger: Ledger) -> None:
    ledger.listed.pop()


def list_twice(ledger: Ledger) -> None:
    ledger.listed.append(ledger.listed[0])


def invent_job(ledger: Ledger) -> None:
    ledger.listed.append({**ledger.listed[0], "job_id": "job-3"})


def count_twice(ledger: Ledger) -> None:
    ledger.listed[0]["resource_completed"] = 3


def move_to_failed(ledger: Ledger) -> None:
    ledger.listed[0] |= {"resource_completed": 1, "resource_failed": 1, "status": "partial"}


def wrong_state(ledger: Ledger) -> None:
    ledger.listed[0]["status"] = "partial"


def wrong_sum_of_bytes(ledger: Ledger) -> None:
    ledger.listed[0]["bytes_stored"] += 1


def wrong_digest(ledger: Ledger) -> None:
    ledger.outcomes["job-1"][0]["sha256"] = "0" * 64


def swap_outcomes(ledger: Ledger) -> None:
    ledger.outcomes["job-1"].reverse()


def share_an_object(ledger: Ledger) -> None:
    ledger.outcomes["job-1"][1]["storage_url"] = ledger.outcomes["job-1"][0]["storage_url"]


def store_elsewhere(ledger: Ledger) -> None:
    ledger.outcomes["job-1"][0]["storage_url"] = "file:///etc/passwd"


def cut_a_file(ledger: Ledger) -> None:
    first_object(ledger).write_bytes(first_object(ledger).read_bytes()[:-1])


def flip_a_byte(ledger: Ledger) -> None:
    data = bytearray(first_object(ledger).read_bytes())
    data[100] ^= 1
    first_object(ledger).write_bytes(data)


def lose_a_file(ledger: Ledger) -> None:
    first_object(ledger).unlink()


def leave_a_file(ledger: Ledger) -> None:
    (ledger.store / ".staging").write_bytes(b"half")


def change_a_manifest(ledger: Ledger) -> None:
    (ledger.store / "manifests" / "job-1").write_bytes(b"{}")


def ask_too_often(ledger: Ledger) -> None:
    with ledger.journal_path.open("a") as journal:
        journal.write(f"1.0 {ledger.loads['job-1'].resources[0].target} GET\n" * 3)


def never_ask(ledger: Ledger) -> None:
    ledger.journal_path.write_text("")


LIES: dict[str, Callable[[Ledger], None]] = {
    "lost": forget_job,
    "more than once": list_twice,
    "nobody was told": invent_job,
    "do not add up": count_twice,
    "the outcomes": move_to_failed,
    "the state is one of": wrong_state,
    "bytes_stored": wrong_sum_of_bytes,
    "wrong bytes": wrong_digest,
    "out of order": swap_outcomes,
    "share": share_an_object,
    "outside the store": store_elsewhere,
    "r0 holds": cut_a_file,
    "r0 holds ": flip_a_byte,
    "missing": lose_a_file,
    "left over": leave_a_file,
    "is not the manifest": change_a_manifest,
    "requests for": ask_too_often,
    "never asked for": never_ask,
}


@pytest.mark.parametrize("words", LIES)
def test_a_lie_is_found(oracle: Oracle, ledger: Ledger, words: str) -> None:
    LIES[words](ledger)
    with pytest.raises(AssertionError, match=words.strip()):
        oracle.check(leftovers_limit=0)


def test_going_back_is_found(oracle: Oracle, ledger: Ledger) -> None:
    oracle.sample()
    ledger.listed[0] |= {"resource_completed": 1, "resource_pending": 1, "status": "in_progress", "finished_at": None}
    with pytest.raises(AssertionError, match="pending again"):
        oracle.sample()


def test_one_key_with_two_jobs_is_found(oracle: Oracle, ledger: Ledger) -> None:
    with pytest.raises(AssertionError, match="acknowledged as job-1"):
        oracle.acknowledge(ledger.loads["job-1"], {"job_id": "job-9", "resource_count": 2}, 202)


def test_snapshots_that_differ_are_told_apart(oracle: Oracle, ledger: Ledger) -> None:
    before = oracle.snapshots()
    assert not difference(before, oracle.snapshots())
    ledger.outcomes["job-2"][1]["size"] += 1
    assert "before:" in difference(before, oracle.snapshots())
    ledger.listed.pop()
    assert "only in one" in difference(before, oracle.snapshots())
