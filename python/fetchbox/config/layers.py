"""The layers of the configuration: a TOML file and the environment, each turned into raw values with their source.

pydantic-settings is not used: it reads the process's own environment only, ignores unknown names, keeps no source per value,
and triples the time to load.
"""

from __future__ import annotations

import json
import os
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_origin

from pydantic import SecretStr

from fetchbox.config.models import Config
from fetchbox.config.schema import SECRET_MAPS, SECRET_URLS, field_type, is_section, known_paths, map_value, nearest
from fetchbox.errors import Problem

PREFIX = "FETCHBOX__"
FILE_SUFFIX = "_file"
CONFIG_VARIABLE = "FETCHBOX_CONFIG"
DEFAULT_FILES = ("config/fetchbox.toml", "fetchbox.toml")
_TRUE = frozenset({"1", "true", "yes", "on"})
_FALSE = frozenset({"0", "false", "no", "off"})

Tree = dict[str, Any]


class Layers:
    """Raw values laid over one another, with what set each, and what went wrong."""

    def __init__(self) -> None:
        self.tree: Tree = {}
        self.sources: dict[str, str] = {}
        self.problems: list[Problem] = []

    def put(self, path: tuple[str, ...], value: Any, source: str) -> None:
        """Lays a value over what is there; tables are merged, everything else is replaced."""
        if isinstance(value, dict) and _is_table(path) and (value or self._has(path)):
            for key, item in value.items():
                self.put((*path, str(key)), item, source)
            return
        node = self.tree
        for depth, part in enumerate(path[:-1], start=1):
            child = node.setdefault(part, {})
            if not isinstance(child, dict):
                self.problems.append(
                    Problem(".".join(path[:depth]), "is a table with keys of its own", self.sources.get(".".join(path[:depth])))
                )
                child = node[part] = {}
            node = child
        node[path[-1]] = value
        self.sources[".".join(path)] = source

    def _has(self, path: tuple[str, ...]) -> bool:
        """Whether a table is there: an empty one over it changes nothing, and where there is none it makes one (`[job_types.plain]`)."""
        node: Any = self.tree
        for part in path:
            if not isinstance(node, dict) or part not in node:
                return False
            node = node[part]
        return isinstance(node, dict)

    def add_tree(self, tree: Mapping[str, Any], source: str) -> None:
        """Lays a whole tree over what is there."""
        for key, value in tree.items():
            self.put((key,), value, source)

    def add_file(self, path: Path) -> None:
        """Lays a TOML file over what is there."""
        try:
            with path.open("rb") as file:
                tree = tomllib.load(file)
        except OSError as error:
            self.problems.append(Problem("config", f"cannot read {path}: {error.strerror}"))
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            self.problems.append(Problem("config", f"{path} is not valid TOML: {error}"))
        else:
            self._read_secret_files(tree, Config, "", str(path))
            self.add_tree(tree, str(path))

    def add_environment(self, environ: Mapping[str, str]) -> None:
        """Lays the `FETCHBOX__` variables over what is there."""
        for name in sorted(environ):
            if name.startswith(PREFIX):
                self._add_variable(name, environ[name])

    def _add_variable(self, name: str, text: str) -> None:
        parts = name[len(PREFIX) :].split("__")
        found = self._resolve(parts)
        if found is None and parts[-1].lower().endswith(FILE_SUFFIX):
            stem = parts[-1][: -len(FILE_SUFFIX)]
            found = self._resolve([*parts[:-1], stem])
            if found is not None:
                if not _may_come_from_file(found):
                    found = None
                elif (content := self._read_secret(".".join(found[0]), text, name)) is None:
                    return
                else:
                    text = content
        elif found is not None and not text and _is_optional(found[0]):
            return  # `NAME=${NAME:-}` in a compose file
        if found is None:
            hint = nearest(".".join(part.lower() for part in parts))
            meant = f"; did you mean {variable_name(hint)}?" if hint else ""
            self.problems.append(Problem(name, f"there is no such setting{meant}", "the environment"))
            return
        path, kind = found
        try:
            self.put(path, _parse(kind, text), name)
        except ValueError as error:
            self.problems.append(Problem(".".join(path), str(error), name))

    def _resolve(self, parts: list[str]) -> tuple[tuple[str, ...], Any] | None:
        kind: Any = Config
        path: list[str] = []
        for index, part in enumerate(parts):
            if is_section(kind):
                name = part.lower()
                kind = field_type(kind, name)
                if kind is None:
                    return None
                path.append(name)
            elif (value := map_value(kind)) is not None:
                if not is_section(value):
                    return (*path, "__".join(parts[index:])), value
                path.append(self._existing_name(path, part))
                kind = value
            else:
                return None
        return tuple(path), kind

    def _existing_name(self, path: list[str], part: str) -> str:
        """Variables know neither case nor hyphens: a name that a lower layer gave wins."""
        node: Any = self.tree
        for step in path:
            node = node.get(step, {}) if isinstance(node, dict) else {}
        wanted = part.lower().replace("-", "_")
        known = [name for name in node if name.lower().replace("-", "_").replace(".", "_") == wanted] if isinstance(node, dict) else []
        return known[0] if known else part.lower()

    def _read_secret_files(self, tree: Any, kind: Any, prefix: str, source: str) -> None:
        """Replaces `operator_token_file = "…"` by the file's content; only secrets may come from files."""
        if not isinstance(tree, dict):
            return
        if not is_section(kind):
            if is_section(value := map_value(kind)):
                for name, child in tree.items():
                    self._read_secret_files(child, value, f"{prefix}{name}.", source)
            return
        for key in list(tree):
            known = field_type(kind, key)
            if known is not None:
                self._read_secret_files(tree[key], known, f"{prefix}{key}.", source)
            elif key.endswith(FILE_SUFFIX) and isinstance(tree[key], str):
                stem = key[: -len(FILE_SUFFIX)]
                path = f"{prefix}{stem}"
                target = field_type(kind, stem)
                if target is not None and _may_come_from_file((tuple(path.split(".")), target)):
                    content = self._read_secret(path, tree.pop(key), source)
                    if content is not None:
                        tree[stem] = _parse(target, content)

    def _read_secret(self, path: str, file: str, source: str) -> str | None:
        try:
            return Path(file).read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError) as error:
            self.problems.append(Problem(path, f"cannot read its file {file}: {error}", source))
            return None


def find_file(explicit: Path | None, environ: Mapping[str, str]) -> Path | None:
    """The configuration file: the one asked for, else FETCHBOX_CONFIG's, else a default one if it is there."""
    if explicit is not None:
        return explicit
    if named := environ.get(CONFIG_VARIABLE):
        return Path(named)
    # os.path and not Path.is_file, which raises where the current directory may not be looked into.
    return next((Path(name) for name in DEFAULT_FILES if os.path.isfile(name)), None)


def variable_name(path: str) -> str:
    """The environment variable of a dotted path."""
    return PREFIX + path.upper().replace(".", "__").replace("-", "_")


def _is_table(path: tuple[str, ...]) -> bool:
    """Whether values at this path are merged key by key: fixed tables and maps, but not a handler's own options."""
    kind: Any = Config
    for part in path:
        kind = field_type(kind, part) if is_section(kind) else map_value(kind)
        if kind is None:
            return False
    return is_section(kind) or get_origin(kind) is dict


def _is_optional(path: tuple[str, ...]) -> bool:
    section: Any = Config
    for part in path[:-1]:
        section = field_type(section, part) if is_section(section) else map_value(section)
    field = section.model_fields.get(path[-1]) if is_section(section) else None
    return field is not None and not field.is_required() and field.default is None


def _may_come_from_file(found: tuple[tuple[str, ...], Any]) -> bool:
    path, kind = found
    return kind is SecretStr or ".".join(path) in SECRET_MAPS | SECRET_URLS


def _parse(kind: Any, text: str) -> Any:
    """A variable's text as a raw value: plain text where text is wanted, JSON otherwise. Raises ValueError that says what is wanted."""
    if kind is bool:
        if text.strip().lower() in _TRUE | _FALSE:
            return text.strip().lower() in _TRUE
        raise ValueError("is true or false")
    if get_origin(kind) is tuple and not text.lstrip().startswith("["):
        return [item.strip() for item in text.split(",") if item.strip()]
    wants_json = is_section(kind) or get_origin(kind) in (dict, tuple)
    if not wants_json and kind not in (int, Any):
        return text
    try:
        return json.loads(text)
    except ValueError:
        if kind is int or kind is Any:
            return text  # a size like 8MB, or a handler's own plain text; the model refuses what is neither
        raise ValueError("is JSON in the environment") from None


def unknown_key_message(path: str) -> str:
    """The message for a key that nobody knows."""
    if (hint := nearest(path)) is not None and hint in known_paths():
        return f"there is no such setting; did you mean {hint}?"
    return f"there is no such setting; did you mean [{hint}]?" if hint else "there is no such setting"
