"""A user's program under `mypy --strict`: the hints of the library are complete, and wrong calls are found."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

GOOD = """
import asyncio
from collections.abc import AsyncIterator, Iterator
from datetime import UTC, datetime
from pathlib import Path

import fetchbox
from fetchbox import DownloadTask, Engine, Outcome
from obstore.store import S3Store


def urls() -> Iterator[str | DownloadTask]:
    yield "https://example.org/1"
    yield DownloadTask("https://example.org/2", id="2", headers={"Referer": "x"}, deadline=datetime.now(UTC))


async def more() -> AsyncIterator[str]:
    yield "https://example.org/3"


def total(outcomes: list[Outcome]) -> int:
    return sum(outcome.size for outcome in outcomes if outcome.state == "stored" and outcome.sha256 is not None)


def blocking() -> str | None:
    run = fetchbox.fetch(urls(), store=Path("out"), concurrency=8, max_bytes="50MB", allow_networks=["10.0.0.0/8"])
    code: str | None = None
    for outcome in run:
        code = outcome.code
        first_byte: int = outcome.timings["first_byte"]
        print(first_byte, outcome.http_status, outcome.as_dict()["id"], outcome.to_json().decode())
    run.close()
    return code


async def main() -> None:
    async for outcome in fetchbox.afetch(more(), store=S3Store("bucket"), config={"fetch": {"max_bytes": 1}}, read_timeout="5s"):
        print(outcome.storage_url, outcome.etag, outcome.attempts)
    with Engine("out/", limit_rate="1MB") as engine:
        print(total(list(engine.fetch(urls()))))
    async with Engine("out/") as engine:
        print([outcome.url async for outcome in engine.afetch(urls())])


asyncio.run(main())
"""

BAD = """
import fetchbox

fetchbox.fetch(["http://a/"], max_byte=1)
fetchbox.fetch(["http://a/"], concurrency="8")
fetchbox.fetch([5])
for outcome in fetchbox.fetch(["http://a/"]):
    outcome.sha1
    x: int = outcome.url
async def main() -> None:
    for outcome in fetchbox.afetch(["http://a/"]):
        pass
"""


@pytest.mark.slow
def test_a_users_program_is_checked(tmp_path: Path) -> None:
    (tmp_path / "good.py").write_text(GOOD)
    (tmp_path / "bad.py").write_text(BAD)
    command = [sys.executable, "-m", "mypy", "--strict", "--config-file", os.devnull, "--cache-dir", os.devnull]
    environment = {**os.environ, "MYPYPATH": str(ROOT / "python")}
    programs = [str(tmp_path / name) for name in ("good.py", "bad.py")]
    done = subprocess.run([*command, *programs], capture_output=True, text=True, timeout=110, env=environment, check=False)
    # What our dependencies do not say is theirs; only the two programs count.
    errors = [line for line in done.stdout.splitlines() if line.startswith(str(tmp_path)) and ": error:" in line]
    assert [line for line in errors if "good.py" in line] == []
    assert {int(line.split(":")[1]) for line in errors if "bad.py" in line} == {4, 5, 6, 8, 9, 11}, done.stdout
