"""`fetchbox api`: the HTTP side."""

from __future__ import annotations

from typing import Annotated

import typer

from fetchbox.cli.options import ConfigOption
from fetchbox.cli.roles import run_role, section

app = typer.Typer(add_completion=False)


@app.command()
def api(
    context: typer.Context,
    processes: Annotated[int | None, typer.Option(min=1, help="API processes.")] = None,
    bind: Annotated[str | None, typer.Option(metavar="HOST:PORT", help="Address to bind.")] = None,
    config: ConfigOption = None,
) -> int:
    """Run the HTTP side. It talks to the hub of hub.url; without one it uses the hub of this data_dir and brings it along if none runs."""
    return run_role(context, config, "api", {"server": section(processes=processes, bind_addr=bind)})
