"""Durations, sizes and rates as people write them, turned into plain numbers.

Durations are seconds: `30`, `"30s"`, `"500ms"`, `"1h30m"`. Sizes are bytes: `8000000`, `"8MB"`, `"5GiB"`; KB, MB, GB, TB are powers of
1000 and KiB, MiB, GiB, TiB powers of 1024, as the IEC has it. Rates are per second: `20`, `"20/s"`, `"600/m"`, `"1000/h"`. A number in
quotes means the same as the number.
"""

from __future__ import annotations

import math
import re
from typing import Annotated, Any

from pydantic import BeforeValidator, Field

_DURATION_UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0, "w": 604800.0}
_SIZE_UNITS: dict[str, int] = {"": 1, "b": 1} | {
    f"{letter}{suffix}": base**power
    for power, letter in enumerate("kmgt", start=1)
    for suffix, base in (("b", 1000), ("ib", 1024), ("", 1000))
}
_NUMBER = r"\d+(?:\.\d+)?"
_DURATION = re.compile(rf"(?:{_NUMBER}(?:ms|s|m|h|d|w))+")
_DURATION_PART = re.compile(rf"({_NUMBER})(ms|s|m|h|d|w)")
_SIZE = re.compile(rf"({_NUMBER})\s*([a-z]*)(?:/s)?")
_RATE = re.compile(rf"({_NUMBER})\s*/\s*(ms|s|m|h|d)")


def parse_duration(value: Any) -> float:
    """Seconds. Raises ValueError that shows how a duration is written."""
    if (number := _plain_number(value)) is not None:
        return number
    if isinstance(value, str) and _DURATION.fullmatch(text := value.strip().lower()):
        return math.fsum(float(amount) * _DURATION_UNITS[unit] for amount, unit in _DURATION_PART.findall(text))
    raise ValueError('a duration is a number of seconds or text like "30s", "5m", "1h30m", "30d"')


def parse_size(value: Any) -> int:
    """Bytes. Raises ValueError that shows how a size is written."""
    if (number := _plain_number(value)) is not None and number.is_integer():
        return int(number)
    if isinstance(value, str) and (match := _SIZE.fullmatch(value.strip().lower())) and match[2] in _SIZE_UNITS:
        return int(float(match[1]) * _SIZE_UNITS[match[2]])
    raise ValueError('a size is a whole number of bytes or text like "8MB" (10^6), "5GiB" (2^30)')


def parse_rate(value: Any) -> float:
    """Events per second. Raises ValueError that shows how a rate is written."""
    if (number := _plain_number(value)) is not None:
        return number
    if isinstance(value, str) and (match := _RATE.fullmatch(value.strip().lower())):
        return float(match[1]) / _DURATION_UNITS[match[2]]
    raise ValueError('a rate is a number per second or text like "20/s", "600/m", "1000/h"')


def _plain_number(value: Any) -> float | None:
    if isinstance(value, bool):
        return None
    if isinstance(value, str) and re.fullmatch(rf"-?{_NUMBER}", value.strip()):
        return float(value)
    if isinstance(value, int | float) and math.isfinite(value):
        return float(value)
    return None


Duration = Annotated[float, BeforeValidator(parse_duration), Field(gt=0)]
"""Seconds, more than none."""
DurationOrZero = Annotated[float, BeforeValidator(parse_duration), Field(ge=0)]
"""Seconds; 0 has a meaning of its own, said at the key."""
Size = Annotated[int, BeforeValidator(parse_size), Field(gt=0)]
"""Bytes, more than none."""
SizeOrZero = Annotated[int, BeforeValidator(parse_size), Field(ge=0)]
"""Bytes; 0 has a meaning of its own, said at the key."""
RateOrZero = Annotated[float, BeforeValidator(parse_rate), Field(ge=0)]
"""Per second; 0 means no limit."""
