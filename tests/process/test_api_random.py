"""The API under requests that no document describes: hypothesis makes them up, and every answer is one of ours.

`FETCHBOX_TEST_REQUESTS=100000` makes it long.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fetchbox.api.openapi import document
from tests.process.service import Service

REQUESTS: Final = int(os.environ.get("FETCHBOX_TEST_REQUESTS", "600"))
HEADERS: Final = {"x-fetchbox-operator-token": "op"}
PATHS: Final = [*document()["paths"], "/metrics", "/jobs/", "/operators", "/nonsense"]
OPERATIONS: Final = [(method.upper(), path) for path, item in document()["paths"].items() for method in item] + [("POST", "/jobs")] * 5
METHODS: Final = ["GET", "POST", "HEAD", "PUT", "DELETE", "PATCH", "OPTIONS", "BREW"]
NAMES: Final = ["limit", "cursor", "state", "status", "tenant", "since", "since_offset", "job", "code", "host", "id", "by", "replayed", "x"]
FIELDS: Final = [
    *("content-type", "content-encoding", "accept", "last-event-id", "traceparent", "x-request-id", "range", "expect-nothing"),
    *("idempotency-key", "x-fetchbox-job-type", "x-fetchbox-tenant", "x-fetchbox-idempotency-key", "authorization", "if-none-match"),
]
GOOD: Final = {"manifest_version": "v1", "metadata": {}, "resources": [{"url": "http://127.0.0.1:1/a"}], "attributes": {}}
ORDER: Final = {"filter": {}, "dry_run": True, "headers": {"a": "b"}, "url_replace": {"a": "b"}}

words = st.text(max_size=20) | st.sampled_from(["", "0", "-1", "true", "null", "1e309", "\0", "é", "v1", "failed", "7d", "A" * 3000])
scalars = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | words
values = st.recursive(scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(words, inner, max_size=3), max_leaves=6)
visible = st.text(st.characters(min_codepoint=33, max_codepoint=126), max_size=30)


@st.composite
def bodies(draw: st.DrawFn) -> bytes:
    """A good document with some of its values replaced, or some of its bytes, or anything at all."""
    if draw(st.integers(0, 9)) == 0:
        return draw(st.binary(max_size=200))
    changed: dict[str, Any] = json.loads(json.dumps(draw(st.sampled_from([GOOD, ORDER]))))
    for key in draw(st.lists(st.sampled_from([*GOOD, *ORDER, "more"]), max_size=2)):
        changed[key] = draw(values)
    if "resources" in changed and draw(st.booleans()):
        changed["resources"] = [
            {"url": "http://127.0.0.1:1/a", draw(st.sampled_from(["url", "id", "headers", "tags", "key", "x"])): draw(values)}
        ]
    if "filter" in changed and draw(st.booleans()):
        changed["filter"] = {draw(st.sampled_from(NAMES)): draw(values)}
    body = json.dumps(changed).encode()
    if draw(st.integers(0, 4)) == 0:
        at = draw(st.integers(0, len(body)))
        body = body[:at] + draw(st.binary(max_size=4)) + body[at + draw(st.integers(0, 3)) :]
    return body


def allowed(path: str, method: str) -> set[int]:
    """The statuses that the document knows for a path as it was sent, and those of paths and methods that are not there."""
    described = document()["paths"].get(path, {}).get("get" if method == "HEAD" else method.lower(), {})
    return {int(status) for status in described.get("responses", ())} | {400, 404, 405}


@pytest.mark.slow
@pytest.mark.timeout(120 + REQUESTS / 20)
def test_whatever_is_asked_the_answer_is_ours(tmp_path: Path) -> None:
    answers: Counter[int] = Counter()
    overrides = {"server": {"operator_token": "op", "rate_limit": 0}, "worker": {"processes": 0}}
    with Service(tmp_path, overrides, headers=HEADERS).start() as service:
        job_id = service.http.post(json.dumps(GOOD).encode()).json()["job_id"]

        @given(
            operation=st.sampled_from(OPERATIONS)
            | st.sampled_from(OPERATIONS)
            | st.tuples(st.sampled_from(METHODS), st.sampled_from(PATHS)),
            name=st.just(job_id) | words,
            query=st.lists(st.tuples(st.sampled_from(NAMES), words), max_size=3),
            fields=st.dictionaries(
                st.sampled_from(FIELDS), visible | st.sampled_from(["application/json", "gzip", "zstd", "default"]), max_size=3
            ),
            body=bodies(),
        )
        @settings(max_examples=REQUESTS, derandomize=True, database=None, deadline=None, suppress_health_check=list(HealthCheck))
        def ask(operation: tuple[str, str], name: str, query: list[tuple[str, str]], fields: dict[str, str], body: bytes) -> None:
            method, path = operation
            target = path.replace("{job_id}", quote(name, safe="")).replace("{entry_id}", quote(name, safe=""))
            if path.endswith("/logs"):
                # Of a job without an end; one record of it ends the stream.
                query = [("limit", "1")]
                fields = {key: value for key, value in fields.items() if key != "last-event-id"}
            sent = {"content-type": "application/json", **HEADERS, **fields}
            content = None if method == "GET" else body
            answer = service.http.http.request(method, target, params=httpx.QueryParams(tuple(query)), headers=sent, content=content)
            answers[answer.status_code] += 1
            assert answer.status_code in allowed(path, method), f"{method} {target}: {answer.status_code} {answer.text[:300]}"
            assert answer.headers["x-request-id"]
            if answer.status_code >= 400 and method != "HEAD" and "/health/" not in path and path != "/operators/health":
                assert set(answer.json()) == {"error"}

        try:
            ask()
        except httpx.HTTPError as error:
            raise AssertionError(f"no answer: {error!r}\n{service.dump()}") from error
        assert service.ready()
        service.end()
        assert "Traceback" not in service.log_path.read_text()
    print(f"\n{sum(answers.values())} requests: {dict(sorted(answers.items()))}")
    assert not [status for status in answers if status >= 500 and status != 503]
