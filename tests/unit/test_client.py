"""The clients: what they send, what they try again, what they make of answers."""

from __future__ import annotations

import asyncio
import gzip
import inspect
import json
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import httpx
import pytest
from tests.unit.api_fakes import Ingress, manifest

from fetchbox.client import AsyncClient, Client, ResourceOutcome, exchange
from fetchbox.errors import Refused, ServiceUnavailable, UsageError

ACCEPTED = {"job_id": "j", "manifest_key": "file:///m", "resource_count": 1}
Answer = Callable[[httpx.Request], httpx.Response]


class Script:
    """A service that gives the scripted answers, the last one for ever."""

    def __init__(self, *answers: httpx.Response | Exception | Answer) -> None:
        self.answers = list(answers)
        self.requests: list[httpx.Request] = []

    def __call__(self, request: httpx.Request) -> httpx.Response:
        self.requests.append(request)
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if isinstance(answer, Exception):
            raise answer
        return answer(request) if callable(answer) else answer

    def client(self, **options: Any) -> Client:
        return Client("http://service", transport=httpx.MockTransport(self), **options)


def error(status: int, code: str, retry_after: str | None = None, **more: Any) -> httpx.Response:
    headers = {} if retry_after is None else {"retry-after": retry_after}
    return httpx.Response(status, json={"error": {"code": code, "message": "because", **more}}, headers=headers)


def lines(*offsets: int) -> httpx.Response:
    return httpx.Response(200, text="".join(json.dumps({"offset": at, "message": "m"}) + "\n\n" for at in offsets))


@pytest.fixture(autouse=True)
def _no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exchange, "BACKOFF", (0.0001, 0.0002))
    monkeypatch.setattr(exchange, "POLL", (0.0001, 0.0002))


def test_a_post_carries_a_key_and_says_what_became_of_it() -> None:
    script = Script(httpx.Response(202, json=ACCEPTED))
    with script.client(token="t", tenant="acme") as client:
        taken = client.submit(manifest(), job_type="pdf")
    sent = script.requests[0]
    assert taken.created
    assert taken.idempotency_key == sent.headers["idempotency-key"]
    assert len(taken.idempotency_key) == 36
    assert (sent.headers["authorization"], sent.headers["x-fetchbox-tenant"], sent.headers["x-fetchbox-job-type"]) == (
        "Bearer t",
        "acme",
        "pdf",
    )
    assert sent.headers["content-type"] == "application/json"
    assert json.loads(sent.content) == manifest()


def test_an_earlier_job_is_not_created() -> None:
    with Script(httpx.Response(200, json=ACCEPTED)).client() as client:
        taken = client.submit(b"{}", idempotency_key="mine")
    assert (taken.created, taken.idempotency_key) == (False, "mine")


def test_large_manifests_are_compressed_and_small_ones_are_not() -> None:
    script = Script(httpx.Response(202, json=ACCEPTED))
    large = manifest(metadata={"text": "x" * 70_000})
    with script.client() as client:
        client.submit(large)
        client.submit(manifest())
    assert script.requests[0].headers["content-encoding"] == "gzip"
    assert json.loads(gzip.decompress(script.requests[0].content)) == large
    assert "content-encoding" not in script.requests[1].headers


@pytest.mark.parametrize(
    "trouble",
    [
        error(429, "RATE_LIMITED", "0"),
        error(502, "STORAGE_UNAVAILABLE"),
        error(503, "HUB_UNAVAILABLE", "0"),
        httpx.ConnectError("refused"),
        httpx.ReadError("reset"),
    ],
)
def test_what_may_pass_is_tried_again_with_the_same_key(trouble: httpx.Response | Exception) -> None:
    script = Script(trouble, trouble, httpx.Response(202, json=ACCEPTED))
    with script.client() as client:
        client.submit(manifest())
    assert len(script.requests) == 3
    assert len({request.headers["idempotency-key"] for request in script.requests}) == 1
    assert len({request.content for request in script.requests}) == 1


@pytest.mark.parametrize("status", [400, 401, 403, 404, 409, 413, 415, 500])
def test_what_will_not_pass_is_raised_at_once(status: int) -> None:
    script = Script(error(status, "SOME_CODE", job_id="j", details=[{"pointer": "/a", "code": "c", "message": "m"}]))
    with script.client() as client, pytest.raises(Refused) as caught:
        client.submit(manifest())
    refused = caught.value
    assert (refused.code, refused.message, refused.job_id, refused.status) == ("SOME_CODE", "because", "j", status)
    assert refused.details == [{"pointer": "/a", "code": "c", "message": "m"}]
    assert len(script.requests) == 1


def test_retrying_ends_when_the_service_asks_for_more_time_than_there_is() -> None:
    script = Script(error(503, "LEDGER_FULL", "30"))
    with script.client(retry_for=5) as client, pytest.raises(Refused) as caught:
        client.submit(manifest())
    assert (caught.value.code, caught.value.retry_after) == ("LEDGER_FULL", 30.0)
    assert len(script.requests) == 1


@pytest.mark.parametrize(
    ("named", "seconds"),
    [
        ("0", 0),
        ("17", 17),
        ("86400", 86_400),
        ("Wed, 21 Oct 2015 07:28:00 GMT", 0),
        ("", None),
        ("soon", None),
        ("-1", None),
        ("1.5", None),
    ],
)
def test_retry_after_is_read_as_seconds_or_as_a_date(named: str, seconds: float | None) -> None:
    assert exchange.retry_after(error(429, "RATE_LIMITED", named)) == seconds


def test_retry_after_is_waited_out_and_never_cut_short(monkeypatch: pytest.MonkeyPatch) -> None:
    """A service that asks for two minutes is not asked again after one."""
    slept: list[float] = []
    script = Script(error(429, "RATE_LIMITED", "120"), error(503, "HUB_UNAVAILABLE", "3"), httpx.Response(202, json=ACCEPTED))
    with script.client(retry_for=600) as client:
        monkeypatch.setattr(client._closed, "wait", slept.append)
        client.submit(manifest())
    assert slept == [120.0, 3.0]


def test_nothing_listening_is_said_plainly() -> None:
    with Script(httpx.ConnectError("refused")).client(retry_for=0) as client, pytest.raises(ServiceUnavailable, match="http://service"):
        client.get("j")


def test_an_answer_of_something_else_is_refused() -> None:
    with Script(httpx.Response(404, text="<html>")).client() as client, pytest.raises(Refused) as caught:
        client.get("j")
    assert caught.value.code == "UNEXPECTED_ANSWER"


def test_a_manifest_that_is_no_json_is_a_mistake_of_the_caller() -> None:
    with Script(httpx.Response(202, json=ACCEPTED)).client() as client, pytest.raises(UsageError):
        client.submit({"a": object()})


def test_the_address_comes_from_the_argument_the_environment_or_the_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FETCHBOX_URL", raising=False)
    with Client() as default:
        assert default.url == "http://127.0.0.1:8080"
    monkeypatch.setenv("FETCHBOX_URL", "http://env:1/")
    with Client() as environment, Client("https://arg") as argument:
        assert (environment.url, argument.url) == ("http://env:1", "https://arg")
    with pytest.raises(UsageError):
        Client("service:80")


def test_waiting_shows_progress_and_ends_with_the_settled_job() -> None:
    looks = [{"job_id": "j", "status": status, "unknown_yet": 1} for status in ("queued", "in_progress", "partial")]
    seen: list[str] = []
    with Script(*(httpx.Response(200, json=look) for look in looks)).client() as client:
        job = client.wait("j", 5, lambda job: seen.append(job.status))
    assert seen == ["queued", "in_progress", "partial"]
    assert job.settled


def test_waiting_has_a_limit() -> None:
    answer = httpx.Response(200, json={"job_id": "j", "status": "queued", "resource_pending": 2, "resource_total": 3})
    with Script(answer).client() as client, pytest.raises(TimeoutError, match="2 of 3"):
        client.wait("j", 0.005)


def test_resources_come_page_by_page() -> None:
    first = {"resources": [{"index": 0, "state": "stored", "sha256": "ab"}], "next_cursor": "c1"}
    second = {"resources": [{"index": 1, "state": "pending"}], "next_cursor": None}
    script = Script(httpx.Response(200, json=first), httpx.Response(200, json=second))
    with script.client() as client:
        found = list(client.resources("a/b", state="stored"))
    assert found == [ResourceOutcome(0, "stored", sha256="ab"), ResourceOutcome(1, "pending")]
    assert script.requests[0].url.raw_path.startswith(b"/jobs/a%2Fb/resources?")
    assert dict(script.requests[1].url.params) == {"state": "stored", "limit": "500", "cursor": "c1"}


def test_jobs_are_listed_for_operators() -> None:
    script = Script(httpx.Response(200, json={"jobs": [{"job_id": "j", "status": "failed"}], "next_cursor": None}))
    with script.client(operator_token="op") as client:
        assert [job.job_id for job in client.jobs(status="failed", tenant=None)] == ["j"]
    assert script.requests[0].headers["x-fetchbox-operator-token"] == "op"
    assert "tenant" not in script.requests[0].url.params


def test_a_log_goes_on_where_it_broke_until_the_service_says_that_it_ended() -> None:
    def broken(request: httpx.Request) -> httpx.Response:
        def stream() -> Any:
            yield b'{"offset":7,"message":"m"}\n'
            raise httpx.ReadError("reset")

        return httpx.Response(200, content=stream())

    script = Script(lines(4, 5), broken, error(503, "HUB_UNAVAILABLE", "0"), lines(8), httpx.Response(204))
    with script.client() as client:
        assert [line.offset for line in client.logs("j")] == [4, 5, 7, 8]
    assert [request.headers.get("last-event-id") for request in script.requests] == [None, "5", "7", "7", "8"]


def test_a_log_of_a_job_that_is_not_there_is_refused() -> None:
    with Script(error(404, "NOT_FOUND")).client() as client, pytest.raises(Refused):
        next(client.logs("j"))


def test_both_clients_offer_the_same() -> None:
    def signatures(of: type) -> dict[str, list[str]]:
        methods = {name: value for name, value in vars(of).items() if not name.startswith("_") and callable(value)}
        return {name: list(inspect.signature(value).parameters) for name, value in methods.items()}

    assert signatures(Client) == signatures(AsyncClient)


async def test_the_async_client_against_the_ingress() -> None:
    ingress = Ingress(server={"api_tokens": {"t": "acme"}})
    transport = httpx.ASGITransport(ingress.app)
    async with AsyncClient("http://test", "t", transport=transport) as client:
        taken = await client.submit(manifest(2))
        again = await client.submit(manifest(2), idempotency_key=taken.idempotency_key)
        assert (taken.created, again.created, again.job_id) == (True, False, taken.job_id)
        job = await client.get(taken.job_id)
        assert (job.status, job.tenant) == ("queued", "acme")
        assert (await client.cancel(taken.job_id)).settled
        assert [item async for item in client.resources(taken.job_id)] == []
        page = {"logs": [{"offset": 3, "message": "m", "level": "INFO"}], "next_offset": 4, "partition": 0, "settled": True, "end": True}
        ingress.hub.answers["logs"] = [page, {**page, "logs": []}]
        assert [line.level async for line in client.logs(taken.job_id)] == ["INFO"]
        with pytest.raises(Refused):
            await client.get("none")
    async with AsyncClient("http://test", "wrong", transport=transport) as stranger:
        with pytest.raises(Refused, match="UNAUTHORIZED"):
            await stranger.submit(manifest())


async def test_async_waiting_and_retrying() -> None:
    answers = iter(
        [
            error(503, "HUB_UNAVAILABLE", "0"),
            httpx.Response(200, json={"job_id": "j", "status": "queued"}),
            httpx.Response(200, json={"job_id": "j", "status": "completed"}),
        ]
    )
    transport = httpx.MockTransport(lambda request: next(answers))
    async with AsyncClient("http://service", transport=transport) as client, asyncio.timeout(5):
        assert (await client.wait("j")).status == "completed"


def test_dead_letters_are_listed_page_by_page() -> None:
    letter = {"job_id": "j", "resource_id": "r", "code": "C", "news": 1}
    first = httpx.Response(200, json={"entries": [{"id": "j.0.0", **letter}], "next_cursor": "two"})
    script = Script(first, httpx.Response(200, json={"entries": [{"id": "j.1.0", **letter}], "next_cursor": None}))
    with script.client(operator_token="op") as client:
        letters = list(client.dlq(code="C", since=datetime(2026, 1, 31, 12, tzinfo=UTC)))
    assert [found.id for found in letters] == ["j.0.0", "j.1.0"]
    assert dict(script.requests[0].url.params) == {"code": "C", "since": "2026-01-31T12:00:00+00:00", "limit": "500"}
    assert script.requests[1].url.params["cursor"] == "two"
    assert script.requests[0].headers["x-fetchbox-operator-token"] == "op"


def test_orders_on_dead_letters_say_what_is_meant() -> None:
    script = Script(error(503, "HUB_UNAVAILABLE", "0"), httpx.Response(200, json={"count": 3, "refused": 1}))
    with script.client() as client:
        moved = client.replay(job="j", headers={"a": "b"}, url_replace=[("x", "y")], dry_run=True)
        purged = client.purge()
    assert (moved.count, moved.refused, purged.count) == (3, 1, 3)
    assert len(script.requests) == 3
    order = {"filter": {"job": "j"}, "headers": {"a": "b"}, "url_replace": [["x", "y"]], "dry_run": True}
    assert [json.loads(request.content) for request in script.requests[:2]] == [order, order]
    assert json.loads(script.requests[2].content) == {"filter": {}, "dry_run": False}
    assert script.requests[0].headers["content-type"] == "application/json"
    # A large one takes its time.
    assert script.requests[0].extensions["timeout"]["read"] == 600


def test_groups_and_stories_of_dead_letters() -> None:
    script = Script(
        httpx.Response(200, json={"groups": [{"host": "h", "count": 2}], "total": 2}), httpx.Response(200, json={"id": "j.0.0"})
    )
    with script.client() as client:
        assert [(group.host, group.count) for group in client.dlq_groups("host", code="C")] == [("h", 2)]
        assert client.dead_letter("j.0.0")["id"] == "j.0.0"
    assert dict(script.requests[0].url.params) == {"by": "host", "code": "C"}
