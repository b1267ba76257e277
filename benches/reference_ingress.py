"""The ingress that one would otherwise build: Starlette on one Granian process, msgspec, a Redis stream of tasks.

It accepts the same manifest and answers the same 202 after Redis has the job and all its tasks in one transaction. It does less than
ours: no pointers to faults, no limits, no ledger of resources, no outcome will ever be counted. `reference()` runs it with its Redis.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec

from fetchbox.bench.ingest import Ingress, Running
from fetchbox.bench.peers import needs_modules, needs_program
from fetchbox.bench.service import DISK, Caller, pause
from fetchbox.origin import free_port

START_SECONDS = 20.0
MODULES = ["granian", "starlette", "redis", "hiredis", "msgspec"]


class Resource(msgspec.Struct):
    """One URL of a manifest."""

    url: str
    id: str | None = None
    headers: dict[str, str] = {}
    tags: dict[str, str] = {}
    key: str | None = None


class Manifest(msgspec.Struct):
    """What is posted."""

    manifest_version: str
    resources: list[Resource]
    metadata: dict[str, object] = {}
    attributes: dict[str, object] = {}


class Task(msgspec.Struct):
    """What a worker would read from the stream."""

    job_id: str
    index: int
    url: str
    id: str
    headers: dict[str, str]


def build_app(socket: str):  # type: ignore[no-untyped-def]
    """The ASGI application."""
    import uuid

    import redis.asyncio as redis
    from starlette.applications import Starlette
    from starlette.requests import Request
    from starlette.responses import Response
    from starlette.routing import Route

    connection = redis.Redis(unix_socket_path=socket)
    decoder, encode = msgspec.json.Decoder(Manifest), msgspec.json.encode

    async def post(request: Request) -> Response:
        body = await request.body()
        try:
            manifest = decoder.decode(body)
        except msgspec.ValidationError as error:
            return Response(encode({"error": {"code": "INVALID_PAYLOAD", "message": str(error)}}), 400)
        job = str(uuid.uuid4())
        key = request.headers.get("idempotency-key")
        if key is not None and not await connection.set(f"key:{key}", job, nx=True):
            return Response(encode({"job_id": (await connection.get(f"key:{key}") or b"").decode()}), 200)
        async with connection.pipeline(transaction=True) as pipe:
            pipe.hset(f"job:{job}", mapping={"status": "queued", "total": len(manifest.resources), "manifest": body})
            for index, resource in enumerate(manifest.resources):
                task = Task(job, index, resource.url, resource.id or str(index), resource.headers)
                pipe.xadd("jobs.tasks", {"task": encode(task)})
            await pipe.execute()
        return Response(encode({"job_id": job, "resource_count": len(manifest.resources)}), 202, media_type="application/json")

    return Starlette(routes=[Route("/jobs", post, methods=["POST"])])


def missing() -> str | None:
    """Why it cannot run here, or None."""
    return needs_program("redis-server")() or needs_modules(MODULES, sys.executable)()


def reference(fsync: str, disk: Path | None = None) -> Ingress:
    """Redis with an append-only file and `appendfsync` "everysec" or "always", and one process of the application before it."""

    @contextlib.contextmanager
    def start() -> Iterator[Running]:
        program = shutil.which("redis-server")
        assert program is not None
        with tempfile.TemporaryDirectory(prefix="fetchbox-bench-redis-", dir=disk or DISK) as name:
            socket, port = f"{name}/redis.sock", free_port()
            settings = [
                "--port",
                "0",
                "--unixsocket",
                socket,
                "--dir",
                name,
                "--save",
                "",
                "--appendonly",
                "yes",
                "--appendfsync",
                fsync,
                "--daemonize",
                "no",
            ]
            command = [sys.executable, __file__, socket, str(port), program, *settings]
            parent = subprocess.Popen(command, stdout=subprocess.DEVNULL, start_new_session=True)
            try:
                _wait_ready(port)
                yield Running(f"http://127.0.0.1:{port}", parent.pid)
            finally:
                parent.terminate()
                try:
                    parent.wait(10)
                except subprocess.TimeoutExpired:
                    os.killpg(parent.pid, signal.SIGKILL)
                    parent.wait(10)

    return Ingress(f"reference, {fsync}", start)


def _wait_ready(port: int) -> None:
    limit = time.monotonic() + START_SECONDS
    body = msgspec.json.encode({"manifest_version": "v1", "resources": [{"url": "http://example.com/"}]})
    while time.monotonic() < limit:
        with contextlib.suppress(OSError):
            if Caller(f"http://127.0.0.1:{port}").call("POST", "/jobs", body)[0] == 202:
                return
        pause(0.05)
    raise RuntimeError("the reference ingress did not start")


def main(socket: str, port: str, *redis_command: str) -> None:
    """Starts Redis and serves the application until SIGTERM, then ends Redis."""
    from granian.constants import Interfaces, Loops
    from granian.server import Server

    store = subprocess.Popen(redis_command, stdout=subprocess.DEVNULL)
    os.environ["REFERENCE_SOCKET"] = socket
    try:
        Server(
            "reference_ingress:app",
            address="127.0.0.1",
            port=int(port),
            interface=Interfaces.ASGI,
            workers=1,
            loop=Loops.uvloop,
            log_enabled=False,
        ).serve()
    finally:
        store.terminate()
        store.wait(10)


def __getattr__(name: str) -> object:
    if name == "app" and "REFERENCE_SOCKET" in os.environ:
        return build_app(os.environ["REFERENCE_SOCKET"])
    raise AttributeError(name)


if __name__ == "__main__":
    main(*sys.argv[1:])
