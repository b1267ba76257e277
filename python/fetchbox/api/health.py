"""Liveness, readiness, and how every component stands."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from typing import Any

import orjson
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from fetchbox.api.pages import json_response
from fetchbox.api.service import Service
from fetchbox.errors import HubUnavailable, Refused

COMPONENTS = ("api", "hub", "broker", "storage", "proxy_pools", "workers")
QUERY_SECONDS = 3.0
"""A health check that waits longer says as much as one that fails."""

Component = dict[str, Any]


class HubWatch:
    """Since when the hub has been reachable, or not."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._connected = service.hub.connected
        self._since = service.clock()
        self.started = self._since

    def component(self) -> Component:
        """The hub as this process sees it."""
        connected = self._service.hub.connected
        if connected != self._connected:
            self._connected, self._since = connected, self._service.clock()
        if connected:
            return component("ok", self._since)
        return component("degraded", self._since, "the hub does not answer")


def component(status: str, since: float, reason: str | None = None) -> Component:
    """One component's state; `since` in seconds since 1970."""
    state: Component = {
        "status": status,
        "since": datetime.fromtimestamp(since, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z"),
    }
    if reason is not None:
        state["reason"] = reason
    return state


def own_components(service: Service, watch: HubWatch) -> dict[str, Component]:
    """What this process needs to do its own part."""
    manifests = service.settings.manifests
    components = {"api": component("ok", watch.started), "hub": watch.component()}
    if service.draining.is_set():
        components["api"] = component("degraded", service.clock(), "this process is ending")
    if manifests.trouble is not None:
        components["storage"] = component("degraded", manifests.trouble_since, manifests.trouble)
    return components


def summary(components: dict[str, Component]) -> Response:
    """The answer for some components: 503 as soon as one is degraded."""
    degraded = any(state["status"] != "ok" for state in components.values())
    body = {"status": "degraded" if degraded else "ok", "components": components}
    return json_response(orjson.dumps(body), 503 if degraded else 200)


async def all_components(service: Service, watch: HubWatch) -> dict[str, Component]:
    """Every component: the hub's view of the service, corrected by our own."""
    own = own_components(service, watch)
    seen: dict[str, Component] = {}
    if own["hub"]["status"] == "ok":
        try:
            answer = orjson.loads(await service.hub.query("health", {}, timeout=QUERY_SECONDS))
            seen = answer.get("components") or {}
        except (HubUnavailable, Refused) as error:
            own["hub"] = component("degraded", service.clock(), error.message)
    components = {**seen, **own}
    for name in COMPONENTS:
        if name not in components:
            # Only the hub knows; without it the state is that of the hub.
            hub = own["hub"]
            components[name] = (
                {**hub, "reason": "unknown while the hub is away"} if hub["status"] != "ok" else component("ok", watch.started)
            )
    return {name: components[name] for name in (*COMPONENTS, *sorted(components.keys() - set(COMPONENTS)))}


async def health_answer(service: Service) -> Response:
    """`/operators/health`."""
    return summary(await all_components(service, watch_of(service)))


def watch_of(service: Service) -> HubWatch:
    """The service's one watch."""
    if service.watch is None:
        service.watch = HubWatch(service)
    return service.watch


def health_routes(service: Service) -> list[Route]:
    """`/health/live` and `/health/ready`: of this process, open to everyone, without details."""
    watch = watch_of(service)

    async def live(request: Request) -> Response:
        return json_response(b'{"status":"ok"}')

    async def ready(request: Request) -> Response:
        return summary(own_components(service, watch))

    routes: list[tuple[str, Callable[[Request], Awaitable[Response]]]] = [("/health/live", live), ("/health/ready", ready)]
    return [Route(path, endpoint, methods=["GET"]) for path, endpoint in routes]
