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
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from fetchbox.cli.output import clean, plural, size, stderr_console
from fetchbox.cli.tally import print_table
from fetchbox.cli.watch import watch
from fetchbox.origin import content_sha256
from fetchbox.testing import Service, SpawnedOrigin, running_service, spawned_origin

WAIT_LIMIT = 120.0
"""Seconds that the whole job may take; it takes a few."""

SHOWN = 12
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
    console = stderr_console()
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
    console = stderr_console()
    started = time.monotonic()
    with service.client() as client:
        accepted = client.submit(manifest)
        console.print(f"202        job {accepted.job_id} with {plural(accepted.resource_count, 'resource')}, durable", soft_wrap=True)
        job = watch(lambda: _look(service, accepted.job_id), timeout=WAIT_LIMIT)
    seconds = time.monotonic() - started
    outcomes = list(_resources(service, accepted.job_id))
    stored = [o for o in outcomes if o["state"] == "stored"]
    failed = [o for o in outcomes if o["state"] == "failed"]
    wanted = {str(r.get("id", i)): r.get("tags", {}).get("expect") for i, r in enumerate(manifest["resources"])}
    known, hashed, surprises = _check(outcomes, wanted, origin.base_url)
    rows = [(o["id"], size(o["size"]), o["sniffed_type"] or o["content_type"], o["sha256"][:12], _place(o, service)) for o in stored]
    console.print(f"\n[bold]stored[/bold]: {plural(len(stored), 'file')}, {size(job['bytes_stored'])} in {seconds:.1f} s")
    print_table(console, ("id", "size", "type", "sha256", "below " + str(service.assets)), rows[:SHOWN])
    if len(rows) > SHOWN:
        console.print(f"… and {len(rows) - SHOWN} more")
    console.print(f"\n[bold]failed[/bold]: {len(failed)}, every one of them meant to: this is what the web is like")
    print_table(console, ("id", "code", "why"), [(o["id"], o["code"], o["message"]) for o in failed])
    parts = {name: int(job[f"resource_{name}"]) for name in ("completed", "reused", "filtered", "failed", "cancelled", "pending")}
    total = " + ".join(f"{count} {'stored' if name == 'completed' else name}" for name, count in parts.items())
    console.print(f"\naccount    {job['resource_total']} accepted = {total}; the job is {job['status']}", soft_wrap=True)
    console.print(f"verified   on disk: {known} against what the origin must have sent, {hashed} against their SHA-256", soft_wrap=True)
    for surprise in surprises:
        console.print(f"[red]unexpected[/red] {clean(surprise)}", soft_wrap=True)
    return not surprises and sum(parts.values()) == job["resource_total"] == len(outcomes)


def _look(service: Service, job_id: str) -> dict[str, Any]:
    answer: dict[str, Any] = service.json(f"/jobs/{job_id}")
    return answer


def _resources(service: Service, job_id: str) -> Iterator[dict[str, Any]]:
    cursor = ""
    while True:
        page = service.json(f"/jobs/{job_id}/resources?limit=100{cursor}")
        yield from page["resources"]
        if page["next_cursor"] is None:
            return
        cursor = f"&cursor={page['next_cursor']}"


def _place(outcome: dict[str, Any], service: Service) -> str:
    path = unquote(urlsplit(outcome["storage_url"]).path)
    return os.path.relpath(path, service.assets)


def _check(outcomes: list[dict[str, Any]], wanted: dict[str, str | None], origin: str) -> tuple[int, int, list[str]]:
    """How many stored files were compared with the origin's content and with their recorded digest, and all that is not as expected."""
    known, hashed = 0, 0
    surprises: list[str] = []
    for outcome in outcomes:
        name, expected = outcome["id"], wanted.get(outcome["id"])
        if (outcome["code"] or None) != expected or outcome["state"] != ("failed" if expected else "stored"):
            surprises.append(f"{name}: {outcome['state']} {outcome['code'] or ''} {outcome['message'] or ''}, not {expected or 'stored'}")
            continue
        if outcome["state"] != "stored":
            continue
        body = Path(unquote(urlsplit(outcome["storage_url"]).path)).read_bytes()
        sent = _sent(outcome["url"].removeprefix(origin))
        if {outcome["sha256"], sent or outcome["sha256"]} != {hashlib.sha256(body).hexdigest()} or len(body) != outcome["size"]:
            surprises.append(f"{name}: the file on disk is not what was sent")
        known += sent is not None
        hashed += sent is None
    return known, hashed, surprises


def _sent(path: str) -> str | None:
    """SHA-256 of what the origin sends for a path with /bytes/ in it; None for others, where the outcome's own digest must do."""
    parts = urlsplit(path)
    found = re.search(r"/bytes/(\d+)$", parts.path)
    return content_sha256(parse_qs(parts.query).get("seed", ["0"])[0], int(found[1])) if found else None


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
