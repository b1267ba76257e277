"""The table of paths: what the origin serves, what each does, and what FetchBox is expected to make of it.

The index at `/`, `docs/hostile-origin.md` and the tests all read this table, so none of them can fall behind.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass

from fetchbox.origin.http import Exchange

Handler = Callable[[Exchange], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class Route:
    """One documented path. `outcome` is what FetchBox reports at its end: a state, or the code of the failure."""

    pattern: str
    example: str
    outcome: str
    summary: str
    handler: Handler
    regex: re.Pattern[str]

    @property
    def hostile(self) -> bool:
        """Whether it misbehaves on purpose."""
        return self.pattern.startswith("/hostile/")


ROUTES: list[Route] = []
_BY_FIRST_SEGMENT: dict[str, list[Route]] = {}


def route(pattern: str, *, example: str = "", outcome: str = "stored") -> Callable[[Handler], Handler]:
    """Registers a handler for a path; `{name}` matches one segment, `{name*}` the rest. The docstring is its documentation."""

    def register(handler: Handler) -> Handler:
        escaped = re.escape(pattern).replace(r"\{", "{").replace(r"\}", "}").replace(r"\*}", "*}")
        source = re.sub(r"\{(\w+)\*\}", r"(?P<\1>.*)", escaped)
        source = re.sub(r"\{(\w+)\}", r"(?P<\1>[^/]+)", source)
        entry = Route(
            pattern=pattern,
            example=example or pattern,
            outcome=outcome,
            summary=" ".join((handler.__doc__ or "").split()),
            handler=handler,
            regex=re.compile(source, re.DOTALL),
        )
        ROUTES.append(entry)
        _BY_FIRST_SEGMENT.setdefault(pattern.split("/")[1], []).append(entry)
        return handler

    return register


def find(path: str) -> tuple[Route, Mapping[str, str]] | None:
    """The route of a path and the values of its placeholders."""
    parts = path.split("/", 2)
    for entry in _BY_FIRST_SEGMENT.get(parts[1] if len(parts) > 1 else "", ()):
        match = entry.regex.fullmatch(path)
        if match is not None:
            return entry, match.groupdict()
    return None
