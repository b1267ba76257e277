"""Clients of a FetchBox service.

    client = fetchbox.Client("http://127.0.0.1:8080")
    job = client.submit(manifest)
    client.wait(job.job_id)

`AsyncClient` has the same methods as coroutines and async iterators. Every post carries an idempotency key, so that repeating it is
safe; 429, 502, 503 and broken
connections are tried again within `retry_for` seconds, as Retry-After says.
"""

from __future__ import annotations

from fetchbox.client.awaiting import AsyncClient
from fetchbox.client.blocking import Client
from fetchbox.client.records import Accepted, DeadLetter, DeadLetterGroup, Job, JobError, LogLine, Moved, ResourceOutcome

__all__ = [
    "Accepted",
    "AsyncClient",
    "Client",
    "DeadLetter",
    "DeadLetterGroup",
    "Job",
    "JobError",
    "LogLine",
    "Moved",
    "ResourceOutcome",
]
