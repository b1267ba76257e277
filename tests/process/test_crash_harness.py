"""kill -9 of anything, at random, all the time: nothing is lost, nothing counted twice, nothing left over."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.process import crash, kills


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_sixty_random_kills_over_ten_thousand_tasks(tmp_path: Path) -> None:
    seed = crash.chosen_seed()
    report = crash.run(tmp_path, crash.Size(), seed)
    print(report)
    assert report.oracle.resources == 10_000
    assert report.kills.done.total() == 60
    assert min(report.kills.done[role] for role in ("api", "hub", "worker")) >= 10
    assert report.kills.done[kills.TREE] >= 3
    assert report.kills.seconds >= 60, "too quick: the kills did not meet a steady load"


def test_a_plan_follows_from_its_seed() -> None:
    first, again, other = (kills.plan(seed, 60, 10_000, least=10, tree=3) for seed in (7, 7, 8))
    assert first == again != other
    assert [kill.at for kill in first] == sorted({kill.at for kill in first})
    assert 0 < first[0].at <= first[-1].at < 10_000


def test_the_seed_of_the_environment_is_the_one_that_is_used(pytestconfig: pytest.Config) -> None:
    """Under pytest too, whose fixtures take our variables away before a test begins."""
    code = "from tests.process import crash; import os; os.environ.clear(); print(crash.chosen_seed())"
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=pytestconfig.rootpath,
        env={**os.environ, crash.SEED_VARIABLE: "77"},
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert done.stdout.strip() == "77"
