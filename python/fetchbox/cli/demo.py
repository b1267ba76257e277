"""`python -m fetchbox.cli.demo MANIFEST`: the main job for real, start to end, on free ports (what `make run` shows).

A service and an origin are started as processes of their own, the manifest is posted, and what came of each URL is checked and told:
every stored file against the bytes that the origin must have sent, every failure against the one that the manifest expects in the tag
`expect`. Exit status 0 when all is as expected.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from fetchbox.cli import output
from fetchbox.cli.output import clean, plural, size
from fetchbox.cli.tally import print_table
from fetchbox.cli.watch import counts, watch
from fetchbox.client import ResourceOutcome
from fetchbox.errors import FetchboxError
from fetchbox.origin import content_sha256
from fetchbox.testing import Service, SpawnedOrigin, running_service, spawned_origin

WAIT_LIMIT = 120.0
"""Seconds that the whole job may take; it takes a few."""

SHOWN = 15
"""Stored files that are listed one by one."""

# Quick retries, so that the demonstration of them does not bore.
SETTINGS: dict[str, Any] = {
    "fetch": {"max_attempts": 3, "backoff_base": 0.3, "connect_timeout": 5, "per_host_concurrency": 16, "per_host_rate": 0},
    "telemetry": {"log_format": "json"},
}


def main(argv: list[str]) -> int:
    """Runs the demonstration; the exit status."""
    if len(argv) != 1 or not Path(argv[0]).is_file():
        print("usage: python -m fetchbox.cli.demo MANIFEST.json", file=sys.stderr)
        return 2
    console = output.console()
    directory = _directory()
    try:
        with spawned_origin(journal=directory / "origin.journal") as origin:
            console.print(f"origin     {origin.base_url}  (good pages and hostile ones)", soft_wrap=True)
            with running_service(directory, workers=1, **SETTINGS) as service:
                console.print(f"service    {service.url}  (api, worker and hub; log: {service.log_path})", soft_wrap=True)
                text = Path(argv[0]).read_text(encoding="utf-8").replace("{origin}", origin.base_url)
                ok = _job(service, origin, json.loads(text))
                console.print("stopping   ", end="")
            console.print("done: every process has ended")
    except KeyboardInterrupt:
        console.print("interrupted")
        return 130
    except (AssertionError, FetchboxError) as error:
        # What went wrong, with the end of the service's log; a traceback would add nothing.
        console.print(str(error), style="red", markup=False, soft_wrap=True)
        return 1
    console.print(f"kept in    {directory}", soft_wrap=True)
    return 0 if ok else 1


def _directory() -> Path:
    """A new directory below ./fetchbox-data, or a temporary one where that cannot be written."""
    name = time.strftime("demo-%Y%m%d-%H%M%S")
    for base in (Path("fetchbox-data"), Path(tempfile.gettempdir()) / "fetchbox-data"):
        with contextlib.suppress(OSError):
            base.mkdir(exist_ok=True)
            return Path(tempfile.mkdtemp(prefix=f"{name}-", dir=base)).resolve()
    return Path(tempfile.mkdtemp(prefix="fetchbox-demo-"))


def _job(service: Service, origin: SpawnedOrigin, manifest: dict[str, Any]) -> bool:
    """Posts the manifest, waits, and tells and checks what came of it; whether all is as the manifest expects."""
    console = output.console()
    started = time.monotonic()
    with service.client() as client:
        accepted = client.submit(manifest)
        console.print(f"202        job {accepted.job_id}: {plural(accepted.resource_count, 'resource')}, durable", soft_wrap=True)
        job = watch(client, accepted.job_id, timeout=WAIT_LIMIT)
        outcomes = list(client.resources(accepted.job_id))
    seconds = time.monotonic() - started
    expected = {str(r.get("id", i)): r.get("tags", {}).get("expect") for i, r in enumerate(manifest["resources"])}
    check = _Check(expected, origin.base_url)
    for outcome in outcomes:
        check.one(outcome)

    stored = [o for o in outcomes if o.state == "stored"]
    below = Path(os.path.commonpath([_path(o).parent for o in stored])) if stored else service.assets
    rows = [(o.id, size(o.size), o.sniffed_type or o.content_type, (o.sha256 or "")[:12], os.path.relpath(_path(o), below)) for o in stored]
    console.print(f"\n[bold]stored[/bold]     {plural(len(stored), 'file')}, {size(job.bytes_stored)} in {seconds:.1f} s")
    console.print(f"below      {below}", soft_wrap=True)
    # Every so many of them: a bit of each kind.
    shown = [rows[i * len(rows) // SHOWN] for i in range(SHOWN)] if len(rows) > SHOWN else rows
    print_table(console, ("id", "size", "type", "sha256", "file"), shown)
    if len(rows) > SHOWN:
        console.print(f"           and {len(rows) - SHOWN} more\n")
    failed = [o for o in outcomes if o.state == "failed"]
    meant = sum(1 for o in failed if expected.get(o.id or "") == o.code)
    console.print(
        f"[bold]failed[/bold]     {len(failed)}, {meant} of them on purpose: the manifest holds what the web throws at a crawler",
        soft_wrap=True,
    )
    print_table(console, ("id", "code", "why"), [(o.id, o.code, o.message) for o in failed])

    sum_of = job.resource_completed + job.resource_reused + job.resource_filtered + job.resource_failed + job.resource_cancelled
    sum_of += job.resource_pending
    console.print(
        f"\naccount    {job.resource_total} accepted = {counts(job).replace(', ', ' + ')}: the job is {job.status}", soft_wrap=True
    )
    console.print(
        f"verified   on disk: {check.known} against what the origin must have sent, {check.hashed} against their SHA-256", soft_wrap=True
    )
    for surprise in check.surprises:
        console.print(f"unexpected {surprise}", style="red", markup=False, soft_wrap=True)
    return not check.surprises and sum_of == job.resource_total == len(outcomes)


def _path(outcome: ResourceOutcome) -> Path:
    return Path(unquote(urlsplit(outcome.storage_url or "").path))


class _Check:
    """Compares outcomes with what the manifest expects, and files with what the origin must have sent."""

    def __init__(self, expected: Mapping[str, str | None], origin: str) -> None:
        self.known = 0
        self.hashed = 0
        self.surprises: list[str] = []
        self._expected = expected
        self._origin = origin

    def one(self, outcome: ResourceOutcome) -> None:
        expected = self._expected.get(outcome.id or "")
        if (outcome.code or None) != expected or outcome.state != ("failed" if expected else "stored"):
            came = clean(f"{outcome.id}: {outcome.state} {outcome.code or ''} {outcome.message or ''}")
            self.surprises.append(f"{came}; the manifest expects {expected or 'stored'}")
        elif outcome.state == "stored":
            body = _path(outcome).read_bytes()
            sent = _sent((outcome.url or "").removeprefix(self._origin))
            if {outcome.sha256, sent or outcome.sha256} != {hashlib.sha256(body).hexdigest()} or len(body) != outcome.size:
                self.surprises.append(f"{clean(outcome.id)}: the file on disk is not what was sent")
            self.known += sent is not None
            self.hashed += sent is None


def _sent(path: str) -> str | None:
    """SHA-256 of what the origin sends for a path with /bytes/ in it; None for others, where the outcome's own digest must do."""
    parts = urlsplit(path)
    found = re.search(r"/bytes/(\d+)$", parts.path)
    return content_sha256(parse_qs(parts.query).get("seed", ["0"])[0], int(found[1])) if found else None


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
