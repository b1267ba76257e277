"""What happens when a job is settled: `finalize_job` and callbacks, at least once, whatever dies."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import os
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from email.message import Message
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from fetchbox.origin import Origin
from fetchbox.origin.http import Request
from fetchbox.testing import free_port, running_origin
from tests.process.service import Service
from tests.process.waiting import wait_for

HANDLERS = '''
import pathlib

import fetchbox


class Writing(fetchbox.Handler):
    """Writes a line for every call; fails its first call for each job where the options say so."""

    def finalize_job(self, summary):
        with open(self.options["path"], "a") as file:
            file.write(f"{summary['job_id']} {summary['status']} {summary['resource_completed']} {summary['resource_failed']}\\n")
        if self.options.get("fails"):
            marker = pathlib.Path(self.options["path"] + "." + summary["job_id"])
            if not marker.exists():
                marker.touch()
                raise RuntimeError("not yet")
'''
SECRET = "whsec_" + base64.b64encode(b"a key of twenty-four byt").decode()


@pytest.fixture(scope="module")
def origin() -> Iterator[Origin]:
    """An origin in this process: what it was sent can be looked at."""
    with running_origin() as running:
        yield running


@pytest.fixture
def finished(tmp_path: Path) -> Path:
    """The file that the handlers write."""
    return tmp_path / "finished"


def overrides(finished: Path) -> dict[str, Any]:
    handler = {"handler": "samples:Writing"}
    return {
        "callbacks": {"secret": SECRET, "allow_networks": ["127.0.0.1/32"]},
        "job_types": {
            "told": {**handler, "options": {"path": str(finished)}},
            "told-twice": {**handler, "options": {"path": str(finished), "fails": True}},
        },
    }


@pytest.fixture
def service(tmp_path: Path, finished: Path) -> Iterator[Service]:
    (tmp_path / "samples.py").write_text(HANDLERS, encoding="utf-8")
    with Service(tmp_path / "service", overrides(finished), environment={"PYTHONPATH": str(tmp_path)}).start() as running:
        yield running


def post(
    service: Service, urls: list[str], *, job_type: str = "default", callback: str | None = None, events: list[str] | None = None
) -> str:
    attributes: dict[str, Any] = {} if callback is None else {"callback_url": callback}
    if events is not None:
        attributes["callback_events"] = events
    body = {"manifest_version": "v1", "metadata": {}, "resources": [{"url": url} for url in urls], "attributes": attributes}
    answer = service.http.http.post("/jobs", json=body, headers={"x-fetchbox-job-type": job_type})
    assert answer.status_code == 202, answer.text
    return str(answer.json()["job_id"])


def lines(finished: Path) -> Counter[str]:
    """Calls by job, told by what they wrote."""
    return Counter(line.split()[0] for line in finished.read_text().splitlines()) if finished.exists() else Counter()


def hooks(origin: Origin, mark: str) -> list[Request]:
    """Callbacks that came for a mark in their URL."""
    return [request for request in list(origin.requests) if f"mark={mark}&" in request.target]


def test_finalize_job_gets_the_settled_job(service: Service, origin: Origin, finished: Path) -> None:
    job_id = post(service, [origin.url("/bytes/10"), origin.url("/status/404")], job_type="told")
    wait_for("finalize_job", lambda: lines(finished)[job_id], 30, describe=service.dump)
    assert finished.read_text() == f"{job_id} partial 1 1\n"
    again = post(service, [origin.url("/bytes/11")], job_type="told-twice")
    wait_for("the second try", lambda: lines(finished)[again] == 2, 30, describe=service.dump)
    service.end()
    assert "not yet" in service.log_path.read_text()


def test_a_callback_is_signed_and_repeated_until_it_is_taken(service: Service, origin: Origin) -> None:
    job_id = post(service, [origin.url("/bytes/10")], callback=origin.url("/hook?mark=signed&fails=1&id=a"))
    wait_for("the second try", lambda: len(hooks(origin, "signed")) == 2, 30, describe=service.dump)
    first, second = hooks(origin, "signed")
    assert first.headers["webhook-id"] == second.headers["webhook-id"]
    assert first.body == second.body
    told = json.loads(second.body)
    assert told["type"] == "job.settled"
    job = service.http.job(job_id)
    assert told["data"] == job
    assert told["timestamp"] == job["finished_at"]
    assert "callback_url" not in job, "whoever may see the job may not see the receiver's secrets"
    signed = f"{second.headers['webhook-id']}.{second.headers['webhook-timestamp']}.".encode() + second.body
    expected = base64.b64encode(hmac.new(b"a key of twenty-four byt", signed, hashlib.sha256).digest()).decode()
    assert second.headers["webhook-signature"] == f"v1,{expected}"
    assert second.headers["host"] == origin.url("").removeprefix("http://")


class Receiver:
    """A receiver of callbacks that checks every signature. `answer` gets a call's number and event, and says with what status to answer."""

    def __init__(self, answer: Callable[[int, dict[str, Any]], int] = lambda number, event: 204) -> None:
        self.calls: list[tuple[str, dict[str, Any]]] = []
        self.wrong: list[str] = []
        self.url = ""
        self._answer = answer
        self._lock = threading.Lock()

    def take(self, headers: Message, body: bytes) -> int:
        told = hmac.new(
            b"a key of twenty-four byt", f"{headers['webhook-id']}.{headers['webhook-timestamp']}.".encode() + body, hashlib.sha256
        )
        with self._lock:
            if headers["webhook-signature"] != "v1," + base64.b64encode(told.digest()).decode():
                self.wrong.append(headers["webhook-id"])
            event = json.loads(body)
            self.calls.append((headers["webhook-id"], event))
            number = len(self.calls)
        return self._answer(number, event)

    def ids(self, kind: str) -> set[str]:
        with self._lock:
            return {name for name, event in self.calls if event["type"] == kind}

    @contextmanager
    def listening(self, port: int = 0) -> Iterator[Receiver]:
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                status = receiver.take(self.headers, self.rfile.read(int(self.headers["content-length"])))
                with suppress(OSError):
                    self.send_response(status)
                    self.send_header("content-length", "0")
                    self.end_headers()

            def log_message(self, format: str, *args: object) -> None:
                """Nothing."""

        with ThreadingHTTPServer(("127.0.0.1", port), Handler) as server:
            thread = threading.Thread(target=server.serve_forever, args=(0.05,))
            thread.start()
            self.url = f"http://127.0.0.1:{server.server_address[1]}/hook"
            try:
                yield self
            finally:
                server.shutdown()
                thread.join(10)


BOTH = ["job.settled", "resource.failed"]


def test_each_failed_resource_is_told_of_if_the_manifest_asks_for_it(service: Service, origin: Origin) -> None:
    # Every third call is refused at first.
    with Receiver(lambda number, event: 503 if number % 3 == 0 else 204).listening() as receiver:
        urls = [origin.url("/bytes/10"), *(origin.url(f"/status/404?token=hush&n={number}") for number in range(20))]
        job_id = post(service, urls, callback=receiver.url, events=BOTH)
        expected = {f"{job_id}.{index}.0" for index in range(1, 21)}
        wait_for("a call for each", lambda: receiver.ids("resource.failed") == expected, 60, describe=service.dump)
        job = service.http.await_job(job_id, 5)
        assert receiver.ids("job.settled") == {f"{job_id}.{job['finished_at']}"}
        resources = {resource["index"]: resource for resource in service.http.resources(job_id)}
        for name, event in list(receiver.calls):
            if event["type"] == "resource.failed":
                index = int(name.split(".")[1])
                assert event["data"] == {"job_id": job_id, **resources[index]}
                assert event["data"]["code"] == "DOWNLOAD_HTTP_4XX"
                assert "hush" not in json.dumps(event)
        assert receiver.wrong == []
        only = post(service, urls[:3], callback=receiver.url, events=["resource.failed"])
        wait_for("the failures alone", lambda: {f"{only}.1.0", f"{only}.2.0"} <= receiver.ids("resource.failed"), 30, describe=service.dump)
        unasked = post(service, urls[:3], callback=receiver.url)
        wait_for(
            "the job alone", lambda: [name for name in receiver.ids("job.settled") if name.startswith(unasked)], 30, describe=service.dump
        )
        service.end()
        told = [(name.split(".")[0], event["type"]) for name, event in receiver.calls]
        assert (only, "job.settled") not in told
        assert (unasked, "resource.failed") not in told


def test_an_unknown_event_is_refused_with_a_pointer(service: Service, origin: Origin) -> None:
    body = {"manifest_version": "v1", "metadata": {}, "resources": [{"url": origin.url("/bytes/1")}]}
    for events in (["job.finished"], "job.settled", [1]):
        answer = service.http.http.post("/jobs", json={**body, "attributes": {"callback_events": events}})
        pointers = [detail["pointer"] for detail in answer.json()["error"]["details"]]
        assert answer.status_code == 400
        assert pointers[0].startswith("/attributes/callback_events")


def test_a_receiver_that_is_gone_is_told_no_more(service: Service, origin: Origin) -> None:
    with Receiver(lambda number, event: 410).listening() as receiver:
        job_id = post(service, [origin.url(f"/status/404?n={n}") for n in range(30)], callback=receiver.url, events=BOTH)
        wait_for("the call", lambda: receiver.calls, 30, describe=service.dump)
        service.http.await_job(job_id, 30)
        other = post(service, [origin.url("/bytes/10")], callback=origin.url("/hook?mark=gone&fails=0&id=g"))
        wait_for("another one's callback", lambda: hooks(origin, "gone"), 30, describe=service.dump)
        service.end()
        assert len(receiver.calls) <= 8, "410 is the end of it, but for calls that were under way"
        assert other != job_id


def test_a_worker_killed_between_the_calls_leaves_none_out_and_repeats_under_the_same_ids(service: Service, origin: Origin) -> None:
    held = threading.Event()

    def answer(number: int, event: dict[str, Any]) -> int:
        if number > 10:
            # What was told is not committed yet, and some calls are under way.
            held.wait(20)
        return 204

    with Receiver(answer).listening() as receiver:
        job_id = post(service, [origin.url(f"/status/404?n={n}") for n in range(40)], callback=receiver.url, events=BOTH)
        wait_for("some of the calls", lambda: len(receiver.calls) > 12, 60, describe=service.dump)
        before = {name for name, _ in receiver.calls}
        assert len(before) < 41
        service.kill_one("worker")
        held.set()
        expected = {f"{job_id}.{index}.0" for index in range(40)}
        wait_for("a call for each", lambda: receiver.ids("resource.failed") == expected, 60, describe=service.dump)
        bodies: dict[str, set[str]] = {}
        for name, event in list(receiver.calls):
            bodies.setdefault(name, set()).add(json.dumps(event))
        assert all(len(told) == 1 for told in bodies.values()), "a repeat is the same"
        assert len(bodies) == 41
        assert len(receiver.calls) > 41, "at least once: those before the death came again"
        assert receiver.wrong == []


def test_a_failure_is_told_of_while_its_job_goes_on_whatever_is_killed(service: Service, origin: Origin) -> None:
    held = threading.Event()

    def answer(number: int, event: dict[str, Any]) -> int:
        if number > 10:
            held.wait(30)
        return 204

    with Receiver(answer).listening() as receiver:
        urls = [origin.url("/delay/300/bytes/10"), *(origin.url(f"/status/404?n={n}") for n in range(40))]
        job_id = post(service, urls, callback=receiver.url, events=BOTH)
        wait_for("calls for some of the failures", lambda: len(receiver.calls) > 12, 60, describe=service.dump)
        assert service.http.job(job_id)["status"] == "in_progress"
        service.kill_one("worker")
        service.kill_one("hub")
        held.set()
        expected = {f"{job_id}.{index}.0" for index in range(1, 41)}
        wait_for("a call for each", lambda: receiver.ids("resource.failed") == expected, 60, describe=service.dump)
        bodies: dict[str, set[str]] = {}
        for name, event in list(receiver.calls):
            bodies.setdefault(name, set()).add(json.dumps(event))
        assert all(len(told) == 1 for told in bodies.values()), "a repeat is the same"
        assert len(receiver.calls) > 40, "at least once: those under way at the death came again"
        service.wait_ready()
        assert service.http.job(job_id)["resource_pending"] == 1
        assert receiver.ids("job.settled") == set()
        service.http.http.post(f"/jobs/{job_id}/cancel")
        wait_for("the job's own callback", lambda: len(receiver.ids("job.settled")) == 1, 30, describe=service.dump)
        service.end()
        assert receiver.ids("resource.failed") == expected
        assert receiver.wrong == []


def resident(pid: int) -> int:
    """MiB that a process holds."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") >> 20


def test_a_thousand_failures_and_a_receiver_that_is_down_hold_up_nobody_and_none_is_left_out(service: Service, origin: Origin) -> None:
    port = free_port()
    worker = service.a_process("worker").pid
    before = resident(worker)
    job_id = post(service, [origin.url(f"/status/404?n={n}") for n in range(1000)], callback=f"http://127.0.0.1:{port}/hook", events=BOTH)
    service.http.await_job(job_id, 60)
    with Receiver().listening() as live:
        other = post(service, [origin.url("/status/404?n=x"), origin.url("/bytes/3")], callback=live.url, events=BOTH)
        wait_for("another job's calls", lambda: len(live.calls) == 2, 30, describe=service.dump)
        assert live.ids("resource.failed") == {f"{other}.0.0"}
    assert resident(worker) - before < 64
    with Receiver().listening(port) as receiver:
        expected = {f"{job_id}.{index}.0" for index in range(1000)}
        wait_for("a call for each", lambda: receiver.ids("resource.failed") == expected, 90, every=0.2, describe=service.dump)
        wait_for("the job's own", lambda: receiver.ids("job.settled"), 60, describe=service.dump)
        assert receiver.wrong == []
        # Told once each: nothing died.
        assert len(receiver.calls) == 1001


@contextmanager
def redirecting(target: str) -> Iterator[str]:
    """A receiver that sends every POST elsewhere; its URL."""

    class Elsewhere(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["content-length"]))
            self.send_response(307)
            self.send_header("location", target)
            self.send_header("content-length", "0")
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:
            """Nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Elsewhere) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}/"
        finally:
            server.shutdown()
            thread.join(10)


def test_addresses_are_vetted_and_redirects_are_not_followed(service: Service, origin: Origin) -> None:
    def said(job_id: str, what: str) -> bool:
        return any(job_id in line and what in line for line in service.log_path.read_text().splitlines())

    elsewhere = post(service, [origin.url("/bytes/10")], callback="http://10.0.0.1/hook?token=hush")
    wait_for("the refused address in the log", lambda: said(elsewhere, "10.0.0.1 is private"), 30, describe=service.dump)
    with redirecting(origin.url("/hook?mark=moved&fails=0")) as receiver:
        moved = post(service, [origin.url("/bytes/10")], callback=receiver)
        wait_for("the redirect in the log", lambda: said(moved, "the receiver answered 307"), 30, describe=service.dump)
    post(service, [origin.url("/bytes/10")], callback=origin.url("/hook?mark=after&fails=0&id=b"))
    wait_for("the one that may be called", lambda: hooks(origin, "after"), 30, describe=service.dump)
    assert not hooks(origin, "moved")
    assert "hush" not in service.log_path.read_text()


@pytest.mark.slow
@pytest.mark.timeout(120)
def test_every_job_is_finished_although_workers_and_hub_are_killed(service: Service, origin: Origin, finished: Path) -> None:
    jobs = []
    for number in range(60):
        callback = origin.url(f"/hook?mark=kill&fails=0&id=k{number}")
        jobs.append(post(service, [origin.url(f"/bytes/{number}")], job_type="told", callback=callback))
        if number % 20 == 10:
            service.kill_one("worker")
        if number == 35:
            service.kill_one("hub")
            service.wait_ready()
    wait_for("every finalize_job", lambda: set(lines(finished)) >= set(jobs), 60, every=0.2, describe=service.dump)

    def called() -> set[str]:
        return {json.loads(request.body)["data"]["job_id"] for request in hooks(origin, "kill")}

    wait_for("every callback", lambda: called() >= set(jobs), 60, every=0.2, describe=service.dump)
    # At least once, and not for ever: what is done stays done over a restart.
    service.end()
    before = lines(finished)
    service.start()
    last = post(service, [origin.url("/bytes/99")], job_type="told")
    wait_for("the last one", lambda: lines(finished)[last], 30, describe=service.dump)
    assert lines(finished) == before + Counter({last: 1})
