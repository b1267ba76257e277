"""A real Iggy server on loopback, for benches and tests. `iggy-server` has to be on the PATH."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx

from fetchbox.broker import topics
from fetchbox.config import load
from fetchbox.testing import free_port, wait_until

SERVER = shutil.which("iggy-server")
USER, PASSWORD = "iggy", "secret"
START_LIMIT = 60.0


class IggyServer:
    """A server with a directory of its own, on loopback unless `host` says where else; it can be killed and started again.

    `more` are further variables of its environment.
    """

    def __init__(self, directory: Path, *, host: str = "127.0.0.1", more: Mapping[str, str] | None = None) -> None:
        self.directory = directory
        self.host = host
        self._more = dict(more or {})
        self.port, self.http_port = free_port(), free_port()
        self.http = httpx.Client(base_url=f"http://{host}:{self.http_port}", trust_env=False, timeout=10)
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        """Its process."""
        if self._process is None:
            raise RuntimeError("iggy-server does not run")
        return self._process.pid

    @property
    def url(self) -> str:
        """What goes into `broker.url`."""
        return f"iggy://{USER}:{PASSWORD}@{self.host}:{self.port}"

    def start(self) -> None:
        """Starts the server and waits until it answers."""
        if SERVER is None:
            raise RuntimeError("iggy-server is not on the PATH")
        self.directory.mkdir(parents=True, exist_ok=True)
        environ = {
            **os.environ,
            "IGGY_ROOT_USERNAME": USER,
            "IGGY_ROOT_PASSWORD": PASSWORD,
            "IGGY_SYSTEM_PATH": str(self.directory / "data"),
            "IGGY_SYSTEM_SHARDING_CPU_ALLOCATION": "1",
            "IGGY_SYSTEM_SHARDING_PIN_CORES": "false",
            "IGGY_TCP_ADDRESS": f"{self.host}:{self.port}",
            "IGGY_HTTP_ENABLED": "true",
            "IGGY_HTTP_ADDRESS": f"{self.host}:{self.http_port}",
            "IGGY_QUIC_ENABLED": "false",
            "IGGY_WEBSOCKET_ENABLED": "false",
            **self._more,
        }
        log = (self.directory / "server.log").open("ab")
        with log:
            self._process = subprocess.Popen([SERVER], cwd=self.directory, env=environ, stdout=log, stderr=log)
        wait_until(self._answers, START_LIMIT, what="iggy-server to answer")

    def _answers(self) -> bool:
        if self._process is None or self._process.poll() is not None:
            raise RuntimeError(f"iggy-server ended: {(self.directory / 'server.log').read_text()[-2000:]}")
        try:
            return self.http.get("/ping").status_code == 200
        except httpx.TransportError:
            return False

    def kill(self, how: signal.Signals = signal.SIGKILL) -> None:
        """Ends the server, by default without giving it a chance to write anything."""
        if self._process is not None:
            self._process.send_signal(how)
            self._process.wait(30)
            self._process = None

    def headers(self) -> dict[str, str]:
        """Of a user that is logged in, for the server's HTTP side."""
        answer = self.http.post("/users/login", json={"username": USER, "password": PASSWORD})
        answer.raise_for_status()
        return {"Authorization": f"Bearer {answer.json()['access_token']['token']}"}

    def provision(self, partitions: int = 4) -> None:
        """Makes stream and topics through the server's HTTP side: servers of an older build do not take what the client's command sends."""
        headers = self.headers()
        self.http.post("/streams", json={"name": topics.STREAM}, headers=headers).raise_for_status()
        config = load(env={}, overrides={"tasks": {"partitions": partitions}})
        for plan in topics.plan(config):
            body: dict[str, Any] = {
                "name": plan.name,
                "partitions_count": plan.partitions,
                "compression_algorithm": "none",
                "message_expiry": int(plan.ttl * 1_000_000),
                "max_topic_size": plan.max_bytes or 0,
                # What "persisted" means to servers that know no such word.
                "options": {"enforce_fsync": "true", "messages_required_to_save": "1", "segment_size": str(256 << 20)},
            }
            answer = self.http.post(f"/streams/{topics.STREAM}/topics", json=body, headers=headers)
            if answer.status_code >= 300:
                raise RuntimeError(f"{plan.name} cannot be made: {answer.text}")

    def topic(self, name: str) -> dict[str, Any]:
        """What the server says of a topic."""
        answer = self.http.get(f"/streams/{topics.STREAM}/topics/{name}", headers=self.headers())
        answer.raise_for_status()
        found: dict[str, Any] = answer.json()
        return found


@contextmanager
def iggy_server(
    directory: Path, *, partitions: int | None = 4, host: str = "127.0.0.1", more: Mapping[str, str] | None = None
) -> Iterator[IggyServer]:
    """A server with stream and topics, ended afterwards."""
    server = IggyServer(directory, host=host, more=more)
    server.start()
    try:
        if partitions is not None:
            server.provision(partitions)
        yield server
    finally:
        server.kill()
        server.http.close()
