"""Questions about the models: what lies at a path, which values are secret, which known name is nearest to a wrong one."""

from __future__ import annotations

import difflib
import functools
import types
from collections.abc import Iterator
from typing import Annotated, Any, Union, get_args, get_origin

from pydantic import SecretStr

from fetchbox.config.base import Section
from fetchbox.config.models import Config

SECRET_MAPS = frozenset({"server.api_tokens", "storage.options"})
"""Maps that are secret as a whole."""
SECRET_URLS = frozenset({"broker.url"})
"""URLs that hold a password, which is all that is hidden of them; like secrets they may come from files."""


def strip(annotation: Any) -> Any:
    """The type itself, without Annotated and Optional."""
    while True:
        origin = get_origin(annotation)
        if origin is Annotated:
            annotation = get_args(annotation)[0]
        elif origin in (Union, types.UnionType):
            others = [choice for choice in get_args(annotation) if choice is not type(None)]
            if len(others) != 1:
                return annotation
            annotation = others[0]
        else:
            return annotation


def is_section(kind: Any) -> bool:
    """Whether the type is a table with fixed keys."""
    return isinstance(kind, type) and issubclass(kind, Section)


def field_type(section: type[Section], name: str) -> Any | None:
    """The stripped type of a field, or None for an unknown name."""
    field = section.model_fields.get(name)
    return None if field is None else strip(field.annotation)


def map_value(kind: Any) -> Any | None:
    """The stripped type of a map's values, or None if the type is no map."""
    return strip(get_args(kind)[1]) if get_origin(kind) is dict else None


def leaves(section: type[Section] = Config, prefix: str = "", name: str = "NAME") -> Iterator[tuple[str, type[Section], str]]:
    """Every key: its dotted path, the section that holds it, its field name. Named tables appear once, as `name`."""
    for field, info in section.model_fields.items():
        kind = strip(info.annotation)
        path = f"{prefix}{field}"
        if is_section(kind):
            yield from leaves(kind, f"{path}.", name)
        elif is_section(value := map_value(kind)):
            assert value is not None
            yield from leaves(value, f"{path}.{name}.", name)
        else:
            yield path, section, field


@functools.cache
def known_paths() -> tuple[str, ...]:
    """Every key's dotted path."""
    return tuple(path for path, _, _ in leaves())


def is_secret(path: str) -> bool:
    """Whether the value at a dotted path is secret as a whole."""
    if path in SECRET_MAPS:
        return True
    kind: Any = Config
    for part in path.split("."):
        if is_section(kind):
            kind = field_type(kind, part)
        else:
            kind = map_value(kind)
    return kind is SecretStr


def nearest(path: str) -> str | None:
    """The known key that a wrong path most likely means."""
    parent, _, leaf = path.rpartition(".")
    known = known_paths()
    siblings = {known_path.rpartition(".")[2]: known_path for known_path in known if known_path.rpartition(".")[0] == parent}
    if close := difflib.get_close_matches(leaf, siblings, n=1, cutoff=0.6):
        return siblings[close[0]]
    if "." not in path and (close := difflib.get_close_matches(leaf, sorted({p.partition(".")[0] for p in known}), n=1, cutoff=0.6)):
        return close[0]
    if close := difflib.get_close_matches(path, known, n=1, cutoff=0.75):
        return close[0]
    same_leaf = [known_path for known_path in known if known_path.rpartition(".")[2] == leaf]
    return same_leaf[0] if len(same_leaf) == 1 else None
