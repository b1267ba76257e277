"""Which suspect is to blame."""

from __future__ import annotations

import math
import random

import pytest

from fetchbox.worker.suspects import DEATHS_ALONE, Suspects


def ordeal(suspects: Suspects, deadly: set[int], chance: random.Random) -> tuple[set[int], set[int], int]:
    """Runs all groups as a quarantine does; who ended well, who was blamed, and how often the process died."""
    well: set[int] = set()
    blamed: set[int] = set()
    deaths = 0
    while group := suspects.next():
        order = [suspect.place for suspect in group]
        chance.shuffle(order)
        for place in order:
            if place in deadly:
                deaths += 1
                guilty = suspects.died()
                if guilty is not None:
                    assert len(group) == 1
                    blamed.add(guilty.place)
                break
            well.add(place)
            suspects.finished(place)
    return well, blamed, deaths


@pytest.mark.parametrize("count", [1, 2, 3, 7, 32, 256])
@pytest.mark.parametrize("deadly", [0, 1, 2, 5])
def test_exactly_the_deadly_ones_are_blamed_after_few_deaths(count: int, deadly: int) -> None:
    if deadly > count:
        pytest.skip("fewer suspects than deadly ones")
    for seed in range(20):
        chance = random.Random(seed)
        guilty = set(chance.sample(range(count), deadly))
        suspects = Suspects()
        assert suspects.add((place, b"task") for place in range(count)) == count
        well, blamed, deaths = ordeal(suspects, guilty, chance)
        assert (well, blamed, len(suspects)) == (set(range(count)) - guilty, guilty, 0)
        assert deaths <= deadly * (math.ceil(math.log2(count)) + DEATHS_ALONE)


def test_one_death_alone_may_be_somebody_elses_doing() -> None:
    suspects = Suspects()
    suspects.add([(7, b"task")])
    suspects.next()
    assert suspects.died() is None
    assert [suspect.place for suspect in suspects.next()] == [7]
    assert suspects.finished(7)
    assert not suspects.next()
    assert len(suspects) == 0


def test_tasks_that_come_again_are_known() -> None:
    suspects = Suspects()
    assert suspects.add([(1, b"a"), (2, b"b")]) == 2
    assert suspects.add([(2, b"b"), (3, b"c")]) == 1
    suspects.next()
    assert suspects.add([(1, b"a"), (3, b"c")]) == 0
    assert len(suspects) == 3


def test_a_process_that_died_before_it_began_blames_nobody() -> None:
    suspects = Suspects()
    suspects.add([(1, b"a"), (2, b"b")])
    for _ in range(DEATHS_ALONE + 1):
        assert len(suspects.next()) == 2
        suspects.interrupted()
    assert len(suspects) == 2
