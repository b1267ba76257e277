"""Logs: one JSON object a line, and no secret in any."""

from __future__ import annotations

import io
import json
import logging

import pytest
import structlog

from fetchbox import telemetry


@pytest.mark.parametrize(
    ("text", "hidden"),
    [
        ("https://user:hush@host/x", "hush"),
        ("GET https://b.s3.amazonaws.com/k?X-Amz-Signature=hush&X-Amz-Date=1 failed", "hush"),
        ("https://h/x?a=1&sig=hush", "hush"),
        ("https://h/x?token=hush#f", "hush"),
        ("Authorization: Bearer hushhush", "hush"),
        ("socks5://u:hush@[::1]:1080", "hush"),
    ],
)
def test_texts_lose_their_secrets_and_nothing_else(text: str, hidden: str) -> None:
    shown = telemetry.redact_text(text)
    assert hidden not in shown
    assert "********" in shown


@pytest.mark.parametrize("text", ["https://host/a@b", "mail me@example.org", "https://h/x?page=2", "basic idea", "a/b?c"])
def test_harmless_texts_stay(text: str) -> None:
    assert telemetry.redact_text(text) == text


def test_json_lines_carry_process_level_and_time_and_hide_secrets() -> None:
    out = io.StringIO()
    telemetry.configure("json", "info", "worker 0", out)
    log = structlog.get_logger("test")
    log.debug("unseen")
    log.info("seen", operator_token="hush", nested={"password": "hush", "url": "http://u:hush@h/"}, tokens=3, keys=["x"])
    (line,) = out.getvalue().splitlines()
    record = json.loads(line)
    assert list(record)[:4] == ["timestamp", "level", "process", "event"]
    assert (record["process"], record["level"], record["event"], record["tokens"], record["keys"]) == ("worker 0", "info", "seen", 3, ["x"])
    assert "hush" not in line


def test_exceptions_are_one_line_too() -> None:
    out = io.StringIO()
    telemetry.configure("json", "info", None, out)
    try:
        raise RuntimeError("https://u:hush@h/")
    except RuntimeError:
        structlog.get_logger().exception("failed")
    (line,) = out.getvalue().splitlines()
    assert json.loads(line)["exception"][0]["exc_type"] == "RuntimeError"
    assert "hush" not in line


def test_libraries_logs_take_the_same_way() -> None:
    out = io.StringIO()
    telemetry.configure("json", "info", "api 0", out)
    logging.getLogger("some.library").warning("look at %s", "https://u:hush@h/")
    logging.getLogger("some.library").info("chatter")
    (line,) = out.getvalue().splitlines()
    record = json.loads(line)
    assert (record["logger"], record["level"], record["process"]) == ("some.library", "warning", "api 0")
    assert "hush" not in line


def test_a_record_and_the_end_of_its_line_are_one_write() -> None:
    """All processes of a service log to one file: what is written in pieces ends up inside another's line."""
    pieces: list[str] = []

    class Out(io.StringIO):
        def write(self, text: str) -> int:
            pieces.append(text)
            return len(text)

    telemetry.configure("json", "info", "hub", Out())
    structlog.get_logger("ours").info("one")
    logging.getLogger("theirs").warning("two")
    assert [json.loads(piece)["event"] for piece in pieces] == ["one", "two"]
    assert all(piece.endswith("\n") and piece.count("\n") == 1 for piece in pieces)


def test_pretty_off_a_terminal_has_no_colours() -> None:
    out = io.StringIO()
    telemetry.configure("pretty", "info", None, out)
    structlog.get_logger().info("hello", key="value")
    assert "\x1b" not in out.getvalue()
    assert "hello" in out.getvalue()
