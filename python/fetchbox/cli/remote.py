"""The operator's view of a running service, as it answers: JSON in, JSON out, refusals as exceptions.

`fetchbox.Client` is what programs use. A person at a terminal wants every field that the service sends, by the operator's door or by the
tenant's, and to be told at once when nobody answers.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from types import TracebackType
from typing import Any
from urllib.parse import quote

import httpx

from fetchbox.cli.options import server_url
from fetchbox.config import Config
from fetchbox.errors import Refused, ServiceUnavailable

TIMEOUT = httpx.Timeout(30.0, connect=5.0)
"""Seconds to wait for an answer; listing a large ledger takes a moment."""

PAGE = 500
"""Entries asked for at a time when all are wanted."""

_DENIED = frozenset({401, 403})


class Remote:
    """A service by its URL. Use it as a context manager."""

    def __init__(self, config: Config, url: str | None = None) -> None:
        self.url = server_url(config, url)
        self.prefix = "/operators"
        self._headers: dict[str, str] = {"User-Agent": "fetchbox-cli"}
        if config.client.token is not None:
            self._headers["Authorization"] = f"Bearer {config.client.token.get_secret_value()}"
        if config.server.operator_token is not None:
            self._headers["X-Fetchbox-Operator-Token"] = config.server.operator_token.get_secret_value()
        # The environment's proxies are for the web, not for a service on this machine.
        self._http = httpx.Client(base_url=self.url, headers=self._headers, timeout=TIMEOUT, trust_env=False)

    def __enter__(self) -> Remote:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._http.close()

    def call(
        self, method: str, path: str, *, params: Mapping[str, Any] | None = None, body: object = None, timeout: float | None = None
    ) -> Any:
        """The JSON of an answer, waited for `timeout` seconds. Refused for an error answer, ServiceUnavailable when nobody answers."""
        limit = TIMEOUT if timeout is None else httpx.Timeout(timeout, connect=5.0)
        try:
            response = self._http.request(method, path, params=_given(params), json=body, timeout=limit)
        except httpx.HTTPError as error:
            raise self._unavailable(error) from error
        if response.is_error:
            raise refusal(response)
        return response.json()

    def job(self, job_id: str, part: str = "", *, method: str = "GET", params: Mapping[str, Any] | None = None) -> Any:
        """A call on one job: by the operator's route, or by its tenant's when this client is no operator."""
        tail = f"jobs/{quote(job_id, safe='')}{part}"
        try:
            return self.call(method, f"{self.prefix}/{tail}", params=params)
        except Refused as error:
            if error.status not in _DENIED or not self.prefix:
                raise
        self.prefix = ""
        return self.call(method, f"/{tail}", params=params)

    def listed(self, noun: str, ask: Callable[[Mapping[str, Any]], Any], limit: int | None) -> Iterator[dict[str, Any]]:
        """The entries of a list that `ask` answers page by page, at most `limit`."""
        cursor = None
        left = math.inf if limit is None else limit
        while left > 0:
            page = ask({"limit": int(min(PAGE, left)), "cursor": cursor})
            yield from page[noun]
            left -= len(page[noun])
            cursor = page["next_cursor"]
            if cursor is None:
                return

    @contextmanager
    def lines(self, path: str, *, params: Mapping[str, Any], idle: float | None) -> Iterator[Iterator[dict[str, Any]]]:
        """The JSON lines of a stream; it ends when the server ends it or sends nothing for `idle` seconds (None: wait for ever)."""
        timeout = httpx.Timeout(idle, connect=5.0)
        try:
            with self._http.stream(
                "GET", path, params=_given(params), headers={"Accept": "application/x-ndjson"}, timeout=timeout
            ) as response:
                if response.is_error:
                    response.read()
                    raise refusal(response)
                yield _parsed(response)
        except httpx.HTTPError as error:
            raise self._unavailable(error) from error

    def _unavailable(self, error: httpx.HTTPError) -> ServiceUnavailable:
        return ServiceUnavailable(f"no service answers at {self.url} ({error}); `fetchbox up` starts one, --server names another")


def _parsed(response: httpx.Response) -> Iterator[dict[str, Any]]:
    try:
        for line in response.iter_lines():
            if line:
                yield json.loads(line)
    except (httpx.ReadTimeout, httpx.RemoteProtocolError, httpx.ReadError):
        # Silence, or the connection broke: the caller decides whether to ask again.
        return


def refusal(response: httpx.Response) -> Refused:
    """The service's own words for what it refused."""
    try:
        error = response.json()["error"]
        code, message = str(error["code"]), str(error["message"])
    except (ValueError, KeyError, TypeError):
        error, code, message = {}, f"HTTP_{response.status_code}", f"the server answered {response.status_code}; is it FetchBox?"
    after = response.headers.get("retry-after", "")
    return Refused(
        code, message, float(after) if after.isdigit() else None, error.get("job_id"), error.get("details"), response.status_code
    )


def _given(params: Mapping[str, Any] | None) -> dict[str, Any]:
    return {name: value for name, value in (params or {}).items() if value is not None}
