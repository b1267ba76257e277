"""Logs: JSON lines off a terminal, colours on one, secrets in neither."""

from __future__ import annotations

import logging
import re
import sys
from collections.abc import MutableMapping
from typing import Any, TextIO

import structlog

from fetchbox.config.addresses import url_without_secrets

HIDDEN = "********"
_FIRST = ("timestamp", "level", "process", "event")
_SECRET_KEY = re.compile(r"pass(word|wd)?$|secret|token$|authorization|cookie|credential|api[-_]?key", re.IGNORECASE)
_BEARER = re.compile(r"(?i)\b(bearer|basic)\s+[A-Za-z0-9._~+/=-]{6,}")
SECRET_PARAMETERS = (
    "x-amz-signature",
    "x-amz-credential",
    "x-amz-security-token",
    "x-goog-signature",
    "x-goog-credential",
    "awsaccesskeyid",
    "signature",
    "sig",
    "token",
    "access_token",
    "auth_token",
    "id_token",
    "auth",
    "authorization",
    "key",
    "api_key",
    "apikey",
    "api-key",
    "password",
    "passwd",
    "pwd",
    "secret",
    "client_secret",
    "jwt",
    "policy",
    "key-pair-id",
    "credential",
    "googleaccessid",
    "ossaccesskeyid",
    "x-oss-signature",
    "x-oss-credential",
    "x-oss-security-token",
    "x-cos-security-token",
    "q-signature",
    "q-ak",
    "sign",
    "hmac",
    "hdnea",
    "hdnts",
    "refresh_token",
    "session",
    "sessionid",
    "session_id",
)
"""Query parameters whose values are secrets: what signs a link, and keys and tokens by their usual names."""
_SIGNED = re.compile(rf"(?i)([?&](?:{'|'.join(map(re.escape, SECRET_PARAMETERS))})=)[^&#\s\"']+")
_USERINFO = re.compile(r"\b[a-z][a-z0-9+.-]*://[^/\s@\"']+@[^\s\"']*", re.IGNORECASE)

Event = MutableMapping[str, Any]


def configure(log_format: str, log_level: str, process: str | None = None, stream: TextIO | None = None) -> None:
    """Sets up structlog and the standard library's logging (granian's, native modules') for this process.

    `log_format` is "auto", "json" or "pretty"; `process` is added to each line.
    """
    out = stream if stream is not None else sys.stderr
    pretty = log_format == "pretty" or (log_format == "auto" and out.isatty())
    level = logging.getLevelNamesMapping()[log_level.upper()]
    shared: list[structlog.types.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        _Process(process),
        structlog.processors.StackInfoRenderer(),
        redact,
    ]
    if pretty:
        last: list[structlog.types.Processor] = [structlog.dev.ConsoleRenderer(colors=out.isatty() and not _no_color())]
    else:
        # Without the frames' variables: they hold configurations and tokens.
        transformer = structlog.tracebacks.ExceptionDictTransformer(show_locals=False)
        last = [structlog.processors.ExceptionRenderer(transformer), redact, _order, structlog.processors.JSONRenderer(ensure_ascii=False)]
    structlog.configure(
        processors=[*shared, *last],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=structlog.WriteLoggerFactory(out),
        cache_logger_on_first_use=stream is None,
    )
    handler = logging.StreamHandler(out)
    formatter = structlog.stdlib.ProcessorFormatter(
        foreign_pre_chain=[structlog.stdlib.add_logger_name, *shared],
        processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *last],
    )
    handler.setFormatter(formatter)
    root = logging.getLogger()
    root.handlers[:] = [handler]
    # Libraries talk about their own affairs at info; ours go through structlog.
    root.setLevel(max(level, logging.WARNING))


def _order(_logger: Any, _method: str, event: Event) -> Event:
    """What people look for first comes first in a JSON line."""
    return {key: event[key] for key in _FIRST if key in event} | {key: value for key, value in event.items() if key not in _FIRST}


class _Process:
    def __init__(self, name: str | None) -> None:
        self._name = name

    def __call__(self, _logger: Any, _method: str, event: Event) -> Event:
        if self._name is not None:
            event.setdefault("process", self._name)
        return event


def redact(_logger: Any, _method: str, event: Event) -> Event:
    """A structlog processor that hides secrets by the names of keys and by their look in texts."""
    for key, value in event.items():
        event[key] = _hide(key, value)
    return event


def redact_text(text: str) -> str:
    """The text without credentials in URLs, signatures in query strings and bearer tokens."""
    if "://" in text:
        text = _USERINFO.sub(lambda match: url_without_secrets(match[0]), text)
        text = _SIGNED.sub(rf"\1{HIDDEN}", text)
    return _BEARER.sub(rf"\1 {HIDDEN}", text)


def _hide(key: str, value: Any) -> Any:
    if isinstance(value, str):
        return HIDDEN if value and _SECRET_KEY.search(key) else redact_text(value)
    if isinstance(value, dict):
        return {name: _hide(str(name), item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_hide(key, item) for item in value]
    return value


def _no_color() -> bool:
    import os

    return bool(os.environ.get("NO_COLOR"))
