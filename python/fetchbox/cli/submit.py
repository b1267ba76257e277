"""`fetchbox submit`: post a manifest."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from fetchbox.cli.options import ConfigOption, JsonOption, ServerOption, load_config, server_url
from fetchbox.cli.output import emit, emit_json, note, plural
from fetchbox.errors import UsageError

app = typer.Typer(add_completion=False)

RETRY_FOR = 20.0
"""Seconds for which a post is repeated, with the same key, while the service is away or busy."""


@app.command()
def submit(
    context: typer.Context,
    manifest: Annotated[str, typer.Argument(metavar="MANIFEST.json", help="The manifest; - reads standard input.")],
    job_type: Annotated[str | None, typer.Option("--job-type", metavar="T", help="The job type (default: default).")] = None,
    key: Annotated[str | None, typer.Option("--key", metavar="KEY", help="Idempotency key; made up when not given.")] = None,
    tenant: Annotated[str | None, typer.Option("--tenant", metavar="NAME", help="The tenant, where tokens do not fix it.")] = None,
    wait: Annotated[bool, typer.Option("--wait", "-w", help="Wait until the job is settled, with a progress bar.")] = False,
    timeout: Annotated[float | None, typer.Option("--timeout", min=0.1, help="With --wait: seconds to wait at most.")] = None,
    retry_for: Annotated[float, typer.Option("--retry-for", min=0, help="Seconds to go on trying while the service is away.")] = RETRY_FOR,
    server: ServerOption = None,
    as_json: JsonOption = False,
    config: ConfigOption = None,
) -> int:
    """Post a manifest and print the job's id. With --wait the exit status is 1 unless the job completed."""
    import msgspec

    from fetchbox.cli.watch import counts, watch
    from fetchbox.client import Client

    if manifest == "-":
        body = sys.stdin.buffer.read()
    else:
        path = Path(manifest)
        if not path.is_file():
            raise UsageError(f"there is no file {manifest}")
        body = path.read_bytes()
    loaded = load_config(context, config)
    token = loaded.client.token.get_secret_value() if loaded.client.token is not None else None
    with Client(server_url(loaded, server), token, tenant=tenant, retry_for=retry_for) as client:
        accepted = client.submit(body, job_type=job_type, idempotency_key=key)
        if not wait:
            if as_json:
                emit_json({"job_id": accepted.job_id, "manifest_key": accepted.manifest_key, "resource_count": accepted.resource_count})
            else:
                emit(accepted.job_id)
            return 0
        note(f"job {accepted.job_id}: {plural(accepted.resource_count, 'resource')} accepted")
        job = watch(client, accepted.job_id, timeout=timeout)
    if as_json:
        emit_json(msgspec.to_builtins(job))
    else:
        emit(f"{job.job_id} {job.status}: {counts(job)}")
    if not job.settled:
        note(f"still {job.status} after {timeout:g} s; it goes on without us")
    return 0 if job.status == "completed" else 1
