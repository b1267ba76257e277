"""`fetchbox dlq list|show|replay|purge`: what failed for good, and what to do about it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any
from urllib.parse import quote

import typer

from fetchbox.cli.options import ConfigOption, JsonOption, ServerOption, load_config
from fetchbox.cli.output import clean, emit, emit_fields, emit_json, emit_table, plural
from fetchbox.errors import UsageError

if TYPE_CHECKING:
    from fetchbox.cli.remote import Remote

app = typer.Typer(add_completion=False, help="List, show, replay and purge dead letters.")

JobOption = Annotated[str | None, typer.Option("--job", metavar="ID", help="Of this job.")]
CodeOption = Annotated[str | None, typer.Option("--code", metavar="CODE", help="With this failure code.")]
HostOption = Annotated[str | None, typer.Option("--host", metavar="HOST", help="Of this host; HOST:PORT for one port.")]
SinceOption = Annotated[str | None, typer.Option("--since", metavar="TIME", help="Failed since: RFC 3339, a date, or 15m, 2h, 7d ago.")]
TenantOption = Annotated[str | None, typer.Option("--tenant", metavar="NAME", help="Of this tenant's jobs.")]

ORDER_TIMEOUT = 600.0
"""Seconds that a replay or purge may take; a million dead letters take a minute."""
GROUPS = ("code", "host", "job")


def _open(context: typer.Context, config: str | None, server: str | None) -> Remote:
    from fetchbox.cli.remote import Remote

    return Remote(load_config(context, config), server)


def _filter(**filters: str | None) -> dict[str, str]:
    return {name: value for name, value in filters.items() if value is not None}


@app.command("list")
def list_(
    context: typer.Context,
    job: JobOption = None,
    code: CodeOption = None,
    host: HostOption = None,
    since: SinceOption = None,
    tenant: TenantOption = None,
    group: Annotated[str | None, typer.Option("--group", metavar="BY", help="Count by code, host or job instead.")] = None,
    replayed: Annotated[bool, typer.Option("--replayed", help="Those that were put back to work instead.")] = False,
    limit: Annotated[int | None, typer.Option("--limit", "-n", min=1, help="At most this many.")] = 50,
    server: ServerOption = None,
    as_json: JsonOption = False,
    config: ConfigOption = None,
) -> int:
    """List dead letters, newest first, or count them by code, host or job."""
    filters = _filter(job=job, code=code, host=host, since=since, tenant=tenant)
    if group is not None and (group not in GROUPS or replayed):
        raise UsageError("--group takes code, host or job, and no --replayed")
    with _open(context, config, server) as remote:
        if group is not None:
            answer = remote.call("GET", "/operators/dlq/groups", params={"by": group, **filters, "limit": limit})
            _show_groups(answer, group, as_json)
            return 0
        params = {**filters, "replayed": "true" if replayed else None}
        letters = remote.listed("entries", lambda page: remote.call("GET", "/operators/dlq", params={**params, **page}), limit)
        if as_json:
            for letter in letters:
                emit_json(letter)
            return 0
        emit_table(("ID", "RESOURCE", "CODE", "HTTP", "TRIES", "FAILED", "URL"), map(_row, letters), right=frozenset({"TRIES"}))
    return 0


def _row(letter: Mapping[str, Any]) -> tuple[object, ...]:
    get = letter.get
    return (get("id"), get("resource_id"), get("code"), get("http_status") or "", get("attempts"), get("failed_at"), get("url"))


def _show_groups(answer: Mapping[str, Any], by: str, as_json: bool) -> None:
    if as_json:
        for group in answer["groups"]:
            emit_json(group)
        return
    rows: list[tuple[object, ...]] = [(group[by], group["count"], group["newest_at"]) for group in answer["groups"]]
    if answer["others"]:
        rows.append(("(others)", answer["others"], ""))
    emit_table((by.upper(), "COUNT", "NEWEST"), rows, right=frozenset({"COUNT"}))


@app.command()
def show(
    context: typer.Context,
    entry: Annotated[str, typer.Argument(metavar="ID", help="The dead letter's id, as the list shows it.")],
    server: ServerOption = None,
    as_json: JsonOption = False,
    config: ConfigOption = None,
) -> int:
    """Tell the whole story of one: its task, its failure, every outcome of the resource and what the log says."""
    with _open(context, config, server) as remote:
        letter = remote.call("GET", f"/operators/dlq/{quote(entry, safe='')}")
    if as_json:
        emit_json(letter)
        return 0
    history, log = letter.pop("history"), letter.pop("log")
    letter.pop("outcome")
    emit_fields(letter)
    for outcome in history:
        emit(
            f"generation {outcome['generation']}: {outcome['state']} {clean(outcome.get('code'))} {clean(outcome.get('message'))}".rstrip()
        )
    for line in log:
        emit(f"{line.get('timestamp', '')} {line.get('level', ''):<5} {clean(line.get('message'))}")
    return 0


@app.command()
def replay(
    context: typer.Context,
    job: JobOption = None,
    code: CodeOption = None,
    host: HostOption = None,
    since: SinceOption = None,
    tenant: TenantOption = None,
    entry: Annotated[str | None, typer.Option("--id", metavar="ID", help="This one only.")] = None,
    header: Annotated[list[str] | None, typer.Option("--header", "-H", metavar="'NAME: VALUE'", help="Set a header. Repeatable.")] = None,
    proxy_pool: Annotated[str | None, typer.Option("--proxy-pool", metavar="POOL", help="Begin with this proxy pool.")] = None,
    url_replace: Annotated[
        list[str] | None, typer.Option("--url-replace", metavar="OLD=>NEW", help="Replace text in the URLs. Repeatable.")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only check and count.")] = False,
    server: ServerOption = None,
    as_json: JsonOption = False,
    config: ConfigOption = None,
) -> int:
    """Put dead letters back to work, in their jobs, perhaps changed. Without a filter all of them. Each counts once."""
    changes = {
        "headers": dict(map(_header, header)) if header else None,
        "proxy_pool": proxy_pool,
        "url_replace": [_rule(text) for text in url_replace] if url_replace else None,
    }
    filters = _filter(id=entry, job=job, code=code, host=host, since=since, tenant=tenant)
    order = {"filter": filters, "dry_run": dry_run, **{name: value for name, value in changes.items() if value is not None}}
    with _open(context, config, server) as remote:
        moved = remote.call("POST", "/operators/dlq/replay", body=order, timeout=ORDER_TIMEOUT)
    _tell(moved, "would be replayed" if dry_run else "replayed", as_json)
    return 0


@app.command()
def purge(
    context: typer.Context,
    job: JobOption = None,
    code: CodeOption = None,
    host: HostOption = None,
    since: SinceOption = None,
    tenant: TenantOption = None,
    entry: Annotated[str | None, typer.Option("--id", metavar="ID", help="This one only.")] = None,
    yes: Annotated[bool, typer.Option("--yes", help="Really do it: what is purged can never be replayed.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only count.")] = False,
    server: ServerOption = None,
    as_json: JsonOption = False,
    config: ConfigOption = None,
) -> int:
    """Forget dead letters, without a filter all of them. Their jobs keep their counts; it wants --yes."""
    if not (yes or dry_run):
        raise UsageError("what is purged can never be replayed: say --yes, or --dry-run to see how many there are")
    filters = _filter(id=entry, job=job, code=code, host=host, since=since, tenant=tenant)
    with _open(context, config, server) as remote:
        moved = remote.call("POST", "/operators/dlq/purge", body={"filter": filters, "dry_run": dry_run}, timeout=ORDER_TIMEOUT)
    _tell(moved, "would be purged" if dry_run else "purged", as_json)
    return 0


def _tell(moved: Mapping[str, Any], what: str, as_json: bool) -> None:
    if as_json:
        emit_json(moved)
        return
    refused = moved.get("refused", 0)
    emit(f"{plural(moved['count'], 'dead letter')} {what}" + (f", {refused:,} of cancelled jobs or without a task left" if refused else ""))


def _header(text: str) -> tuple[str, str]:
    name, colon, value = text.partition(":")
    if not colon or not name.strip():
        raise UsageError(f"--header takes 'Name: value', not {text!r}")
    return name.strip(), value.strip()


def _rule(text: str) -> dict[str, str]:
    """`OLD=>NEW`, or `OLD=NEW` where there is one equals sign only: URLs are full of them."""
    arrow = "=>" if "=>" in text else "="
    old, _, new = text.partition(arrow)
    if not old or text.count(arrow) != 1:
        raise UsageError(f"--url-replace takes 'OLD=>NEW', not {text!r}")
    return {"from": old, "to": new}
