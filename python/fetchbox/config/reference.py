"""Makes docs/configuration.md and config/fetchbox.example.toml from the models: `python -m fetchbox.config.reference`, or `make docs`.

The texts are the docstrings below the fields, so that code, document and example cannot say different things; a test compares them.
"""

from __future__ import annotations

import ast
import inspect
import json
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

from pydantic import SecretStr
from pydantic.fields import FieldInfo

from fetchbox.config import units
from fetchbox.config.base import Section
from fetchbox.config.fetching import Auth, JobStorage, JobType, ProxyChoice, ProxyPool
from fetchbox.config.models import Config, Tenant
from fetchbox.config.schema import strip

DOC = Path("docs/configuration.md")
EXAMPLE = Path("config/fetchbox.example.toml")
NESTED = (JobStorage, ProxyChoice, Auth)
WIDTH = 138

_UNITS: dict[object, str] = {units.parse_duration: "duration", units.parse_size: "size", units.parse_rate: "rate"}


def sections() -> Iterator[tuple[str, type[Section]]]:
    """Every table that the documents show, in order: its heading and its model."""
    for name, field in Config.model_fields.items():
        kind = strip(field.annotation)
        if isinstance(kind, type) and issubclass(kind, Section) and name != "proxy":
            yield name, kind
        elif name == "tenants":
            yield "tenants.NAME", Tenant
        elif name == "job_types":
            yield "job_types.NAME", JobType
        elif name == "proxy":
            yield "proxy.pools.NAME", ProxyPool


def docstrings(section: type[Section]) -> dict[str, str]:
    """Field → the text below it in the source."""
    body = ast.parse(textwrap.dedent(inspect.getsource(section))).body[0]
    assert isinstance(body, ast.ClassDef)
    found = {}
    for statement, following in zip(body.body, body.body[1:], strict=False):
        if isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name) and isinstance(following, ast.Expr):
            assert isinstance(following.value, ast.Constant)
            found[statement.target.id] = " ".join(str(following.value.value).split())
    return found


def unit(field: FieldInfo) -> str:
    """What kind of value a field takes, for people."""
    # Of an optional value they stand one level down.
    inner = [extra for choice in get_args(field.annotation) for extra in get_args(choice)]
    for extra in [*field.metadata, *inner]:
        if (name := _UNITS.get(getattr(extra, "func", units))) is not None:
            return name
    kind = strip(field.annotation)
    if get_origin(kind) is Literal:
        return " or ".join(f'"{choice}"' for choice in get_args(kind))
    if kind is SecretStr:
        return "secret"
    if get_origin(kind) is tuple:
        return "list of strings"
    if get_origin(kind) is dict or (isinstance(kind, type) and issubclass(kind, Section)):
        return "table"
    return {bool: "true or false", int: "number", str: "string"}[kind]


def default(field: FieldInfo) -> Any:
    """The default as TOML would write it; None if there is none."""
    value = None if field.is_required() else field.default
    if isinstance(value, tuple):
        value = list(value)
    if isinstance(value, Section) or value is None:
        return None
    return _human(value, unit(field))


def _human(value: Any, kind: str) -> Any:
    if kind == "duration":
        for name, seconds in (("d", 86400), ("h", 3600), ("m", 60), ("s", 1), ("ms", 0.001)):
            if value and (value / seconds).is_integer() and value >= seconds:
                return f"{value / seconds:g}{name}"
        return 0
    if kind == "size":
        for name, size in (("GiB", 1 << 30), ("GB", 10**9), ("MB", 10**6), ("KB", 10**3)):
            if value and value % size == 0:
                return f"{value // size}{name}"
        return value
    if kind == "rate":
        return f"{value:g}/s" if value else 0
    return value


def document() -> str:
    """docs/configuration.md."""
    parts = [_HEAD]
    top = {name: text for name, text in docstrings(Config).items() if not name.startswith("_")}
    parts.append("## Top level\n\n" + _table(Config, top))
    for heading, section in sections():
        intro = inspect.getdoc(section) or ""
        parts.append(f"## `[{heading}]`\n\n{intro}\n\n" + _table(section, docstrings(section)))
        for nested in NESTED:
            for name, field in section.model_fields.items():
                if strip(field.annotation) is nested:
                    parts.append(f"### `[{heading}.{name}]`\n\n{inspect.getdoc(nested)}\n\n" + _table(nested, docstrings(nested)))
    return "\n".join(parts)


def _table(section: type[Section], texts: dict[str, str]) -> str:
    rows = ["| key | default | value | meaning |", "|---|---|---|---|"]
    for name, text in texts.items():
        field = section.model_fields[name]
        shown = default(field)
        empty = "*required*" if field.is_required() else "–"
        cell = empty if shown is None else f"`{json.dumps(shown, ensure_ascii=False)}`"
        rows.append(f"| `{name}` | {cell} | {unit(field)} | {text.replace('|', chr(92) + '|')} |")
    return "\n".join(rows) + "\n"


def example() -> str:
    """config/fetchbox.example.toml: every key, commented out, at its default."""
    lines = [*_EXAMPLE_HEAD.splitlines(), ""]
    lines += _example_keys(Config, {name: text for name, text in docstrings(Config).items() if not name.startswith("_")})
    for heading, section in sections():
        named = heading.replace("NAME", "example")
        lines += ["", *_comment(inspect.getdoc(section) or ""), f"{'# ' if 'NAME' in heading else ''}[{named}]"]
        lines += _example_keys(section, docstrings(section))
        for name, field in section.model_fields.items():
            if strip(field.annotation) in NESTED:
                nested = strip(field.annotation)
                lines += ["", f"# [{named}.{name}]", *_example_keys(nested, docstrings(nested))]
        if section is JobType:
            lines += ["", f"# [{named}.fetch]", "# max_attempts = 3"]
    return "\n".join(lines) + "\n"


def _example_keys(section: type[Section], texts: dict[str, str]) -> list[str]:
    lines = []
    for name, text in texts.items():
        field = section.model_fields[name]
        kind = strip(field.annotation)
        if isinstance(kind, type) and issubclass(kind, Section):
            continue  # has a table of its own
        value = default(field)
        if value is None or value in ([], {}):
            value = _EXAMPLES[f"{section.__name__}.{name}"]
        lines += [*_comment(text), f"# {name} = {_toml(value)}"]
    return lines


def _comment(text: str) -> list[str]:
    return [f"## {line}" for line in textwrap.wrap(text, WIDTH - 3, break_long_words=False, break_on_hyphens=False)]


def _toml(value: Any) -> str:
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{json.dumps(key)} = {_toml(item)}" for key, item in value.items()) + " }"
    return json.dumps(value, ensure_ascii=False)


_EXAMPLES: dict[str, Any] = {
    "Server.api_tokens": {"a-long-random-text": "tenant-a"},
    "Server.operator_token": "another-long-random-text",
    "Server.tls_cert": "/etc/fetchbox/server.pem",
    "Server.tls_key": "/etc/fetchbox/server.key",
    "Tenant.rate_limit": "200/s",
    "Tenant.resource_rate_limit": "5000/s",
    "Tenant.daily_bytes": "500GB",
    "Hub.url": "tcp://hub.internal:8090",
    "Hub.listen": "tcp://0.0.0.0:8090",
    "Hub.token": "a-long-random-text",
    "Hub.tls_cert": "/etc/fetchbox/hub.pem",
    "Hub.tls_key": "/etc/fetchbox/hub.key",
    "Hub.tls_ca": "/etc/fetchbox/ca.pem",
    "Broker.tls_cert": "/etc/fetchbox/broker.pem",
    "Broker.tls_key": "/etc/fetchbox/broker.key",
    "Broker.tls_ca": "/etc/fetchbox/ca.pem",
    "Storage.endpoint": "https://s3.example.org",
    "Storage.region": "eu-central-1",
    "Storage.access_key_id": "AKIA…",
    "Storage.secret_access_key": "…",
    "Storage.session_token": "…",
    "Storage.metadata": {"team": "crawling"},
    "Storage.key_template": "{date}/{job_type}/{job_id}/{resource_id}.{ext}",
    "Storage.options": {"aws_imdsv1_fallback": "true"},
    "Fetch.allow_networks": ["10.20.0.0/16"],
    "Fetch.ca_file": "/etc/fetchbox/roots.pem",
    "Fetch.dns_servers": ["10.0.0.53"],
    "Fetch.filter_types": ["image/*", "!image/svg+xml"],
    "Fetch.filter_statuses": ["404", "410"],
    "JobType.handler": "my_package.handlers:GalleryHandler",
    "JobType.default_headers": {"Referer": "https://example.org/"},
    "JobType.options": {"page_size": 50},
    "JobType.tenants": ["tenant-a"],
    "JobType.known_hosts": "/etc/ssh/ssh_known_hosts",
    "ProxyChoice.primary": "example",
    "ProxyChoice.fallbacks": ["backup"],
    "JobStorage.bucket": "another-bucket",
    "JobStorage.key_prefix": "galleries",
    "JobStorage.key_template": "{job_id}/{index}.{ext}",
    "JobStorage.metadata": {"kind": "gallery"},
    "Auth.username": "reader",
    "Auth.password": "…",
    "ProxyPool.endpoints": ["http://user:password@proxy-1.example.org:3128", "socks5://proxy-2.example.org:1080"],
    "ProxyPool.fallbacks": ["backup"],
    "Callbacks.secret": "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw",
    "Callbacks.allow_networks": ["10.20.0.0/16"],
    "Telemetry.otlp_endpoint": "http://127.0.0.1:4318",
    "Client.url": "https://fetchbox.example.org",
    "Client.token": "a-long-random-text",
}

_EXAMPLE_HEAD = """\
## FetchBox: every setting, at its default or, where there is none, with an example. Uncomment what you change.
## Made by `make docs` from the models; docs/configuration.md says the rest."""

_HEAD = """\
# Configuration

<!-- Made by `make docs` from python/fetchbox/config; edit the docstrings there. -->

With no configuration at all everything has a default. Settings come from, each over the one before:

1. the defaults below;
2. a TOML file: `--config FILE`, else the one that `FETCHBOX_CONFIG` names, else `config/fetchbox.toml`, else `fetchbox.toml` if it is there
   ([config/fetchbox.example.toml](../config/fetchbox.example.toml) has every key);
3. the environment: `FETCHBOX__SERVER__BIND_ADDR=0.0.0.0:9000`, two underscores between levels. Values that are no plain strings are JSON
   (`FETCHBOX__SERVER__API_TOKENS='{"token": "tenant"}'`); lists of strings may also be separated by commas;
4. options of the command line.

`fetchbox config check` reports every problem at once; `fetchbox config show` prints the effective values with what set each, secrets
hidden. An unknown key or `FETCHBOX__` variable is an error that names the nearest known one. The library (`fetchbox.fetch`) reads the
environment or its `config=`, never a file that it happens to find.

**Units.** Durations are seconds as numbers, or text: `"500ms"`, `"30s"`, `"5m"`, `"1h30m"`, `"30d"`, `"2w"`. Sizes are bytes as numbers, or
text: `"8MB"` is 8,000,000 (KB, MB, GB, TB are powers of 1000) and `"8MiB"` is 8,388,608 (KiB, MiB, GiB, TiB are powers of 1024). Speeds are
sizes per second. Rates are numbers per second, or `"20/s"`, `"600/m"`, `"1000/h"`. `max_attempts` counts the first attempt.

**Secrets** also come from files: `FETCHBOX__SERVER__OPERATOR_TOKEN_FILE=/run/secrets/operator`, or `operator_token_file = "…"` in the
TOML file; a file for `api_tokens` or `storage.options` holds JSON, one for `broker.url` the whole URL with its user and password. SIGHUP
to the top process reads everything again, files too, and hands it to the running processes. In force within seconds and without a refused
request are tokens, limits and quotas, job types with their handlers, logins and `fetch` keys, proxy pools, the store's credentials,
callbacks, `broker.url`'s user and password, and `hub.token` (connections that are up stay, the next ones want the new one). A download
under way goes on with what it began with. Addresses, paths, `storage.url`, certificates of the API, numbers and sizes change at the next
start. A configuration with a fault changes nothing, and the log says what is wrong with it.

**Names.** Tenants have any name; job types and proxy pools have names of letters, digits, dot, underscore and hyphen. In variables their
case and hyphens do not matter: `FETCHBOX__JOB_TYPES__MY_GALLERY__HANDLER` means `[job_types.my-gallery]` if the file has it, else
`[job_types.my_gallery]`.
"""


def main() -> None:
    """Writes both files, from the root of the repository."""
    DOC.write_text(document(), encoding="utf-8")
    EXAMPLE.write_text(example(), encoding="utf-8")


if __name__ == "__main__":
    main()
