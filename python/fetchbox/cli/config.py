"""`fetchbox config check|show`."""

from __future__ import annotations

import json

import typer

from fetchbox.cli.options import ConfigOption, JsonOption, config_path, load_config
from fetchbox.cli.output import emit, emit_json, emit_table
from fetchbox.errors import ConfigError

app = typer.Typer(add_completion=False, help="Check the configuration, or show where each value comes from.")


@app.command()
def check(context: typer.Context, config: ConfigOption = None, as_json: JsonOption = False) -> int:
    """Validate everything and report every problem; exit 1 if there is one."""
    from fetchbox.config import load

    path = config_path(context, config)
    try:
        load(path)
    except ConfigError as error:
        if not as_json:
            raise
        emit_json({"ok": False, "problems": [{"path": p.path, "message": p.message, "source": p.source} for p in error.problems]})
        return 1
    if as_json:
        emit_json({"ok": True, "problems": []})
    else:
        emit("the configuration is fine")
    return 0


@app.command()
def show(
    context: typer.Context,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> int:
    """Show every value in effect, secrets hidden, and what set it: a default, a file or a variable."""
    from fetchbox.config import describe

    settings = describe(load_config(context, config))
    if as_json:
        for setting in settings:
            emit_json({"path": setting.path, "value": setting.value, "source": setting.source})
    else:
        rows = [(s.path, json.dumps(s.value, ensure_ascii=False, default=str), s.source) for s in settings]
        emit_table(("KEY", "VALUE", "SOURCE"), rows)
    return 0
