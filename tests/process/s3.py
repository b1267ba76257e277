"""An S3 server for the tests (moto) in a process of its own, and a pass in front of it at which a test may stop what it likes."""

from __future__ import annotations

import http.client
import re
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import httpx

from fetchbox.testing import free_port
from tests.process.waiting import wait_for

BUCKET = "bucket"
START_LIMIT = 60.0
"""Seconds until moto answers: it imports much."""
FORWARDED = frozenset({"host", "connection", "transfer-encoding"})


class S3:
    """What the server holds, asked for without signatures: moto checks none."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.http = httpx.Client(base_url=url, trust_env=False, timeout=20)

    def settings(self, endpoint: str | None = None) -> dict[str, Any]:
        """The section `[storage]` for this server."""
        return {
            "url": f"s3://{BUCKET}/some/prefix",
            "endpoint": endpoint or self.url,
            "region": "us-east-1",
            "access_key_id": "test",
            "secret_access_key": "test",
            "allow_http": True,
        }

    def keys(self) -> list[str]:
        """Every key in the bucket."""
        return re.findall(r"<Key>(.*?)</Key>", self.http.get(f"/{BUCKET}?list-type=2").text)

    def uploads(self) -> list[str]:
        """Keys of unfinished uploads."""
        return re.findall(r"<Key>(.*?)</Key>", self.http.get(f"/{BUCKET}?uploads").text)

    def put(self, key: str, body: bytes) -> None:
        """An object."""
        self.http.put(f"/{BUCKET}/{key}", content=body).raise_for_status()

    def begin_upload(self, key: str) -> None:
        """An upload that nobody goes on with."""
        self.http.post(f"/{BUCKET}/{key}?uploads").raise_for_status()


@contextmanager
def s3_server(directory: Path) -> Iterator[S3]:
    """moto with an empty bucket."""
    port = free_port()
    with (directory / "moto.log").open("wb") as log:
        process = subprocess.Popen([sys.executable, "-m", "moto.server", "-p", str(port)], stdout=log, stderr=log)
    server = S3(f"http://127.0.0.1:{port}")

    def ready() -> bool:
        assert process.poll() is None, (directory / "moto.log").read_text()
        try:
            return server.http.put(f"/{BUCKET}").status_code == 200
        except httpx.TransportError:
            return False

    try:
        wait_for("moto to answer", ready, START_LIMIT, every=0.1)
        yield server
    finally:
        server.http.close()
        process.kill()
        process.wait(10)


@contextmanager
def passing(target: str, after: Callable[[str, str], bool]) -> Iterator[str]:
    """A server that hands every request on. When it is done `after(method, path)` is asked; if that is true nobody is answered."""
    address = urlsplit(target)

    class Pass(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def _forward(self) -> None:
            body = self.rfile.read(int(self.headers.get("content-length") or 0))
            headers = {name: value for name, value in self.headers.items() if name.lower() not in FORWARDED}
            connection = http.client.HTTPConnection(str(address.hostname), address.port, timeout=20)
            try:
                connection.request(self.command, self.path, body, headers)
                response = connection.getresponse()
                content = response.read()
            finally:
                connection.close()
            if after(self.command, unquote(urlsplit(self.path).path)):
                self.close_connection = True
                return
            self.send_response(response.status)
            for name, value in response.getheaders():
                if name.lower() not in FORWARDED | {"content-length"}:
                    self.send_header(name, value)
            # Of an object that was only asked for, its own.
            length = response.getheader("content-length") if self.command == "HEAD" else None
            self.send_header("content-length", length or str(len(content)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(content)

        do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = _forward  # noqa: N815  (the library's names)

        def log_message(self, format: str, *args: object) -> None:
            """Nothing: the service has a log of its own."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Pass) as server:
        server.daemon_threads = True
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}"
        finally:
            server.shutdown()
            thread.join(10)
