"""What every section of the configuration has in common."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

NAME_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$"


class Section(BaseModel):
    """A table of the configuration: no coercion, no unknown keys, read-only."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True, protected_namespaces=())


Strings = Annotated[tuple[str, ...], Field(strict=False)]
"""A list of strings; kept as a tuple."""


def _as_text(value: Any) -> Any:
    return (
        tuple(str(item) if isinstance(item, int) and not isinstance(item, bool) else item for item in value)
        if isinstance(value, list | tuple)
        else value
    )


Statuses = Annotated[Strings, BeforeValidator(_as_text)]
"""HTTP statuses, as numbers or text, and classes of them such as "5xx"; kept as text."""
StringMap = dict[str, str]
Count = Annotated[int, Field(ge=1)]
CountOrZero = Annotated[int, Field(ge=0)]
Name = Annotated[str, Field(pattern=NAME_PATTERN)]
"""The name of a job type or a proxy pool: letters, digits, dot, underscore, hyphen; at most 64."""
