"""`/operators/overview`: the figures of the dashboard in one answer, and `/operators/session`: a browser's way in."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from typing import Any

import orjson
from starlette.requests import Request
from starlette.responses import Response

from fetchbox.api.body import read_body
from fetchbox.api.health import QUERY_SECONDS, components_of
from fetchbox.api.pages import json_response
from fetchbox.api.problems import Problem, invalid
from fetchbox.api.service import Service
from fetchbox.api.session import SESSION_SECONDS, check_origin, origin_of, set_cookie
from fetchbox.api.submit import check_content_type
from fetchbox.api.types import HEADERS

KEEP_SECONDS = 0.5
"""How long an answer serves everybody who asks: any number of open dashboards are one question to the hub."""
MAX_LOGIN_BYTES = 16 << 10


class Overview:
    """The hub's last answers, with and without what was before, and the moments they came."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._kept: dict[bool, tuple[float, bytes]] = {}

    async def body(self, *, history: bool) -> bytes:
        """The answer. Raises HubUnavailable and Refused."""
        at, body = self._kept.get(history, (float("-inf"), b""))
        if time.monotonic() - at > KEEP_SECONDS:
            seen: dict[str, Any] = orjson.loads(await self._service.hub.query("overview", {"history": history}, timeout=QUERY_SECONDS))
            components = components_of(self._service, seen.pop("health"))
            well = all(state["status"] == "ok" for state in components.values())
            body = orjson.dumps({**seen, "status": "ok" if well else "degraded", "components": components})
            self._kept[history] = (time.monotonic(), body)
        return body


async def session_answer(service: Service, request: Request, until: int | None) -> Response:
    """Whether a token is needed here, and when the caller's session ends."""
    return json_response(_session(service, until))


async def login_answer(service: Service, request: Request) -> Response:
    """Exchanges the operator token for a session's cookie. Raises Problem 401 for a wrong token, 403 for a page of another site."""
    headers = request.scope[HEADERS]
    scheme = origin_of(headers)
    check_content_type(headers.get(b"content-type"))
    try:
        order: Any = orjson.loads(await read_body(request.receive, headers, MAX_LOGIN_BYTES))
    except orjson.JSONDecodeError as error:
        raise invalid(f"the body is not JSON: {error}") from error
    if not isinstance(order, dict) or set(order) != {"token"} or not isinstance(order["token"], str):
        raise invalid('the body must be {"token": "…"}')
    settings = service.settings
    sessions = settings.operator.sessions
    if sessions is None:
        settings.check_operator(headers, request.method, service.clock())
        return json_response(_session(service, None))
    try:
        settings.operator.check_token(order["token"].encode())
    except UnicodeEncodeError:
        raise Problem(401, "UNAUTHORIZED", "the operator token is not valid") from None
    until = int(service.clock()) + SESSION_SECONDS
    response = json_response(_session(service, until))
    response.headers["set-cookie"] = set_cookie(sessions.make(until), SESSION_SECONDS, secure="https" in (scheme, request.url.scheme))
    return response


async def logout_answer(service: Service, request: Request) -> Response:
    """Takes the session's cookie away. Whoever is asked by another site's page does nothing."""
    headers = request.scope[HEADERS]
    check_origin(headers, request.method, needed=False)
    secure = "https" in (origin_of(headers), request.url.scheme)
    return Response(status_code=204, headers={"set-cookie": set_cookie("", 0, secure=secure), "cache-control": "no-store"})


def _session(service: Service, until: int | None) -> bytes:
    ends = None if until is None else datetime.fromtimestamp(until, UTC).isoformat().replace("+00:00", "Z")
    return orjson.dumps({"token_needed": bool(service.settings.operator), "expires_at": ends})
