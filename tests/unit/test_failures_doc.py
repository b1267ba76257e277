"""docs/failures.md against the native table, as Python sees it. (A Rust test compares them too, without the extension.)"""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
FAMILIES = ("VALIDATION_", "AUTH_", "HANDLER_", "DOWNLOAD_", "UPLOAD_", "STORAGE_", "SYSTEM_")
ROW = re.compile(r"^\| `([A-Z0-9_]+)` \| (retryable|permanent) \| (.+?) \| (.+?) \|$", re.MULTILINE)

# The codes that the design and the hostile cases name, with the class they give them.
NAMED = {
    "permanent": """DOWNLOAD_BLOCKED_ADDRESS DOWNLOAD_BAD_SCHEME DOWNLOAD_TOO_MANY_REDIRECTS DOWNLOAD_BAD_FRAMING DOWNLOAD_BAD_RESPONSE
        DOWNLOAD_TOO_LARGE DOWNLOAD_TLS DOWNLOAD_DNS_NXDOMAIN DOWNLOAD_PROXY_EXHAUSTED DOWNLOAD_CHECKSUM_MISMATCH DOWNLOAD_EXPIRED
        UPLOAD_ACCESS_DENIED SYSTEM_POISON DOWNLOAD_HTTP_4XX DOWNLOAD_HTTP_501 DOWNLOAD_HTTP_505""",
    "retryable": """DOWNLOAD_TRUNCATED DOWNLOAD_TOO_SLOW DOWNLOAD_TIMEOUT DOWNLOAD_CONNECT_TIMEOUT DOWNLOAD_RESET DOWNLOAD_DNS_SERVFAIL
        DOWNLOAD_DNS_TIMEOUT DOWNLOAD_PROXY_FAILED DOWNLOAD_HTTP_408 DOWNLOAD_HTTP_425 DOWNLOAD_HTTP_429 DOWNLOAD_HTTP_499 DOWNLOAD_HTTP_5XX
        UPLOAD_THROTTLED STORAGE_UNAVAILABLE""",
}


def documented() -> dict[str, tuple[bool, str]]:
    """The document's rows: code → (is it retried, what it means)."""
    rows = ROW.findall((ROOT / "docs" / "failures.md").read_text())
    assert len({row[0] for row in rows}) == len(rows)
    return {code: (kind == "retryable", meaning) for code, kind, meaning, _ in rows}


def test_every_row_is_read_and_belongs_to_a_family() -> None:
    text = (ROOT / "docs" / "failures.md").read_text()
    rows = documented()
    assert len(rows) == sum(line.startswith("| `") for line in text.splitlines())
    assert all(code.startswith(FAMILIES) for code in rows)
    assert all(any(code.startswith(family) for code in rows) for family in FAMILIES)


@pytest.mark.parametrize(("kind", "code"), [(kind, code) for kind, codes in NAMED.items() for code in codes.split()])
def test_the_designs_codes_have_the_designs_class(kind: str, code: str) -> None:
    assert documented()[code][0] == (kind == "retryable")


def test_the_native_table_is_the_documents() -> None:
    core = pytest.importorskip("fetchbox._core")
    assert {code: (retried, meaning) for code, retried, meaning in core.failure_codes()} == documented()
