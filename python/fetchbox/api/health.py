"""Liveness, readiness, and how every component stands."""

from __future__ import annotations

from typing import Any

import orjson
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from fetchbox.api.pages import json_response
from fetchbox.api.service import Service
from fetchbox.api.watch import Trouble, Watch
from fetchbox.errors import HubUnavailable, Refused

COMPONENTS = ("api", "hub", "broker", "storage", "proxy_pools", "workers")
QUERY_SECONDS = 3.0
"""A health check that waits longer says as much as one that fails."""


def own_trouble(service: Service) -> Trouble:
    """What this process needs to do its own part. Workers are no part of it."""
    return {
        "api": "this process is ending" if service.draining.is_set() else None,
        "hub": None if service.hub.connected else "the hub does not answer",
        "storage": service.settings.manifests.trouble,
    }


async def seen_by_hub(service: Service) -> tuple[dict[str, Any], str | None]:
    """The hub's view of the service, and why there is none."""
    try:
        answer: dict[str, Any] = orjson.loads(await service.hub.query("health", {}, timeout=QUERY_SECONDS))
    except (HubUnavailable, Refused) as error:
        return {}, error.message
    return answer, None


def standing(service: Service, answer: dict[str, Any], away: str | None, *, of_ingest: bool = False) -> tuple[Trouble, dict[str, str]]:
    """Every component's trouble: the hub's view of the service joined with our own, and since when, where the hub says so. `of_ingest`:
    only what keeps jobs from being taken; a broker that is away does not, as long as there is room for what waits for it."""
    own = own_trouble(service)
    service.troubled.update(name for name, reason in own.items() if reason)
    if away is not None:
        unknown = "unknown while the hub is away"
        return {**dict.fromkeys(COMPONENTS, unknown), **own, "hub": own["hub"] or away}, {}
    seen: Trouble = dict.fromkeys(COMPONENTS)
    since: dict[str, str] = {}
    for name, state in answer.get("components", {}).items():
        seen[name] = None if state["status"] == "ok" else state.get("reason") or "no reason is given"
        # What this process itself had seen in trouble is well since it sees so.
        if "since" in state and name not in service.troubled:
            since[name] = state["since"]
    if answer.get("workers") == 0:
        seen["workers"] = seen["workers"] or "no worker is connected"
    if of_ingest and not answer.get("outbox_full") and seen["broker"] is not None:
        seen["broker"] = None
        since.pop("broker", None)
    return {name: own.get(name) or reason for name, reason in seen.items()}, since


def components_of(service: Service, answer: dict[str, Any], away: str | None = None) -> dict[str, dict[str, str]]:
    """Every component's state, with its reason and since when."""
    return service.watch.states(*standing(service, answer, away))


def summary(components: dict[str, Any]) -> Response:
    """The answer for some components: 503 as soon as one is degraded."""
    degraded = any(state["status"] != "ok" for state in components.values())
    body = {"status": "degraded" if degraded else "ok", "components": components}
    return json_response(orjson.dumps(body), 503 if degraded else 200)


async def health_answer(service: Service) -> Response:
    """`/operators/health`."""
    return summary(components_of(service, *await seen_by_hub(service)))


def health_routes(service: Service) -> list[Route]:
    """`/health/live` and `/health/ready`: of this process, open to everyone."""
    watch = Watch(service.clock)

    async def live(request: Request) -> Response:
        return json_response(b'{"status":"ok"}')

    async def ready(request: Request) -> Response:
        # Ready to take jobs: the hub answers and there is room for them. Workers are no part of it.
        trouble, since = standing(service, *await seen_by_hub(service), of_ingest=True)
        return summary(watch.states({name: trouble[name] for name in ("api", "hub", "broker", "storage")}, since))

    return [Route("/health/live", live, methods=["GET"]), Route("/health/ready", ready, methods=["GET"])]
