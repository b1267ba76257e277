"""What the service answers, as frozen records. Members that this version does not know are passed over."""

from __future__ import annotations

from datetime import datetime
from typing import Any, TypedDict

import msgspec

SETTLED = frozenset({"completed", "partial", "failed", "cancelled"})
"""Statuses of a job with nothing pending."""


class Accepted(msgspec.Struct, frozen=True):
    """A job that the service has taken. `created` is False when an earlier post with this key had made it."""

    job_id: str
    manifest_key: str
    resource_count: int
    created: bool = True
    idempotency_key: str = ""


class JobError(msgspec.Struct, frozen=True):
    """What went wrong last."""

    code: str
    message: str | None = None
    context: dict[str, Any] | None = None


class Job(msgspec.Struct, frozen=True):
    """A job as the service sees it. `resource_completed` counts what was stored; times are RFC 3339."""

    job_id: str
    status: str
    job_type: str = ""
    tenant: str = ""
    created_at: str | None = None
    updated_at: str | None = None
    finished_at: str | None = None
    resource_total: int = 0
    resource_completed: int = 0
    resource_reused: int = 0
    resource_filtered: int = 0
    resource_failed: int = 0
    resource_cancelled: int = 0
    resource_pending: int = 0
    bytes_stored: int = 0
    manifest_key: str | None = None
    log_cursor: dict[str, Any] | None = None
    last_error: JobError | None = None
    origin: str = ""

    @property
    def settled(self) -> bool:
        """Whether nothing is pending any more."""
        return self.status in SETTLED


class ResourceOutcome(msgspec.Struct, frozen=True):
    """What became of one resource; sizes in bytes, timings in microseconds."""

    index: int
    state: str
    id: str | None = None
    url: str | None = None
    final_url: str | None = None
    code: str | None = None
    message: str | None = None
    http_status: int | None = None
    size: int | None = None
    sha256: str | None = None
    content_type: str | None = None
    sniffed_type: str | None = None
    storage_url: str | None = None
    etag: str | None = None
    last_modified: str | None = None
    attempts: int | None = None
    proxy: str | None = None
    timings: dict[str, int] | None = None
    generation: int = 0


class DeadLetterFilters(TypedDict, total=False):
    """Which dead letters are meant; all that are given must hold.

    `since` is an RFC 3339 time, a date, how long ago ("2h"), or a datetime.
    """

    id: str | None
    job: str | None
    code: str | None
    host: str | None
    since: str | datetime | None
    tenant: str | None


class DeadLetter(msgspec.Struct, frozen=True):
    """A failed download that waits to be looked after. `state` is "dead" or "replayed"; `generation` counts the replays before it."""

    id: str
    job_id: str
    resource_id: str
    code: str
    state: str = "dead"
    job_type: str = ""
    tenant: str = ""
    index: int = 0
    generation: int = 0
    message: str | None = None
    http_status: int | None = None
    url: str | None = None
    host: str | None = None
    attempts: int = 0
    proxy: str | None = None
    failed_at: str | None = None
    replayed_at: str | None = None


class DeadLetterGroup(msgspec.Struct, frozen=True):
    """How many dead letters have something in common: the one of `code`, `host` and `job` that was asked for."""

    count: int
    code: str | None = None
    host: str | None = None
    job: str | None = None
    newest_at: str | None = None


class Moved(msgspec.Struct, frozen=True):
    """How many dead letters were replayed or purged, and how many refused: their jobs were cancelled, or they hold no task."""

    count: int
    refused: int = 0


class LogLine(msgspec.Struct, frozen=True):
    """One record of a job's log."""

    offset: int
    message: str = ""
    level: str = ""
    resource_id: str | None = None
    fields: dict[str, str] = {}
    timestamp: str | None = None
    trace_id: str | None = None


class JobPage(msgspec.Struct):
    """A page of jobs."""

    jobs: list[Job]
    next_cursor: str | None = None


class DeadLetterPage(msgspec.Struct):
    """A page of dead letters."""

    entries: list[DeadLetter]
    next_cursor: str | None = None


class DeadLetterGroups(msgspec.Struct):
    """Groups of dead letters, the largest first."""

    groups: list[DeadLetterGroup]


class ResourcePage(msgspec.Struct):
    """A page of resources."""

    resources: list[ResourceOutcome]
    next_cursor: str | None = None
