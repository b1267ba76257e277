"""Watching a job until it is settled, with a progress bar from the counts that the service gives."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

from fetchbox.cli.output import size, stderr_console
from fetchbox.cli.tally import LINE_INTERVAL, REFRESH

Job = Mapping[str, Any]

SETTLED = frozenset({"completed", "partial", "failed", "cancelled"})
"""States in which nothing is pending any more."""

POLL_INTERVAL = 0.25
"""Seconds between two looks at a job."""


def finished(job: Job) -> int:
    """Resources that are no longer pending."""
    return int(job["resource_total"]) - int(job["resource_pending"])


def detail(job: Job) -> str:
    """Bytes, and what did not go well."""
    counts = [
        f"{int(job[f'resource_{name}']):,} {name}" for name in ("reused", "filtered", "failed", "cancelled") if job[f"resource_{name}"]
    ]
    return " · ".join([size(job["bytes_stored"]), *counts])


def watch(look: Callable[[], Job], *, timeout: float | None = None) -> Job:
    """Looks at a job until it is settled and returns how it stands then, or after `timeout` seconds as it stands."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    console = stderr_console()
    columns = ("{task.description}", BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[detail]}"), TimeElapsedColumn())
    limit = None if timeout is None else time.monotonic() + timeout
    next_line = time.monotonic() + LINE_INTERVAL
    with Progress(*columns, console=console, refresh_per_second=REFRESH, disable=not console.is_terminal) as bar:
        task = bar.add_task("queued", total=None, detail="")
        while True:
            job = look()
            bar.update(task, description=job["status"], completed=finished(job), total=job["resource_total"], detail=detail(job))
            now = time.monotonic()
            if job["status"] in SETTLED or (limit is not None and now >= limit):
                return job
            if not console.is_terminal and now >= next_line:
                next_line = now + LINE_INTERVAL
                console.print(
                    f"{job['status']}: {finished(job):,} of {job['resource_total']:,} · {detail(job)}", markup=False, soft_wrap=True
                )
            time.sleep(POLL_INTERVAL)  # noqa: TID251  (the service is asked; it cannot push over plain HTTP)
