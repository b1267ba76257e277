"""The effective configuration for people: every key, its value with secrets hidden, and what set it."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from pydantic import SecretStr

from fetchbox.config.addresses import url_without_secrets
from fetchbox.config.base import Section
from fetchbox.config.models import Config
from fetchbox.config.schema import is_secret

HIDDEN = "********"
DEFAULT = "default"
RESOLVED = "resolved"
_SECRET_WORDS = re.compile(r"pass|secret|token|credential|authorization|cookie|api[-_]?key|signature", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Setting:
    """One key of the effective configuration. `value` is fit for JSON and holds no secret; `source` is "default", a file or a variable,
    or "resolved" for what follows from other keys."""

    path: str
    value: Any
    source: str


def describe(config: Config) -> list[Setting]:
    """Every key of the effective configuration, in the order of the models, and what becomes of proxy pools that name others."""
    return [*_section(config, config, ""), *_tiers(config)]


def _tiers(config: Config) -> Iterator[Setting]:
    pools = config.proxy.pools
    for name in pools:
        yield Setting(f"proxy.pools.{name}.tiers", proxy_tiers(config, name), RESOLVED)
    for name, job_type in config.job_types.items():
        if job_type.proxy is not None:
            yield Setting(f"job_types.{name}.proxy.tiers", proxy_tiers(config, job_type.proxy.primary, job_type.proxy.fallbacks), RESOLVED)


def proxy_tiers(config: Config, primary: str, fallbacks: Iterable[str] = ()) -> list[str]:
    """The pools that an attempt asks, in order: each one's own fallbacks right after it, none twice. The engine resolves them alike."""
    order: list[str] = []
    waiting = [primary, *fallbacks]
    while waiting:
        name = waiting.pop(0)
        if name not in order:
            order.append(name)
            pool = config.proxy.pools.get(name)
            waiting[:0] = pool.fallbacks if pool is not None else ()
    return order


def _section(config: Config, section: Section, prefix: str) -> Iterator[Setting]:
    for name in type(section).model_fields:
        value = getattr(section, name)
        path = f"{prefix}{name}"
        if isinstance(value, Section):
            # A job type's fetch holds only what it overrides.
            if prefix.startswith("job_types.") and name == "fetch":
                yield from (
                    setting for setting in _section(config, value, f"{path}.") if setting.path.rpartition(".")[2] in value.model_fields_set
                )
            else:
                yield from _section(config, value, f"{path}.")
        elif isinstance(value, dict) and value and all(isinstance(item, Section) for item in value.values()):
            for key, item in value.items():
                yield from _section(config, item, f"{path}.{key}.")
        else:
            yield Setting(path, _shown(path, value), _source(config, path, value))


def _source(config: Config, path: str, value: Any) -> str:
    found = config.source_of(path)
    if found is None and isinstance(value, dict):
        found = next((source for key in value if (source := config.source_of(f"{path}.{key}"))), None)
    return found or DEFAULT


def _shown(path: str, value: Any) -> Any:
    if isinstance(value, SecretStr):
        return HIDDEN
    if value and is_secret(path):
        # Of api_tokens the keys are the secret.
        return {HIDDEN: sorted(set(value.values()))} if path == "server.api_tokens" else dict.fromkeys(value, HIDDEN)
    if isinstance(value, dict):
        return {key: HIDDEN if _SECRET_WORDS.search(key) else _shown(path, item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_shown(path, item) for item in value]
    if isinstance(value, str) and "://" in value:
        return url_without_secrets(value)
    return value
