"""Download a list of URLs without a service and say what became of each.

python examples/fetch_urls.py urls.txt out/
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import fetchbox


def lines(path: str) -> Iterator[str]:
    """The URLs of a file, one a line; a generator, so ten million of them take no memory."""
    with Path(path).open() as file:
        yield from (line.strip() for line in file if line.strip())


def main(source: str, store: str) -> int:
    """Returns how many failed."""
    failed = 0
    for outcome in fetchbox.fetch(lines(source), store=store, max_attempts=3):
        if outcome.state == "stored":
            print(f"{outcome.size:>10} {outcome.sha256} {outcome.url} -> {outcome.storage_url}")
        else:
            failed += 1
            print(f"{outcome.code}: {outcome.url}: {outcome.message}", file=sys.stderr)
    return failed


if __name__ == "__main__":
    sys.exit(1 if main(*sys.argv[1:3]) else 0)
