"""Options of the engine for plain library calls, without the models of the configuration: to load those takes as long as two thousand
small downloads.

Taken are settings of `[fetch]` whose value can mean one thing only. Everything else (another section, a unit, a value out of range) is
left to `fetchbox.config`, which knows all of it and says what is wrong. What is not given is the engine's own default; tests hold both
to the same.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

PREFIX = "FETCHBOX__"
SECTION = "FETCHBOX__FETCH__"
MOST_AT_ONCE = 100_000
STORAGE = {"multipart_threshold": 8_000_000, "part_size": 8_000_000}
MEMORY_BUDGET = 256_000_000
CONCURRENCY = 256
_NUMBER = re.compile(r"\d{1,9}(\.\d{1,9})?")


def plain_fetch(values: Mapping[str, Any], environ: Mapping[str, str]) -> dict[str, Any] | None:
    """`[fetch]` of these environment variables with `values` on top, in the engine's units; None when that is not for here to say."""
    found: dict[str, Any] = {}
    for name, text in environ.items():
        if name.startswith(PREFIX):
            key = name[len(SECTION) :].lower() if name.startswith(SECTION) else ""
            if _KINDS.get(key) not in (_is_count, _is_positive) or not _NUMBER.fullmatch(text):
                return None
            found[key] = float(text) if "." in text else int(text)
    found.update(values)
    return found if all(name in _KINDS and _KINDS[name](value) for name, value in found.items()) else None


def plain_options(fetch: Mapping[str, Any], concurrency: int | None) -> dict[str, Any] | None:
    """The engine's options with what `plain_fetch` found; None when the concurrency is not for here to judge."""
    if concurrency is None:
        concurrency = CONCURRENCY
    if not _is_count(concurrency) or concurrency > MOST_AT_ONCE:
        return None
    return {"concurrency": concurrency, "memory_budget": MEMORY_BUDGET, "fetch": dict(fetch), "storage": dict(STORAGE)}


def _is_count(value: Any) -> bool:
    return type(value) is int and value >= 1


def _is_positive(value: Any) -> bool:
    return type(value) in (int, float) and 0 < value < 1e9


def _is_bool(value: Any) -> bool:
    return type(value) is bool


def _are_networks(value: Any) -> bool:
    import ipaddress

    try:
        return type(value) in (list, tuple) and all(type(text) is str and "/" in text and ipaddress.ip_network(text) for text in value)
    except ValueError:
        return False


_KINDS: dict[str, Callable[[Any], bool]] = {
    "connect_timeout": _is_positive,
    "read_timeout": _is_positive,
    "total_timeout": _is_positive,
    "per_host_rate": _is_positive,
    "max_attempts": _is_count,
    "max_bytes": _is_count,
    "limit_rate": _is_count,
    "per_host_concurrency": _is_count,
    "verify_tls": _is_bool,
    "http2": _is_bool,
    "allow_networks": _are_networks,
}
