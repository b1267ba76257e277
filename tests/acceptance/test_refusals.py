"""Every refusal over real HTTP: the right status and code, the one shape, and nothing left behind."""

from __future__ import annotations

import gzip
import json
import os
import random
import socket
import struct
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import zstandard

from tests.process.client import Client
from tests.process.origins import OriginProcess
from tests.process.service import Service
from tests.process.waiting import pause

URL = "http://files.example/a"


def document(**changes: object) -> dict[str, Any]:
    """A good manifest with changes."""
    return {"manifest_version": "v1", "metadata": {}, "resources": [{"url": URL}], **changes}


def with_resources(*resources: object) -> bytes:
    """A manifest of these resources."""
    return json.dumps(document(resources=list(resources))).encode()


def nested(depth: int) -> bytes:
    """A manifest whose metadata is that deep."""
    return b'{"manifest_version":"v1","metadata":' + b'{"a":' * depth + b"1" + b"}" * depth + b',"resources":[{"url":"http://a.example/"}]}'


INVALID: dict[str, tuple[bytes, str]] = {
    "no JSON": (b"{", ""),
    "nothing": (b"", ""),
    "not an object": (b"[]", ""),
    "not UTF-8": (b'{"manifest_version":"v1","metadata":{"a":"\xff"},"resources":[{"url":"http://a.example/"}]}', ""),
    "NaN": (b'{"manifest_version":"v1","metadata":{"a":NaN},"resources":[{"url":"http://a.example/"}]}', ""),
    "Infinity": (b'{"manifest_version":"v1","metadata":{"a":-Infinity},"resources":[{"url":"http://a.example/"}]}', ""),
    "lone surrogate": (b'{"manifest_version":"v1","metadata":{"a":"\\ud800"},"resources":[{"url":"http://a.example/"}]}', ""),
    "a key twice": (b'{"manifest_version":"v1","manifest_version":"v1","metadata":{},"resources":[{"url":"http://a.example/"}]}', ""),
    "too deep": (nested(10_000), ""),
    "trailing text": (with_resources({"url": URL}) + b"x", ""),
    "wrong version": (json.dumps(document(manifest_version="v2")).encode(), "/manifest_version"),
    "no version": (b'{"metadata":{},"resources":[{"url":"http://a.example/"}]}', "/manifest_version"),
    "metadata of a wrong type": (json.dumps(document(metadata=[])).encode(), "/metadata"),
    "no resources": (with_resources(), "/resources"),
    "too many resources": (with_resources(*({"url": f"{URL}{n}"} for n in range(1001))), "/resources"),
    "resources of a wrong type": (json.dumps(document(resources={})).encode(), "/resources"),
    "a resource of a wrong type": (with_resources({"url": URL}, "http://b.example/"), "/resources/1"),
    "no url": (with_resources({"id": "a"}), "/resources/0/url"),
    "a url of a wrong type": (with_resources({"url": 5}), "/resources/0/url"),
    "an empty url": (with_resources({"url": ""}), "/resources/0/url"),
    "a relative url": (with_resources({"url": "/a"}), "/resources/0/url"),
    "another scheme": (with_resources({"url": "file:///etc/passwd"}), "/resources/0/url"),
    "userinfo": (with_resources({"url": "http://ann:pw@files.example/"}), "/resources/0/url"),
    "CR and LF in a url": (with_resources({"url": "http://files.example/\r\nX: y"}), "/resources/0/url"),
    "NUL in a url": (with_resources({"url": "http://files.example/\0"}), "/resources/0/url"),
    "a backslash in a host": (with_resources({"url": "http://files.example\\@evil.example/"}), "/resources/0/url"),
    "an empty id": (with_resources({"url": URL, "id": ""}), "/resources/0/id"),
    "an id of 129 characters": (with_resources({"url": URL, "id": "x" * 129}), "/resources/0/id"),
    "an id of a wrong type": (with_resources({"url": URL, "id": 5}), "/resources/0/id"),
    "an id twice": (with_resources({"url": URL, "id": "a"}, {"url": URL, "id": "a"}), "/resources/1/id"),
    "an id that another has by default": (with_resources({"url": URL, "id": "1"}, {"url": URL}), ""),
    "a header name with a space": (with_resources({"url": URL, "headers": {"a b": "c"}}), "/resources/0/headers/a b"),
    "a header value with LF": (with_resources({"url": URL, "headers": {"a": "b\nc"}}), "/resources/0/headers/a"),
    "a header value too long": (with_resources({"url": URL, "headers": {"a": "b" * 8193}}), "/resources/0/headers/a"),
    "too many headers": (with_resources({"url": URL, "headers": {f"h{n}": "v" for n in range(33)}}), "/resources/0/headers"),
    "a header value of a wrong type": (with_resources({"url": URL, "headers": {"a": 1}}), "/resources/0/headers/a"),
    "a tag of a wrong type": (with_resources({"url": URL, "tags": {"a": 1}}), "/resources/0/tags/a"),
    "a bad checksum": (with_resources({"url": URL, "tags": {"checksum_hint": "sha256:abc"}}), "/resources/0/tags/checksum_hint"),
    "a key that leaves its place": (with_resources({"url": URL, "key": "../x"}), "/resources/0/key"),
    "attributes of a wrong type": (json.dumps(document(attributes=[])).encode(), "/attributes"),
}


@pytest.fixture(autouse=True)
def nothing_left_behind(request: pytest.FixtureRequest) -> Iterator[None]:
    """No refused post may leave a job or a file."""
    if "guarded" in request.fixturenames:
        running: Service = request.getfixturevalue("guarded")
        client = Client(running.url, {"x-fetchbox-operator-token": OPERATOR})
        yield
        assert client.jobs() == []
        client.close()
    else:
        running = request.getfixturevalue("service")
        yield
        assert running.http.jobs() == []
    assert not [path for path in running.assets.rglob("*") if path.is_file()]


def refusal(response: httpx.Response, status: int, code: str) -> dict[str, Any]:
    """The error of a response, which must have this status and code and the one shape."""
    assert response.status_code == status, response.text
    assert response.headers["content-type"].startswith("application/json")
    assert response.headers["x-request-id"]
    error: dict[str, Any] = response.json()["error"]
    assert error["code"] == code, error
    assert error["message"]
    assert set(error) <= {"code", "message", "job_id", "details"}
    return error


@pytest.mark.parametrize("name", INVALID)
def test_case_32_an_invalid_manifest_is_400_with_a_pointer(service: Service, name: str) -> None:
    body, pointer = INVALID[name]
    error = refusal(service.http.post(body, key=f"invalid {name}"), 400, "INVALID_PAYLOAD")
    assert error["details"], error
    assert all({"pointer", "code", "message"} <= set(detail) for detail in error["details"])
    if pointer:
        assert pointer in [detail["pointer"] for detail in error["details"]], error


def test_case_32_every_fault_is_named_at_once(service: Service) -> None:
    body = with_resources({"url": "ftp:/x", "id": ""}, {"url": URL, "headers": {"a b": "c"}}, {"id": "a"})
    error = refusal(service.http.post(body), 400, "INVALID_PAYLOAD")
    pointers = {detail["pointer"] for detail in error["details"]}
    assert {"/resources/0/url", "/resources/0/id", "/resources/1/headers/a b", "/resources/2/url"} <= pointers


WRONG_TYPES = [None, "text/plain", "application/x-www-form-urlencoded", "application/jsonp", "application/json; charset=latin-1"]


@pytest.mark.parametrize("value", WRONG_TYPES)
def test_another_content_type_is_415(service: Service, value: str | None) -> None:
    request = service.http.http.build_request("POST", "/jobs", content=with_resources({"url": URL}))
    request.headers.pop("content-type", None)
    if value is not None:
        request.headers["content-type"] = value
    refusal(service.http.http.send(request), 415, "UNSUPPORTED_MEDIA_TYPE")


@pytest.mark.parametrize("value", ["br", "deflate", "gzip, gzip", "nonsense"])
def test_case_33_another_content_encoding_is_415(service: Service, value: str) -> None:
    response = service.http.post(with_resources({"url": URL}), headers={"content-encoding": value})
    refusal(response, 415, "UNSUPPORTED_MEDIA_TYPE")


@pytest.mark.parametrize("encoding", ["gzip", "zstd"])
def test_a_damaged_compressed_body_is_400(service: Service, encoding: str) -> None:
    whole = gzip.compress(with_resources({"url": URL})) if encoding == "gzip" else zstandard.compress(with_resources({"url": URL}))
    for damaged in (whole[:-3], b"\0" * 40, b""):
        refusal(service.http.post(damaged, headers={"content-encoding": encoding}), 400, "INVALID_PAYLOAD")


def pieces(size: int) -> Iterator[bytes]:
    """A body of that many bytes without a Content-Length."""
    for _ in range(size // 65_536 + 1):
        yield b" " * 65_536


def test_case_33_too_large_is_413_with_and_without_a_length(service: Service) -> None:
    headers = {"content-type": "application/json"}
    refusal(service.http.http.post("/jobs", content=b" " * 5_000_001, headers=headers), 413, "PAYLOAD_TOO_LARGE")
    refusal(service.http.http.post("/jobs", content=pieces(5_000_001), headers=headers), 413, "PAYLOAD_TOO_LARGE")


@pytest.mark.parametrize("encoding", ["gzip", "zstd"])
def test_case_33_a_bomb_is_413_at_a_bounded_cost(service: Service, encoding: str) -> None:
    plain = b" " * (256 << 20)
    bomb = gzip.compress(plain, 6) if encoding == "gzip" else zstandard.compress(plain)
    api = service.a_process("api")
    before = resident(api.pid)
    refusal(service.http.post(bomb, headers={"content-encoding": encoding}), 413, "PAYLOAD_TOO_LARGE")
    assert resident(api.pid) - before < 64 << 20, "the bomb went off in memory"


def resident(pid: int) -> int:
    """Highest resident memory of a process so far, in bytes."""
    with open(f"/proc/{pid}/status") as file:
        line = next(line for line in file if line.startswith("VmHWM"))
    return int(line.split()[1]) * 1024


def test_an_unknown_job_type_is_403(service: Service) -> None:
    response = service.http.post(with_resources({"url": URL}), headers={"x-fetchbox-job-type": "nonsense"})
    refusal(response, 403, "UNSUPPORTED_JOB_TYPE")


@pytest.mark.parametrize("key", ["", "x" * 1000])
def test_a_bad_idempotency_key_is_400(service: Service, key: str) -> None:
    refusal(service.http.post(with_resources({"url": URL}), headers={"idempotency-key": key}), 400, "INVALID_PAYLOAD")


def test_paths_and_methods_that_are_not_there(service: Service) -> None:
    refusal(service.http.http.get("/nonsense"), 404, "NOT_FOUND")
    refused = service.http.http.delete("/jobs")
    refusal(refused, 405, "METHOD_NOT_ALLOWED")
    assert "POST" in refused.headers["allow"]


def test_a_client_that_leaves_early_leaves_nothing(service: Service) -> None:
    port = int(service.url.rpartition(":")[2])
    head = b"POST /jobs HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\nContent-Length: 1000\r\n\r\n"
    for part in (head[:30], head, head + b'{"manifest_version":'):
        with socket.create_connection(("127.0.0.1", port), timeout=5) as connection:
            connection.sendall(part)
    assert service.http.status("/health/ready") == 200


@pytest.mark.parametrize(
    "request_bytes",
    [
        b"POST /jobs HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"POST /jobs HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nhello",
        b"POST /jobs HTTP/1.1\r\nHost: a\r\nContent-Length: -1\r\n\r\n",
        b"nonsense\r\n\r\n",
    ],
)
def test_case_35_broken_framing_ends_the_connection(service: Service, request_bytes: bytes) -> None:
    port = int(service.url.rpartition(":")[2])
    with socket.create_connection(("127.0.0.1", port), timeout=15) as connection:
        connection.sendall(request_bytes)
        answer = b""
        while part := connection.recv(65_536):
            answer += part
    assert not answer or b" 400 " in answer.split(b"\r\n")[0], answer[:200]


# ---- with tokens and a rate limit ------------------------------------------------------------------------------------------------

OPERATOR = "operator-" + os.urandom(8).hex()


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """A service with tokens for two tenants and for the operator."""
    server = {"api_tokens": {"token-a": "a", "token-b": "b"}, "operator_token": OPERATOR, "rate_limit": "1/s"}
    with Service(tmp_path_factory.mktemp("guarded"), {"server": server, "worker": {"processes": 0}}).start() as running:
        yield running
        running.end()


@pytest.mark.parametrize("value", [None, "Bearer wrong", "Bearer", "Basic dG9rZW4tYTo=", "token-a", "Bearer token-a token-b"])
def test_case_36_no_or_a_wrong_token_is_401(guarded: Service, value: str | None) -> None:
    headers = {} if value is None else {"authorization": value}
    refused = guarded.http.post(with_resources({"url": URL}), headers=headers)
    refusal(refused, 401, "UNAUTHORIZED")
    assert refused.headers["www-authenticate"].startswith("Bearer")


def test_another_tenant_in_the_header_is_403(guarded: Service) -> None:
    headers = {"authorization": "Bearer token-a", "x-fetchbox-tenant": "b"}
    refusal(guarded.http.post(with_resources({"url": URL}), headers=headers), 403, "FORBIDDEN")


@pytest.mark.parametrize("headers", [{}, {"x-fetchbox-operator-token": "wrong"}, {"authorization": "Bearer token-a"}])
def test_case_36_the_operator_needs_a_token(guarded: Service, headers: dict[str, str]) -> None:
    for path in ("/operators/jobs", "/operators/health", "/operators/dlq"):
        assert guarded.http.http.get(path, headers=headers).status_code in (401, 403)
    assert guarded.http.http.get("/operators/jobs", headers={"authorization": f"Bearer {OPERATOR}"}).status_code == 200


def midnight_passed() -> None:
    """Waits while a day (UTC) is about to end: quotas begin anew then."""
    while time.time() % 86_400 > 86_400 - 60:
        pause(1)


class TestAccepted:
    """Tests that do leave jobs; each has a service of its own."""

    @pytest.fixture(autouse=True)
    def nothing_left_behind(self) -> None:
        """Not here."""

    def test_case_36_and_37_another_tenants_job_is_404_and_too_many_are_429(self, tmp_path_factory: pytest.TempPathFactory) -> None:
        server = {"api_tokens": {"token-a": "a", "token-b": "b"}, "operator_token": OPERATOR, "rate_limit": "1/s"}
        overrides = {"server": server, "worker": {"processes": 0}}
        with Service(tmp_path_factory.mktemp("limited"), overrides).start() as service:
            a, b = ({"authorization": f"Bearer token-{tenant}"} for tenant in "ab")
            job_id = service.http.post(with_resources({"url": URL}), headers=a).json()["job_id"]
            assert service.http.http.get(f"/jobs/{job_id}", headers=a).status_code == 200
            for path in ("", "/resources", "/logs"):
                refusal(service.http.http.get(f"/jobs/{job_id}{path}", headers=b), 404, "NOT_FOUND")
            refusal(service.http.http.post(f"/jobs/{job_id}/cancel", headers=b), 404, "NOT_FOUND")
            answers = [service.http.post(with_resources({"url": URL}), headers=a) for _ in range(20)]
            limited = [answer for answer in answers if answer.status_code != 202]
            assert limited, "20 jobs at once at 1/s"
            refusal(limited[0], 429, "RATE_LIMITED")
            assert int(limited[0].headers["retry-after"]) >= 1
            assert service.http.post(with_resources({"url": URL}), headers=b).status_code == 202, "the limit is per tenant"
            accepted = 2 + sum(answer.status_code == 202 for answer in answers)
            operator = Client(service.url, {"x-fetchbox-operator-token": OPERATOR})
            assert len(operator.jobs()) == accepted, "what was limited left nothing"
            operator.close()
            service.end()

    def test_case_37_resources_and_bytes_of_a_tenant_are_limited(self, tmp_path: Path) -> None:
        """Each tenant by itself, some by limits of their own; the bytes of a day are not forgotten by a restart."""
        midnight_passed()
        overrides: dict[str, Any] = {
            "server": {"resource_rate_limit": "5/s", "max_resources": 20, "rate_limit": 0},
            "tenants": {"big": {"resource_rate_limit": 0}, "small": {"resource_rate_limit": 0, "daily_bytes": "25KB"}},
        }
        with OriginProcess(tmp_path) as origin, Service(tmp_path / "service", overrides).start() as service:

            def post(tenant: str, *urls: str) -> httpx.Response:
                return service.http.post(with_resources(*({"url": url} for url in urls)), headers={"x-fetchbox-tenant": tenant})

            def limited(response: httpx.Response, name: str, policies: str, most: int) -> None:
                refusal(response, 429, "RATE_LIMITED")
                wait = int(response.headers["retry-after"])
                assert 1 <= wait <= most
                assert response.headers["ratelimit-policy"] == policies
                assert response.headers["ratelimit"] == f'"{name}";r=0;t={wait}'

            twenty = [f"{origin.base_url}/bytes/10?n={number}" for number in range(20)]
            assert post("a", *twenty).status_code == 202, "a whole manifest passes at once"
            limited(post("a", *twenty), "resources", '"resources";q=5;w=1', 4)
            assert post("b", *twenty).status_code == 202, "another tenant's bucket is full"
            assert [post("big", *twenty).status_code for _ in range(5)] == [202] * 5, "this one has no limit"
            job_id = post("small", *(f"{origin.base_url}/bytes/10000?n={number}" for number in range(3))).json()["job_id"]
            assert service.http.await_job(job_id, 30, describe=service.dump)["bytes_stored"] == 30_000
            policies = '"bytes";q=25000;w=86400;qu="content-bytes"'
            limited(post("small", twenty[0]), "bytes", policies, 86_400)
            service.kill_tree()
            service.start()
            limited(post("small", twenty[0]), "bytes", policies, 86_400)
            assert post("big", twenty[0]).status_code == 202
            service.end()

    def test_case_39_a_client_that_is_gone_before_the_answer_left_a_whole_job_or_none(self, tmp_path: Path) -> None:
        chance = random.Random(39)
        with Service(tmp_path / "service", {"worker": {"processes": 0}}).start() as service:
            port = int(service.url.rpartition(":")[2])
            bodies = {f"gone {n}": with_resources(*({"url": f"{URL}{n}-{index}"} for index in range(3))) for n in range(60)}
            for key, body in bodies.items():
                head = f"POST /jobs HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\nIdempotency-Key: {key}\r\n"
                with socket.create_connection(("127.0.0.1", port), timeout=5) as connection:
                    # Closing resets the connection: nobody is there any more, and the service is told.
                    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                    connection.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
                    pause(chance.choice([0, 0.0005, 0.001, 0.002, 0.005]))
            # A post that nobody waits for is either done by now or never will be: this one came after all of them.
            assert service.http.post(with_resources({"url": URL}), key="last").status_code == 202
            left = service.http.jobs()
            for job in left:
                assert len(service.http.resources(job["job_id"])) == job["resource_total"] == job["resource_pending"]
                assert len(service.http.get(f"/operators/jobs/{job['job_id']}/manifest")["resources"]) == job["resource_total"]
            answers = [service.http.post(body, key=key) for key, body in bodies.items()]
            assert {answer.status_code for answer in answers} <= {200, 202}
            assert len({answer.json()["job_id"] for answer in answers}) == len(bodies)
            again = sum(answer.status_code == 200 for answer in answers)
            assert len(left) - 1 <= again, "a job that was there is the one of its key"
            assert len(service.http.jobs()) == len(bodies) + 1
            service.end()

    @pytest.mark.parametrize("encoding", ["gzip", "zstd"])
    def test_a_compressed_manifest_is_the_same_manifest(self, tmp_path_factory: pytest.TempPathFactory, encoding: str) -> None:
        body = with_resources({"url": URL, "id": "é"})
        packed = gzip.compress(body) if encoding == "gzip" else zstandard.compress(body)
        with Service(tmp_path_factory.mktemp("packed"), {"worker": {"processes": 0}}).start() as service:
            first = service.http.post(packed, key="packed", headers={"content-encoding": encoding})
            assert first.status_code == 202, first.text
            again = service.http.post(body, key="packed")
            assert (again.status_code, again.json()) == (200, first.json()), "the key stands for the decompressed body"
            assert service.http.get(f"/operators/jobs/{first.json()['job_id']}/manifest") == json.loads(body)
            service.end()
