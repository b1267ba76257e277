"""`fetchbox dlq`: what it asks of the service, what it prints, what it refuses to do."""

from __future__ import annotations

import json
from typing import Any

import httpx
import pytest

from fetchbox.cli import run

LETTER = {
    "id": "01j.0.0", "job_id": "01j", "resource_id": "a", "code": "DOWNLOAD_TLS", "http_status": None, "attempts": 3,
    "failed_at": "2026-01-01T00:00:00.000Z", "url": "http://x/\x1b[31m", "message": "bad certificate",
}  # fmt: skip
STORY = {
    **LETTER,
    "task": {"url": "http://x/", "headers": {}},
    "context": {},
    "outcome": {},
    "history": [{"generation": 0, "state": "failed", "code": "DOWNLOAD_TLS", "message": "bad certificate"}],
    "log": [{"timestamp": "t", "level": "WARN", "message": "attempt 1 failed"}],
}


class Answers:
    """What the service was asked, and what it says."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, str, Any]] = []

    def __call__(self, request: httpx.Request) -> httpx.Response:
        self.asked.append((request.method, request.url.raw_path.decode(), json.loads(request.content) if request.content else None))
        path = request.url.path
        if path.endswith("/groups"):
            return httpx.Response(
                200, json={"groups": [{"host": "x", "count": 3, "newest_at": "t"}], "total": 5, "others": 2, "next_cursor": None}
            )
        if path.endswith(("/replay", "/purge")):
            return httpx.Response(200, json={"count": 1234, "refused": 1})
        if path.endswith("/dlq"):
            return httpx.Response(200, json={"entries": [LETTER], "next_cursor": None})
        return httpx.Response(200, json=STORY)


@pytest.fixture
def service(monkeypatch: pytest.MonkeyPatch) -> Answers:
    answers = Answers()
    client = httpx.Client
    monkeypatch.setattr(httpx, "Client", lambda **options: client(**options, transport=httpx.MockTransport(answers)))
    monkeypatch.setenv("FETCHBOX_URL", "http://service")
    return answers


def test_the_list_takes_every_filter(service: Answers, capsys: pytest.CaptureFixture[str]) -> None:
    filters = ["--job", "j", "--code", "C", "--host", "h:1", "--since", "2h"]
    assert run(["dlq", "list", "--json", *filters]) == 0
    assert json.loads(capsys.readouterr().out) == LETTER
    assert service.asked == [("GET", "/operators/dlq?job=j&code=C&host=h%3A1&since=2h&limit=50", None)]
    assert run(["dlq", "list", "-n", "1", "--replayed"]) == 0
    out = capsys.readouterr().out
    assert "01j.0.0" in out
    assert "\x1b" not in out
    assert service.asked[1][1] == "/operators/dlq?replayed=true&limit=1"


def test_groups_are_counted(service: Answers, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["dlq", "list", "--group", "host"]) == 0
    out = capsys.readouterr().out.split()
    assert out[:3] == ["HOST", "COUNT", "NEWEST"]
    assert out[3:] == ["x", "3", "t", "(others)", "2"]
    assert service.asked[0][1] == "/operators/dlq/groups?by=host&limit=50"


def test_one_is_told_whole(service: Answers, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["dlq", "show", "01j.0.0"]) == 0
    out = capsys.readouterr().out
    assert "generation 0: failed DOWNLOAD_TLS bad certificate" in out
    assert "attempt 1 failed" in out
    assert run(["dlq", "show", "01j.0.0", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == STORY


def test_a_replay_is_ordered_with_its_changes(service: Answers, capsys: pytest.CaptureFixture[str]) -> None:
    changes = [
        "--header",
        "X-A: b:c",
        "-H",
        "D:",
        "--proxy-pool",
        "fast",
        "--url-replace",
        "http://a/?x=1=>http://b/",
        "--url-replace",
        "c=d",
    ]
    assert run(["dlq", "replay", "--job", "j", *changes, "--dry-run"]) == 0
    assert capsys.readouterr().out == "1,234 dead letters would be replayed, 1 of cancelled jobs or without a task left\n"
    order = service.asked[0][2]
    assert order == {
        "filter": {"job": "j"},
        "headers": {"X-A": "b:c", "D": ""},
        "proxy_pool": "fast",
        "url_replace": [{"from": "http://a/?x=1", "to": "http://b/"}, {"from": "c", "to": "d"}],
        "dry_run": True,
    }
    assert run(["dlq", "replay", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"count": 1234, "refused": 1}
    assert service.asked[1][2] == {"filter": {}, "dry_run": False}


def test_a_purge_wants_to_be_meant(service: Answers, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["dlq", "purge", "--code", "C"]) == 2
    assert "--yes" in capsys.readouterr().err
    assert service.asked == []
    assert run(["dlq", "purge", "--code", "C", "--yes"]) == 0
    assert service.asked == [("POST", "/operators/dlq/purge", {"filter": {"code": "C"}, "dry_run": False})]
    assert run(["dlq", "purge", "--dry-run"]) == 0


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["list", "--group", "moon"], "--group takes code, host or job"),
        (["replay", "--header", "no colon"], "--header takes 'Name: value'"),
        (["replay", "--url-replace", "http://a/?b=c=d"], "--url-replace takes 'OLD=>NEW'"),
        (["replay", "--url-replace", "=>x"], "--url-replace takes 'OLD=>NEW'"),
        (["show"], "Missing argument 'ID'"),
    ],
)
def test_bad_usage_is_one_clear_line_and_2(
    service: Answers, arguments: list[str], complaint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["dlq", *arguments]) == 2
    done = capsys.readouterr()
    assert complaint in done.err
    assert (done.err.count("\n"), done.out, service.asked) == (1, "", [])
