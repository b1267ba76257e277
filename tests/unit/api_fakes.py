"""A hub and a compiler in memory, for the tests of the ingress."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import httpx
import orjson
from starlette.applications import Starlette

from fetchbox.api import create_app
from fetchbox.api.manifests import Manifests
from fetchbox.config import Config
from fetchbox.errors import HubUnavailable, Refused


class FakeCoreError(Exception):
    def __init__(self, kind: str, message: str, details: list[dict[str, str]] | None = None) -> None:
        super().__init__(message)
        self.kind = kind
        self.message = message
        self.details = details


class FakeTasks:
    def __init__(self, tasks: list[dict[str, Any]], facts: dict[str, Any], context: dict[str, Any]) -> None:
        self.tasks = tasks
        self.context = context
        self._facts = facts

    def __len__(self) -> int:
        return len(self.tasks)

    def facts(self) -> bytes:
        return orjson.dumps(self._facts)


class FakeCore:
    """Validates a little of what the native module validates."""

    CoreError = FakeCoreError

    def __init__(self) -> None:
        self.contexts: list[dict[str, Any]] = []

    def compile_manifest(self, body: bytes, context: bytes) -> FakeTasks:
        manifest = self._check(body)
        known = json.loads(context)
        self.contexts.append(known)
        return FakeTasks(manifest["resources"], manifest.get("attributes") or {}, known)

    def parse_manifest(self, body: bytes, context: bytes) -> bytes:
        manifest = self._check(body)
        for index, item in enumerate(manifest["resources"]):
            item.setdefault("id", str(index))
        return orjson.dumps(manifest)

    def compile_tasks(self, tasks: bytes, context: bytes) -> FakeTasks:
        items = json.loads(tasks)
        if any(not str(item["url"]).startswith("http") for item in items):
            raise FakeCoreError("validation", "not valid", [{"pointer": "/0/url", "code": "scheme", "message": "no such scheme"}])
        known = json.loads(context)
        self.contexts.append(known)
        return FakeTasks(items, known["attributes"], known)

    def check_replay(self, order: bytes, limits: bytes) -> None:
        if "host" in {name.lower() for name in json.loads(order).get("headers") or {}}:
            raise FakeCoreError("validation", "not valid", [{"pointer": "/headers/Host", "code": "header", "message": "not yours to set"}])

    @staticmethod
    def _check(body: bytes) -> dict[str, Any]:
        try:
            manifest = orjson.loads(body)
        except orjson.JSONDecodeError as error:
            raise FakeCoreError("validation", "not JSON", [{"pointer": "", "code": "json", "message": str(error)}]) from error
        if not isinstance(manifest, dict) or not manifest.get("resources"):
            raise FakeCoreError(
                "validation", "the manifest is not valid", [{"pointer": "/resources", "code": "required", "message": "at least one"}]
            )
        return manifest


OVERVIEW: dict[str, Any] = {
    "at": "2026-01-31T12:00:00Z",
    "health": {"components": {"hub": {"status": "ok", "since": "2026-01-31T11:00:00Z"}}, "workers": 1},
    "resources": {
        "accepted": 3,
        "pending": 1,
        "settled": {"stored": 2, "reused": 0, "filtered": 0, "failed": 0, "cancelled": 0},
        "replayed": 0,
    },
    "bytes_stored": 20,
    "active_jobs": 1,
    "queues": [],
    "workers": [],
    "history": None,
}


class FakeHub:
    """Jobs and reservations in dictionaries; `failures` holds what the next call of a method raises."""

    def __init__(self) -> None:
        self.connected = True
        self.jobs: dict[str, dict[str, Any]] = {}
        self.keys: dict[tuple[str, str, str], tuple[str, str, bool]] = {}
        self.failures: dict[str, list[Exception]] = {}
        self.calls: list[tuple[str, Any]] = []
        self.answers: dict[str, list[Any]] = {}
        self.release_seen = asyncio.Event()

    def fail(self, method: str, *errors: Exception) -> None:
        self.failures.setdefault(method, []).extend(errors)

    def _enter(self, method: str, argument: Any) -> None:
        self.calls.append((method, argument))
        if not self.connected:
            raise HubUnavailable("the hub is away")
        if self.failures.get(method):
            raise self.failures[method].pop(0)

    def called(self, method: str) -> list[Any]:
        return [argument for name, argument in self.calls if name == method]

    async def query(self, name: str, params: dict[str, Any], *, timeout: float = 30.0) -> bytes:
        self._enter(f"query {name}", params)
        if self.answers.get(name):
            queue = self.answers[name]
            answer = queue.pop(0) if len(queue) > 1 else queue[0]
            return answer if isinstance(answer, bytes) else orjson.dumps(answer)
        if name == "health":
            return orjson.dumps({"components": {}, "workers": 1})
        if name == "jobs":
            return orjson.dumps({"jobs": [self._view(job) for job in self.jobs.values()], "next_cursor": None})
        job = self._job(params["job_id"], params.get("tenant")) if "job_id" in params else None
        if name == "job":
            assert job is not None
            return orjson.dumps(self._view(job))
        if name == "resources":
            return orjson.dumps({"resources": [], "next_cursor": None})
        if name == "logs":
            begun = params["since_offset"] > 0
            accepted = {"offset": 0, "message": "accepted"}
            return orjson.dumps({"logs": [] if begun else [accepted], "next_offset": 1, "partition": 0, "settled": False, "end": False})
        if name == "tail":
            return orjson.dumps({"jobs": {}, "next": {}})
        if name == "overview":
            return orjson.dumps(OVERVIEW)
        if name == "manifest":
            assert job is not None
            body = job["manifest"]
            return orjson.dumps({"manifest_key": job["facts"]["manifest_key"], "body": None if body is None else body.decode()})
        raise Refused("NOT_FOUND", f"no such query: {name}")

    async def reserve(self, request: dict[str, Any]) -> dict[str, Any]:
        self._enter("reserve", request)
        place = (request["tenant"], request["job_type"], request["key"])
        if place not in self.keys:
            self.keys[place] = (request["job_id"], request["body_sha256"], False)
        job_id, digest, accepted = self.keys[place]
        if digest != request["body_sha256"]:
            raise Refused("IDEMPOTENCY_CONFLICT", "the key was used with another body", job_id=job_id)
        if not accepted:
            return {"job_id": job_id, "accepted": False, "resource_count": 0, "manifest_key": ""}
        facts = self.jobs[job_id]["facts"]
        return {"job_id": job_id, "accepted": True, "resource_count": facts["resource_count"], "manifest_key": facts["manifest_key"]}

    async def release(self, request: dict[str, Any]) -> None:
        self._enter("release", request)
        place = (request["tenant"], request["job_type"], request["key"])
        if place in self.keys and not self.keys[place][2]:
            del self.keys[place]
        self.release_seen.set()

    async def accept(self, facts: dict[str, Any], tasks: Any, manifest: bytes | None) -> dict[str, Any]:
        self._enter("accept", facts)
        reservation = facts["reservation"]
        if reservation is not None:
            place = (facts["tenant"], facts["job_type"], reservation["key"])
            job_id, digest, accepted = self.keys.get(place, (facts["job_id"], reservation["body_sha256"], False))
            if digest != reservation["body_sha256"]:
                raise Refused("IDEMPOTENCY_CONFLICT", "the key was used with another body", job_id=job_id)
            if accepted:
                earlier = self.jobs[job_id]["facts"]
                return {
                    "job_id": job_id,
                    "created": False,
                    "resource_count": earlier["resource_count"],
                    "manifest_key": earlier["manifest_key"],
                }
            self.keys[place] = (facts["job_id"], digest, True)
        self.jobs[facts["job_id"]] = {"facts": facts, "tasks": tasks, "manifest": manifest}
        return {
            "job_id": facts["job_id"],
            "created": True,
            "resource_count": facts["resource_count"],
            "manifest_key": facts["manifest_key"],
        }

    async def cancel(self, job_id: str, tenant: str | None) -> bytes:
        self._enter("cancel", (job_id, tenant))
        return orjson.dumps({**self._view(self._job(job_id, tenant)), "status": "cancelled"})

    def _job(self, job_id: str, tenant: str | None) -> dict[str, Any]:
        job = self.jobs.get(job_id)
        if job is None or (tenant is not None and job["facts"]["tenant"] != tenant):
            raise Refused("NOT_FOUND", "there is no such job")
        return job

    @staticmethod
    def _view(job: dict[str, Any]) -> dict[str, Any]:
        facts = job["facts"]
        return {"job_id": facts["job_id"], "status": "queued", "tenant": facts["tenant"], "job_type": facts["job_type"]}


class Ingress:
    """The application over the fakes, with a client."""

    def __init__(self, *, manifests: Manifests | None = None, **sections: Any) -> None:
        self.hub = FakeHub()
        self.core = FakeCore()
        self.app: Starlette = create_app(
            Config.model_validate({"data_dir": "/tmp/fetchbox-test", "storage": {"url": "file:///tmp/fetchbox-test/assets"}, **sections}),
            self.hub,
            core=self.core,
            manifests=manifests,
        )
        transport = httpx.ASGITransport(self.app, raise_app_exceptions=True)
        self.client = httpx.AsyncClient(transport=transport, base_url="http://test")

    async def post(self, body: Any = None, **headers: str) -> httpx.Response:
        """Posts a manifest; header names with underscores for hyphens."""
        content = body if isinstance(body, bytes) else json.dumps(manifest() if body is None else body).encode()
        named = {"content-type": "application/json"} | {name.replace("_", "-"): value for name, value in headers.items()}
        return await self.client.post("/jobs", content=content, headers=named)


def manifest(count: int = 1, **changes: Any) -> dict[str, Any]:
    """A good manifest."""
    return {
        "manifest_version": "v1",
        "metadata": {"page": "https://example.com/"},
        "resources": [{"url": f"https://example.com/{index}"} for index in range(count)],
        **changes,
    }


def error_code(response: httpx.Response) -> str:
    """The code of a refusal, after a look at its shape."""
    error = response.json()["error"]
    assert set(error) <= {"code", "message", "job_id", "details"}
    assert error["message"]
    assert response.headers["x-request-id"]
    return str(error["code"])
