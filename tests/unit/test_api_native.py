"""The ingress with the real compiler: every fault of a manifest is a 400 with a pointer, and nothing is stored."""

from __future__ import annotations

import json
from typing import Any

import httpx
import pytest
from tests.unit.api_fakes import FakeHub, error_code, manifest

from fetchbox.api import create_app
from fetchbox.config import Config

_core = pytest.importorskip("fetchbox._core", reason="the native module is not built")

SAMPLES = "tests.unit.handler_samples"


class Native:
    """The ingress over the real compiler and a hub in memory."""

    def __init__(self, **sections: Any) -> None:
        self.hub = FakeHub()
        app = create_app(Config.model_validate({"storage": {"url": "file:///tmp/fetchbox-test"}, **sections}), self.hub)
        self.service = app.state.service
        self.client = httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test")

    async def post(self, body: bytes, **headers: str) -> httpx.Response:
        named = {"content-type": "application/json"} | {name.replace("_", "-"): value for name, value in headers.items()}
        return await self.client.post("/jobs", content=body, headers=named)


@pytest.fixture
def native() -> Native:
    return Native()


def one(**resource: Any) -> bytes:
    return json.dumps({"manifest_version": "v1", "metadata": {}, "resources": [{"url": "https://example.com/", **resource}]}).encode()


def resources(*items: Any) -> bytes:
    return json.dumps({"manifest_version": "v1", "metadata": {}, "resources": list(items)}).encode()


GOOD = {"url": "https://example.com/"}

FAULTS: dict[str, tuple[bytes, str]] = {
    "empty body": (b"", ""),
    "no JSON": (b"{", ""),
    "not an object": (b"[]", ""),
    "two documents": (b"{}{}", ""),
    "no version": (b'{"metadata":{},"resources":[{"url":"https://example.com/"}]}', "/manifest_version"),
    "another version": (b'{"manifest_version":"v2","resources":[{"url":"https://example.com/"}]}', "/manifest_version"),
    "no metadata": (b'{"manifest_version":"v1","resources":[{"url":"https://example.com/"}]}', "/metadata"),
    "no resources": (b'{"manifest_version":"v1","metadata":{}}', "/resources"),
    "0 resources": (resources(), "/resources"),
    "1001 resources": (resources(*({"url": f"https://example.com/{i}"} for i in range(1001))), "/resources"),
    "duplicate ids": (resources({**GOOD, "id": "a"}, {**GOOD, "id": "a"}), "/resources/1/id"),
    "129 characters of id": (one(id="x" * 129), "/resources/0/id"),
    "empty id": (one(id=""), "/resources/0/id"),
    "url of the wrong type": (resources({"url": 7}), "/resources/0/url"),
    "headers of the wrong type": (one(headers=["a"]), "/resources/0/headers"),
    "metadata of the wrong type": (b'{"manifest_version":"v1","metadata":[],"resources":[{"url":"https://example.com/"}]}', "/metadata"),
    "invalid header name": (one(headers={"bad name": "x"}), "/resources/0/headers/bad name"),
    "header with a line end": (one(headers={"x": "a\r\nb: c"}), "/resources/0/headers/x"),
    "header value too long": (one(headers={"x": "a" * 8001}), "/resources/0/headers/x"),
    "33 headers": (one(headers={f"x{i}": "a" for i in range(33)}), "/resources/0/headers"),
    "userinfo": (one(url="https://user:secret@example.com/"), "/resources/0/url"),
    "backslash": (one(url="https://example.com\\a"), "/resources/0/url"),
    "NUL": (one(url="https://example.com/\0"), "/resources/0/url"),
    "tab": (one(url="https://exa\tmple.com/"), "/resources/0/url"),
    "full-width dot": (one(url="https://127\uff0e0.0.1/"), "/resources/0/url"),
    "file scheme": (one(url="file:///etc/passwd"), "/resources/0/url"),
    "no scheme": (one(url="example.com/a"), "/resources/0/url"),
    "duplicate JSON keys": (
        b'{"manifest_version":"v1","metadata":{},"resources":[{"url":"https://a.example/","url":"https://b.example/"}]}',
        "/resources/0/url",
    ),
    "NaN": (b'{"manifest_version":"v1","metadata":{"a":NaN},"resources":[{"url":"https://example.com/"}]}', "/metadata"),
    "lone surrogate": (b'{"manifest_version":"v1","metadata":{"a":"\\ud800"},"resources":[{"url":"https://example.com/"}]}', "/metadata/a"),
    "not UTF-8": (b'{"manifest_version":"v1","metadata":{"a":"\xff"},"resources":[{"url":"https://example.com/"}]}', ""),
    "depth 10,000": (b'{"manifest_version":"v1","metadata":{"a":' + b"[" * 10_000 + b"]" * 10_000 + b'},"resources":[]}', ""),
}


@pytest.mark.parametrize("fault", FAULTS)
async def test_a_fault_is_400_with_a_pointer_and_nothing_stored(native: Native, fault: str) -> None:
    body, pointer = FAULTS[fault]
    response = await native.post(body, Idempotency_Key="k")
    assert (response.status_code, error_code(response)) == (400, "INVALID_PAYLOAD")
    details = response.json()["error"]["details"]
    assert all(set(detail) == {"pointer", "code", "message"} for detail in details)
    assert any(detail["pointer"].startswith(pointer) for detail in details), details
    assert native.hub.calls == []


async def test_all_faults_are_named_at_once(native: Native) -> None:
    response = await native.post(resources({"url": 1}, GOOD, {"url": "ftp://example.com/"}, {**GOOD, "id": ""}))
    pointers = {detail["pointer"] for detail in response.json()["error"]["details"]}
    assert {"/resources/0/url", "/resources/2/url", "/resources/3/id"} <= pointers


@pytest.mark.parametrize("id", [".", "..", "a/b", "../../etc", "é" * 128, "💾", " ", "%2e"])
async def test_any_printable_id_is_accepted(native: Native, id: str) -> None:
    assert (await native.post(one(id=id))).status_code == 202


async def test_a_large_manifest_of_1000_is_accepted(native: Native) -> None:
    response = await native.post(json.dumps(manifest(1000, metadata={"text": "x" * 300_000})).encode())
    assert (response.status_code, response.json()["resource_count"]) == (202, 1000)


async def test_facts_come_from_the_attributes(native: Native) -> None:
    body = manifest(attributes={"crawl_id": "c", "priority": 5, "callback_url": "https://example.com/hook", "tenant": "acme"})
    job_id = (await native.post(json.dumps(body).encode())).json()["job_id"]
    facts = native.hub.jobs[job_id]["facts"]
    assert (facts["crawl_id"], facts["priority"], facts["callback_url"], facts["tenant"]) == ("c", 5, "https://example.com/hook", "acme")


async def test_a_handlers_tasks_are_compiled_with_the_jobs_facts() -> None:
    native = Native(job_types={"h": {"handler": f"{SAMPLES}:Doubling", "options": {"prefix": "p"}}})
    body = json.dumps(manifest(3, attributes={"crawl_id": "c"})).encode()
    response = await native.post(body, X_Fetchbox_Job_Type="h")
    assert (response.status_code, response.json()["resource_count"]) == (202, 4)
    assert native.hub.jobs[response.json()["job_id"]]["facts"]["crawl_id"] == "c"
    native.service.handlers.close()


@pytest.mark.parametrize("name", ["WrongUrl", "NotJson"])
async def test_a_handlers_invalid_tasks_are_500(name: str) -> None:
    native = Native(job_types={"h": {"handler": f"{SAMPLES}:{name}"}})
    response = await native.post(one(), X_Fetchbox_Job_Type="h")
    assert (response.status_code, error_code(response)) == (500, "HANDLER_BAD_TASK")
    native.service.handlers.close()


async def test_the_curl_transport_takes_its_own_schemes() -> None:
    native = Native(job_types={"old": {"transport": "curl"}})
    assert (await native.post(one(url="ftp://example.com/a"), X_Fetchbox_Job_Type="old")).status_code == 202
    assert (await native.post(one(url="ftp://example.com/a"))).status_code == 400
