"""The ingress on a real socket: Granian in a process of its own, over the fakes."""

from __future__ import annotations

import gzip
import json
import os
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
from tests.unit.api_fakes import error_code, manifest

from fetchbox.api.serve import MAX_HEAD_BYTES
from fetchbox.origin.certificates import Certificates
from fetchbox.testing import wait_until

ROOT = Path(__file__).resolve().parents[2]
LIMIT = 20.0
"""Seconds that anything here may take."""
HEAD = b"POST /jobs HTTP/1.1\r\nhost: test\r\ncontent-type: application/json\r\n"


@dataclass
class Served:
    process: subprocess.Popen[bytes]
    port: int

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def connect(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), timeout=LIMIT)

    def exchange(self, data: bytes) -> bytes:
        """Sends bytes and returns everything until the server closes."""
        with self.connect() as connection:
            connection.sendall(data)
            return read_to_end(connection)

    def terminate(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(LIMIT)


def read_to_end(connection: socket.socket) -> bytes:
    got = bytearray()
    try:
        while piece := connection.recv(65_536):
            got += piece
    except ConnectionResetError:
        pass
    return bytes(got)


def status_of(answer: bytes) -> int:
    return int(answer.split(b" ", 2)[1])


@pytest.fixture(scope="module")
def serve() -> Iterator[Callable[..., Served]]:
    processes: list[subprocess.Popen[bytes]] = []

    def start(environment: dict[str, str] | None = None, **sections: Any) -> Served:
        with socket.socket() as listener:
            listener.bind(("127.0.0.1", 0))
            listener.set_inheritable(True)
            command = [sys.executable, "-m", "tests.unit.api_server", str(listener.fileno()), json.dumps(sections)]
            path = os.pathsep.join([str(ROOT), str(ROOT / "python")])
            process = subprocess.Popen(
                command, pass_fds=[listener.fileno()], cwd=ROOT, env={**os.environ, "PYTHONPATH": path, **(environment or {})}
            )
            processes.append(process)
            served = Served(process, listener.getsockname()[1])
        wait_until(lambda: listening(served), LIMIT)
        return served

    yield start
    for process in processes:
        process.kill()
        process.wait()


def listening(served: Served) -> bool:
    assert served.process.poll() is None
    try:
        served.connect().close()
    except OSError:
        return False
    return True


@pytest.fixture(scope="module")
def served(serve: Callable[..., Served]) -> Served:
    return serve({"FETCHBOX_TEST_BODY_SECONDS": "0.3", "FETCHBOX_TEST_HEAD_SECONDS": "1"})


def test_a_job_is_posted_over_a_socket_that_was_handed_over(served: Served) -> None:
    with httpx.Client(base_url=served.url) as client:
        response = client.post("/jobs", json=manifest(2))
        assert response.status_code == 202
        assert client.get(response.headers["location"]).json()["status"] == "queued"


@pytest.mark.parametrize("encoding", [None, "gzip"])
def test_a_chunked_body_is_read(served: Served, encoding: str | None) -> None:
    body = json.dumps(manifest(500)).encode()
    wire = body if encoding is None else gzip.compress(body)
    pieces = (wire[at : at + 1000] for at in range(0, len(wire), 1000))
    headers = {"content-type": "application/json"} | ({} if encoding is None else {"content-encoding": encoding})
    response = httpx.post(f"{served.url}/jobs", content=pieces, headers=headers)
    assert (response.status_code, response.json()["resource_count"]) == (202, 500)


@pytest.mark.parametrize("chunked", [False, True])
def test_a_body_over_the_limit_is_413_and_the_sender_reads_it(served: Served, chunked: bool) -> None:
    body = bytes(7_000_000)
    content: Any = (body[at : at + 50_000] for at in range(0, len(body), 50_000)) if chunked else body
    response = httpx.post(f"{served.url}/jobs", content=content, headers={"content-type": "application/json"})
    assert (response.status_code, error_code(response)) == (413, "PAYLOAD_TOO_LARGE")


def test_case_33_a_bomb_is_413_and_costs_no_memory(served: Served) -> None:
    def memory() -> int:
        status = Path(f"/proc/{served.process.pid}/status").read_text()
        return int(next(line for line in status.splitlines() if line.startswith("VmHWM")).split()[1]) // 1024

    before = memory()
    bomb = gzip.compress(bytes(1_000_000_000), compresslevel=9)
    for _ in range(3):
        headers = {"content-type": "application/json", "content-encoding": "gzip"}
        assert httpx.post(f"{served.url}/jobs", content=bomb, headers=headers).status_code == 413
    assert memory() - before < 40


def test_the_connection_is_used_again_after_a_refusal(served: Served) -> None:
    with served.connect() as connection:
        refused = HEAD.replace(b"application/json", b"text/plain") + b"content-length: 3\r\n\r\n{{{"
        for _ in range(3):
            connection.sendall(refused)
            assert status_of(connection.recv(65_536)) == 415


@pytest.mark.parametrize(
    "framing",
    [
        b"content-length: 5\r\ncontent-length: 6\r\n\r\n{}",
        b"content-length: +5\r\n\r\n{}",
        b"content-length: -1\r\n\r\n{}",
        b"transfer-encoding: chunked, gzip\r\n\r\n0\r\n\r\n",
        b"transfer-encoding: chunked\r\n\r\nzz\r\n{}\r\n0\r\n\r\n",
        b"transfer-encoding: chunked\r\n\r\n-1\r\n{}\r\n0\r\n\r\n",
        b"transfer-encoding: chunked\r\n\r\nfffffffffffffffff\r\n{}\r\n0\r\n\r\n",
        b"content-length : 2\r\n\r\n{}",
        b"bad\x00name: 2\r\n\r\n{}",
    ],
)
def test_case_35_bad_framing_is_400_and_close(served: Served, framing: bytes) -> None:
    assert status_of(served.exchange(HEAD + framing)) == 400


def test_case_35_a_length_beside_chunks_smuggles_nothing(served: Served) -> None:
    """The chunks count, the length is dropped, and the connection closes: what follows is never taken for a request."""
    body = json.dumps(manifest()).encode()
    chunk = f"{len(body):x}\r\n".encode() + body + b"\r\n0\r\n\r\n"
    smuggled = b"GET /health/live HTTP/1.1\r\nhost: test\r\n\r\n"
    answer = served.exchange(HEAD + b"content-length: 4\r\ntransfer-encoding: chunked\r\n\r\n" + chunk + smuggled)
    assert answer.count(b"HTTP/1.1 ") == 1
    assert b"connection: close" in answer.lower()


def test_a_head_that_is_too_large_is_431(served: Served) -> None:
    assert status_of(served.exchange(HEAD + b"x: " + b"a" * (4 * MAX_HEAD_BYTES) + b"\r\n\r\n")) == 431


@pytest.mark.parametrize("begun", [b"", b"POST /jobs HT", HEAD])
def test_case_34_a_slow_head_is_closed(served: Served, begun: bytes) -> None:
    assert served.exchange(begun) == b""


@pytest.mark.parametrize(
    "begun", [b"content-length: 100\r\n\r\n{", b"transfer-encoding: chunked\r\n\r\n1\r\n{\r\n", b"transfer-encoding: chunked\r\n\r\n"]
)
def test_case_34_a_slow_body_is_408_and_close(served: Served, begun: bytes) -> None:
    answer = served.exchange(HEAD + begun)
    assert status_of(answer) == 408
    assert b"REQUEST_TIMEOUT" in answer


def test_case_34_one_byte_chunks_are_refused(served: Served) -> None:
    answer = served.exchange(HEAD + b"transfer-encoding: chunked\r\n\r\n" + b"1\r\n \r\n" * 10_000 + b"0\r\n\r\n")
    assert status_of(answer) == 408


def test_case_34_slow_clients_do_not_hold_up_others(served: Served) -> None:
    slow = [served.connect() for _ in range(200)]
    try:
        for connection in slow:
            connection.sendall(HEAD + b"content-length: 100\r\n\r\n{")
        with httpx.Client(base_url=served.url) as client:
            started = time.monotonic()
            assert all(client.post("/jobs", json=manifest()).status_code == 202 for _ in range(50))
            assert time.monotonic() - started < 5
    finally:
        for connection in slow:
            connection.close()


def test_a_client_that_leaves_breaks_nothing(served: Served) -> None:
    for _ in range(20):
        with served.connect() as connection:
            connection.sendall(HEAD + b"content-length: 1000\r\n\r\n{")
    assert httpx.get(f"{served.url}/health/ready").status_code == 200


def test_sigterm_ends_with_0_though_connections_idle_and_streams_are_open(serve: Callable[..., Served]) -> None:
    served = serve()
    with httpx.Client(base_url=served.url) as client, served.connect() as idle:
        assert client.get("/health/live").status_code == 200
        idle.sendall(b"GET /health/live HTTP/1.1\r\nhost: test\r\n\r\n")
        assert status_of(idle.recv(65_536)) == 200
        job_id = client.post("/jobs", json=manifest()).json()["job_id"]
        with client.stream("GET", f"/jobs/{job_id}/logs?follow=true") as stream:
            assert stream.status_code == 200
            started = time.monotonic()
            assert served.terminate() == 0
            assert time.monotonic() - started < 5
            stream.read()


def test_sigterm_under_load_answers_everything_it_took(serve: Callable[..., Served]) -> None:
    """A post is answered or the connection is refused or closed unread; none is cut off in the middle of an answer."""
    served = serve()
    statuses: list[int] = []
    broken: list[Exception] = []
    stop = threading.Event()

    def load() -> None:
        with httpx.Client(base_url=served.url, timeout=LIMIT) as client:
            while not stop.is_set():
                try:
                    statuses.append(client.post("/jobs", json=manifest(20)).status_code)
                except (httpx.ConnectError, httpx.ReadError, httpx.WriteError, httpx.RemoteProtocolError) as error:
                    if isinstance(error, httpx.RemoteProtocolError) and "without sending" not in str(error):
                        broken.append(error)
                    return

    threads = [threading.Thread(target=load) for _ in range(4)]
    for thread in threads:
        thread.start()
    wait_until(lambda: len(statuses) > 100, LIMIT)
    assert served.terminate() == 0
    stop.set()
    for thread in threads:
        thread.join(LIMIT)
    assert set(statuses) == {202}
    assert broken == []


def test_a_slow_body_does_not_hold_up_the_end_beyond_the_drain_timeout(serve: Callable[..., Served]) -> None:
    served = serve(drain_timeout=3)
    with served.connect() as connection:
        connection.sendall(HEAD + b"content-length: 100\r\n\r\n{")
        assert httpx.get(f"{served.url}/health/live").status_code == 200
        started = time.monotonic()
        assert served.terminate() == 0
        assert time.monotonic() - started < 3


def test_tls(serve: Callable[..., Served]) -> None:
    pytest.importorskip("cryptography", reason="makes the certificate")
    certificates = Certificates.create()
    try:
        pem = str(certificates.pem("ca"))
        served = serve(server={"tls_cert": pem, "tls_key": pem})
        context = ssl.create_default_context(cafile=str(certificates.ca_file))
        response = httpx.post(f"https://localhost:{served.port}/jobs", json=manifest(), verify=context)
        assert response.status_code == 202
        with pytest.raises(httpx.TransportError):
            httpx.get(f"{served.url}/health/live")
    finally:
        certificates.remove()
