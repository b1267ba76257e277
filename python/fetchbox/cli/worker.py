"""`fetchbox worker`: downloads."""

from __future__ import annotations

from typing import Annotated

import typer

from fetchbox.cli.options import ConfigOption
from fetchbox.cli.roles import run_role, section

app = typer.Typer(add_completion=False)


@app.command()
def worker(
    context: typer.Context,
    processes: Annotated[int | None, typer.Option(min=1, help="Worker processes.")] = None,
    concurrency: Annotated[int | None, typer.Option("--concurrency", "-j", min=1, help="Downloads at once in each process.")] = None,
    config: ConfigOption = None,
) -> int:
    """Run download workers. They talk to the hub of hub.url, else to the one of this data_dir, and wait while it is away."""
    return run_role(context, config, "worker", {"worker": section(processes=processes, concurrency=concurrency)})
