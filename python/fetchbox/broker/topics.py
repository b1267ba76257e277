"""The topics of stream `fetchbox`, as they are made on a broker of their own."""

from __future__ import annotations

from dataclasses import dataclass

from fetchbox.config import Config

STREAM = "fetchbox"
TASKS, RETRY, STATUS, LOGS, DLQ, EVENTS = "jobs.tasks", "jobs.retry", "jobs.status", "jobs.logs", "jobs.dlq", "jobs.events"
WORKERS, FINISH, MOVER = "workers", "finish", "mover"
"""Consumer groups: those who download, those who finish settled jobs, and who moves retries back."""
RETRY_SECONDS = (15, 60, 300, 900, 3600)
"""The delay of each partition of jobs.retry."""


@dataclass(frozen=True, slots=True)
class TopicPlan:
    """What a topic should be."""

    name: str
    partitions: int
    ttl: float
    """Seconds that messages are kept."""
    max_bytes: int | None
    """Size of the whole topic, or None for no limit."""


def plan(config: Config) -> tuple[TopicPlan, ...]:
    """The topics that this configuration wants.

    A broker takes the oldest messages of a topic that is too large, read or not: so only what nobody's accounting needs has a limit.
    """
    keep, most = config.retention, config.retention.stream_max_bytes
    return (
        TopicPlan(TASKS, config.tasks.partitions, keep.tasks_ttl, None),
        TopicPlan(RETRY, len(RETRY_SECONDS), keep.tasks_ttl, None),
        TopicPlan(STATUS, 4, keep.status_ttl, None),
        TopicPlan(LOGS, 4, keep.logs_ttl, most),
        TopicPlan(DLQ, 2, keep.dlq_ttl, most),
        TopicPlan(EVENTS, 2, keep.status_ttl, None),
    )
