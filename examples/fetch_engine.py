"""Two runs on one engine: pages first, then the pictures in them, over the connections that are up already.

python examples/fetch_engine.py out/ https://example.org/page.html …
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import unquote, urljoin, urlsplit

import fetchbox


def pictures(page: fetchbox.Outcome) -> Iterator[str]:
    """The URLs of the pictures in a page that was stored."""
    if page.storage_url is not None:
        html = Path(unquote(urlsplit(page.storage_url).path)).read_text()
        yield from (urljoin(page.final_url, source) for source in re.findall(r'<img[^>]* src="([^"]+)"', html))


def main(store: str, *pages: str) -> int:
    """Returns how many pictures failed."""
    failed = 0
    with fetchbox.Engine(store, max_bytes="1GB") as engine:
        urls = [url for page in engine.fetch(pages) for url in pictures(page)]
        for outcome in engine.fetch(urls):
            print(outcome.state, outcome.url, outcome.code or outcome.size)
            failed += outcome.state != "stored"
    return failed


if __name__ == "__main__":
    sys.exit(1 if main(*sys.argv[1:]) else 0)
