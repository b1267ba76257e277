"""The service on a real Iggy server: the same accounting as with the hub's own streams, whatever is killed or cut."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.process.iggy import IggyServer, Pass, iggy_server, needs_iggy
from tests.process.load import plain
from tests.process.oracle import Oracle, difference
from tests.process.origins import OriginProcess
from tests.process.service import Service
from tests.process.test_finish import BOTH, SECRET, Receiver, post
from tests.process.waiting import wait_for

pytestmark = [needs_iggy, pytest.mark.timeout(240)]

IN_FLIGHT = 2.0
"""Requests that a task may cost when workers die or partitions move while it is under way."""


@pytest.fixture
def server(tmp_path: Path) -> Iterator[IggyServer]:
    """A server of the test's own."""
    with iggy_server(tmp_path / "iggy") as running:
        yield running


def on(url: str, **more: Any) -> dict[str, Any]:
    """The configuration of a service on this server."""
    return {"broker": {"url": url}, "tasks": {"partitions": 4}, **more}


def slow(tmp_path: Path, pace: float = 400) -> OriginProcess:
    """An origin that keeps work under way while things happen."""
    return OriginProcess(tmp_path, pace=pace)


def begun(origin: OriginProcess, requests: int) -> None:
    """Waits until so many requests were made."""
    wait_for(f"{requests} requests at the origin", lambda: origin.journal.total >= requests, 60, every=0.05)


def test_everything_is_stored_counted_and_told(server: IggyServer, tmp_path: Path) -> None:
    with OriginProcess(tmp_path) as origin, Service(tmp_path / "service", on(server.url, worker={"processes": 2})).start() as service:
        oracle = Oracle(service.http, service.assets, origin.journal)
        for job in range(20):
            oracle.post(plain(origin.base_url, job, 100))
        oracle.await_settled(90)
        print(oracle.check(ratio=1.05))
        before = oracle.snapshots()
        service.end()
        service.start()
        assert not difference(before, oracle.snapshots())
        service.end()


def test_workers_hub_and_server_die_and_nothing_is_lost(server: IggyServer, tmp_path: Path) -> None:
    with slow(tmp_path) as origin, Service(tmp_path / "service", on(server.url, worker={"processes": 2})).start() as service:
        oracle = Oracle(service.http, service.assets, origin.journal)
        for job in range(40):
            oracle.post(plain(origin.base_url, job, 50))
        for step, requests in enumerate((200, 500, 800, 1100)):
            begun(origin, requests)
            if step % 2:
                service.kill_one("hub")
            else:
                service.kill_one("worker")
        begun(origin, 1300)
        server.kill()
        server.start()
        oracle.await_settled(150)
        print(oracle.check(ratio=IN_FLIGHT))
        service.end()


def test_a_server_that_cannot_be_reached_is_waited_for(server: IggyServer, tmp_path: Path) -> None:
    way = Pass(server.port)
    url = server.url.replace(str(server.port), str(way.port))
    with slow(tmp_path) as origin, Service(tmp_path / "service", on(url)).start() as service:
        try:
            oracle = Oracle(service.http, service.assets, origin.journal)
            for job in range(10):
                oracle.post(plain(origin.base_url, job, 50))
            begun(origin, 100)
            way.cut()
            wait_for("the health to say so", lambda: service.http.status("/operators/health") == 503, 30, every=0.2)
            # Ingest goes on meanwhile: the outbox takes it.
            oracle.post(plain(origin.base_url, 10, 50))
            way.mend()
            wait_for("the health to say that it is back", lambda: service.http.status("/operators/health") == 200, 30, every=0.2)
            oracle.await_settled(90)
            print(oracle.check(ratio=IN_FLIGHT))
            service.end()
        finally:
            way.close()


def test_workers_go_on_without_the_hub(server: IggyServer, tmp_path: Path) -> None:
    with slow(tmp_path, pace=100) as origin, Service(tmp_path / "service", on(server.url)).start() as service:
        oracle = Oracle(service.http, service.assets, origin.journal)
        for job in range(12):
            oracle.post(plain(origin.base_url, job, 50))
        begun(origin, 50)
        hub = service.a_process("hub").pid
        os.kill(hub, signal.SIGSTOP)
        try:
            begun(origin, 500)
        finally:
            os.kill(hub, signal.SIGCONT)
        oracle.await_settled(90)
        print(oracle.check(ratio=IN_FLIGHT))
        service.end()


def test_failures_are_told_of_one_by_one_while_their_job_goes_on(server: IggyServer, tmp_path: Path) -> None:
    settings = on(server.url, callbacks={"secret": SECRET, "allow_networks": ["127.0.0.1/32"]})
    held = threading.Event()

    def answer(number: int, event: dict[str, Any]) -> int:
        if number > 2:
            held.wait(30)
        return 204

    with (
        OriginProcess(tmp_path) as origin,
        Service(tmp_path / "service", settings).start() as service,
        Receiver(answer).listening() as receiver,
    ):
        urls = [f"{origin.base_url}/delay/300/bytes/10", *(f"{origin.base_url}/status/404?n={n}" for n in range(20))]
        job_id = post(service, urls, callback=receiver.url, events=BOTH)
        wait_for("calls for some of the failures", lambda: len(receiver.calls) > 4, 60, describe=service.dump)
        service.kill_one("worker")
        service.kill_one("hub")
        held.set()
        expected = {f"{job_id}.{index}.0" for index in range(1, 21)}
        wait_for("a call for each", lambda: receiver.ids("resource.failed") == expected, 90, describe=service.dump)
        assert receiver.ids("job.settled") == set()
        service.wait_ready()
        service.http.http.post(f"/jobs/{job_id}/cancel")
        wait_for("the job's own callback", lambda: len(receiver.ids("job.settled")) == 1, 60, describe=service.dump)
        service.end()


def test_the_example_of_a_direct_producer(server: IggyServer, tmp_path: Path) -> None:
    with OriginProcess(tmp_path) as origin, Service(tmp_path / "service", on(server.url)).start() as service:
        line = [sys.executable, "examples/direct_producer.py", server.url, *(origin.url(f"/bytes/{size}") for size in (10, 20, 30))]
        done = subprocess.run(line, capture_output=True, text=True, timeout=60, check=True)
        job_id = done.stdout.strip()
        wait_for("the job", lambda: service.http.status(f"/operators/jobs/{job_id}") == 200, 30, every=0.05)
        job = service.http.await_job(job_id, 30)
        assert (job["origin"], job["status"], job["resource_completed"]) == ("direct", "completed", 3)
        service.end()
