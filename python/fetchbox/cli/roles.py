"""What `up`, `api`, `worker` and `hub` have in common: the configuration with flags on top, and the supervisor over it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import typer

from fetchbox.cli.options import load_config
from fetchbox.errors import ConfigError

if TYPE_CHECKING:
    from fetchbox.config import Config


def run_role(context: typer.Context, config_option: str | None, command: str, overrides: dict[str, Any]) -> int:
    """Runs the processes of a command until a signal ends them; the exit status."""
    from setproctitle import setproctitle

    from fetchbox import telemetry
    from fetchbox.supervisor import Supervisor, plan

    setproctitle("fetchbox: supervisor")

    def load() -> Config:
        return load_config(context, config_option, overrides, listens=command in ("up", "api"))

    config = load()
    roles = plan(config, command)
    if not roles:
        raise ConfigError.single("worker.processes", f"nothing to run: `fetchbox {command}` needs at least one process", "the command line")
    telemetry.configure(config.telemetry.log_format, config.telemetry.log_level, "supervisor")
    return Supervisor(config, roles, reload=load).run()


def section(**values: Any) -> dict[str, Any]:
    """The values that were given, for an override."""
    return {name: value for name, value in values.items() if value is not None}
