"""`fetchbox hub`: ledger and streams."""

from __future__ import annotations

import typer

from fetchbox.cli.options import ConfigOption
from fetchbox.cli.roles import run_role

app = typer.Typer(add_completion=False)


@app.command()
def hub(context: typer.Context, config: ConfigOption = None) -> int:
    """Run the hub: the one process that opens the database of this data_dir."""
    return run_role(context, config, "hub", {})
