"""`fetchbox bench`: the operator's harness. Measures this machine, not the one of the documentation."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fetchbox.cli.output import emit, emit_json, note
from fetchbox.errors import FetchboxError, UsageError

if TYPE_CHECKING:
    from fetchbox.bench.results import Result

app = typer.Typer(add_completion=False, no_args_is_help=True, help="Measure downloads, ingest and the pipeline on this machine.")


class BenchError(FetchboxError):
    """A bench could not be carried out."""

    code = "BENCH"


@app.command()
def download(
    input_file: Annotated[
        Path | None, typer.Option("-i", "--input", help="A file of URLs, one a line; without it a local nginx serves files.")
    ] = None,
    count: Annotated[int, typer.Option(min=1, help="Files of the local origin.")] = 5000,
    size: Annotated[str, typer.Option(help="Their size: 10KiB, 1MiB, …")] = "10KiB",
    concurrency: Annotated[int, typer.Option("-j", "--concurrency", min=1, help="Transfers at once.")] = 64,
    rounds: Annotated[int, typer.Option(min=1, help="Alternating rounds; medians are shown.")] = 3,
    out: Annotated[
        Path | None, typer.Option("-o", "--out", help="Store below this directory instead of memory; it is emptied again.")
    ] = None,
    python: Annotated[str | None, typer.Option("--python", help="Interpreter that has the Python rivals; default: this one.")] = None,
    chart: Annotated[Path | None, typer.Option("--plot", help="Write a chart to this file, as SVG.")] = None,
    json_output: Annotated[bool, typer.Option("--json", help="One JSON object.")] = False,
) -> int:
    """`fetchbox get` beside the downloaders that are installed: curl, aria2c; pycurl, aiohttp, img2dataset, Scrapy's FilesPipeline."""
    import sys

    from fetchbox.bench import plot
    from fetchbox.bench.download import COLUMNS, Task, compare
    from fetchbox.bench.download import chart as drawn
    from fetchbox.bench.nginx import Files, static_origin
    from fetchbox.bench.peers import Stored, all_peers
    from fetchbox.bench.results import Result
    from fetchbox.config.units import parse_size

    result = Result("download", {"concurrency": concurrency, "rounds": rounds})
    directory = str(out) if out else None

    def run(label: str, urls: list[str], expected: Stored | None) -> None:
        task = Task(label, urls, expected, concurrency, rounds)
        peers = all_peers(python or sys.executable, per_host=expected is not None)
        compared = compare(task, peers, peers[0].name, say=note, directory=directory)
        result.rows, result.rounds, result.notes = compared.rows, compared.rounds, compared.notes

    if input_file is not None:
        urls = [line.strip() for line in input_file.read_text(encoding="utf-8").splitlines() if line.strip() and not line.startswith("#")]
        if not urls:
            raise UsageError(f"{input_file} holds no URL")
        run(f"{len(urls):,} URLs", urls, None)
    else:
        files = Files(count, parse_size(size))
        try:
            with static_origin(files) as origin:
                run(files.label(), origin.urls(), Stored(files.count, files.total))
        except FileNotFoundError as error:
            raise UsageError(f"{error}; or give URLs of your own with -i") from error
    if chart is not None:
        chart.write_text(plot.bars(drawn(f"Downloading on one machine, {result.commit}", result.rows)), encoding="utf-8")
    return _show(result, COLUMNS, json_output)


@app.command()
def ingest(
    resources: Annotated[
        list[int] | None, typer.Option(min=1, max=1000, help="Resources a manifest; repeatable. Default: 1, 100 and 1000.")
    ] = None,
    connections: Annotated[int, typer.Option("-c", "--connections", min=1, help="Posts in flight.")] = 16,
    seconds: Annotated[float, typer.Option(min=1, help="Length of each load.")] = 10.0,
    api_processes: Annotated[int, typer.Option(min=1, help="Processes of the api.")] = 1,
    rounds: Annotated[int, typer.Option(min=1)] = 1,
    keys: Annotated[bool, typer.Option("--keys", help="An idempotency key with every post.")] = False,
    disk: Annotated[Path | None, typer.Option(help="Directory on the disk that the ledger would use. Default: /var/tmp.")] = None,
    json_output: Annotated[bool, typer.Option("--json", help="One JSON object.")] = False,
) -> int:
    """Post manifests to a fresh service as fast as it takes them: jobs and resources a second, latency, CPU."""
    from fetchbox.bench.ingest import COLUMNS, Shape, compare, fetchbox_ingress
    from fetchbox.bench.results import Result

    result = Result("ingest", {"connections": connections, "seconds": seconds, "keys": keys})
    shapes = [Shape(number, connections, seconds, keys) for number in resources or (1, 100, 1000)]
    result.rows, result.rounds = compare([fetchbox_ingress(api_processes, disk)], shapes, rounds, note)
    return _show(result, COLUMNS, json_output)


@app.command()
def pipeline(
    tasks: Annotated[int, typer.Option(min=1000, help="Tasks of one byte each.")] = 100_000,
    depth: Annotated[
        int | None, typer.Option(min=1000, help="Queue so many tasks without a worker instead, then look things up, restart, drain.")
    ] = None,
    per_job: Annotated[int, typer.Option(min=1, max=1000, help="Resources a job.")] = 1000,
    drain_seconds: Annotated[float, typer.Option(min=1, help="How long to drain, with --depth.")] = 30.0,
    bodies: Annotated[str, typer.Option(help="stored; blocked: refused before any connection; idle: nothing is downloaded.")] = "stored",
    concurrency: Annotated[int, typer.Option("-j", "--concurrency", min=1)] = 64,
    disk: Annotated[Path | None, typer.Option(help="Directory on the disk that the ledger would use. Default: /var/tmp.")] = None,
    json_output: Annotated[bool, typer.Option("--json", help="One JSON object.")] = False,
) -> int:
    """CPU per task of api, hub and worker, or what a deep queue costs. Needs nginx."""
    from fetchbox.bench.pipeline import Depth, Spine, spine
    from fetchbox.bench.pipeline import depth as run_depth
    from fetchbox.bench.results import Result

    if bodies not in ("stored", "blocked", "idle"):
        raise UsageError(f"--bodies is stored, blocked or idle, not {bodies!r}")
    result = Result("depth" if depth else "pipeline", {"concurrency": concurrency})
    try:
        if depth:
            result.rows = [run_depth(Depth(depth, per_job, drain_seconds, concurrency=concurrency, disk=disk), note)]
        else:
            result.rows = [spine(Spine(tasks, bodies, per_job, concurrency, disk), note)]
    except FileNotFoundError as error:
        raise UsageError(str(error)) from error
    except RuntimeError as error:
        raise BenchError(str(error)) from error
    return _show(result, None, json_output)


def _show(result: Result, columns: Sequence[str] | None, json_output: bool) -> int:
    if json_output:
        emit_json(result.as_dict())
    else:
        emit(result.markdown(columns).rstrip("\n"))
    return 0 if result.rows else 1
