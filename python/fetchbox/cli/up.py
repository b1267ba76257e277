"""`fetchbox up`: everything on this machine."""

from __future__ import annotations

from typing import Annotated

import typer

from fetchbox.cli.options import ConfigOption
from fetchbox.cli.roles import run_role, section

app = typer.Typer(add_completion=False)


@app.command()
def up(
    context: typer.Context,
    workers: Annotated[int | None, typer.Option(min=0, help="Worker processes; 0 takes jobs and leaves them queued.")] = None,
    api_processes: Annotated[int | None, typer.Option(min=1, help="API processes.")] = None,
    config: ConfigOption = None,
) -> int:
    """Run api, workers and hub on this machine, with the embedded broker unless configured otherwise.

    Logs go to stderr. SIGTERM or Ctrl-C drains and ends with 0; a second Ctrl-C hurries; SIGHUP re-reads secrets, tokens and job types.
    """
    overrides = {"worker": section(processes=workers), "server": section(processes=api_processes)}
    return run_role(context, config, "up", overrides)
