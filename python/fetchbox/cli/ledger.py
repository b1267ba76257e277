"""`fetchbox ledger check|sweep|collect|export|prune|backup|rebuild`: through the hub of this configuration, by its own door."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from fetchbox.cli.options import ConfigOption, JsonOption, load_config
from fetchbox.cli.output import clean, emit, emit_json, note, plural
from fetchbox.errors import HubUnavailable, Refused, UsageError

if TYPE_CHECKING:
    from fetchbox.broker import HubConnection
    from fetchbox.config import Config

app = typer.Typer(add_completion=False, help="Check, mend, tidy, export, back up and rebuild the ledger, through the hub.")

CONNECT_TIMEOUT = 5.0
"""Seconds to wait for a hub that does not answer at once."""
REMOTE_TIMEOUT = 12.0
"""The same over a network, where it takes longer to know why."""
MENDABLE = frozenset(
    {
        "total_differs",
        "counts_do_not_add_up",
        "count_differs",
        "bytes_differ",
        "bitmap_differs",
        "bitmap_beyond",
        "outcome_missing",
        "outcome_unsettled",
        "finished_differs",
        "not_listed",
    }
)
"""Findings that `--fix` mends by counting the job again."""

T = TypeVar("T")
Ask = Callable[[str, Mapping[str, Any]], Coroutine[Any, Any, Any]]


def _with_hub(context: typer.Context, config_option: str | None, work: Callable[[Ask], Coroutine[Any, Any, T]]) -> T:
    """Runs `work` with a way to ask the hub. HubUnavailable that says where it was looked for."""
    import orjson

    async def asking(hub: HubConnection, config: Config) -> T:
        async def ask(name: str, params: Mapping[str, Any]) -> Any:
            return orjson.loads(await hub.ledger(name, dict(params)))

        return await work(ask)

    return _connected_to_hub(context, config_option, asking)


def _connected_to_hub(
    context: typer.Context, config_option: str | None, work: Callable[[HubConnection, Config], Coroutine[Any, Any, T]]
) -> T:
    """The same with the connection itself."""
    from fetchbox.broker import HubConnection
    from fetchbox.config import hub_url

    config = load_config(context, config_option)

    async def run() -> T:
        hub = HubConnection(config, "operator", name="ledger")
        try:
            await connected(hub, hub_url(config))
            return await work(hub, config)
        finally:
            hub.close()

    return asyncio.run(run())


async def connected(hub: HubConnection, url: str) -> None:
    up = asyncio.Event()
    hub.on_connected(lambda connected: up.set() if connected else None)
    if not hub.connected:
        try:
            async with asyncio.timeout(REMOTE_TIMEOUT if url.startswith("tcp://") else CONNECT_TIMEOUT):
                await up.wait()
        except TimeoutError:
            advice = "`fetchbox up` or `fetchbox hub` starts one, --config names another"
            raise HubUnavailable(f"no hub answers at {url} ({hub.trouble}); {advice}") from None


@app.command()
def check(
    context: typer.Context,
    job: Annotated[str | None, typer.Option(metavar="ID", help="This job only.")] = None,
    against_store: Annotated[
        bool, typer.Option("--against-store", help="Also that objects and manifests are there, with their size.")
    ] = False,
    deep: Annotated[bool, typer.Option("--deep", help="Also their SHA-256: reads every object.")] = False,
    fix: Annotated[bool, typer.Option("--fix", help="Mend what can be mended, then check again.")] = False,
    as_json: JsonOption = False,
    config: ConfigOption = None,
) -> int:
    """Recount every job from its bitmap and outcomes, and say every difference. 1 when there is any."""
    order = {"job_id": job, "store": against_store or deep, "deep": deep}

    async def work(ask: Ask) -> dict[str, Any]:
        report = await _check(ask, order)
        if fix and report["findings"]:
            mended = await _mend(ask, report["findings"])
            report = {**await _check(ask, order), **mended}
        return report

    report = _with_hub(context, config, work)
    if as_json:
        emit_json({"ok": not report["findings"], **report})
    else:
        for finding in report["findings"]:
            emit(_line(finding))
        counted = f"{plural(report['jobs'], 'job')}, {plural(report['resources'], 'resource')}"
        if order["store"]:
            counted += f", {plural(report['objects'], 'object')}"
        if "mended" in report:
            counted += f"; {plural(report['mended'], 'job')} counted again, {plural(report['put_back'], 'task')} put back"
        note(f"{counted}: {plural(len(report['findings']), 'finding') if report['findings'] else 'all is as it must be'}")
    return 1 if report["findings"] else 0


async def _check(ask: Ask, order: Mapping[str, Any]) -> dict[str, Any]:
    report: dict[str, Any] = {"jobs": 0, "resources": 0, "objects": 0, "findings": []}
    cursor = None
    while True:
        piece = await ask("check", {**order, "cursor": cursor})
        for name in ("jobs", "resources", "objects"):
            report[name] += piece[name]
        report["findings"] += piece["findings"]
        cursor = piece["next_cursor"]
        if cursor is None:
            return report


async def _mend(ask: Ask, findings: list[dict[str, Any]]) -> dict[str, int]:
    jobs = sorted({finding["job_id"] for finding in findings if finding["kind"] in MENDABLE and finding["job_id"] is not None})
    mended = 0
    for job_id in jobs:
        try:
            mended += bool((await ask("recount", {"job_id": job_id}))["changed"])
        except Refused as error:
            note(f"{job_id}: {error}")
    put_back = 0
    if any(finding["kind"] in ("task_lost", "outcome_missing") for finding in findings):
        # What was found lost is so for good: there is nothing to wait for.
        put_back = (await ask("sweep", {"quiet": 0}))["put_back"]
    return {"mended": mended, "put_back": put_back}


def _line(finding: Mapping[str, Any]) -> str:
    return f"{finding['job_id'] or '-'}  {finding['kind']}: {clean(finding['message'])}"


@app.command()
def sweep(context: typer.Context, as_json: JsonOption = False, config: ConfigOption = None) -> int:
    """Put back the tasks of resources that nothing will bring again, now."""
    return _told(context, config, as_json, "sweep", {}, "{put_back} put back, {gone} lost for good, in {jobs} quiet jobs")


@app.command()
def collect(context: typer.Context, as_json: JsonOption = False, config: ConfigOption = None) -> int:
    """Remove objects that nobody owns, now."""
    told = "{objects} objects, {manifests} manifests, {files} temporary files, {uploads} unfinished uploads removed; {jobs} jobs looked at"
    return _told(context, config, as_json, "collect", {}, told)


@app.command()
def prune(context: typer.Context, as_json: JsonOption = False, config: ConfigOption = None) -> int:
    """Forget settled jobs that are older than [retention] says, now. Their objects stay."""
    return _told(context, config, as_json, "prune", {}, "{pruned} jobs forgotten")


@app.command()
def backup(
    context: typer.Context,
    directory: Annotated[str, typer.Argument(metavar="DIR", help="A new directory on the hub's machine.")],
    as_json: JsonOption = False,
    config: ConfigOption = None,
) -> int:
    """Copy the ledger and the streams while the hub runs; the copy can be started as hub.path."""
    path = Path(directory)
    if path.exists():
        raise UsageError(f"{directory} exists already: name a new directory")
    return _told(context, config, as_json, "backup", {"path": str(path.absolute())}, "{path}: {items} entries, {bytes} bytes")


@app.command()
def export(context: typer.Context, as_json: JsonOption = True, config: ConfigOption = None) -> int:
    """Write every job with all its resources as JSON lines, with or without --json."""

    async def work(ask: Ask) -> None:
        after = None
        while True:
            piece = await ask("export", {"after": after})
            for job in piece["jobs"]:
                emit_json(job)
            after = piece["after"]
            if after is None:
                return

    _with_hub(context, config, work)
    return 0


@app.command()
def rebuild(
    context: typer.Context,
    job_type: Annotated[str | None, typer.Option("--job-type", metavar="TYPE", help="Only jobs of this type.")] = None,
    newer_than: Annotated[
        str | None, typer.Option("--newer-than", metavar="AGE", help='Only jobs posted within: "12h", "90d". Default: retention.job_ttl.')
    ] = None,
    tenant: Annotated[str, typer.Option("--tenant", metavar="NAME", help="Tenant of jobs whose manifest names none.")] = "default",
    digests: Annotated[bool, typer.Option("--digests", help="Read every object that is found for its SHA-256.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only count.")] = False,
    as_json: JsonOption = False,
    config: ConfigOption = None,
) -> int:
    """Make jobs again that the ledger does not know, from the manifests in the store: what has its object there is stored, the rest is
    fetched. Run it while no worker runs; docs/ledger.md says what cannot be recovered."""
    from fetchbox.cli.rebuild import Order, Rebuilder

    order = Order(tenant, job_type, None if newer_than is None else _age(newer_than), digests, dry_run)

    async def work(hub: HubConnection, config: Config) -> dict[str, Any]:
        return (await Rebuilder(config, hub, order).run()).answer()

    answer = _connected_to_hub(context, config, work)
    if as_json:
        emit_json(answer)
        return 0
    for left in answer["skipped"]:
        note(f"{left['job_id']}: {clean(left['reason'])}")
    verb = "would be made" if dry_run else "made"
    left_out = f"{answer['known']} known, {answer['older']} too old, {len(answer['skipped'])} left out"
    emit(
        f"{plural(answer['manifests'], 'manifest')}: {left_out}; {plural(answer['jobs'], 'job')} {verb} again: "
        f"{answer['stored']} resources found in the store, {answer['reported']} in jobs.status, {answer['pending']} to be fetched"
    )
    if answer["restart"]:
        note("restart the hub now: it then reads jobs.status of the broker from its beginning, and counts what it finds")
    return 0


def _age(text: str) -> float:
    from fetchbox.config.units import parse_duration

    try:
        return parse_duration(text)
    except ValueError as error:
        raise UsageError(f"--newer-than: {error}") from error


def _told(context: typer.Context, config: str | None, as_json: bool, name: str, params: Mapping[str, Any], text: str) -> int:
    answer = _with_hub(context, config, lambda ask: ask(name, params))
    if as_json:
        emit_json(answer)
    else:
        emit(text.format(**answer))
    return 0
