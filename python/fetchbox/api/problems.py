"""Every refusal in one shape: `{"error": {"code", "message", "job_id"?, "details"?}}`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import orjson
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from fetchbox.errors import HubUnavailable, Refused

Detail = Mapping[str, str]
"""`pointer` (RFC 6901), `code` and `message` of one fault."""

RETRY_AFTER_DEFAULT = 5
"""Seconds a client is told to wait after a server-side failure that names no time of its own."""

_STATUS_OF_REFUSAL = {
    "IDEMPOTENCY_CONFLICT": 409,
    "CONFLICT": 409,
    "JOB_CANCELLED": 409,
    "NOT_FOUND": 404,
    "JOB_NOT_FOUND": 404,
    "FORBIDDEN": 403,
    "RATE_LIMITED": 429,
    "PAYLOAD_TOO_LARGE": 413,
    "LEDGER_FULL": 503,
    "DISK_FULL": 503,
    "BROKER_UNAVAILABLE": 503,
    "HUB_UNAVAILABLE": 503,
    "STORAGE_UNAVAILABLE": 502,
}

_CODE_OF_STATUS = {
    400: "INVALID_REQUEST",
    401: "UNAUTHORIZED",
    403: "FORBIDDEN",
    404: "NOT_FOUND",
    405: "METHOD_NOT_ALLOWED",
    408: "REQUEST_TIMEOUT",
    413: "PAYLOAD_TOO_LARGE",
    415: "UNSUPPORTED_MEDIA_TYPE",
}


class Problem(Exception):
    """A request that is refused, with all that its answer needs."""

    def __init__(
        self,
        status: int,
        code: str,
        message: str,
        *,
        job_id: str | None = None,
        details: Sequence[Detail] | None = None,
        retry_after: float | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.message = message
        self.job_id = job_id
        self.details = details
        self.retry_after = retry_after
        self.headers = headers

    def body(self) -> bytes:
        """The answer's body."""
        error: dict[str, Any] = {"code": self.code, "message": self.message}
        if self.job_id is not None:
            error["job_id"] = self.job_id
        if self.details is not None:
            error["details"] = self.details
        return orjson.dumps({"error": error})

    def response(self) -> Response:
        """The whole answer."""
        headers = dict(self.headers or {})
        retry_after = self.retry_after
        if retry_after is None and (self.status == 429 or self.status >= 500):
            retry_after = RETRY_AFTER_DEFAULT
        if retry_after is not None:
            # Whole seconds, rounded up: a client that comes back a moment early would be refused again.
            headers["retry-after"] = str(max(1, int(-(-retry_after // 1))))
        return Response(self.body(), self.status, headers, media_type="application/json")


def not_found() -> Problem:
    """The answer for a job that is not there or is another tenant's: the two must look alike."""
    return Problem(404, "NOT_FOUND", "there is no such job")


def invalid(message: str, *, pointer: str = "", code: str = "INVALID_PAYLOAD") -> Problem:
    """A 400 with one fault; `pointer` is an RFC 6901 pointer into the body, empty for the whole request."""
    return Problem(400, code, message, details=[{"pointer": pointer, "code": "VALIDATION_BAD_VALUE", "message": message}])


def too_large(limit: int) -> Problem:
    """A body beyond the limit, on the wire or after decompression."""
    return Problem(413, "PAYLOAD_TOO_LARGE", f"the body is larger than {limit} bytes")


def of_hub_error(error: HubUnavailable | Refused) -> Problem:
    """What the hub's answer means for the client."""
    if isinstance(error, HubUnavailable):
        return Problem(
            503, "HUB_UNAVAILABLE", "the hub does not answer; try again with the same idempotency key", retry_after=error.retry_after or 2
        )
    code = error.code
    status = _STATUS_OF_REFUSAL.get(code)
    if status is None:
        status = 400 if code.startswith("INVALID") else 500
        if status == 500:
            code = "INTERNAL_ERROR"
    return Problem(status, code, error.message, job_id=error.job_id, details=error.details, retry_after=error.retry_after)


async def on_problem(request: Request, error: Exception) -> Response:
    """Starlette's hook for our own refusals."""
    assert isinstance(error, Problem)
    return error.response()


async def on_hub_error(request: Request, error: Exception) -> Response:
    """Starlette's hook for what the hub refused."""
    assert isinstance(error, HubUnavailable | Refused)
    return of_hub_error(error).response()


async def on_http_exception(request: Request, error: Exception) -> Response:
    """Starlette's hook for what its router refuses: 404 and 405."""
    assert isinstance(error, HTTPException)
    code = _CODE_OF_STATUS.get(error.status_code, "INTERNAL_ERROR" if error.status_code >= 500 else "INVALID_REQUEST")
    message = {404: "there is nothing at this path", 405: "this path does not take that method"}.get(error.status_code, str(error.detail))
    headers = dict(error.headers or {})
    if "Allow" in headers:
        headers["Allow"] = ", ".join(sorted(headers["Allow"].split(", ")))
    return Problem(error.status_code, code, message, headers=headers).response()
