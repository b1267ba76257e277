"""Making a Config: layers, validation, checks. Every problem is reported, not only the first."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote

from pydantic import ValidationError

from fetchbox.config.check import check, check_library
from fetchbox.config.layers import Layers, find_file, unknown_key_message
from fetchbox.config.models import Config
from fetchbox.errors import ConfigError, Problem, UsageError

DATA_DIR = "{data_dir}"


def load(
    path: Path | str | None = None,
    env: Mapping[str, str] | None = None,
    overrides: Mapping[str, Any] | None = None,
    *,
    listens: bool = True,
) -> Config:
    """The configuration of a service or a command.

    Defaults, then the file (`path`, else FETCHBOX_CONFIG, else config/fetchbox.toml, else fetchbox.toml), then `env` (default: the
    process's environment), then `overrides` (nested; what the command line said). `listens` is False for whoever never binds
    `server.bind_addr`: a worker, a hub, a client. Raises ConfigError with all problems.
    """
    environ = os.environ if env is None else env
    layers = Layers()
    if (file := find_file(Path(path) if path is not None else None, environ)) is not None:
        layers.add_file(file)
    layers.add_environment(environ)
    layers.add_tree(overrides or {}, "the command line")
    return _build(layers, lambda config: check(config, environ, listens=listens))


def load_library(
    env: Mapping[str, str] | None = None, config: Config | Mapping[str, Any] | Path | str | None = None, **fetch: Any
) -> Config:
    """The configuration of a library call: the environment or an explicit `config`, and `[fetch]` keys as keywords.

    Never reads a file that it happens to find; a path given as `config` is read. `concurrency` and `memory_budget` are taken for
    `[worker]`, `transport`, `auth` and `known_hosts` for `[job_types.default]`. Raises UsageError for a keyword that is no setting,
    ConfigError for a bad value.
    """
    layers = Layers()
    if isinstance(config, Config):
        layers.add_tree(config.model_dump(exclude_unset=True), "config=")
    elif isinstance(config, str | Path):
        layers.add_file(Path(config))
    elif isinstance(config, Mapping):
        layers.add_tree(config, "config=")
    elif config is not None:
        raise UsageError(f"config= is a {type(config).__name__}; give sections as dictionaries, the path of a TOML file, or a Config")
    else:
        layers.add_environment(os.environ if env is None else env)
    for key, value in fetch.items():
        if key in ("transport", "auth", "known_hosts"):
            # A library's tasks are of the job type `default`.
            layers.put(("job_types", "default", key), dict(value) if isinstance(value, Mapping) else value, f"{key}=")
        elif key in ("concurrency", "memory_budget"):
            layers.put(("worker", key), value, f"{key}=")
        elif key in type(Config.model_fields["fetch"].default).model_fields:
            layers.put(("fetch", key), list(value) if isinstance(value, set | frozenset | tuple) else value, f"{key}=")
        else:
            raise UsageError(f"{key}=: {unknown_key_message(f'fetch.{key}')}")
    return _build(layers, check_library)


def _build(layers: Layers, checks: Callable[[Config], list[Problem]]) -> Config:
    _place(layers.tree)
    problems = layers.problems
    try:
        config = Config.model_validate(layers.tree)
    except ValidationError as error:
        faults = error.errors(include_url=False, include_input=False)
        problems += [_problem(fault, layers) for fault in faults]
        # What is left without the faulty values is checked too, so that one run shows everything.
        for fault in faults:
            _remove(layers.tree, fault["loc"])
        try:
            config = Config.model_validate(layers.tree)
        except ValidationError:
            raise ConfigError(problems) from None
    config._sources.update(layers.sources)
    problems += checks(config)
    if problems:
        raise ConfigError(list(dict.fromkeys(problems)))
    return config


def _place(tree: dict[str, Any]) -> None:
    """Makes data_dir absolute and puts it in the place of {data_dir}, in given values and in defaults."""
    given = tree.setdefault("data_dir", Config.model_fields["data_dir"].default)
    if not isinstance(given, str | Path):
        return
    data_dir = os.path.abspath(os.path.expanduser(given))
    tree["data_dir"] = data_dir
    for section, key in (("hub", "path"), ("storage", "url")):
        table = tree.setdefault(section, {})
        if isinstance(table, dict):
            table.setdefault(key, getattr(Config.model_fields[section].default, key))
    for section, value in tree.items():
        tree[section] = _fill(value, data_dir)


def _remove(tree: Any, path: tuple[int | str, ...]) -> None:
    """Removes the value that holds the fault, or the table that lacks one."""
    parents: list[tuple[dict[str, Any], str]] = []
    for part in path:
        if not isinstance(tree, dict) or str(part) not in tree:
            break
        parents.append((tree, str(part)))
        tree = tree[str(part)]
    if parents:
        holder, key = parents[-1]
        del holder[key]


def _fill(value: Any, data_dir: str) -> Any:
    """Puts the absolute data_dir in place of {data_dir}, encoded where the value is a file URL."""
    if isinstance(value, dict):
        return {key: _fill(item, data_dir) for key, item in value.items()}
    if isinstance(value, list):
        return [_fill(item, data_dir) for item in value]
    if isinstance(value, str) and DATA_DIR in value:
        return value.replace(DATA_DIR, quote(data_dir) if value.startswith("file://") else data_dir)
    return value


def _problem(fault: Any, layers: Layers) -> Problem:
    path = ".".join(str(part) for part in fault["loc"] if part != "[key]")
    if fault["type"] == "extra_forbidden":
        message = unknown_key_message(path)
    elif fault["type"] == "missing":
        message = "is missing"
    else:
        message = str(fault["msg"]).removeprefix("Value error, ").replace("Input should be", "must be")
    source, at = None, path
    while at and source is None:
        source = layers.sources.get(at)
        at = at.rpartition(".")[0]
    return Problem(path or "config", message, source)
