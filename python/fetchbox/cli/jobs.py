"""`fetchbox jobs list|show|resources|receipt|logs|cancel`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any
from urllib.parse import quote

import typer

from fetchbox.cli.options import ConfigOption, JsonOption, ServerOption, load_config
from fetchbox.cli.output import clean, emit, emit_fields, emit_json, emit_table, size

if TYPE_CHECKING:
    from fetchbox.cli.remote import Remote

app = typer.Typer(add_completion=False, help="List, show, follow and cancel jobs.")

IdArgument = Annotated[str, typer.Argument(metavar="ID", help="The job's id.")]
LimitOption = Annotated[int | None, typer.Option("--limit", "-n", min=1, help="At most this many.")]

SETTLED = frozenset({"completed", "partial", "failed", "cancelled"})
"""States of a job in which nothing is pending."""

STATES = ("pending", "stored", "reused", "filtered", "failed", "cancelled")
"""States of a resource, in the order of a receipt's sum."""

IDLE = 1.0
"""Seconds without a line after which a log that still grows is taken to be at its end, without -f."""


def _open(context: typer.Context, config: str | None, server: str | None) -> Remote:
    from fetchbox.cli.remote import Remote

    return Remote(load_config(context, config), server)


@app.command("list")
def list_(
    context: typer.Context,
    status: Annotated[str | None, typer.Option(help="queued, in_progress, partial, completed, failed or cancelled.")] = None,
    tenant: Annotated[str | None, typer.Option(help="Of this tenant.")] = None,
    job_type: Annotated[str | None, typer.Option("--job-type", help="Of this type.")] = None,
    crawl_id: Annotated[str | None, typer.Option("--crawl-id", help="Of this crawl.")] = None,
    limit: LimitOption = 50,
    server: ServerOption = None,
    as_json: JsonOption = False,
    config: ConfigOption = None,
) -> int:
    """List jobs, newest first."""
    filters = {"status": status, "tenant": tenant, "job_type": job_type, "crawl_id": crawl_id}
    with _open(context, config, server) as remote:
        jobs = remote.listed("jobs", lambda page: remote.call("GET", "/operators/jobs", params={**filters, **page}), limit)
        if as_json:
            for job in jobs:
                emit_json(job)
            return 0
        columns = ("ID", "TYPE", "TENANT", "STATUS", "TOTAL", "STORED", "FAILED", "PENDING", "BYTES", "CREATED")
        emit_table(columns, (_row(job) for job in jobs), right=frozenset(columns[4:9]))
    return 0


def _row(job: Mapping[str, Any]) -> tuple[object, ...]:
    counts = (job["resource_total"], job["resource_completed"], job["resource_failed"], job["resource_pending"])
    return (job["job_id"], job["job_type"], job["tenant"], job["status"], *counts, size(job["bytes_stored"]), job["created_at"])


@app.command()
def show(
    context: typer.Context, job_id: IdArgument, server: ServerOption = None, as_json: JsonOption = False, config: ConfigOption = None
) -> int:
    """Show one job: its state, counts and last error."""
    with _open(context, config, server) as remote:
        job = remote.job(job_id)
    if as_json:
        emit_json(job)
    else:
        emit_fields(job)
    return 0


@app.command()
def resources(
    context: typer.Context,
    job_id: IdArgument,
    state: Annotated[str | None, typer.Option(help="pending, stored, reused, filtered, failed or cancelled.")] = None,
    limit: LimitOption = None,
    server: ServerOption = None,
    as_json: JsonOption = False,
    config: ConfigOption = None,
) -> int:
    """List a job's resources and what became of each."""
    with _open(context, config, server) as remote:
        found = remote.listed("resources", lambda page: remote.job(job_id, "/resources", params={"state": state, **page}), limit)
        if as_json:
            for resource in found:
                emit_json(resource)
            return 0
        columns = ("ID", "STATE", "CODE", "HTTP", "SIZE", "TRIES", "URL", "STORED AS")
        emit_table(columns, (_resource_row(resource) for resource in found), right=frozenset({"SIZE", "TRIES"}))
    return 0


def _resource_row(resource: Mapping[str, Any]) -> tuple[object, ...]:
    get = resource.get
    known = get("state") == "stored"
    return (
        get("id"),
        get("state"),
        get("code"),
        get("http_status") or "",
        size(get("size")) if known else "",
        get("attempts"),
        get("url"),
        get("storage_url"),
    )


@app.command()
def receipt(
    context: typer.Context, job_id: IdArgument, server: ServerOption = None, as_json: JsonOption = False, config: ConfigOption = None
) -> int:
    """Show a job's receipt: the sum that must hold, and every outcome. 1 when it does not hold."""
    with _open(context, config, server) as remote:
        found = remote.call("GET", f"/operators/jobs/{quote(job_id, safe='')}/receipt")
    sums = found["conservation"]
    if as_json:
        emit_json(found)
    else:
        for resource in found["resources"]:
            proof = resource["sha256"] or resource["code"] or ""
            emit("\t".join((clean(resource["id"]), resource["state"], proof, clean(resource["storage_url"]))))
        parts = " + ".join(f"{sums['listed'].get(state, 0)} {state}" for state in STATES)
        emit(f"{found['job']['job_id']}: {sums['total']} accepted = {parts}" + ("" if sums["holds"] else ": THE SUM DOES NOT HOLD"))
    return 0 if sums["holds"] else 1


@app.command()
def logs(
    context: typer.Context,
    job_id: IdArgument,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on until the job is settled.")] = False,
    since: Annotated[int, typer.Option("--since-offset", min=0, help="From this offset on.")] = 0,
    server: ServerOption = None,
    as_json: JsonOption = False,
    config: ConfigOption = None,
) -> int:
    """Print a job's log."""
    with _open(context, config, server) as remote:
        job = remote.job(job_id)
        path = f"{remote.prefix}/jobs/{quote(job_id, safe='')}/logs"
        while True:
            settled = job["status"] in SETTLED
            # A settled job's log ends by itself. One that still grows is read up to where it falls silent, or for good.
            with remote.lines(path, params={"since_offset": since}, idle=None if follow or settled else IDLE) as lines:
                for line in lines:
                    since = int(line["offset"]) + 1
                    if as_json:
                        emit_json(line)
                    else:
                        emit(_log_line(line))
            if settled or not follow:
                return 0
            # The stream ended: because the job did, or because that process of the service was replaced.
            job = remote.job(job_id)


def _log_line(line: Mapping[str, Any]) -> str:
    fields = " ".join(f"{key}={clean(value)}" for key, value in (line.get("fields") or {}).items())
    resource = f"[{clean(line['resource_id'])}] " if line.get("resource_id") else ""
    return f"{line.get('timestamp', '')} {line.get('level', ''):<5} {resource}{clean(line.get('message'))} {fields}".rstrip()


@app.command()
def cancel(
    context: typer.Context, job_id: IdArgument, server: ServerOption = None, as_json: JsonOption = False, config: ConfigOption = None
) -> int:
    """Cancel what is pending of a job; what is stored stays."""
    with _open(context, config, server) as remote:
        job = remote.job(job_id, "/cancel", method="POST")
    if as_json:
        emit_json(job)
    else:
        emit(f"{job['job_id']} {job['status']}: {job['resource_cancelled']} cancelled, {job['resource_completed']} stored before")
    return 0
