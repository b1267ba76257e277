"""Watching a job until it is settled, with a progress bar from the counts that the service gives."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from fetchbox.cli.output import size, stderr_console
from fetchbox.cli.tally import LINE_INTERVAL, REFRESH

if TYPE_CHECKING:
    from fetchbox.client import Client, Job


def counts(job: Job) -> str:
    """The resources of a job by state, those that there are."""
    states = {
        "stored": job.resource_completed,
        "reused": job.resource_reused,
        "filtered": job.resource_filtered,
        "failed": job.resource_failed,
        "cancelled": job.resource_cancelled,
        "pending": job.resource_pending,
    }
    return ", ".join(f"{count:,} {name}" for name, count in states.items() if count) or "no resources"


def watch(client: Client, job_id: str, *, timeout: float | None = None) -> Job:
    """Looks at a job until it is settled and returns it, or after `timeout` seconds as it stands then."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    console = stderr_console()
    columns = ("{task.description}", BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[detail]}"), TimeElapsedColumn())
    next_line = time.monotonic() + LINE_INTERVAL
    with Progress(*columns, console=console, refresh_per_second=REFRESH, disable=not console.is_terminal) as bar:
        task = bar.add_task("queued", total=None, detail="")

        def show(job: Job) -> None:
            nonlocal next_line
            done = job.resource_total - job.resource_pending
            failed = f" · {job.resource_failed:,} failed" if job.resource_failed else ""
            bar.update(task, description=job.status, completed=done, total=job.resource_total, detail=f"{size(job.bytes_stored)}{failed}")
            if not console.is_terminal and time.monotonic() >= next_line:
                next_line = time.monotonic() + LINE_INTERVAL
                console.print(f"{job.status}: {counts(job)} · {size(job.bytes_stored)}", markup=False, soft_wrap=True)

        try:
            return client.wait(job_id, timeout, show)
        except TimeoutError:
            return client.get(job_id)
