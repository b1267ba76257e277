"""The API as an OpenAPI 3.1 document, maintained by hand. A test holds it against the routes."""

from __future__ import annotations

from functools import cache
from typing import Any

import orjson

import fetchbox
from fetchbox.api.dlq import GROUPS
from fetchbox.api.openapi_schemas import SCHEMAS
from fetchbox.api.pages import JOB_STATUSES, LIMIT_DEFAULT, LIMIT_MAX, MAX_OFFSET, MAX_VALUE, RESOURCE_STATES
from fetchbox.api.session import COOKIE

Node = dict[str, Any]

_TENANT: list[Node] = [{}, {"tenantToken": []}]
_OPERATOR: list[Node] = [{}, {"operatorToken": []}, {"operatorBearer": []}, {"operatorSession": []}]


def _ref(name: str) -> Node:
    return {"$ref": f"#/components/schemas/{name}"}


def _json(schema: Node, description: str) -> Node:
    return {"description": description, "headers": _HEADERS, "content": {"application/json": {"schema": schema}}}


_HEADERS: Node = {"X-Request-Id": {"description": "Names the request in our logs.", "schema": {"type": "string"}}}
_RETRY: Node = {**_HEADERS, "Retry-After": {"description": "Seconds to wait.", "schema": {"type": "integer", "minimum": 1}}}

_LIMITED: Node = {
    **_RETRY,
    "RateLimit-Policy": {"description": "Every limit of the tenant.", "schema": {"type": "string"}},
    "RateLimit": {"description": "The limit that was reached, and when it ends.", "schema": {"type": "string"}},
}

_REFUSALS = {
    400: "Not valid; `details` names every fault",
    401: "A token is missing or wrong (UNAUTHORIZED)",
    403: "UNSUPPORTED_JOB_TYPE or FORBIDDEN",
    404: "NOT_FOUND",
    408: "The body did not arrive in time (REQUEST_TIMEOUT)",
    409: "A conflict, e.g. IDEMPOTENCY_CONFLICT: the key was used with another body; `job_id` names that job",
    413: "PAYLOAD_TOO_LARGE",
    415: "UNSUPPORTED_MEDIA_TYPE",
    429: "RATE_LIMITED",
    500: "INTERNAL_ERROR or HANDLER_*; unknown to have happened or not: try again with the same key",
    502: "STORAGE_UNAVAILABLE",
    503: "HUB_UNAVAILABLE, BROKER_UNAVAILABLE or LEDGER_FULL",
}


def _answers(ok: Node, *refusals: int) -> Node:
    answers = dict(ok)
    for status in refusals:
        answer = _json(_ref("Error"), _REFUSALS[status])
        if status == 429 or status >= 500:
            answer["headers"] = _LIMITED if status == 429 else _RETRY
        answers[str(status)] = answer
    return answers


def _query(name: str, schema: Node, description: str) -> Node:
    return {"name": name, "in": "query", "required": False, "schema": schema, "description": description}


def _header(name: str, schema: Node, description: str) -> Node:
    return {"name": name, "in": "header", "required": False, "schema": schema, "description": description}


_FILTER: Node = {"type": "string", "minLength": 1, "maxLength": MAX_VALUE}
_JOB_ID: Node = {
    "name": "job_id",
    "in": "path",
    "required": True,
    "schema": {"type": "string", "minLength": 1},
    "description": "The job's id.",
}
_PAGING: list[Node] = [
    _query("limit", {"type": "integer", "minimum": 1, "maximum": LIMIT_MAX, "default": LIMIT_DEFAULT}, "Items of one page."),
    _query("cursor", _FILTER, "`next_cursor` of the page before."),
]
_LOG_QUERY: list[Node] = [
    _query("since_offset", {"type": "integer", "minimum": 0, "maximum": MAX_OFFSET, "default": 0}, "First offset, inclusive."),
    _query("limit", {"type": "integer", "minimum": 1, "maximum": LIMIT_MAX}, "Records after which the stream ends."),
    _query("follow", {"type": "boolean", "default": False}, "Go on after the job is settled."),
    _header("Last-Event-ID", {"type": "string", "pattern": "^[0-9]{1,19}$"}, "Offset of the last record seen, exclusive."),
    _header("Accept", {"type": "string"}, "`application/x-ndjson` for JSON lines."),
]
_DLQ_QUERY: list[Node] = [
    _query("job", _FILTER, "Of this job."),
    _query("code", _FILTER, "With this failure code."),
    _query("host", _FILTER, "Of this host of the task's URL, with or without a port."),
    _query("since", _FILTER, 'Failed since: an RFC 3339 time, a date, or how long ago ("15m", "2h", "7d").'),
    _query("tenant", _FILTER, "Of this tenant's jobs."),
    _query("id", _FILTER, "This entry."),
]
_STATE = _query("state", {"type": "string", "enum": list(RESOURCE_STATES)}, "Only resources in this state.")


def _get(summary: str, tag: str, answers: Node, parameters: list[Node] | None = None) -> Node:
    security = {"jobs": _TENANT, "operators": _OPERATOR}.get(tag, [])
    return {"summary": summary, "tags": [tag], "security": security, "parameters": parameters or [], "responses": answers}


def _job_views(tag: str) -> dict[str, Node]:
    """The routes that tenants and operators share, by what follows the job's id."""
    refusals = (400, 401, 403, 404, 500, 503)
    cancelled = _answers({"200": _json(_ref("Job"), "The job, what was pending cancelled.")}, *refusals, 409)
    stream = {
        "description": "Server-Sent Events `log`, then `end`; or JSON lines.",
        "headers": _HEADERS,
        "content": {"text/event-stream": {"schema": {}}, "application/x-ndjson": {"schema": {"type": "string"}}},
    }
    logs = _answers(
        {"200": stream, "204": {"description": "The job is settled and its log was read to the end.", "headers": _HEADERS}}, *refusals
    )
    return {
        "": {"get": _get("One job", tag, _answers({"200": _json(_ref("Job"), "The job.")}, *refusals), [_JOB_ID])},
        "/resources": {
            "get": _get(
                "Its resources, an outcome each",
                tag,
                _answers({"200": _json(_ref("ResourcePage"), "A page.")}, *refusals),
                [_JOB_ID, _STATE, *_PAGING],
            )
        },
        "/logs": {"get": _get("Its log", tag, logs, [_JOB_ID, *_LOG_QUERY])},
        "/cancel": {"post": _get("Cancel what is pending", tag, cancelled, [_JOB_ID])},
    }


def _submit() -> Node:
    key: Node = {"type": "string", "minLength": 1, "maxLength": 255}
    accepted = {"schema": _ref("Accepted")}
    location = {**_HEADERS, "Location": {"description": "Where the job is seen.", "schema": {"type": "string"}}}
    return {
        "summary": "Post a manifest",
        "description": "Answers once the job is durable. With an idempotency key the same body gives the same job.",
        "tags": ["jobs"],
        "security": _TENANT,
        "parameters": [
            _header("X-Fetchbox-Job-Type", {"type": "string", "default": "default"}, "A configured job type."),
            _header("X-Fetchbox-Idempotency-Key", key, "Makes the post safe to repeat."),
            _header("Idempotency-Key", key, "The same under its common name."),
            _header("X-Fetchbox-Tenant", {"type": "string", "minLength": 1, "maxLength": 128}, "The tenant; a token fixes it."),
            _header("Content-Encoding", {"type": "string", "enum": ["identity", "gzip", "zstd"]}, "How the body is compressed."),
            _header("traceparent", {"type": "string"}, "W3C trace context."),
        ],
        "requestBody": {"required": True, "content": {"application/json": {"schema": _ref("Manifest")}}},
        "responses": _answers(
            {
                "202": {"description": "A new job.", "headers": location, "content": {"application/json": accepted}},
                "200": {
                    "description": "The job that this key and body made before.",
                    "headers": location,
                    "content": {"application/json": accepted},
                },
            },
            *(status for status in _REFUSALS if status != 404),
        ),
    }


def _paths() -> dict[str, Node]:
    operator = (400, 401, 403, 500, 503)
    paths: dict[str, Node] = {"/jobs": {"post": _submit()}}
    for prefix, tag in (("/jobs", "jobs"), ("/operators/jobs", "operators")):
        for rest, item in _job_views(tag).items():
            paths[f"{prefix}/{{job_id}}{rest}"] = item
    lists = {
        "/operators/jobs": (
            "Jobs, newest first",
            "JobPage",
            [
                _query("status", {"type": "string", "enum": list(JOB_STATUSES)}, "Only jobs in this state."),
                *(_query(name, _FILTER, f"Only this {name}.") for name in ("tenant", "job_type", "crawl_id")),
                *_PAGING,
            ],
        ),
        "/operators/dlq": (
            "Dead letters, newest first",
            "DeadLetterPage",
            [*_DLQ_QUERY, _query("replayed", {"type": "boolean", "default": False}, "Those that were put back to work instead."), *_PAGING],
        ),
        "/operators/dlq/groups": (
            "How many dead letters there are of each code, host or job",
            "DeadLetterGroups",
            [_query("by", {"type": "string", "enum": list(GROUPS), "default": "code"}, "What to count by."), *_DLQ_QUERY, _PAGING[0]],
        ),
    }
    for path, (summary, schema, parameters) in lists.items():
        paths[path] = {"get": _get(summary, "operators", _answers({"200": _json(_ref(schema), "A page.")}, *operator, 404), parameters)}
    for name, summary, schema in (
        ("manifest", "The manifest as posted", "Manifest"),
        ("receipt", "The conservation sum and every outcome", "Receipt"),
    ):
        answers = _answers({"200": _json(_ref(schema), "The document.")}, *operator, 404, 502)
        paths[f"/operators/jobs/{{job_id}}/{name}"] = {"get": _get(summary, "operators", answers, [_JOB_ID])}
    for name, summary, schema in (
        ("replay", "Put dead letters back to work, perhaps changed", "Replay"),
        ("purge", "Forget dead letters; their jobs keep their counts", "Purge"),
    ):
        answers = _answers({"200": _json(_ref("Moved"), "How many.")}, *operator, 404, 408, 409, 413, 415)
        order = _get(summary, "operators", answers)
        order["requestBody"] = {"required": True, "content": {"application/json": {"schema": _ref(schema)}}}
        paths[f"/operators/dlq/{name}"] = {"post": order}
    entry: Node = {"name": "entry_id", "in": "path", "required": True, "schema": _FILTER, "description": "The entry's `id`."}
    story = _answers({"200": _json(_ref("DeadLetterStory"), "The entry.")}, *operator, 404)
    paths["/operators/dlq/{entry_id}"] = {"get": _get("The whole story of one dead letter", "operators", story, [entry])}
    health = {"200": _json(_ref("Health"), "All is well."), "503": _json(_ref("Health"), "Something is degraded.")}
    paths["/operators/health"] = {"get": _get("Every component", "operators", {**_answers({}, 401, 403, 500), **health})}
    paths["/health/ready"] = {"get": _get("Whether this process can do its part", "health", health)}
    paths["/health/live"] = {"get": _get("Whether this process runs", "health", {"200": _json(_ref("Alive"), "It does.")})}
    paths["/openapi.json"] = {"get": _get("This document", "about", {"200": _json({"type": "object"}, "OpenAPI 3.1.")})}
    paths.update(_dashboard())
    page = {"description": "HTML.", "headers": _HEADERS, "content": {"text/html": {"schema": {"type": "string"}}}}
    paths["/docs"] = {"get": _get("This document for people", "about", {"200": page})}
    return paths


def _dashboard() -> dict[str, Node]:
    """The dashboard, its figures and its way in."""
    session = _json(_ref("Session"), "Whether a token is needed here, and until when the session is good.")
    entered = {**session, "headers": {**_HEADERS, "Set-Cookie": {"description": "The session.", "schema": {"type": "string"}}}}
    login = _get("Enter the operator token, get a session", "operators", _answers({"200": entered}, 400, 401, 403, 408, 413, 415, 500))
    login["requestBody"] = {"required": True, "content": {"application/json": {"schema": _ref("Login")}}}
    left = {"204": {"description": "The cookie is taken away.", "headers": _HEADERS}}
    history = _query("history", {"type": "boolean", "default": False}, "Also the sums of the last ten minutes.")
    figures = _answers({"200": _json(_ref("Overview"), "The figures.")}, 400, 401, 403, 500, 503)
    html = {"description": "The page.", "headers": _HEADERS, "content": {"text/html": {"schema": {"type": "string"}}}}
    part = {"description": "A script, the style or the icon.", "headers": _HEADERS, "content": {"*/*": {"schema": {"type": "string"}}}}
    name: Node = {"name": "name", "in": "path", "required": True, "schema": {"type": "string", "minLength": 1}, "description": "Its name."}
    unchanged = {"304": {"description": "Not changed.", "headers": _HEADERS}}
    return {
        "/operators/overview": {"get": _get("Sums, queues, workers and components in one", "operators", figures, [history])},
        "/operators/session": {
            "get": _get("Whether a token is needed", "operators", _answers({"200": session}, 401, 403, 500)),
            "post": {**login, "security": []},
            "delete": {**_get("Leave", "operators", _answers(left, 403, 500)), "security": []},
        },
        "/": {"get": _get("The dashboard", "about", {"200": html, **unchanged})},
        "/dashboard/{name}": {"get": _get("A part of the dashboard", "about", _answers({"200": part, **unchanged}, 404), [name])},
    }


def document() -> Node:
    """The document."""
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "FetchBox",
            "version": fetchbox.__version__,
            "description": "Post a manifest of URLs; get verified objects in a store and an account of every single one.",
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "tags": [
            {"name": "jobs", "description": "For crawlers: post jobs, see one's own."},
            {"name": "operators", "description": "For operators: everything of every tenant."},
            {"name": "health", "description": "For load balancers."},
            {"name": "about", "description": "This API."},
        ],
        "paths": _paths(),
        "components": {
            "schemas": SCHEMAS,
            "securitySchemes": {
                "tenantToken": {"type": "http", "scheme": "bearer", "description": "One of `server.api_tokens`, when there are any."},
                "operatorBearer": {"type": "http", "scheme": "bearer", "description": "`server.operator_token`, when it is set."},
                "operatorToken": {"type": "apiKey", "in": "header", "name": "X-Fetchbox-Operator-Token"},
                "operatorSession": {"type": "apiKey", "in": "cookie", "name": COOKIE, "description": "Made by POST /operators/session."},
            },
        },
    }


@cache
def document_json() -> bytes:
    """The document as JSON."""
    return orjson.dumps(document())
