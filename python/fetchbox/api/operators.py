"""`/operators…`: everything of every tenant, for who holds the operator's token."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import orjson
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from fetchbox.api.body import read_body
from fetchbox.api.health import health_answer
from fetchbox.api.logs import logs_answer
from fetchbox.api.pages import (
    JOB_STATUSES,
    cancel_answer,
    choice,
    job_answer,
    json_response,
    manifest_answer,
    paging,
    receipt_answer,
    resources_answer,
    text,
    without_none,
)
from fetchbox.api.problems import Problem, invalid
from fetchbox.api.service import Service
from fetchbox.api.submit import check_content_type
from fetchbox.api.types import HEADERS

Answer = Callable[[Service, Request, str | None], Awaitable[Response]]

MAX_REPLAY_BYTES = 1 << 20
"""A replay's filter and changes are a handful of lines."""


async def jobs_answer(service: Service, request: Request, tenant: str | None) -> Response:
    """Jobs, newest first."""
    params = {
        "status": choice(request, "status", JOB_STATUSES),
        "tenant": text(request, "tenant"),
        "job_type": text(request, "job_type"),
        "crawl_id": text(request, "crawl_id"),
        **paging(request),
    }
    return json_response(await service.hub.query("jobs", without_none(params)))


async def dlq_answer(service: Service, request: Request, tenant: str | None) -> Response:
    """Dead letters."""
    params = {name: text(request, name) for name in ("job", "code", "host", "since")}
    return json_response(await _dead_letters(service, "dlq", without_none({**params, **paging(request)})))


async def replay_answer(service: Service, request: Request, tenant: str | None) -> Response:
    """Puts dead letters back to work."""
    headers = request.scope[HEADERS]
    check_content_type(headers.get(b"content-type"))
    try:
        order: Any = orjson.loads(await read_body(request.receive, headers, MAX_REPLAY_BYTES))
    except orjson.JSONDecodeError as error:
        raise invalid(f"the body is not JSON: {error}") from error
    return json_response(await _dead_letters(service, "dlq_replay", replay_order(order)))


async def _dead_letters(service: Service, question: str, params: dict[str, Any]) -> bytes:
    try:
        return await service.hub.query(question, params)
    except service.core.CoreError as error:
        if f"no question {question}" not in error.message:
            raise
        raise Problem(404, "NOT_FOUND", "this hub does not keep dead letters") from error


def replay_order(order: object) -> dict[str, Any]:
    """A replay order whose shape is right. Raises Problem 400 that names every fault."""
    if not isinstance(order, dict):
        raise invalid("the body must be an object")
    kinds: Mapping[str, tuple[type, ...]] = {
        "filter": (dict,),
        "headers": (dict,),
        "proxy_pool": (str,),
        "url_replace": (dict, list),
        "dry_run": (bool,),
    }
    faults = [
        {
            "pointer": f"/{name}",
            "code": "VALIDATION_BAD_VALUE",
            "message": "there is no such key; filter, headers, proxy_pool, url_replace and dry_run are known",
        }
        for name in order
        if name not in kinds
    ]
    faults += [
        {"pointer": f"/{name}", "code": "VALIDATION_WRONG_TYPE", "message": f"must be {' or '.join(kind.__name__ for kind in allowed)}"}
        for name, allowed in kinds.items()
        if order.get(name) is not None and not isinstance(order[name], allowed)
    ]
    if not isinstance(order.get("filter"), dict):
        # A replay of everything has to be said: an empty filter, not a forgotten one.
        faults.append({"pointer": "/filter", "code": "VALIDATION_MISSING", "message": "an object is needed; {} means every dead letter"})
    if faults:
        raise Problem(400, "INVALID_PAYLOAD", "the replay cannot be understood", details=faults)
    return without_none(order)


async def operators_health(service: Service, request: Request, tenant: str | None) -> Response:
    """Every component."""
    return await health_answer(service)


def operator_routes(service: Service) -> list[Route]:
    """The routes of this file."""

    def guarded(answer: Answer) -> Callable[[Request], Awaitable[Response]]:
        async def endpoint(request: Request) -> Response:
            service.settings.check_operator(request.scope[HEADERS])
            return await answer(service, request, None)

        return endpoint

    job = "/operators/jobs/{job_id}"
    return [
        Route("/operators/jobs", guarded(jobs_answer), methods=["GET"]),
        Route(job, guarded(job_answer), methods=["GET"]),
        Route(f"{job}/resources", guarded(resources_answer), methods=["GET"]),
        Route(f"{job}/manifest", guarded(manifest_answer), methods=["GET"]),
        Route(f"{job}/receipt", guarded(receipt_answer), methods=["GET"]),
        Route(f"{job}/logs", guarded(logs_answer), methods=["GET"]),
        Route(f"{job}/cancel", guarded(cancel_answer), methods=["POST"]),
        Route("/operators/dlq", guarded(dlq_answer), methods=["GET"]),
        Route("/operators/dlq/replay", guarded(replay_answer), methods=["POST"]),
        Route("/operators/health", guarded(operators_health), methods=["GET"]),
    ]
