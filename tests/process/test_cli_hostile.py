"""Every path of the bundled origin, downloaded by `fetchbox get`: the outcome is the one that its table, and so its manual, promises."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from fetchbox.origin.routes import ROUTES
from fetchbox.testing import Origin, running_origin

KINDS = {
    "/hostile/retry-after/{kind}": ["seconds", "date", "years", "negative", "garbage", "empty", "none"],
    "/hostile/content-disposition/{kind}": ["parent", "absolute", "nul", "long", "encoded", "windows"],
    "/hostile/bomb/{coding}": ["gzip", "zstd", "br"],
    "/hostile/redirect/{kind}": ["private", "metadata", "mapped", "decimal", "file", "gopher", "ftp", "credentials", "nowhere"],
}


def examples(pattern: str, example: str) -> list[str]:
    if pattern in KINDS:
        tail = "?mib=100" if "bomb" in pattern else "?id=each&after=1"
        return [re.sub(r"\{\w+\}", kind, pattern) + tail for kind in KINDS[pattern]]
    return [example]


CASES = [(path, route.outcome) for route in ROUTES for path in examples(route.pattern, route.example)]
LIMITS = {
    "FETCHBOX__FETCH__ALLOW_NETWORKS": '["127.0.0.0/8", "::1/128"]',
    "FETCHBOX__FETCH__MAX_ATTEMPTS": "4",
    "FETCHBOX__FETCH__BACKOFF_BASE": "0.05",
    "FETCHBOX__FETCH__TOTAL_TIMEOUT": "5",
    "FETCHBOX__FETCH__READ_TIMEOUT": "2.5",
    "FETCHBOX__FETCH__CONNECT_TIMEOUT": "1",
    "FETCHBOX__FETCH__RETRY_AFTER_MAX": "2",
}


@pytest.fixture(scope="module")
def origin() -> Iterator[Origin]:
    with running_origin(host="0.0.0.0") as server:
        yield server


@pytest.fixture(scope="module")
def outcomes(origin: Origin, tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """All of them in one run, each from a host of its own: many failures of one host would open its circuit."""
    directory = tmp_path_factory.mktemp("hostile")
    listed = directory / "urls.txt"
    listed.write_text("\n".join(f"http://127.0.1.{number}:{origin.port}{path}" for number, (path, _) in enumerate(CASES, 1)))
    command = [sys.executable, "-m", "fetchbox.cli", "get", "--json", "-q", "--max-filesize", "20M", "-i", str(listed)]
    done = subprocess.run(
        [*command, "-o", str(directory / "out")], capture_output=True, text=True, timeout=110, env={**os.environ, **LIMITS}, check=False
    )
    assert done.returncode == 1, done.stderr
    records = map(json.loads, done.stdout.splitlines())
    return {CASES[record["index"]][0]: record for record in records}


@pytest.mark.parametrize(("path", "promised"), CASES, ids=[path for path, _ in CASES])
def test_the_outcome_is_the_promised_one(path: str, promised: str, outcomes: dict[str, dict[str, Any]]) -> None:
    outcome = outcomes[path]
    if outcome["state"] == "stored":
        assert "stored" in promised or promised.startswith(("that of the target", "for callbacks", "DOWNLOAD_CHECKSUM_MISMATCH when"))
        assert Path(outcome["storage_url"].removeprefix("file://")).parent.parent.name == "out"
    else:
        assert outcome["code"] in re.findall(r"\b[A-Z]+_[A-Z0-9_]+\b", promised), outcome
        retried = "retried" in promised
        assert (outcome["attempts"] > 1) == retried, outcome


def test_secrets_do_not_cross_origins(origin: Origin, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "fetchbox.cli", "get", "--json", "-H", "Authorization: Bearer s3cret", "-H", "X-Key: s3cret"]
    command += ["-o", str(tmp_path), origin.url("/hostile/redirect-cross-origin")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, env={**os.environ, **LIMITS}, check=False)
    assert done.returncode == 0, done.stderr
    seen = Path(json.loads(done.stdout)["storage_url"].removeprefix("file://")).read_text()
    assert '"headers"' in seen
    assert "s3cret" not in seen
    assert [request.headers.get("x-key") for request in origin.requests if request.path == "/hostile/redirect-cross-origin"][-1] == "s3cret"
