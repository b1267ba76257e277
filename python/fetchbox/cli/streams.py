"""`fetchbox streams provision|show|tail|publish`: the topics of the hub, or of the broker of this configuration."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, MutableMapping
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from fetchbox.cli.options import ConfigOption, JsonOption, load_config
from fetchbox.cli.output import clean, emit, emit_json, emit_table, note, plural, size
from fetchbox.errors import UsageError

if TYPE_CHECKING:
    from fetchbox.broker.desk import Desk, Seen
    from fetchbox.config import Config

app = typer.Typer(add_completion=False, help="Make the topics, see their sizes and lags, look into them, publish a task by hand.")

T = TypeVar("T")

FOLLOW_SECONDS = 0.25
"""Wait between looks at a topic that does not grow."""
PAGE = 500
HIDDEN = "********"


def _with_desk(context: typer.Context, option: str | None, work: Callable[[Desk, Config], Awaitable[T]], *, needs_hub: bool = True) -> T:
    """Runs `work` with the streams of this configuration; the hub is asked for groups, and for everything when the streams are its own."""
    from fetchbox.broker import HubConnection
    from fetchbox.broker.desk import HubDesk, IggyDesk
    from fetchbox.cli.ledger import connected
    from fetchbox.config import hub_url

    config = load_config(context, option)
    embedded = config.broker.url == "embedded"

    async def run() -> T:
        hub = HubConnection(config, "operator", name="streams") if embedded or needs_hub else None
        try:
            if hub is not None:
                await connected(hub, hub_url(config))
            if embedded:
                assert hub is not None
                return await work(HubDesk(config, hub), config)
            desk = IggyDesk(config, hub)
            try:
                return await work(desk, config)
            finally:
                await desk.close()
        finally:
            if hub is not None:
                hub.close()

    return asyncio.run(run())


@app.command()
def provision(context: typer.Context, as_json: JsonOption = False, config: ConfigOption = None) -> int:
    """Make the topics that are missing; say what differs from the configuration. Harmless to repeat."""
    found = _with_desk(context, config, lambda desk, _: desk.provision(), needs_hub=False)
    for one in found:
        if as_json:
            emit_json({"topic": one.topic, "state": one.state, "what": one.what})
        else:
            emit(f"{one.topic:<12} {one.state:<10} {one.what}")
    drift = sum(one.state == "differs" for one in found)
    if drift and not as_json:
        note(
            f"{plural(drift, 'topic')} differ from the configuration; an existing topic's partitions win, the rest is changed on the broker"
        )
    return 0


@app.command()
def show(context: typer.Context, as_json: JsonOption = False, config: ConfigOption = None) -> int:
    """Sizes, offsets and the lag of every group, by partition."""
    topics = _with_desk(context, config, lambda desk, _: desk.topics())
    if as_json:
        for topic in topics:
            groups = [{"group": g.group, "lag": sum(g.lags), "lags": g.lags, "committed": g.committed} for g in topic.groups]
            emit_json({"topic": topic.topic, "starts": topic.starts, "ends": topic.ends, "bytes": topic.bytes, "groups": groups})
        return 0
    rows = []
    for topic in topics:
        messages = sum(topic.ends) - sum(topic.starts)
        told = "" if topic.bytes is None else size(topic.bytes)
        lags = ", ".join(f"{g.group} {sum(g.lags)}{_worst(g.lags)}" for g in topic.groups)
        rows.append((topic.topic, str(len(topic.ends)), str(messages), told, lags))
    emit_table(("TOPIC", "PARTITIONS", "MESSAGES", "BYTES", "LAG"), rows, right=frozenset({"PARTITIONS", "MESSAGES", "BYTES"}))
    return 0


def _worst(lags: list[int]) -> str:
    """Which partition is furthest behind, where there are several."""
    if len(lags) < 2 or not any(lags):
        return ""
    worst = max(range(len(lags)), key=lags.__getitem__)
    return f" (partition {worst}: {lags[worst]})"


@app.command()
def tail(
    context: typer.Context,
    topic: Annotated[str, typer.Argument(metavar="TOPIC", help="jobs.tasks, jobs.retry, jobs.status, jobs.logs, jobs.dlq or jobs.events.")],
    partition: Annotated[int | None, typer.Option("--partition", "-p", min=0, help="This partition only.")] = None,
    last: Annotated[int, typer.Option("--last", "-n", min=0, help="So many of the newest messages of each partition.")] = 10,
    start: Annotated[int | None, typer.Option("--from", min=0, help="From this offset on instead.")] = None,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on with what comes, until Ctrl-C.")] = False,
    as_json: JsonOption = False,
    config: ConfigOption = None,
) -> int:
    """Look into a topic. Values of headers are hidden."""

    async def work(desk: Desk, _: Config) -> None:
        state = next((one for one in await desk.topics() if one.topic == topic), None)
        if state is None:
            raise UsageError(f"there is no topic {topic}: see `fetchbox streams show`")
        if partition is not None and partition >= len(state.ends):
            raise UsageError(f"{topic} has {plural(len(state.ends), 'partition')}")
        chosen = range(len(state.ends)) if partition is None else [partition]
        places = {one: start if start is not None else max(state.ends[one] - last, state.starts[one]) for one in chosen}
        while True:
            found = False
            for one in places:
                while seen := await desk.read(topic, one, places[one], PAGE):
                    found = True
                    for message in seen:
                        _print(topic, message, as_json)
                    places[one] = seen[-1].offset + 1
            if not follow:
                return
            if not found:
                await asyncio.sleep(FOLLOW_SECONDS)

    _with_desk(context, config, work)
    return 0


def _print(topic: str, seen: Seen, as_json: bool) -> None:
    import json

    told = {"partition": seen.partition, "offset": seen.offset, "time_ms": seen.time_ms, "message": _decoded(topic, seen.body)}
    if as_json:
        emit_json(told)
    else:
        emit(f"{seen.partition}/{seen.offset}  {clean(json.dumps(told['message'], ensure_ascii=False))}")


def _decoded(topic: str, body: bytes) -> dict[str, Any]:
    """The message as JSON, or its bytes when it cannot be read."""
    from google.protobuf.json_format import MessageToDict
    from google.protobuf.message import DecodeError

    from fetchbox.broker.topics import DLQ, EVENTS, LOGS, STATUS
    from fetchbox.proto import DeadLetterTask, DownloadTask, JobLog, JobStatus
    from fetchbox.telemetry import redact_text

    kinds: dict[str, Any] = {LOGS: JobLog, DLQ: DeadLetterTask, STATUS: JobStatus, EVENTS: JobStatus}
    try:
        message = kinds.get(topic, DownloadTask).FromString(body)
    except DecodeError:
        return {"unreadable": body.hex()}
    tasks = [message] if isinstance(message, DownloadTask) else []
    if isinstance(message, DeadLetterTask):
        tasks = [message.task]
    if isinstance(message, JobStatus):
        tasks = [outcome.task for outcome in message.outcomes if outcome.HasField("task")]
    for task in tasks:
        task.url = redact_text(task.url)
        for header in task.headers:
            header.value = HIDDEN
    for outcome in message.outcomes if isinstance(message, JobStatus) else ():
        outcome.final_url = redact_text(outcome.final_url)
        _redact_values(outcome.context)
    if isinstance(message, DeadLetterTask):
        _redact_values(message.context)
    if isinstance(message, JobLog):
        message.message = redact_text(message.message)
        _redact_values(message.fields)
    found: dict[str, Any] = MessageToDict(message, preserving_proto_field_name=True)
    return found


def _redact_values(texts: MutableMapping[str, str]) -> None:
    from fetchbox.telemetry import redact_text

    for name in list(texts):
        texts[name] = redact_text(texts[name])


@app.command()
def publish(
    context: typer.Context,
    urls: Annotated[list[str] | None, typer.Argument(metavar="[URL]...", help="What to download, a task each.")] = None,
    job: Annotated[str | None, typer.Option("--job", metavar="UUID", help="The tasks' job; a new one unless given.")] = None,
    job_type: Annotated[str, typer.Option("--job-type", help="Its type.")] = "default",
    tenant: Annotated[str, typer.Option(help="Its tenant.")] = "",
    headers: Annotated[list[str] | None, typer.Option("--header", "-H", help="A header of every task: 'Name: value'.")] = None,
    total: Annotated[
        bool, typer.Option("--total/--no-total", help="Say that these are all of the job, in this order; else it stays open for more.")
    ] = True,
    close: Annotated[bool, typer.Option("--close", help="Say that there are no more tasks of the job.")] = False,
    as_json: JsonOption = False,
    config: ConfigOption = None,
) -> int:
    """Publish tasks past the ingress, as a direct producer does. The job appears with its first outcome."""
    if not urls and not (close and job):
        raise UsageError("name a URL, or --close with --job")
    if close and total and urls:
        raise UsageError("--close is for jobs that are open: say --no-total")

    async def work(desk: Desk, _: Config) -> dict[str, Any]:
        from uuid_utils import uuid7

        from fetchbox.broker.topics import STATUS, TASKS
        from fetchbox.proto import DownloadTask, JobState, JobStatus

        job_id = job or str(uuid7())
        tasks = []
        for index, url in enumerate(urls or ()):
            task = DownloadTask(job_id=job_id, job_type=job_type, tenant=tenant, url=url, resource_id=str(index) if total else url)
            if total:
                task.resource_index, task.resources_total = index, len(urls or ())
            for text in headers or ():
                name, colon, value = text.partition(":")
                if not colon:
                    raise UsageError(f"--header {text!r} is not 'Name: value'")
                task.headers.add(name=name.strip().lower(), value=value.strip())
            tasks.append(task.SerializeToString())
        placed = await desk.publish(TASKS, tasks) if tasks else []
        if close:
            status = JobStatus(job_id=job_id, state=JobState.JOB_STATE_COMPLETED)
            await desk.publish(STATUS, [status.SerializeToString()])
        return {"job_id": job_id, "tasks": [{"partition": partition, "offset": offset} for partition, offset in placed], "closed": close}

    told = _with_desk(context, config, work, needs_hub=False)
    if as_json:
        emit_json(told)
    else:
        emit(f"{told['job_id']}  {plural(len(told['tasks']), 'task')} published{', closed' if close else ''}")
    return 0
