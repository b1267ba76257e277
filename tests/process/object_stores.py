"""Object stores to test against: moto, s3s-fs where it is installed, and a front of our own that does to requests what a test says."""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import os
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Final, Literal
from urllib.parse import parse_qs, unquote, urlsplit
from xml.sax.saxutils import unescape

import httpx
import pytest
from botocore.auth import S3SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials

from fetchbox.testing import free_port, wait_until

S3S_FS: Final = "FETCHBOX_S3S_FS"
"""Environment variable with the path of an s3s-fs binary, where it is not on the PATH."""
# Read when this is imported: a test's own environment has none of our variables.
_GIVEN = os.environ.get(S3S_FS)
KEY, SECRET = "key", "secret"
MIB: Final = 1 << 20
PART: Final = 5 * MIB
"""The smallest part that S3 takes."""


@dataclass(frozen=True)
class S3:
    """A server and a bucket of it."""

    endpoint: str
    name: str
    bucket: str
    root: Path | None = None
    """Where s3s-fs keeps its files: it cannot list uploads."""

    def storage(self, **options: Any) -> dict[str, Any]:
        """`[storage]` of a service or of a library's config, the smallest parts taken."""
        keys = {"access_key_id": KEY, "secret_access_key": SECRET, "region": "us-east-1"}
        sizes = {"multipart_threshold": PART, "part_size": PART}
        return {"endpoint": self.endpoint, "allow_http": True, "max_attempts": 1, **keys, **sizes, **options}

    def request(self, method: str, path: str, body: bytes = b"") -> httpx.Response:
        """A request signed by other means than the engine's; `path` begins with the bucket and is encoded as in a URL."""
        request = AWSRequest(method, f"{self.endpoint}/{path}", data=body)
        request.headers["x-amz-content-sha256"] = hashlib.sha256(body).hexdigest()
        S3SigV4Auth(Credentials(KEY, SECRET), "s3", "us-east-1").add_auth(request)
        return httpx.request(method, request.url, content=body, headers=dict(request.headers), timeout=60, trust_env=False)

    def with_bucket(self, bucket: str) -> S3:
        """The same server with another bucket, which is made and empty."""
        assert self.request("PUT", bucket).status_code == 200
        return replace(self, bucket=bucket)

    def object(self, url: str | None) -> httpx.Response:
        """The object that an outcome's storage_url names."""
        assert url is not None
        assert url.startswith("s3://"), url
        response = self.request("GET", url.removeprefix("s3://"))
        assert response.status_code == 200, f"{url}: {response.status_code} {response.text[:300]}"
        return response

    def listed(self) -> list[str]:
        """The keys of all objects."""
        answer = self.request("GET", f"{self.bucket}?list-type=2&max-keys=1000")
        assert answer.status_code == 200, answer.text
        assert "<IsTruncated>true" not in answer.text
        return sorted(unescape(key) for key in re.findall(r"<Key>([^<]*)</Key>", answer.text))

    def uploads(self) -> list[str]:
        """The keys of multipart uploads that are neither complete nor aborted."""
        if self.root is not None:
            return [path.name for path in self.root.glob(".upload*")]
        answer = self.request("GET", f"{self.bucket}?uploads")
        assert answer.status_code == 200, answer.text
        return re.findall(r"<Key>([^<]*)</Key>", answer.text)


def _ended(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(10)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait(10)


@contextmanager
def _server(command: list[str], at: str, name: str, log: Path, root: Path | None = None) -> Iterator[S3]:
    with log.open("wb") as output:
        environment = {key: value for key, value in os.environ.items() if not key.lower().endswith("_proxy")}
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, env=environment)
    try:
        server = S3(f"http://{at}", name, "bucket", root)

        def answers() -> bool:
            assert process.poll() is None, f"{command} ended: {log.read_text(errors='replace')[-2000:]}"
            try:
                return server.request("GET", "").status_code < 500
            except httpx.TransportError:
                return False

        wait_until(answers, 30, what=f"{name} to answer")
        yield server.with_bucket(server.bucket)
    finally:
        _ended(process)


@contextmanager
def moto(directory: Path, host: str = "127.0.0.1") -> Iterator[S3]:
    """moto's server, which keeps everything in memory."""
    port = str(free_port())
    with _server([sys.executable, "-m", "moto.server", "-H", host, "-p", port], f"{host}:{port}", "moto", directory / "moto.log") as server:
        yield server


@contextmanager
def s3s_fs(directory: Path, host: str = "127.0.0.1") -> Iterator[S3]:
    """s3s-fs, which keeps objects as files; skips where it is not installed."""
    binary = _GIVEN or shutil.which("s3s-fs")
    if binary is None:
        pytest.skip(f"no s3s-fs on the PATH or in {S3S_FS}: cargo install s3s-fs --version 0.14.1 --features binary")
    port = str(free_port())
    root = directory / "s3s"
    root.mkdir()
    command = [binary, "--host", host, "--port", port, "--access-key", KEY, "--secret-key", SECRET, str(root)]
    with _server(command, f"{host}:{port}", "s3s-fs", directory / "s3s.log", root) as server:
        yield server


SERVERS: Final[dict[str, Callable[..., Any]]] = {"moto": moto, "s3s-fs": s3s_fs}


@dataclass(frozen=True)
class Seen:
    """A request that went through a front."""

    method: str
    path: str
    query: dict[str, list[str]]
    status: int
    """What the client got; 0 for nothing."""

    @property
    def what(self) -> str:
        """The S3 operation, of those that store objects."""
        if self.method == "POST":
            return "create" if "uploads" in self.query else "complete"
        if self.method == "DELETE":
            return "abort" if "uploadId" in self.query else "delete"
        return {"PUT": "part" if "partNumber" in self.query else "put"}.get(self.method, self.method.lower())


Fault = tuple[int, str] | Literal["lose"]
"""A status with an S3 error code, or the answer lost after the store did its part."""


@dataclass
class Front:
    """A server before a store that passes requests on, or fails those that a test names."""

    behind: S3
    endpoint: str
    seen: list[Seen] = field(default_factory=list)
    signers: set[tuple[str, str]] = field(default_factory=set)
    """Who signed requests: access key and session token."""
    faults: dict[str, list[Fault]] = field(default_factory=dict)
    """By operation, for its next requests in order; an operation without any left is passed on."""
    always: dict[str, Fault] = field(default_factory=dict)
    """By operation, for every request."""
    done: Callable[[str], None] = lambda what: None
    """Told of each operation that the store has carried out, before whoever asked for it is."""

    def count(self, what: str) -> int:
        """Requests of an operation."""
        return sum(seen.what == what for seen in self.seen)

    def store(self) -> S3:
        """The store through this front."""
        return replace(self.behind, endpoint=self.endpoint)

    def next_fault(self, what: str) -> Fault | None:
        """What is to happen to a request."""
        return self.faults[what].pop(0) if self.faults.get(what) else self.always.get(what)


def _handler(front: Front, lock: threading.Lock) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: object) -> None:
            """Nothing: `front.seen` is the log."""

        def handle_one(self) -> None:
            parts = urlsplit(self.path)
            query = parse_qs(parts.query, keep_blank_values=True)
            body = self.rfile.read(int(self.headers.get("content-length", "0")))
            what = Seen(self.command, parts.path, query, 0).what
            signer = re.search(r"Credential=([^/,]+)/", self.headers.get("authorization", ""))
            with lock:
                front.signers.add((signer.group(1) if signer else "", self.headers.get("x-amz-security-token", "")))
                fault = front.next_fault(what)
            if isinstance(fault, tuple):
                status, code = fault
                text = f'<?xml version="1.0"?><Error><Code>{code}</Code><Message>as the test says</Message></Error>'.encode()
                self.answer(status, {"content-type": "application/xml"}, text)
            else:
                status, fields, text = self.passed_on(body)
                front.done(what)
                if fault == "lose":
                    status, self.close_connection = 0, True
                else:
                    self.answer(status, fields, text)
            with lock:
                front.seen.append(Seen(self.command, unquote(parts.path), query, status))

        def passed_on(self, body: bytes) -> tuple[int, dict[str, str], bytes]:
            connection = http.client.HTTPConnection(urlsplit(front.behind.endpoint).netloc, timeout=60)
            try:
                fields = {name: value for name, value in self.headers.items() if name.lower() not in ("connection", "accept-encoding")}
                connection.request(self.command, self.path, body, fields)
                response = connection.getresponse()
                text = response.read()
                hop = ("connection", "transfer-encoding", "content-length", "keep-alive")
                return response.status, {name: value for name, value in response.getheaders() if name.lower() not in hop}, text
            finally:
                connection.close()

        def answer(self, status: int, fields: dict[str, str], body: bytes) -> None:
            # A client that gave up does not hear it.
            with contextlib.suppress(ConnectionError):
                self.tell(status, fields, body)

        def tell(self, status: int, fields: dict[str, str], body: bytes) -> None:
            self.send_response_only(status)
            for name, value in fields.items():
                self.send_header(name, value)
            if self.command != "HEAD":
                self.send_header("content-length", str(len(body)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

        do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = handle_one  # noqa: N815  (names of http.server)

    return Handler


@contextmanager
def front(behind: S3) -> Iterator[Front]:
    """A front for the block."""
    made = Front(behind, "")
    server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(made, threading.Lock()))
    server.daemon_threads = True
    made.endpoint = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield made
    finally:
        server.shutdown()
        server.server_close()
        thread.join(10)
