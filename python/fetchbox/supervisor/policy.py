"""When a dead child starts again, and when there is no point: pure decisions."""

from __future__ import annotations

import signal
from dataclasses import dataclass, replace

OUTSIDE_SIGNALS = frozenset({signal.SIGKILL, signal.SIGTERM})
"""A child that dies of these was killed by somebody; it says nothing about whether it can start."""


@dataclass(frozen=True, slots=True)
class Policy:
    """Times in seconds. A death less than `stable` after readiness is one more in a row; `tries` starts without any are too many."""

    first_delay: float = 0.1
    longest_delay: float = 5.0
    stable: float = 1.0
    tries: int = 5
    ready_timeout: float = 300.0
    """A start may take long when the hub reads back its journal; beyond this it hangs."""


@dataclass(frozen=True, slots=True)
class History:
    """What a child's earlier lives came to."""

    deaths: int = 0
    """In a row, each soon after the one before."""
    was_ready: bool = False
    failed_starts: int = 0


@dataclass(frozen=True, slots=True)
class Decision:
    """What to do after a death: start again after `delay` seconds, or give up (None)."""

    delay: float | None
    history: History


def after_death(policy: Policy, history: History, ready_for: float | None, code: int) -> Decision:
    """The decision after a child ended with `code` (negative: by that signal), `ready_for` seconds after it was ready (None: it never was).

    A child that was ready once is started again for ever, because what stops it now may pass.
    """
    deaths = 1 if ready_for is not None and ready_for >= policy.stable else history.deaths + 1
    was_ready = history.was_ready or ready_for is not None
    failed = history.failed_starts + (not was_ready and -code not in OUTSIDE_SIGNALS)
    after = replace(history, deaths=deaths, was_ready=was_ready, failed_starts=failed)
    if not was_ready and failed >= policy.tries:
        return Decision(None, after)
    # 2.0 ** 32 delays are longer than any limit; more would overflow in the end.
    return Decision(min(policy.first_delay * 2.0 ** min(deaths - 1, 32), policy.longest_delay), after)
