"""docs/ledger.md explains every finding that the code can make, and the command mends only what the document says it does."""

from __future__ import annotations

import re
from pathlib import Path

from fetchbox.cli.ledger import MENDABLE

ROOT = Path(__file__).parents[2]


def documented() -> dict[str, str]:
    """Finding → what to do, from the table."""
    table = (ROOT / "docs/ledger.md").read_text(encoding="utf-8").split("| finding | means | do |", 1)[1].split("\n\n", 1)[0]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()[2:]]
    return {kind: row[2] for row in rows for kind in re.findall(r"`(\w+)`", row[0])}


def test_every_finding_is_explained() -> None:
    source = (ROOT / "rust/hub/src/check.rs").read_text(encoding="utf-8").split("pub const KINDS", 1)[1].split("];", 1)[0]
    assert set(re.findall(r'"(\w+)"', source)) == set(documented())


def test_what_fix_mends_is_what_the_document_says() -> None:
    fixed = {kind for kind, do in documented().items() if do.startswith("`--fix`")}
    assert fixed - {"task_lost"} == MENDABLE
