"""`/jobs/{id}…`: a job for its own tenant. Another tenant's job looks like one that is not there."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from fetchbox.api.logs import logs_answer
from fetchbox.api.pages import cancel_answer, job_answer, resources_answer
from fetchbox.api.problems import Problem
from fetchbox.api.service import Service
from fetchbox.api.submit import Submit
from fetchbox.api.types import HEADERS

SUBMIT_PATH = "/jobs"

Answer = Callable[[Service, Request, str | None], Awaitable[Response]]


def job_routes(service: Service) -> list[Route]:
    """The routes of this file, the hot one first."""

    def scoped(answer: Answer) -> Callable[[Request], Awaitable[Response]]:
        async def endpoint(request: Request) -> Response:
            return await answer(service, request, service.settings.scope(request.scope[HEADERS]))

        return endpoint

    return [
        Route(SUBMIT_PATH, Submit(service), methods=["POST"]),
        Route("/jobs/{job_id}", scoped(job_answer), methods=["GET"]),
        Route("/jobs/{job_id}/resources", scoped(resources_answer), methods=["GET"]),
        Route("/jobs/{job_id}/logs", scoped(logs_answer), methods=["GET"]),
        Route("/jobs/{job_id}/cancel", scoped(cancel_answer), methods=["POST"]),
    ]


def direct_submit(service: Service) -> ASGIApp:
    """`POST /jobs` without router and layers: the same answers, refusals included."""
    submit = Submit(service)
    route = Route(SUBMIT_PATH, submit, methods=["POST"])

    async def endpoint(scope: Scope, receive: Receive, send: Send) -> None:
        scope["route"] = route
        try:
            await submit(scope, receive, send)
        except Problem as problem:
            await problem.response()(scope, receive, send)

    return endpoint
