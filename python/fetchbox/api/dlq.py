"""`/operators/dlq…`: what failed for good, seen by code, host and job, put back to work, or forgotten."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any

import orjson
from starlette.requests import Request
from starlette.responses import Response

from fetchbox.api.body import read_body
from fetchbox.api.pages import MAX_VALUE, bad_parameter, choice, flag, json_response, number, paging, text, without_none
from fetchbox.api.problems import Detail, Problem, invalid
from fetchbox.api.service import Service
from fetchbox.api.submit import check_content_type
from fetchbox.api.types import HEADERS
from fetchbox.config.units import parse_duration

MAX_ORDER_BYTES = 1 << 20
"""An order's filter and changes are a handful of lines."""
BUSY_LOOKS = 60
BUSY_PAUSE = 0.5
"""How often, and how far apart in seconds, a slice is tried again whose jobs the collector works on."""
FILTERS = ("id", "job", "tenant", "code", "host", "since")
GROUPS = ("code", "host", "job")
GROUPS_MAX = 1000

_DATE = re.compile(r"\d{4}-\d\d-\d\d")


def since_ms(value: str, now: float) -> int:
    """The Unix milliseconds of an RFC 3339 time, of a date, or of so long ago ("15m", "2d"). Raises ValueError that shows the forms."""
    wrong = ValueError(
        'must be an RFC 3339 time such as 2026-01-31T12:00:00Z, a date such as 2026-01-31, or how long ago: "15m", "2h", "7d"'
    )
    if _DATE.match(value):
        try:
            # A plus in a query that was not encoded arrives as a space.
            moment = datetime.fromisoformat(value.replace(" ", "+") if "T" in value.upper() else value)
        except ValueError:
            raise wrong from None
        if moment.tzinfo is None:
            if not _DATE.fullmatch(value):
                raise wrong
            moment = moment.replace(tzinfo=UTC)
        return max(0, int(moment.timestamp() * 1000))
    try:
        ago = parse_duration(value)
    except ValueError:
        raise wrong from None
    return max(0, int((now - ago) * 1000))


async def dlq_answer(service: Service, request: Request, tenant: str | None) -> Response:
    """A page of dead letters, newest first."""
    params = {"filter": _query_filter(service, request), "replayed": flag(request, "replayed"), **paging(request)}
    return json_response(await service.hub.query("dlq", without_none(params)))


async def groups_answer(service: Service, request: Request, tenant: str | None) -> Response:
    """How many dead letters there are of each code, host or job, the most first."""
    limit = number(request, "limit", default=None, low=1, high=GROUPS_MAX)
    params = {"by": choice(request, "by", GROUPS) or "code", "filter": _query_filter(service, request), "limit": limit}
    return json_response(await service.hub.query("dlq_groups", without_none(params)))


async def letter_answer(service: Service, request: Request, tenant: str | None) -> Response:
    """The whole story of one dead letter."""
    return json_response(await service.hub.query("dlq_show", {"id": request.path_params["entry_id"]}))


async def replay_answer(service: Service, request: Request, tenant: str | None) -> Response:
    """Puts dead letters back to work, changed as ordered."""
    order = await _order(service, request, {"headers": (dict,), "proxy_pool": (str,), "url_replace": (dict, list), "dry_run": (bool,)})
    _check_changes(service, order)
    dry_run = order.pop("dry_run", False)
    order.update(service.settings.replay_context)
    first = await _carry_out(service, "dlq_replay", {**order, "dry_run": True}) if dry_run or _changes(order) else None
    if dry_run and first is not None:
        return _counted(first)
    # Every changed task was looked at before the first one is touched; both looks end at the same commit.
    until = {} if first is None else {"until": first["until"]}
    return _counted(await _carry_out(service, "dlq_replay", {**order, **until, "dry_run": False}))


async def purge_answer(service: Service, request: Request, tenant: str | None) -> Response:
    """Forgets dead letters; their jobs keep their counts."""
    order = await _order(service, request, {"dry_run": (bool,)})
    return _counted(await _carry_out(service, "dlq_purge", order))


async def _carry_out(service: Service, name: str, order: Mapping[str, Any]) -> dict[str, Any]:
    """Asks the hub for slice after slice of an order; the sum. Each slice takes a few seconds at most, so none meets a time-out."""
    sums = {"count": 0, "refused": 0}
    more: dict[str, Any] = {}
    looks = 0
    while True:
        slice_ = orjson.loads(await service.hub.query(name, {**order, **more}))
        sums["count"] += slice_["count"]
        if slice_["busy"]:
            # The collector is at some of the jobs: once more, what is done already is not done again.
            if (looks := looks + 1) > BUSY_LOOKS:
                raise Problem(503, "HUB_UNAVAILABLE", "jobs are being tidied up; try again, the rest is replayed then", retry_after=5)
            more["until"] = slice_["until"]
            await asyncio.sleep(BUSY_PAUSE)
            continue
        sums["refused"] += slice_["refused"]
        if slice_["next_cursor"] is None:
            return {**sums, "until": slice_["until"]}
        more = {"until": slice_["until"], "cursor": slice_["next_cursor"]}


def _counted(sums: Mapping[str, Any]) -> Response:
    return json_response(orjson.dumps({"count": sums["count"], "refused": sums["refused"]}))


def _changes(order: Mapping[str, Any]) -> bool:
    return any(order.get(name) for name in ("headers", "proxy_pool", "url_replace"))


def _query_filter(service: Service, request: Request) -> dict[str, Any]:
    given = without_none({name: text(request, name) for name in FILTERS})
    if "since" in given:
        try:
            given["since_ms"] = since_ms(given.pop("since"), service.clock())
        except ValueError as error:
            raise bad_parameter("since", str(error)) from None
    return given


async def _order(service: Service, request: Request, kinds: Mapping[str, tuple[type, ...]]) -> dict[str, Any]:
    """The order in a request's body, its shape right and its filter ready for the hub. Raises Problem 400 that names every fault."""
    headers = request.scope[HEADERS]
    check_content_type(headers.get(b"content-type"))
    try:
        order: Any = orjson.loads(await read_body(request.receive, headers, MAX_ORDER_BYTES))
    except orjson.JSONDecodeError as error:
        raise invalid(f"the body is not JSON: {error}") from error
    if not isinstance(order, dict):
        raise invalid("the body must be an object")
    faults = [*_unknown(order, ("filter", *kinds), ""), *_wrong_types(order, kinds)]
    filter_ = order.get("filter")
    if not isinstance(filter_, dict):
        # An order for everything has to be said: an empty filter, not a forgotten one.
        faults.append(_fault("/filter", "VALIDATION_MISSING", "an object is needed; {} means every dead letter"))
    else:
        faults += _filter_faults(filter_)
        filter_ = without_none(filter_)
        if isinstance(filter_.get("since"), str):
            try:
                filter_["since_ms"] = since_ms(filter_.pop("since"), service.clock())
            except ValueError as error:
                faults.append(_fault("/filter/since", "VALIDATION_BAD_VALUE", str(error)))
    if faults:
        raise Problem(400, "INVALID_PAYLOAD", "the order cannot be understood", details=faults)
    return without_none({**order, "filter": filter_})


def _filter_faults(filter_: Mapping[str, Any]) -> list[Detail]:
    faults = _unknown(filter_, FILTERS, "/filter")
    for name in FILTERS:
        value = filter_.get(name)
        if value is not None and not (isinstance(value, str) and 0 < len(value) <= MAX_VALUE):
            faults.append(_fault(f"/filter/{name}", "VALIDATION_WRONG_TYPE", f"must be a text of 1 to {MAX_VALUE} characters"))
    return faults


def _wrong_types(order: Mapping[str, Any], kinds: Mapping[str, tuple[type, ...]]) -> list[Detail]:
    names = {dict: "an object", list: "a list", str: "a text", bool: "true or false"}
    return [
        _fault(f"/{name}", "VALIDATION_WRONG_TYPE", f"must be {' or '.join(names[kind] for kind in allowed)}")
        for name, allowed in kinds.items()
        if order.get(name) is not None and not isinstance(order[name], allowed)
    ]


def _unknown(given: Mapping[str, Any], known: tuple[str, ...], pointer: str) -> list[Detail]:
    escaped: Callable[[str], str] = lambda name: name.replace("~", "~0").replace("/", "~1")  # noqa: E731
    message = f"there is no such key; known are {', '.join(known)}"
    return [_fault(f"{pointer}/{escaped(name)}", "VALIDATION_BAD_VALUE", message) for name in given if name not in known]


def _fault(pointer: str, code: str, message: str) -> Detail:
    return {"pointer": pointer, "code": code, "message": message}


def _check_changes(service: Service, order: Mapping[str, Any]) -> None:
    """Raises Problem 400 for changes that no task could take."""
    faults: list[Detail] = []
    try:
        service.core.check_replay(orjson.dumps(order), orjson.dumps(service.settings.replay_context["limits"]))
    except service.core.CoreError as error:
        if error.kind != "validation":
            raise
        faults += error.details or []
    pool = order.get("proxy_pool")
    pools = service.settings.proxy_pools
    if isinstance(pool, str) and pool not in pools:
        known = f"configured are {', '.join(sorted(pools))}" if pools else "none is configured"
        faults.append(_fault("/proxy_pool", "VALIDATION_UNKNOWN_POOL", f"there is no such pool; {known}"))
    if faults:
        raise Problem(400, "INVALID_PAYLOAD", "the changes cannot be made", details=faults)
