"""The blocking client."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Self, Unpack
from urllib.parse import quote

import httpx
import msgspec

from fetchbox.client.exchange import PAGE, Core, LogCursor, Request, Retry, accepted, checked, job_path, next_pause, texts
from fetchbox.client.records import (
    Accepted,
    DeadLetter,
    DeadLetterFilters,
    DeadLetterGroup,
    DeadLetterGroups,
    DeadLetterPage,
    Job,
    JobPage,
    LogLine,
    Moved,
    ResourceOutcome,
    ResourcePage,
)


class Client:
    """A blocking client; use it as a context manager or `close` it. Threads may share one.

    `url` defaults to FETCHBOX_URL and then to this machine's own service, `token` is one of the service's `api_tokens`, `operator_token`
    opens `jobs()`. `timeout` is for one
    exchange, `retry_for` for one call with its repetitions, both in seconds. Calls raise Refused with the service's reason, and
    ServiceUnavailable when nothing answers.
    """

    def __init__(
        self,
        url: str | None = None,
        token: str | None = None,
        *,
        operator_token: str | None = None,
        tenant: str | None = None,
        timeout: float = 30.0,
        retry_for: float = 60.0,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        self._core = Core(url, token, operator_token, tenant, retry_for)
        self._http = httpx.Client(timeout=timeout, transport=transport, trust_env=False)
        self._closed = threading.Event()

    @property
    def url(self) -> str:
        """The service's address."""
        return self._core.url

    def submit(self, manifest: Mapping[str, Any] | bytes, *, job_type: str | None = None, idempotency_key: str | None = None) -> Accepted:
        """Posts a manifest; returns when the service has made the job durable. Without a key of your own a random one makes the
        repetitions safe."""
        request = self._core.submission(manifest, job_type, idempotency_key)
        return accepted(request, self._send(request))

    def get(self, job_id: str) -> Job:
        """The job as it stands."""
        return msgspec.json.decode(checked(self._send(self._core.request("GET", job_path(job_id)))), type=Job)

    def wait(self, job_id: str, timeout: float | None = None, progress: Callable[[Job], None] | None = None) -> Job:
        """Waits until the job is settled and returns it. `progress` is called with every look at it. Raises TimeoutError after `timeout`
        seconds."""
        until = None if timeout is None else time.monotonic() + timeout
        pause = 0.0
        while True:
            job = self.get(job_id)
            if progress is not None:
                progress(job)
            if job.settled:
                return job
            pause = next_pause(pause, until, job)
            self._closed.wait(pause)

    def resources(self, job_id: str, *, state: str | None = None) -> Iterator[ResourceOutcome]:
        """Its resources in order, pending ones too, fetched page by page."""
        cursor: str | None = None
        while True:
            params = {"state": state, "limit": PAGE, "cursor": cursor}
            page = msgspec.json.decode(
                checked(self._send(self._core.request("GET", job_path(job_id, "/resources"), params))), type=ResourcePage
            )
            yield from page.resources
            if (cursor := page.next_cursor) is None:
                return

    def logs(self, job_id: str, *, since_offset: int = 0, follow: bool = False) -> Iterator[LogLine]:
        """Its log until the job is settled, or for ever with `follow`. A broken stream is taken up where it broke."""
        cursor = LogCursor(self._core, job_id, since_offset, follow)
        while True:
            request = cursor.request()
            try:
                with self._http.stream(request.method, request.path, params=request.params, headers=request.headers) as response:
                    if response.status_code == 200:
                        for line in response.iter_lines():
                            if (record := cursor.take(line)) is not None:
                                yield record
                    else:
                        response.read()
                pause = cursor.pause(response)
            except httpx.TransportError as error:
                pause = cursor.pause(None, error)
            if pause is None:
                return
            self._closed.wait(pause)

    def cancel(self, job_id: str) -> Job:
        """Cancels what is pending; the job after it."""
        return msgspec.json.decode(checked(self._send(self._core.request("POST", job_path(job_id, "/cancel")))), type=Job)

    def jobs(self, **filters: str | None) -> Iterator[Job]:
        """All jobs, newest first: `status`, `tenant`, `job_type`, `crawl_id`. For operators."""
        cursor: str | None = None
        while True:
            params = {**filters, "limit": PAGE, "cursor": cursor}
            page = msgspec.json.decode(checked(self._send(self._core.request("GET", "/operators/jobs", params))), type=JobPage)
            yield from page.jobs
            if (cursor := page.next_cursor) is None:
                return

    def dlq(self, *, replayed: bool = False, **filters: Unpack[DeadLetterFilters]) -> Iterator[DeadLetter]:
        """Dead letters, newest first; with `replayed` those that were put back to work instead. For operators."""
        cursor: str | None = None
        while True:
            response = self._send(self._core.letters(filters, replayed, cursor))
            page = msgspec.json.decode(checked(response), type=DeadLetterPage)
            yield from page.entries
            if (cursor := page.next_cursor) is None:
                return

    def dlq_groups(self, by: str = "code", **filters: Unpack[DeadLetterFilters]) -> list[DeadLetterGroup]:
        """How many dead letters there are of each "code", "host" or "job", the most first. For operators."""
        response = self._send(self._core.request("GET", "/operators/dlq/groups", {"by": by, **texts(filters)}))
        return msgspec.json.decode(checked(response), type=DeadLetterGroups).groups

    def dead_letter(self, entry_id: str) -> dict[str, Any]:
        """The whole story of one: its task, its failure, every outcome of the resource and what the log says. For operators."""
        path = f"/operators/dlq/{quote(entry_id, safe='')}"
        return msgspec.json.decode(checked(self._send(self._core.request("GET", path))), type=dict[str, Any])

    def replay(
        self,
        *,
        headers: Mapping[str, str | None] | None = None,
        proxy_pool: str | None = None,
        url_replace: Mapping[str, str] | Sequence[tuple[str, str]] | None = None,
        dry_run: bool = False,
        **filters: Unpack[DeadLetterFilters],
    ) -> Moved:
        """Puts dead letters back to work, all of them without a filter, and says how many. For operators.

        `headers` are set (None takes one away), `proxy_pool` is a configured pool, `url_replace` literal text and what takes its place.
        Each is replayed once, however often this is called; after a lost answer the count is that of the rest. Raises Refused (409) for a
        cancelled job.
        """
        changes = {"headers": headers, "proxy_pool": proxy_pool, "url_replace": url_replace, "dry_run": dry_run}
        return msgspec.json.decode(checked(self._send(self._core.order("replay", filters, **changes))), type=Moved)

    def purge(self, *, dry_run: bool = False, **filters: Unpack[DeadLetterFilters]) -> Moved:
        """Forgets dead letters, all of them without a filter; their jobs keep their counts. For operators."""
        return msgspec.json.decode(checked(self._send(self._core.order("purge", filters, dry_run=dry_run))), type=Moved)

    def close(self) -> None:
        """Closes its connections."""
        self._closed.set()
        self._http.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def _send(self, request: Request) -> httpx.Response:
        retry = Retry(self._core.retry_for, time.monotonic)
        while True:
            try:
                response = self._http.request(
                    request.method,
                    request.path,
                    params=request.params,
                    headers=request.headers,
                    content=request.body,
                    timeout=request.timeout or httpx.USE_CLIENT_DEFAULT,
                )
                pause = retry.after(response)
                if pause is None:
                    return response
            except httpx.TransportError as error:
                pause = retry.after(None)
                if pause is None:
                    raise self._core.away(error) from error
            self._closed.wait(pause)
