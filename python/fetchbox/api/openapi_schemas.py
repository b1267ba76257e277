"""The bodies of the API as JSON Schema, for the OpenAPI document."""

from __future__ import annotations

from typing import Any

from fetchbox.api.pages import JOB_STATUSES, RESOURCE_STATES

Node = dict[str, Any]


def _object(properties: Node, *, required: tuple[str, ...] = (), closed: bool = False) -> Node:
    schema: Node = {"type": "object", "properties": properties}
    if required:
        schema["required"] = list(required)
    if closed:
        schema["additionalProperties"] = False
    return schema


def _page(noun: str, item: str) -> Node:
    items: Node = {"type": "array", "items": {"$ref": f"#/components/schemas/{item}"}}
    return _object({noun: items, "next_cursor": {"type": ["string", "null"]}}, required=(noun, "next_cursor"))


_TEXT: Node = {"type": "string"}
_TEXT_OR_NULL: Node = {"type": ["string", "null"]}
_COUNT: Node = {"type": "integer", "minimum": 0}
_COUNT_OR_NULL: Node = {"type": ["integer", "null"], "minimum": 0}
_TIME: Node = {"type": "string", "format": "date-time"}
_TIME_OR_NULL: Node = {"type": ["string", "null"], "format": "date-time"}
_STRING_MAP: Node = {"type": "object", "additionalProperties": {"type": "string"}}

_COUNTS = ("total", "completed", "reused", "filtered", "failed", "cancelled", "pending")

_LETTER = _object(
    {
        "id": {"type": "string", "description": "Job, index and generation."},
        "job_id": _TEXT,
        "job_type": _TEXT,
        "tenant": _TEXT,
        "resource_id": _TEXT,
        "index": _COUNT,
        "generation": _COUNT,
        "state": {"type": "string", "enum": ["dead", "replayed"]},
        "code": _TEXT,
        "message": _TEXT_OR_NULL,
        "http_status": _COUNT_OR_NULL,
        "url": _TEXT_OR_NULL,
        "host": _TEXT_OR_NULL,
        "attempts": _COUNT,
        "proxy": _TEXT_OR_NULL,
        "failed_at": _TIME,
        "replayed_at": _TIME_OR_NULL,
    },
    required=("id", "job_id", "resource_id", "code", "state", "failed_at"),
)

SCHEMAS: Node = {
    "Manifest": _object(
        {
            "manifest_version": {"const": "v1"},
            "metadata": {"type": "object", "description": "Yours; stored as it is."},
            "resources": {"type": "array", "minItems": 1, "items": {"$ref": "#/components/schemas/Resource"}},
            "attributes": _object(
                {
                    "tenant": _TEXT,
                    "crawl_id": _TEXT,
                    "priority": {},
                    "callback_url": {"type": "string", "format": "uri"},
                    "callback_events": {"type": "array", "items": {"type": "string", "enum": ["job.settled", "resource.failed"]}},
                    "deadline": {"description": "When to give up."},
                }
            ),
        },
        required=("manifest_version", "metadata", "resources"),
    ),
    "Resource": _object(
        {
            "url": {"type": "string", "format": "uri", "pattern": "^[Hh][Tt][Tt][Pp][Ss]?://"},
            "id": {"type": "string", "minLength": 1, "maxLength": 128, "description": "Unique in the manifest; default: the index."},
            "headers": _STRING_MAP,
            "tags": _STRING_MAP,
            "key": {"type": "string", "minLength": 1, "description": "Where the object goes."},
        },
        required=("url",),
    ),
    "Accepted": _object(
        {"job_id": {"type": "string", "format": "uuid"}, "manifest_key": _TEXT, "resource_count": _COUNT},
        required=("job_id", "manifest_key", "resource_count"),
    ),
    "Error": _object(
        {
            "error": _object(
                {
                    "code": _TEXT,
                    "message": _TEXT,
                    "job_id": _TEXT,
                    "details": {
                        "type": "array",
                        "items": _object({"pointer": _TEXT, "code": _TEXT, "message": _TEXT}, required=("pointer", "code", "message")),
                    },
                },
                required=("code", "message"),
                closed=True,
            )
        },
        required=("error",),
        closed=True,
    ),
    "Job": _object(
        {
            "job_id": _TEXT,
            "job_type": _TEXT,
            "tenant": _TEXT,
            "status": {"type": "string", "enum": list(JOB_STATUSES)},
            "created_at": _TIME,
            "updated_at": _TIME,
            "finished_at": _TIME_OR_NULL,
            **{f"resource_{name}": _COUNT for name in _COUNTS},
            "bytes_stored": _COUNT,
            "manifest_key": _TEXT_OR_NULL,
            "log_cursor": {"type": ["object", "null"], "properties": {"stream": _TEXT, "partition": _COUNT, "offset": _COUNT}},
            "last_error": {"type": ["object", "null"], "properties": {"code": _TEXT, "message": _TEXT, "context": {"type": "object"}}},
            "origin": {"type": "string", "enum": ["api", "direct"]},
        },
        required=("job_id", "status"),
    ),
    "JobPage": _page("jobs", "Job"),
    "Outcome": _object(
        {
            "id": _TEXT,
            "index": _COUNT,
            "url": _TEXT_OR_NULL,
            "final_url": _TEXT_OR_NULL,
            "state": {"type": "string", "enum": list(RESOURCE_STATES)},
            "code": _TEXT_OR_NULL,
            "message": _TEXT_OR_NULL,
            "http_status": _COUNT_OR_NULL,
            "size": _COUNT_OR_NULL,
            "sha256": _TEXT_OR_NULL,
            "content_type": _TEXT_OR_NULL,
            "sniffed_type": _TEXT_OR_NULL,
            "storage_url": _TEXT_OR_NULL,
            "etag": _TEXT_OR_NULL,
            "last_modified": _TEXT_OR_NULL,
            "attempts": _COUNT_OR_NULL,
            "proxy": _TEXT_OR_NULL,
            "timings": {"type": ["object", "null"], "additionalProperties": _COUNT, "description": "Microseconds."},
            "generation": _COUNT,
        },
        required=("index", "state"),
    ),
    "ResourcePage": _page("resources", "Outcome"),
    "Receipt": _object(
        {
            "job": {"$ref": "#/components/schemas/Job"},
            "conservation": _object(
                {
                    "total": {**_COUNT, "description": "Resources accepted."},
                    "settled": _COUNT,
                    "pending": _COUNT,
                    "listed": _object(dict.fromkeys(RESOURCE_STATES, _COUNT), required=RESOURCE_STATES),
                    "holds": {
                        "type": "boolean",
                        "description": "Whether total = pending + settled, and what is listed below is what the job counts.",
                    },
                },
                required=("total", "settled", "pending", "listed", "holds"),
            ),
            "resources": {"type": "array", "items": {"$ref": "#/components/schemas/Outcome"}},
        },
        required=("job", "conservation", "resources"),
    ),
    "DeadLetter": _LETTER,
    "DeadLetterPage": _page("entries", "DeadLetter"),
    "DeadLetterStory": _object(
        {
            **_LETTER["properties"],
            "task": {"type": ["object", "null"], "description": "As it was tried; secrets are hidden."},
            "context": _STRING_MAP,
            "outcome": {"$ref": "#/components/schemas/Outcome"},
            "history": {
                "type": "array",
                "items": {"$ref": "#/components/schemas/Outcome"},
                "description": "Every outcome of the resource, over its generations.",
            },
            "log": {"type": "array", "items": {"type": "object"}, "description": "What the job's log says of the resource."},
        },
        required=(*_LETTER["required"], "task", "context", "outcome", "history", "log"),
    ),
    "DeadLetterGroups": _object(
        {
            "groups": {
                "type": "array",
                "items": _object({"code": _TEXT, "host": _TEXT, "job": _TEXT, "count": _COUNT, "newest_at": _TIME}, required=("count",)),
            },
            "total": _COUNT,
            "others": {**_COUNT, "description": "Entries of groups beyond the limit."},
            "next_cursor": {"type": "null"},
        },
        required=("groups", "total", "others", "next_cursor"),
    ),
    "DeadLetterFilter": _object(
        dict.fromkeys(("id", "job", "tenant", "code", "host", "since"), _TEXT_OR_NULL),
        closed=True,
    ),
    "Replay": _object(
        {
            "filter": {"$ref": "#/components/schemas/DeadLetterFilter"},
            "headers": {
                "type": ["object", "null"],
                "additionalProperties": {"type": ["string", "null"]},
                "description": "Set on every task; null takes a header away.",
            },
            "proxy_pool": {**_TEXT_OR_NULL, "description": "A configured pool to begin with."},
            "url_replace": {
                "type": ["object", "array", "null"],
                "description": "Literal text, replaced where it stands first in the URL: {from, to}, a map, or a list of rules.",
            },
            "dry_run": {"type": ["boolean", "null"], "description": "Only check and count."},
        },
        required=("filter",),
        closed=True,
    ),
    "Purge": _object(
        {"filter": {"$ref": "#/components/schemas/DeadLetterFilter"}, "dry_run": {"type": ["boolean", "null"]}},
        required=("filter",),
        closed=True,
    ),
    "Moved": _object(
        {"count": _COUNT, "refused": {**_COUNT, "description": "Entries passed over: their jobs were cancelled, or they hold no task."}},
        required=("count", "refused"),
    ),
    "Component": _object({"status": {"type": "string"}, "reason": _TEXT, "since": _TIME}, required=("status", "since")),
    "Health": _object(
        {
            "status": {"type": "string", "enum": ["ok", "degraded"]},
            "components": {"type": "object", "additionalProperties": {"$ref": "#/components/schemas/Component"}},
        },
        required=("status", "components"),
    ),
    "Login": _object({"token": {"type": "string", "description": "`server.operator_token`."}}, required=("token",), closed=True),
    "Session": _object({"token_needed": {"type": "boolean"}, "expires_at": _TIME_OR_NULL}, required=("token_needed", "expires_at")),
    "Overview": _object(
        {
            "at": _TIME,
            "status": {"type": "string", "enum": ["ok", "degraded"]},
            "components": {"type": "object", "additionalProperties": {"$ref": "#/components/schemas/Component"}},
            "resources": _object(
                {
                    "accepted": _COUNT,
                    "pending": _COUNT,
                    "settled": _object(
                        dict.fromkeys(("stored", "reused", "filtered", "failed", "cancelled"), _COUNT),
                        required=("stored", "reused", "filtered", "failed", "cancelled"),
                    ),
                    "replayed": {**_COUNT, "description": "Failed ones that were put back; also counted as settled."},
                },
                required=("accepted", "pending", "settled", "replayed"),
            ),
            "bytes_stored": _COUNT,
            "active_jobs": _COUNT,
            "queues": {
                "type": "array",
                "items": _object(
                    {"topic": _TEXT, "group": _TEXT, "lag": _COUNT, "oldest_age_seconds": {"type": "number", "minimum": 0}},
                    required=("topic", "group", "lag", "oldest_age_seconds"),
                ),
            },
            "workers": {
                "type": "array",
                "items": _object(
                    {
                        "name": _TEXT,
                        "host": _TEXT_OR_NULL,
                        "partitions": _COUNT,
                        "running": {**_COUNT_OR_NULL, "description": "Downloads under way."},
                        "held": {**_COUNT_OR_NULL, "description": "Tasks that it has, those under way included."},
                        "pools_out": {"type": "array", "items": _TEXT, "description": "Proxy pools of which no endpoint works for it."},
                        "since": _TIME_OR_NULL,
                    },
                    required=("name", "host", "partitions", "running", "held", "pools_out", "since"),
                ),
            },
            "history": {
                "type": ["array", "null"],
                "items": {"type": "array", "items": _COUNT, "minItems": 9, "maxItems": 9},
                "description": "Every two seconds, oldest first: Unix ms, stored, reused, filtered, failed, cancelled, bytes stored, "
                "pending, lag of jobs.tasks.",
            },
            "ledger_bytes": _COUNT,
            "outbox_bytes": _COUNT,
        },
        required=("at", "status", "components", "resources", "bytes_stored", "active_jobs", "queues", "workers"),
    ),
    "Alive": _object({"status": {"const": "ok"}}, required=("status",)),
}
