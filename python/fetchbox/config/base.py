"""What every section of the configuration has in common."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

NAME_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$"


class Section(BaseModel):
    """A table of the configuration: no coercion, no unknown keys, read-only."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True, protected_namespaces=())


Strings = Annotated[tuple[str, ...], Field(strict=False)]
"""A list of strings; kept as a tuple."""
StringMap = dict[str, str]
Count = Annotated[int, Field(ge=1)]
CountOrZero = Annotated[int, Field(ge=0)]
Name = Annotated[str, Field(pattern=NAME_PATTERN)]
"""The name of a job type or a proxy pool: letters, digits, dot, underscore, hyphen; at most 64."""
