"""A service that is never idle: clients that keep jobs queued, look at them, follow, cancel, and check each one when it is settled.

What was checked is deleted from the store, and the ledger is told to forget soon: hours of it need no more disk than minutes.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import shutil
import threading
import time
from collections import Counter, deque
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final
from urllib.parse import unquote, urlsplit

from fetchbox.bench.nginx import StaticOrigin
from tests.process.followers import Reader
from tests.process.load import Wanted, manifest
from tests.process.oracle import OUTCOMES, SETTLED
from tests.process.origins import OriginProcess
from tests.process.service import Service
from tests.process.waiting import pause

FILE_BYTES: Final = 2048
STEADY_HOSTS: Final = 40
ODD_HOSTS: Final = 5
TENANTS: Final = 20
SIZES: Final = (1, 1, 3, 10, 10, 50, 200, 500, 1000, 1000)
"""Resources of a manifest, drawn from these."""
ODD_SHARE: Final = 0.01
"""Resources that fail, are tried again, or take another way than a plain file."""
NEW_HOST_SHARE: Final = 0.2
"""Jobs that lie on a host that nobody asked before."""
CANCEL_SHARE: Final = 0.02
REPEAT_SHARE: Final = 0.02
LIST_SHARE: Final = 0.05
"""Settled jobs whose outcomes are read one by one."""
POSTERS: Final = 3
CHECKERS: Final = 3
MOST_UNCHECKED: Final = 1500
"""Jobs; the ledger must not forget one before it was checked."""
FOLLOWERS: Final = 6
SETTLE_LIMIT: Final = 1800.0
"""Seconds until a job is settled, on a machine that others use too."""


def overrides(workers: int, concurrency: int, store: Path) -> dict[str, Any]:
    """Everything is forgotten minutes after it is done, so that forgetting is part of what must stay flat."""
    forgotten = dict.fromkeys(("job_ttl", "tasks_ttl", "status_ttl", "logs_ttl", "dlq_ttl"), "5m")
    return {
        "worker": {"processes": workers, "concurrency": concurrency},
        "retention": forgotten,
        "ledger": {"collect_after": "1m"},
        "storage": {"url": f"file://{store}"},
        "fetch": {"allow_networks": ["127.0.0.0/8", "::1/128"], "per_host_concurrency": 32, "max_attempts": 3},
    }


@dataclass(slots=True)
class Origins:
    """Plain files of a quick origin, and one that misbehaves. Every name below localhost is a host of its own to the service."""

    plain: StaticOrigin | OriginProcess
    odd: OriginProcess

    def url(self, host: str, number: int) -> str:
        """A plain file's."""
        port = self.plain.base_url.rpartition(":")[2]
        if isinstance(self.plain, OriginProcess):
            return f"http://{host}.localhost:{port}/bytes/{FILE_BYTES}?seed={number % 251}"
        number %= self.plain.files.count
        return f"http://{host}.localhost:{port}/{number % 256:02x}/{number}.bin"

    def odd_one(self, number: int) -> Wanted:
        """A resource that is not plain, and what must become of it."""
        kinds: tuple[tuple[str, str, int], ...] = (
            ("/status/404?", "DOWNLOAD_HTTP_4XX", 0),
            ("/hostile/two-lengths?", "DOWNLOAD_BAD_FRAMING", 0),
            ("/status/500?", "DOWNLOAD_HTTP_5XX", 0),
            (f"/flaky/1/bytes/{FILE_BYTES}?status=500&", "", FILE_BYTES),
            ("/hostile/reset?fails=1&", "", -1),
            (f"/chunked/{FILE_BYTES}?", "", FILE_BYTES),
            (f"/close-delimited/{FILE_BYTES}?", "", FILE_BYTES),
            ("/redirect/2?", "", -1),
        )
        target, code, size = kinds[number % len(kinds)]
        url = f"http://odd{number % ODD_HOSTS}.localhost:{self.odd.port}{target}id={number}"
        return Wanted(id=f"odd{number}", target=url, size=size, state="failed" if code else "stored", code=code)


@dataclass(slots=True)
class Posted:
    """An accepted job and what must become of it."""

    job_id: str
    wanted: list[Wanted]
    at: float
    cancelled: bool = False

    @property
    def failing(self) -> int:
        """Resources that must fail."""
        return sum(one.state == "failed" for one in self.wanted)


@dataclass(slots=True)
class Totals:
    """What was accepted and what became of it, by the jobs as they were when they were settled."""

    jobs: int = 0
    accepted: int = 0
    checked: int = 0
    listed: int = 0
    cancelled_jobs: int = 0
    repeated: int = 0
    followed: int = 0
    files: int = 0
    outcomes: Counter[str] = field(default_factory=Counter)
    largest_wait: float = 0.0
    idle_looks: int = 0
    degraded_looks: int = 0
    looks: int = 0


class Busy:
    """The clients, each a function to be run in a thread of its own until `stopped`."""

    def __init__(self, service: Service, origins: Origins, store: Path, *, ahead: int, largest: int, seed: int) -> None:
        self.service = service
        self.store = store
        self.origins = origins
        self.ahead = ahead
        self.sizes = [size for size in SIZES if size <= largest]
        self.seed = seed
        self.totals = Totals()
        self.settled = 0
        """Resources that the ledger has settled, as last scraped."""
        self.states: dict[str, int] = {}
        self.accepted = 0
        self.pending = 0
        self.inflight = 0
        self._lock = threading.Lock()
        self._since_scrape = 0
        self._unchecked: deque[Posted] = deque()
        self._in_hand = 0
        self._newest: deque[str] = deque(maxlen=50)

    @property
    def unchecked(self) -> int:
        """Accepted jobs that were not seen settled yet."""
        with self._lock:
            return len(self._unchecked) + self._in_hand

    # ---- posting ------------------------------------------------------------------------------------------------------------

    def post(self, stopped: threading.Event) -> None:
        """Posts whenever fewer than `ahead` resources wait."""
        with ThreadPoolExecutor(POSTERS) as pool:
            for done in [pool.submit(self._post, stopped, first) for first in range(POSTERS)]:
                done.result()

    def _post(self, stopped: threading.Event, number: int) -> None:
        chance = random.Random(self.seed * POSTERS + number)
        while not stopped.is_set():
            if self.pending + self._since_scrape >= self.ahead or self.unchecked >= MOST_UNCHECKED:
                pause(0.01)
                continue
            self._post_one(chance, number)
            number += POSTERS

    def _post_one(self, chance: random.Random, number: int) -> None:
        count = chance.choice(self.sizes)
        host = f"new{number}" if chance.random() < NEW_HOST_SHARE else f"h{chance.randrange(STEADY_HOSTS)}"
        first = number * 1009
        wanted = [
            self.origins.odd_one(first + index)
            if chance.random() < ODD_SHARE
            else Wanted(id=f"r{index}", target=self.origins.url(host, first + index), size=FILE_BYTES)
            for index in range(count)
        ]
        key, headers = f"busy-{self.seed}-{number}", {"x-fetchbox-tenant": f"tenant-{number % TENANTS}"}
        body = manifest("", wanted, metadata={"number": number})
        answer, status = self.service.http.post_until_acknowledged(body, key, headers=headers)
        assert answer["resource_count"] == count, f"{status} {answer}"
        posted = Posted(answer["job_id"], wanted, time.monotonic())
        if chance.random() < REPEAT_SHARE:
            again, status = self.service.http.post_until_acknowledged(body, key, headers=headers)
            assert (status, again["job_id"]) == (200, posted.job_id), f"key {key} was {posted.job_id}, then {status} {again}"
            with self._lock:
                self.totals.repeated += 1
        if chance.random() < CANCEL_SHARE:
            answered = self.service.http.http.post(f"/jobs/{posted.job_id}/cancel", headers=headers)
            assert answered.status_code in (200, 202, 409), f"cancel: {answered.status_code} {answered.text}"
            posted.cancelled = answered.status_code != 409
            with self._lock:
                self.totals.cancelled_jobs += posted.cancelled
        with self._lock:
            self._since_scrape += count
            self.totals.jobs += 1
            self.totals.accepted += count
            self._unchecked.append(posted)
            self._newest.append(posted.job_id)

    # ---- checking -----------------------------------------------------------------------------------------------------------

    def check(self, stopped: threading.Event) -> None:
        """Looks at each job until it is settled, holds it against what was posted, and deletes its files."""
        with ThreadPoolExecutor(CHECKERS) as pool:
            for done in [pool.submit(self._check, stopped, number) for number in range(CHECKERS)]:
                done.result()

    def _check(self, stopped: threading.Event, number: int) -> None:
        chance = random.Random(f"{self.seed} {number}")
        while not stopped.is_set():
            with self._lock:
                posted = self._unchecked.popleft() if self._unchecked else None
                self._in_hand += posted is not None
            settled = posted is not None and self._check_one(posted, chance)
            with self._lock:
                self._in_hand -= posted is not None
                if posted is not None and not settled:
                    # Behind all others: whatever one waits for, the rest must be seen before it is forgotten.
                    self._unchecked.append(posted)
            if not settled:
                pause(0.02)

    def _check_one(self, posted: Posted, chance: random.Random) -> bool:
        job = self.service.http.job(posted.job_id, limit=30)
        waited = time.monotonic() - posted.at
        if job["status"] not in SETTLED or job["resource_pending"]:
            assert waited < SETTLE_LIMIT, f"not settled after {waited:.0f} s: {job}"
            return False
        counts = {state: job[name] for state, name in OUTCOMES.items()}
        total = len(posted.wanted)
        assert job["resource_total"] == total == sum(counts.values()), f"{total} resources were posted: {job}"
        if not posted.cancelled:
            expected = {"stored": total - posted.failing, "failed": posted.failing}
            assert counts == {state: expected.get(state, 0) for state in OUTCOMES}, f"expected {expected}: {job}"
        directory = self.store / "resources" / job["job_type"] / posted.job_id
        files = sum(1 for _ in directory.iterdir()) if directory.exists() else 0
        # What was under way when a job was cancelled may still arrive, and is the collector's.
        assert files == counts["stored"] or (posted.cancelled and files >= counts["stored"]), f"{files} files: {job}"
        if chance.random() < LIST_SHARE:
            self._check_outcomes(posted, counts)
        shutil.rmtree(directory, ignore_errors=True)
        Path(unquote(urlsplit(job["manifest_key"]).path)).unlink(missing_ok=True)
        with self._lock:
            totals = self.totals
            totals.checked += total
            totals.files += files
            totals.outcomes.update(counts)
            totals.largest_wait = max(totals.largest_wait, waited)
        return True

    def _check_outcomes(self, posted: Posted, counts: dict[str, int]) -> None:
        outcomes = self.service.http.resources(posted.job_id, limit=30)
        assert Counter(outcome["state"] for outcome in outcomes) == Counter({s: n for s, n in counts.items() if n}), posted.job_id
        for index, (wanted, outcome) in enumerate(zip(posted.wanted, outcomes, strict=True)):
            assert (outcome["index"], outcome["id"]) == (index, wanted.id), f"{wanted} became {outcome}"
            if posted.cancelled and outcome["state"] == "cancelled":
                continue
            assert outcome["state"] == wanted.state, f"{wanted} became {outcome}"
            assert (outcome.get("code") or "") == wanted.code, f"{wanted} became {outcome}"
            assert wanted.size < 0 or wanted.code or outcome["size"] == wanted.size, f"{wanted} became {outcome}"
        with self._lock:
            self.totals.listed += len(outcomes)

    # ---- looking ------------------------------------------------------------------------------------------------------------

    def scrape(self, stopped: threading.Event) -> None:
        """Reads the metrics as Prometheus would, only more often."""
        while not stopped.is_set():
            self.scrape_once()
            stopped.wait(1.0)

    def scrape_once(self) -> None:
        """One page of metrics."""
        with self._lock:
            before = self._since_scrape
        answer = self.service.http.http.get(self.service.metrics_url + "/metrics")
        assert answer.status_code == 200, answer.text
        found = metrics(answer.text)
        with self._lock:
            self._since_scrape -= before
            self.pending = int(found.get("fetchbox_resources_pending", 0))
            self.inflight = int(found.get("fetchbox_worker_tasks_inflight", 0))
            self.states = {
                name.partition('state="')[2].partition('"')[0]: int(value)
                for name, value in found.items()
                if name.startswith("fetchbox_resources_settled_total{")
            }
            self.settled = sum(self.states.values())
            self.accepted = int(found.get("fetchbox_resources_accepted_total", 0))
            self.totals.looks += 1
            self.totals.idle_looks += self.inflight == 0

    def operate(self, stopped: threading.Event) -> None:
        """What somebody at a dashboard asks for, every few seconds."""
        chance = random.Random(self.seed + 2)
        while not stopped.wait(3.0):
            client = self.service.http
            for path in ("/operators/jobs?limit=50", "/operators/jobs?limit=50&status=partial", "/operators/dlq?limit=50"):
                client.get(path, limit=30)
            answer = client.http.get("/operators/health")
            assert answer.status_code in (200, 503), answer.text
            self.totals.degraded_looks += answer.status_code == 503
            with self._lock:
                newest = chance.choice(self._newest) if self._newest else None
            if newest is not None:
                client.job(newest, limit=30)
                client.get(f"/jobs/{newest}", limit=30)
            client.get("/operators/dlq/groups?by=host", limit=30)

    def follow(self, stopped: threading.Event) -> None:
        """A few readers of the newest jobs' logs: some until the job's end, the others hang up after a moment."""

        async def one(patient: bool) -> None:
            while not stopped.is_set():
                with self._lock:
                    newest = self._newest[-1] if self._newest else None
                if newest is None:
                    await asyncio.sleep(0.1)
                    continue
                reader = Reader(self.service.port, newest, follow=not patient)
                try:
                    await asyncio.wait_for(reader.run(), SETTLE_LIMIT + 30 if patient else 2.0)
                except TimeoutError:
                    assert not patient, f"the log of {newest} did not end"
                # Whoever hangs up early may not have had an answer yet.
                assert reader.status == 200 or (reader.status == 0 and not patient), f"logs of {newest}: {reader.status}"
                assert not patient or (reader.ended and reader.whole), f"the log of {newest} broke off"
                assert len(set(reader.offsets)) == len(reader.offsets), f"a line of {newest} came twice"
                self.totals.followed += patient

        async def all_of_them() -> None:
            async with asyncio.TaskGroup() as group:
                for number in range(FOLLOWERS):
                    group.create_task(one(patient=number % 2 == 0))

        asyncio.run(all_of_them())

    # ---- the end ------------------------------------------------------------------------------------------------------------

    def account(self) -> str:
        """Everything is settled and checked: the ledger's own sums are those of the jobs. AssertionError when not."""
        self.scrape_once()
        totals = self.totals
        assert self.pending == 0, f"{self.pending} resources are pending"
        assert totals.checked == totals.accepted == self.accepted == self.settled, f"{totals}, the ledger: {self.accepted}, {self.settled}"
        by_state = {state: count for state, count in self.states.items() if count}
        assert by_state == {state: count for state, count in totals.outcomes.items() if count}, f"{by_state}, the jobs: {totals.outcomes}"
        outcomes = ", ".join(f"{count:,} {state}" for state, count in sorted(by_state.items()))
        return (
            f"{totals.jobs:,} jobs with {totals.accepted:,} resources accepted, each with one outcome: {outcomes}; {totals.files:,} files"
            f" seen in the store, {totals.listed:,} outcomes read one by one, {totals.cancelled_jobs:,} jobs cancelled, {totals.repeated:,}"
            f" posts repeated, {totals.followed:,} logs followed to their end, longest wait of a job {totals.largest_wait:.1f} s,"
            f" workers without a download in {totals.idle_looks} of {totals.looks} looks"
        )


def metrics(text: str) -> dict[str, float]:
    """Samples of a Prometheus page, those of one name and labels but for `process` added up."""
    found: dict[str, float] = {}
    for line in text.splitlines():
        if line.startswith("fetchbox_") and "_bucket" not in line:
            name, _, value = line.rpartition(" ")
            head, _, labels = name.partition("{")
            kept = ",".join(part for part in labels.rstrip("}").split(",") if part and not part.startswith("process="))
            key = f"{head}{{{kept}}}" if kept else head
            with contextlib.suppress(ValueError):
                found[key] = found.get(key, 0.0) + float(value)
    return found
