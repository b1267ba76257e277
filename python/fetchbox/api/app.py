"""The application: every route, one shape of error, one layer around it all."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.types import ASGIApp, Receive, Scope, Send

from fetchbox.api.configure import settings_of
from fetchbox.api.dashboard import dashboard_routes
from fetchbox.api.document import document_routes
from fetchbox.api.edge import Edge
from fetchbox.api.health import health_routes
from fetchbox.api.ids import new_job_id
from fetchbox.api.jobs import SUBMIT_PATH, direct_submit, job_routes
from fetchbox.api.manifests import Manifests
from fetchbox.api.operators import operator_routes
from fetchbox.api.problems import Problem, on_http_exception, on_hub_error, on_problem
from fetchbox.api.service import Service
from fetchbox.api.types import Core, Hub
from fetchbox.config import Config
from fetchbox.errors import HubUnavailable, Refused


class Ingress(Starlette):
    """Starlette, and a shorter way for the one request that comes by the thousand: its router and its layers cost as much as accepting a
    small job. What the shorter way answers is the same, and Starlette has the route as well."""

    submit: ASGIApp

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["method"] == "POST" and scope["path"] == SUBMIT_PATH and not scope.get("root_path"):
            await self.submit(scope, receive, send)
        else:
            await super().__call__(scope, receive, send)


def create_app(
    config: Config,
    hub: Hub,
    *,
    core: Core | None = None,
    manifests: Manifests | None = None,
    clock: Callable[[], float] = time.time,
    new_id: Callable[[], str] = new_job_id,
    draining: asyncio.Event | None = None,
) -> Ingress:
    """The ingress over a connection to the hub.

    `core` (default: the native module), `manifests` (default: what `[storage]` names), `clock` (seconds since 1970) and `new_id` exist
    for tests. Streams end when
    `draining` is set. `app.state.service` is the shared state: replace its `settings` to apply a new configuration.
    """
    service = Service(
        settings=settings_of(config, manifests),
        hub=hub,
        core=core or native_core(),
        clock=clock,
        new_id=new_id,
        draining=draining or asyncio.Event(),
    )
    app = Ingress(
        routes=[*job_routes(service), *operator_routes(service), *health_routes(service), *document_routes(), *dashboard_routes()],
        middleware=[Middleware(Edge, metrics=service.metrics)],
        exception_handlers={
            HTTPException: on_http_exception,
            Problem: on_problem,
            HubUnavailable: on_hub_error,
            Refused: on_hub_error,
        },
    )
    # A path with a slash too many is a mistake to report, not to redirect: clients lose the body on the way.
    app.router.redirect_slashes = False
    app.submit = Edge(direct_submit(service), metrics=service.metrics)
    app.state.service = service
    return app


def native_core() -> Core:
    """The native module."""
    from fetchbox import _core

    return _core
