"""What both clients share: requests, when to repeat them, what answers mean. No I/O."""

from __future__ import annotations

import dataclasses
import gzip
import os
import random
import time
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any
from urllib.parse import quote

import httpx
import msgspec
import orjson

from fetchbox.client.records import Accepted, Job, LogLine
from fetchbox.errors import Refused, ServiceUnavailable, UsageError

DEFAULT_URL = "http://127.0.0.1:8080"
GZIP_BYTES = 64 << 10
"""Manifests from this size on are sent compressed."""
RETRIED = frozenset({429, 502, 503})
BACKOFF = (0.1, 5.0)
"""First and longest pause in seconds where the service names none; in between it doubles, with full jitter."""
POLL = (0.05, 2.0)
"""First and longest pause in seconds between looks at a job that is waited for."""
PAGE = 500
ORDER_TIMEOUT = 600.0
"""Seconds that a replay or purge may take; a million dead letters take a minute."""


@dataclass(frozen=True)
class Request:
    method: str
    path: str
    params: Mapping[str, str]
    headers: Mapping[str, str]
    body: bytes | None = None
    timeout: float | None = None
    """Seconds for the answer, where the client's own limit is too short."""


class Retry:
    """Whether and when a request is tried again: pure but for the clock and the dice."""

    def __init__(self, retry_for: float, clock: Callable[[], float]) -> None:
        self._until = clock() + retry_for
        self._clock = clock
        self._pause = BACKOFF[0]

    def after(self, response: httpx.Response | None) -> float | None:
        """Seconds to wait before the next attempt, None when there is to be none. `response` is None for a broken connection."""
        if response is not None and response.status_code not in RETRIED:
            return None
        wait = random.uniform(0, self._pause)
        self._pause = min(self._pause * 2, BACKOFF[1])
        if response is not None:
            named = retry_after(response)
            if named is not None:
                # Not a moment sooner, and not at all where there is no time for it.
                wait = named
        return wait if self._clock() + wait <= self._until else None


class Core:
    """What both clients share: everything but the I/O."""

    def __init__(self, url: str | None, token: str | None, operator_token: str | None, tenant: str | None, retry_for: float) -> None:
        self.url = (url or os.environ.get("FETCHBOX_URL") or DEFAULT_URL).rstrip("/")
        if not self.url.startswith(("http://", "https://")):
            raise UsageError(f"{self.url!r} is not a URL of a service: it begins with http:// or https://")
        self.retry_for = retry_for
        self._headers: dict[str, str] = {"user-agent": "fetchbox-client"}
        if token:
            self._headers["authorization"] = f"Bearer {token}"
        if operator_token:
            self._headers["x-fetchbox-operator-token"] = operator_token
        if tenant:
            self._headers["x-fetchbox-tenant"] = tenant

    def request(
        self,
        method: str,
        path: str,
        params: Mapping[str, object] | None = None,
        headers: Mapping[str, str] | None = None,
        body: bytes | None = None,
    ) -> Request:
        given = {name: str(value) for name, value in (params or {}).items() if value is not None}
        return Request(method, self.url + path, given, {**self._headers, **(headers or {})}, body)

    def submission(self, manifest: Mapping[str, Any] | bytes, job_type: str | None, idempotency_key: str | None) -> Request:
        try:
            body = manifest if isinstance(manifest, bytes) else orjson.dumps(manifest)
        except TypeError as error:
            raise UsageError(f"the manifest cannot be written as JSON: {error}") from error
        headers = {"content-type": "application/json", "idempotency-key": idempotency_key or str(uuid.uuid4())}
        if job_type is not None:
            headers["x-fetchbox-job-type"] = job_type
        if len(body) >= GZIP_BYTES:
            body = gzip.compress(body, compresslevel=1, mtime=0)
            headers["content-encoding"] = "gzip"
        return self.request("POST", "/jobs", headers=headers, body=body)

    def letters(self, filters: Mapping[str, object], replayed: bool, cursor: str | None) -> Request:
        params = {**texts(filters), "replayed": "true" if replayed else None, "limit": PAGE, "cursor": cursor}
        return self.request("GET", "/operators/dlq", params)

    def order(self, name: str, filters: Mapping[str, object], **changes: object) -> Request:
        given = {key: value for key, value in changes.items() if value is not None}
        try:
            body = orjson.dumps({"filter": texts(filters), **given})
        except TypeError as error:
            raise UsageError(f"the order cannot be written as JSON: {error}") from error
        request = self.request("POST", f"/operators/dlq/{name}", headers={"content-type": "application/json"}, body=body)
        return dataclasses.replace(request, timeout=ORDER_TIMEOUT)

    def away(self, error: httpx.TransportError) -> ServiceUnavailable:
        return ServiceUnavailable(f"no service answers at {self.url}: {error}")


class LogCursor:
    """Where a reader of a log stands, over broken connections and restarts of the service."""

    def __init__(self, core: Core, job_id: str, since_offset: int, follow: bool) -> None:
        self._core = core
        self._path = job_path(job_id, "/logs")
        self._since = since_offset
        self._seen = False
        self._follow = follow
        self._retry = Retry(core.retry_for, time.monotonic)

    def request(self) -> Request:
        headers = {"accept": "application/x-ndjson"}
        if self._seen:
            # The service then says with 204 that there is no more; an end without that is a service that restarts.
            headers["last-event-id"] = str(self._since - 1)
        params = {"since_offset": self._since, "follow": "true" if self._follow else None}
        return self._core.request("GET", self._path, params, headers)

    def take(self, line: str) -> LogLine | None:
        """The record of a line; None for a heartbeat."""
        if not line.strip():
            return None
        record = msgspec.json.decode(line, type=LogLine)
        self._since, self._seen = record.offset + 1, True
        self._retry = Retry(self._core.retry_for, time.monotonic)
        return record

    def pause(self, response: httpx.Response | None, error: httpx.TransportError | None = None) -> float | None:
        """Seconds until the next attempt after a stream ended; None when the log is at its end. Raises what ends the reading."""
        if response is not None and response.status_code == 204:
            return None
        if response is not None and response.status_code == 200:
            if not self._seen and not self._follow:
                return None
            response = None
        pause = self._retry.after(response)
        if pause is None and response is not None:
            checked(response)
        elif pause is None:
            reason = ServiceUnavailable(f"the log stream of {self._core.url} ends again and again")
            raise reason if error is None else self._core.away(error)
        return pause


def texts(filters: Mapping[str, object]) -> dict[str, str]:
    """Filters as the service takes them; times as RFC 3339, in UTC where they name no zone."""
    given = {name: value for name, value in filters.items() if value is not None}
    for name, value in given.items():
        if isinstance(value, datetime):
            given[name] = (value if value.tzinfo is not None else value.replace(tzinfo=UTC)).isoformat()
    return {name: str(value) for name, value in given.items()}


def job_path(job_id: str, rest: str = "") -> str:
    return f"/jobs/{quote(job_id, safe='')}{rest}"


def accepted(request: Request, response: httpx.Response) -> Accepted:
    taken = msgspec.json.decode(checked(response), type=Accepted)
    return msgspec.structs.replace(taken, created=response.status_code == 202, idempotency_key=request.headers["idempotency-key"])


def retry_after(response: httpx.Response) -> float | None:
    """Seconds that Retry-After asks for, as a number or (from a proxy in between) as a date; None without one that can be read."""
    named = response.headers.get("retry-after", "").strip()
    if named.isascii() and named.isdigit():
        return float(named)
    try:
        return max(0.0, parsedate_to_datetime(named).timestamp() - time.time())
    except ValueError:
        return None


def checked(response: httpx.Response) -> bytes:
    if response.status_code < 400:
        return response.content
    try:
        error = orjson.loads(response.content)["error"]
        code, message = str(error["code"]), str(error["message"])
    except (orjson.JSONDecodeError, KeyError, TypeError):
        error, code, message = {}, "UNEXPECTED_ANSWER", f"the answer is no FetchBox answer: {response.status_code} {response.reason_phrase}"
    raise Refused(
        code,
        message,
        retry_after=retry_after(response),
        job_id=error.get("job_id"),
        details=error.get("details"),
        status=response.status_code,
    )


def next_pause(pause: float, until: float | None, job: Job) -> float:
    """The next pause, longer than the last and never past the deadline. Raises TimeoutError at the deadline."""
    longer = min(max(pause * 1.5, POLL[0]), POLL[1])
    if until is None:
        return longer
    left = until - time.monotonic()
    if left <= 0:
        raise TimeoutError(f"job {job.job_id} is {job.status} with {job.resource_pending} of {job.resource_total} resources pending")
    return min(longer, left)
