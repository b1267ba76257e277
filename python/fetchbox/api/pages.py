"""What the reading endpoints share: parameters checked, answers passed through."""

from __future__ import annotations

from typing import Any

import orjson
from starlette.requests import Request
from starlette.responses import Response

from fetchbox.api.problems import Problem, not_found
from fetchbox.api.service import Service

LIMIT_DEFAULT = 100
LIMIT_MAX = 1000
MAX_VALUE = 1024
"""Characters of a filter's value; no name we store is longer."""
MAX_OFFSET = 2**63 - 1

JOB_STATUSES = ("queued", "in_progress", "partial", "completed", "failed", "cancelled")
RESOURCE_STATES = ("pending", "stored", "reused", "filtered", "failed", "cancelled")


def bad_parameter(name: str, message: str) -> Problem:
    """The answer to a query parameter that cannot be used."""
    told = f"{name}: {message}"
    return Problem(400, "INVALID_PARAMETER", told, details=[{"pointer": "", "code": "VALIDATION_BAD_VALUE", "message": told}])


def text(request: Request, name: str) -> str | None:
    """A text parameter, None when absent. Raises Problem 400 for an empty, overlong or unprintable one."""
    value = request.query_params.get(name)
    if value is None:
        return None
    if not 0 < len(value) <= MAX_VALUE or not value.isprintable():
        raise bad_parameter(name, f"must be 1 to {MAX_VALUE} printable characters")
    return value


def choice(request: Request, name: str, choices: tuple[str, ...]) -> str | None:
    """A parameter with a fixed set of values."""
    value = request.query_params.get(name)
    if value is not None and value not in choices:
        raise bad_parameter(name, f"must be one of {', '.join(choices)}")
    return value


def number(request: Request, name: str, *, default: int | None, low: int, high: int) -> int | None:
    """A whole number within limits."""
    value = request.query_params.get(name)
    if value is None:
        return default
    if not (value.isascii() and value.isdigit() and len(value) <= 20) or not low <= int(value) <= high:
        raise bad_parameter(name, f"must be a whole number from {low} to {high}")
    return int(value)


def flag(request: Request, name: str) -> bool:
    """A parameter that is true or false."""
    return choice(request, name, ("true", "false", "1", "0")) in ("true", "1")


def paging(request: Request) -> dict[str, Any]:
    """`limit` and `cursor`. The cursor is the hub's own; it refuses one that is not."""
    return {"limit": number(request, "limit", default=LIMIT_DEFAULT, low=1, high=LIMIT_MAX), "cursor": text(request, "cursor")}


def job_id_of(request: Request) -> str:
    """The job that the path names. What cannot be an id is not found."""
    job_id: str = request.path_params["job_id"]
    if not 0 < len(job_id) <= 128 or not job_id.isprintable():
        raise not_found()
    return job_id


def json_response(body: bytes, status: int = 200) -> Response:
    """Ready JSON as an answer. State changes all the time: nothing may keep it."""
    return Response(body, status, {"cache-control": "no-store"}, media_type="application/json")


def without_none(params: dict[str, Any]) -> dict[str, Any]:
    """The parameters that are set."""
    return {name: value for name, value in params.items() if value is not None}


async def job_answer(service: Service, request: Request, tenant: str | None) -> Response:
    """One job."""
    return json_response(await service.hub.query("job", without_none({"job_id": job_id_of(request), "tenant": tenant})))


async def resources_answer(service: Service, request: Request, tenant: str | None) -> Response:
    """A page of a job's resources."""
    params = {"job_id": job_id_of(request), "tenant": tenant, "state": choice(request, "state", RESOURCE_STATES), **paging(request)}
    return json_response(await service.hub.query("resources", without_none(params)))


async def manifest_answer(service: Service, request: Request, tenant: str | None) -> Response:
    """The manifest as it was posted."""
    answer = orjson.loads(await service.hub.query("manifest", without_none({"job_id": job_id_of(request), "tenant": tenant})))
    body = answer.get("body")
    if body is not None:
        return json_response(body.encode())
    key = answer.get("manifest_key")
    if not key:
        raise Problem(404, "NOT_FOUND", "this job has no manifest")
    return json_response(await service.settings.manifests.get(key))


async def receipt_answer(service: Service, request: Request, tenant: str | None) -> Response:
    """The conservation sum and every outcome."""
    return json_response(await service.hub.query("receipt", without_none({"job_id": job_id_of(request), "tenant": tenant})))


async def cancel_answer(service: Service, request: Request, tenant: str | None) -> Response:
    """Cancels what is pending; the job after it."""
    return json_response(await service.hub.cancel(job_id_of(request), tenant))
