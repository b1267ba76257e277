"""Since when components have been well or not."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import UTC, datetime

Trouble = dict[str, str | None]
"""By component, what is wrong with it; None for nothing."""


class Watch:
    """Remembers since when each component has been as it is."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._states: dict[str, tuple[bool, float]] = {}

    def states(self, trouble: Trouble, since: Mapping[str, str] | None = None) -> dict[str, dict[str, str]]:
        """Every component's `status`, `since` and, when degraded, `reason`. What `since` knows was watched longer."""
        known = since or {}
        return {name: self._state(name, reason, known.get(name)) for name, reason in trouble.items()}

    def _state(self, name: str, reason: str | None, known: str | None) -> dict[str, str]:
        well = reason is None
        before = self._states.get(name)
        if before is None or before[0] != well:
            before = self._states[name] = (well, self._clock())
        since = known or datetime.fromtimestamp(before[1], UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        state = {"status": "ok" if well else "degraded", "since": since}
        if reason is not None:
            state["reason"] = reason
        return state
