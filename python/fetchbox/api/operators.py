"""`/operators…`: everything of every tenant, for who holds the operator's token."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from fetchbox.api.dlq import dlq_answer, groups_answer, letter_answer, purge_answer, replay_answer
from fetchbox.api.health import health_answer
from fetchbox.api.logs import logs_answer
from fetchbox.api.overview import Overview, login_answer, logout_answer, session_answer
from fetchbox.api.pages import (
    JOB_STATUSES,
    cancel_answer,
    choice,
    flag,
    job_answer,
    json_response,
    manifest_answer,
    paging,
    receipt_answer,
    resources_answer,
    text,
    without_none,
)
from fetchbox.api.service import Service
from fetchbox.api.types import HEADERS

Answer = Callable[[Service, Request, str | None], Awaitable[Response]]


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


async def operators_health(service: Service, request: Request, tenant: str | None) -> Response:
    """Every component."""
    return await health_answer(service)


def operator_routes(service: Service) -> list[Route]:
    """The routes of this file."""

    figures = Overview(service)

    def admit(request: Request) -> int | None:
        return service.settings.check_operator(request.scope[HEADERS], request.method, service.clock())

    def guarded(answer: Answer) -> Callable[[Request], Awaitable[Response]]:
        async def endpoint(request: Request) -> Response:
            admit(request)
            return await answer(service, request, None)

        return endpoint

    async def session(request: Request) -> Response:
        if request.method == "POST":
            return await login_answer(service, request)
        if request.method == "DELETE":
            return await logout_answer(service, request)
        return await session_answer(service, request, admit(request))

    async def overview(service: Service, request: Request, tenant: str | None) -> Response:
        return json_response(await figures.body(history=flag(request, "history")))

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
        Route("/operators/dlq/groups", guarded(groups_answer), methods=["GET"]),
        Route("/operators/dlq/replay", guarded(replay_answer), methods=["POST"]),
        Route("/operators/dlq/purge", guarded(purge_answer), methods=["POST"]),
        Route("/operators/dlq/{entry_id}", guarded(letter_answer), methods=["GET"]),
        Route("/operators/health", guarded(operators_health), methods=["GET"]),
        Route("/operators/overview", guarded(overview), methods=["GET"]),
        Route("/operators/session", session, methods=["GET", "POST", "DELETE"]),
    ]
