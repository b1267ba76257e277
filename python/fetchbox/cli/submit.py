"""`fetchbox submit`: post a manifest."""

from __future__ import annotations

import json
import sys
import time
import uuid
from pathlib import Path
from typing import Annotated, Any

import typer

from fetchbox.cli.options import ConfigOption, JsonOption, ServerOption, load_config
from fetchbox.cli.output import emit, emit_json, note
from fetchbox.errors import Refused, ServiceUnavailable, UsageError

app = typer.Typer(add_completion=False)

TRIES = 5
"""Posts with the same key before giving up; a 5xx means that nobody knows whether the job is there."""

FIRST_PAUSE = 0.5
MAX_PAUSE = 30.0


@app.command()
def submit(
    context: typer.Context,
    manifest: Annotated[str, typer.Argument(metavar="MANIFEST.json", help="The manifest; - reads standard input.")],
    job_type: Annotated[str | None, typer.Option("--job-type", metavar="T", help="The job type (default: default).")] = None,
    key: Annotated[str | None, typer.Option("--key", metavar="KEY", help="Idempotency key; made up when not given.")] = None,
    tenant: Annotated[str | None, typer.Option("--tenant", metavar="NAME", help="The tenant, where tokens do not fix it.")] = None,
    wait: Annotated[bool, typer.Option("--wait", "-w", help="Wait until the job is settled, with a progress bar.")] = False,
    timeout: Annotated[float | None, typer.Option("--timeout", min=0.1, help="With --wait: seconds to wait at most.")] = None,
    server: ServerOption = None,
    as_json: JsonOption = False,
    config: ConfigOption = None,
) -> int:
    """Post a manifest and print the job's id. With --wait the exit status is 1 unless the job completed."""
    from fetchbox.cli.remote import Remote
    from fetchbox.cli.watch import SETTLED, watch

    if manifest == "-":
        body = sys.stdin.buffer.read()
    else:
        path = Path(manifest)
        if not path.is_file():
            raise UsageError(f"there is no file {manifest}")
        body = path.read_bytes()
    headers = {"Content-Type": "application/json", "Idempotency-Key": key or str(uuid.uuid4())}
    if job_type is not None:
        headers["X-Fetchbox-Job-Type"] = job_type
    if tenant is not None:
        headers["X-Fetchbox-Tenant"] = tenant
    with Remote(load_config(context, config), server) as remote:
        accepted = _post(remote.post, body, headers)
        if not wait:
            if as_json:
                emit_json(accepted)
            else:
                emit(accepted["job_id"])
            return 0
        note(f"job {accepted['job_id']}: {accepted['resource_count']} resources accepted")
        job: dict[str, Any] = dict(watch(lambda: remote.own_job(accepted["job_id"]), timeout=timeout))
    if as_json:
        emit_json(job)
    else:
        counts = {name: job[f"resource_{name}"] for name in ("completed", "reused", "filtered", "failed", "cancelled", "pending")}
        told = ", ".join(f"{count} {'stored' if name == 'completed' else name}" for name, count in counts.items() if count)
        emit(f"{job['job_id']} {job['status']}: {told or 'no resources'}")
    if job["status"] not in SETTLED:
        note(f"still {job['status']} after {timeout:g} s; it goes on without us")
    return 0 if job["status"] == "completed" else 1


def _post(post: Any, body: bytes, headers: dict[str, str]) -> dict[str, Any]:
    """Posts until there is an answer; the key makes that safe. Refused and ServiceUnavailable when it stays that way."""
    pause = FIRST_PAUSE
    for left in range(TRIES - 1, -1, -1):
        try:
            answer: dict[str, Any] = post("/jobs", body, headers)
            return answer
        except (Refused, ServiceUnavailable) as error:
            status = getattr(error, "status", None)
            passing = status is None or status == 429 or status >= 500
            if not passing or not left:
                raise
            wait = min(MAX_PAUSE, getattr(error, "retry_after", None) or pause)
            note(f"{json.dumps(str(error), ensure_ascii=False)}: trying again in {wait:g} s")
            time.sleep(wait)  # noqa: TID251  (the server said how long)
            pause *= 2
    raise AssertionError("unreachable: the last try returns or raises")
