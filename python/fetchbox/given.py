"""What callers of the library give beside bare URLs: options, and tasks with a name, headers and so on of their own."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import Literal, TypedDict

import msgspec

from fetchbox.errors import UsageError
from fetchbox.keys import as_unicode
from fetchbox.manifest import DownloadTask, Resource

Task = str | DownloadTask | Resource
_TASKS = (str, DownloadTask, Resource)
_encoder = msgspec.json.Encoder()


class Options(TypedDict, total=False):
    """Keys of `[fetch]`, `memory_budget` of `[worker]`, and `transport`, `auth` and `known_hosts` of a job type. Durations are seconds
    or "30s", sizes bytes or "50MB"."""

    connect_timeout: float | str
    read_timeout: float | str
    total_timeout: float | str
    min_speed: int | str
    limit_rate: int | str
    max_attempts: int
    backoff_base: float | str
    backoff_max: float | str
    retry_after_max: float | str
    max_bytes: int | str
    max_redirects: int
    per_host_concurrency: int
    per_host_rate: float | str
    adaptive_rate: bool
    user_agent: str
    allow_networks: Iterable[str]
    verify_tls: bool
    ca_file: str | None
    dns_servers: Iterable[str]
    http2: bool
    robots: bool
    robots_tags: Iterable[str]
    filter_types: Iterable[str]
    filter_min_bytes: int | str
    filter_max_bytes: int | str
    filter_statuses: Iterable[int | str]
    reuse: bool
    reuse_max_age: float | str
    memory_budget: int | str
    transport: Literal["native", "curl"]
    auth: Mapping[str, str]
    known_hosts: str


def check(tasks: list[Task], first_index: int) -> None:
    """UsageError when one is no task; deadlines become what the engine takes."""
    for index, task in enumerate(tasks, first_index):
        if not isinstance(task, _TASKS):
            raise UsageError(f"item {index} is a {type(task).__name__}; give URLs as str, or fetchbox.DownloadTask")
        if isinstance(task, DownloadTask) and task.deadline is not None:
            tasks[index - first_index] = msgspec.structs.replace(task, deadline=_milliseconds(task.deadline, index))


def encode(tasks: list[Task]) -> bytes:
    """Tasks as the engine takes them."""
    return _encoder.encode(tasks)


class _Row(msgspec.Struct, forbid_unknown_fields=True):
    """A task as the engine takes it."""

    url: str
    id: str | None = None
    headers: dict[str, str] = {}
    tags: dict[str, str] = {}
    proxy: str | None = None
    key: str | None = None
    bucket: str | None = None
    key_prefix: str | None = None
    metadata: dict[str, str] = {}
    deadline: int | None = None


def _milliseconds(deadline: datetime | str | float, index: int) -> int:
    try:
        moment = datetime.fromisoformat(deadline) if isinstance(deadline, str) else deadline
        if isinstance(moment, datetime):
            if moment.tzinfo is None:
                raise ValueError("it has no time zone")
            moment = moment.timestamp()
        # 0 stands for none.
        return max(int(moment * 1000), 1)
    except (TypeError, ValueError, OverflowError) as error:
        wanted = "a datetime with its zone, RFC 3339 text or Unix seconds"
        raise UsageError(f"item {index}: the deadline {deadline!r} is not {wanted}: {error}") from None


def encode_checked(tasks: list[Task], first_index: int) -> bytes:
    """Tasks that could not be sent as they are: text that is no Unicode is percent-encoded; UsageError names what is wrong otherwise."""
    sent: list[Task] = []
    for index, task in enumerate(tasks, first_index):
        if isinstance(task, str):
            sent.append(as_unicode(task))
            continue
        try:
            msgspec.convert(msgspec.structs.asdict(task), _Row, strict=True)
        except msgspec.ValidationError as error:
            raise UsageError(f"item {index}: {error}") from None
        task = msgspec.structs.replace(task, url=as_unicode(task.url))
        try:
            _encoder.encode(task)
        except (TypeError, UnicodeEncodeError) as error:
            raise UsageError(f"item {index} cannot be sent to the engine: {error}") from None
        sent.append(task)
    return _encoder.encode(sent)
