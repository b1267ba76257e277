"""The harness's own HTTP client: plain requests, and posts that are repeated with the same key until they are acknowledged."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, cast

import httpx

from tests.process.waiting import pause

Json = dict[str, Any]

REQUEST_LIMIT = 30.0
"""Seconds for one request; the service never needs more than a few."""


class Client:
    """Talks to one service. Thread-safe."""

    def __init__(self, url: str, headers: Mapping[str, str] | None = None) -> None:
        self.http = httpx.Client(base_url=url, headers=dict(headers or {}), timeout=REQUEST_LIMIT, trust_env=False)
        self.refusals = 0
        """5xx answers and broken connections that posts lived through."""

    def close(self) -> None:
        """Closes its connections."""
        self.http.close()

    def post(
        self, body: bytes, *, key: str | None = None, headers: Mapping[str, str] | None = None, limit: float = REQUEST_LIMIT
    ) -> httpx.Response:
        """One POST /jobs, whatever comes of it."""
        fields = {"content-type": "application/json", **(headers or {})}
        if key is not None:
            fields["idempotency-key"] = key
        return self.http.post("/jobs", content=body, headers=fields, timeout=limit)

    def post_until_acknowledged(
        self, body: bytes, key: str, *, headers: Mapping[str, str] | None = None, limit: float = 60.0
    ) -> tuple[Json, int]:
        """Repeats a post with its key until it is acknowledged, as a crawler would; the answer and its status (202 or 200).

        AssertionError for an answer that is neither an acknowledgement nor a 5xx, and when `limit` seconds brought none.
        """
        started = time.monotonic()
        last = "nothing was tried"
        while time.monotonic() - started < limit:
            try:
                response = self.post(body, key=key, headers=headers)
            except httpx.TransportError as error:
                last = repr(error)
            else:
                if response.status_code in (200, 202):
                    return response.json(), response.status_code
                last = f"{response.status_code} {response.text}"
                assert response.status_code >= 500, f"POST /jobs with key {key} was refused: {last}"
                assert response.status_code != 500, f"POST /jobs with key {key} failed inside: {last}"
                assert "retry-after" in response.headers, f"no Retry-After in {last}"
            self.refusals += 1
            pause(0.05)
        raise AssertionError(f"no acknowledgement for key {key} within {limit:g} s; the last answer was {last}")

    def get(self, path: str, *, limit: float = 0.0, params: Mapping[str, str | int] | None = None) -> Json:
        """A JSON answer. For `limit` seconds 5xx answers and broken connections are tried again: a part of the service restarts."""
        started = time.monotonic()
        while True:
            problem: str
            try:
                response = self.http.get(path, params=params)
            except httpx.TransportError as error:
                problem = repr(error)
            else:
                if response.status_code == 200:
                    return cast("Json", response.json())
                problem = f"{response.status_code} {response.text}"
                assert response.status_code >= 500, f"GET {path}: {problem}"
            if time.monotonic() - started >= limit:
                raise AssertionError(f"GET {path} within {limit:g} s: {problem}")
            pause(0.05)

    def pages(self, path: str, noun: str, *, limit: float = 0.0, page: int = 200) -> Iterator[Json]:
        """Every entry of a list, page by page."""
        params: dict[str, str | int] = {"limit": page}
        while True:
            answer = self.get(path, limit=limit, params=params)
            yield from answer[noun]
            if answer["next_cursor"] is None:
                return
            params["cursor"] = answer["next_cursor"]

    def job(self, job_id: str, *, limit: float = 0.0) -> Json:
        """A job as the operator sees it."""
        return self.get(f"/operators/jobs/{job_id}", limit=limit)

    def await_job(self, job_id: str, limit: float, *, describe: Callable[[], str] | None = None) -> Json:
        """A job as soon as nothing of it is pending; AssertionError, with the job and what `describe` tells, after `limit` seconds."""
        started = time.monotonic()
        while (job := self.job(job_id))["resource_pending"]:
            waited = time.monotonic() - started
            assert waited < limit, f"not settled after {waited:.0f} s: {job}\n{describe() if describe is not None else ''}"
            pause(0.05)
        return job

    def jobs(self, *, limit: float = 0.0) -> list[Json]:
        """Every job, newest first."""
        return list(self.pages("/operators/jobs", "jobs", limit=limit))

    def resources(self, job_id: str, *, limit: float = 0.0) -> list[Json]:
        """Every resource of a job."""
        return list(self.pages(f"/operators/jobs/{job_id}/resources", "resources", limit=limit, page=1000))

    def status(self, path: str) -> int:
        """The status of a GET; 0 when nobody answers."""
        try:
            return self.http.get(path, timeout=5).status_code
        except httpx.TransportError:
            return 0
