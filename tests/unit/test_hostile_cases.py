"""docs/hostile-cases.md against the names of the tests: every case has one, and none quotes a case that is not there."""

from __future__ import annotations

import re
from collections import defaultdict
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
ROW = re.compile(r"^\| (\d+) \| .+ \| .+ \|$", re.MULTILINE)
NAME = re.compile(r"(?:fn |def test_)case_(\d\d(?:_and_\d\d)*)_\w+")
PLACES = ("rust/*/tests/**/*.rs", "rust/*/src/**/*.rs", "tests/**/*.py")


def names_by_case() -> dict[int, list[str]]:
    """The tests of each case, by their names."""
    found = defaultdict(list)
    for place in PLACES:
        for path in ROOT.glob(place):
            for match in NAME.finditer(path.read_text(encoding="utf-8")):
                for number in match[1].split("_and_"):
                    found[int(number)].append(f"{path.relative_to(ROOT)}: {match[0].split()[1]}")
    return found


CASES = [int(number) for number in ROW.findall((ROOT / "docs" / "hostile-cases.md").read_text(encoding="utf-8"))]
TESTS = names_by_case()


def test_the_list_is_whole() -> None:
    assert CASES[:41] == list(range(1, 42))
    assert len(set(CASES)) == len(CASES)


@pytest.mark.parametrize("case", CASES)
def test_the_case_has_a_test(case: int) -> None:
    assert TESTS[case], f"no test is named case_{case:02}_…"


def test_no_test_quotes_a_case_that_is_not_listed() -> None:
    assert set(TESTS) <= set(CASES), {case: TESTS[case] for case in set(TESTS) - set(CASES)}
