"""Random kills, replayable: a plan made from a seed, carried out at points of progress, and what was seen meanwhile."""

from __future__ import annotations

import random
import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from tests.process.background import Background
from tests.process.oracle import Oracle
from tests.process.service import Service
from tests.process.waiting import wait_for

TREE = "everything"
"""The supervisor with all its children."""
EARLY = 0.2
"""Part of the kills that does not wait until the ones before are healed."""
PROGRESS_LIMIT = 60.0
"""Seconds in which the origin must see the next requests, whatever was killed before."""


@dataclass(frozen=True, slots=True)
class Kill:
    """One kill: when the origin has seen `at` requests, and whom."""

    at: int
    whom: str
    early: bool = False
    """Whether it strikes whatever is there, be it still starting. The others wait until the kills before are healed."""


@dataclass(slots=True)
class Kills:
    """What the kills met."""

    seed: int
    done: Counter[str] = field(default_factory=Counter)
    next_at: int = 0
    """Where the next kill is due; so much work and some more may be posted."""
    seconds: float = 0.0

    def __str__(self) -> str:
        who = ", ".join(f"{count} × {whom}" for whom, count in sorted(self.done.items()))
        return f"seed {self.seed}: {self.done.total()} SIGKILLs ({who}) in {self.seconds:.1f} s"


def plan(seed: int, kills: int, requests: int, *, least: int, tree: int) -> list[Kill]:
    """`kills` kills spread at random over `requests` requests: at least `least` of each role, `tree` of everything, the rest by chance."""
    chance = random.Random(seed)
    roles = ("api", "hub", "worker")
    assert kills >= least * len(roles) + tree, "fewer kills than are asked for"
    whom = [role for role in roles for _ in range(least)] + [TREE] * tree
    whom += [chance.choice(roles) for _ in range(kills - len(whom))]
    chance.shuffle(whom)
    # Work is under way from the first requests on and still is when the last kill comes.
    first, last = requests // 50, requests - requests // 25
    points = sorted(chance.sample(range(first, last), kills))
    return [Kill(at, role, chance.random() < EARLY) for at, role in zip(points, whom, strict=True)]


def carry_out(
    service: Service, oracle: Oracle, kills: Sequence[Kill], result: Kills, helpers: Sequence[Background], unreported: int
) -> None:
    """Carries out the plan; the helpers post and sample meanwhile. AssertionError when work stops or a helper fails.

    Kills that are not early wait until the ones before are healed: every process is ready, and at most `unreported` resources are
    downloaded or being downloaded without the ledger knowing. On a slow machine that takes longer, and is no more work to do again.
    """
    started = time.monotonic()
    seen_before = -1
    for number, kill in enumerate(kills):
        result.next_at = kill.at
        # Work that a kill undid is asked for again, so the journal runs ahead of the plan; it never lags behind.
        target = max(kill.at, seen_before + 1)
        before = [f"{k.at}: {k.whom}{' (early)' if k.early else ''}" for k in kills[max(0, number - 5) : number]]

        def reached(target: int = target, early: bool = kill.early) -> bool:
            for helper in helpers:
                helper.raise_failure()
            if oracle.journal.total < target:
                return False
            return early or (oracle.journal.asked - oracle.settled <= unreported and service.all_ready())

        wait_for(
            f"request {target} at the origin and, unless it is early, everything healed for kill {number} ({kill}); before it: {before}",
            reached,
            PROGRESS_LIMIT,
            describe=service.dump,
        )
        seen_before = oracle.journal.total
        strike(service, kill.whom)
        result.done[kill.whom] += 1
    result.next_at = sys.maxsize
    result.seconds = time.monotonic() - started


def strike(service: Service, whom: str) -> None:
    """One SIGKILL. After the whole tree's it is started again; single processes are the supervisor's business."""
    if whom == TREE:
        service.kill_tree()
        service.launch()
    else:
        service.kill_one(whom)
