"""Options that many commands take, and what they mean."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fetchbox.errors import UsageError

if TYPE_CHECKING:
    from fetchbox.config import Config

ConfigOption = Annotated[str | None, typer.Option("--config", metavar="FILE", help="TOML configuration; else FETCHBOX_CONFIG.")]
ServerOption = Annotated[
    str | None, typer.Option("--server", metavar="URL", help="The service; else FETCHBOX_URL, [client] url, bind_addr.")
]
JsonOption = Annotated[bool, typer.Option("--json", help="JSON on stdout: one object, or one a line for lists.")]

URL_VARIABLE = "FETCHBOX_URL"


def config_path(context: typer.Context, given: str | None) -> Path | None:
    """The --config given after the command, else the one before it. UsageError when there is no such file."""
    name = given if given is not None else (context.find_root().obj or {}).get("config")
    if name is None:
        return None
    path = Path(name)
    if not path.is_file():
        raise UsageError(f"--config: there is no file {name}")
    return path


def load_config(context: typer.Context, given: str | None, overrides: Mapping[str, Any] | None = None, *, listens: bool = False) -> Config:
    """The effective configuration, what the command line said on top. `listens` as in `config.load`. ConfigError with all problems."""
    from fetchbox.config import load

    return load(config_path(context, given), overrides=overrides, listens=listens)


def server_url(config: Config, given: str | None) -> str:
    """The base URL of the service that a command talks to."""
    from fetchbox.config import format_address, parse_address

    url = given or os.environ.get(URL_VARIABLE) or config.client.url
    if url:
        if "://" not in url:
            url = f"http://{url}"
        if not url.startswith(("http://", "https://")):
            raise UsageError(f"the service's URL begins with http:// or https://, not {url!r}")
        return url.rstrip("/")
    host, port = parse_address(config.server.bind_addr)
    # What is bound on every address answers on loopback.
    host = {"0.0.0.0": "127.0.0.1", "::": "::1", "": "127.0.0.1"}.get(host, host)  # noqa: S104  (compared, not bound)
    return f"{'https' if config.server.tls_cert else 'http'}://{format_address(host, port)}"
