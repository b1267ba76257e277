"""Every command in the manual of the hostile origin, run as it stands there: the outcome is the one beside it."""

from __future__ import annotations

import contextlib
import io
import json
import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock
from urllib.parse import unquote, urlsplit

import pytest

from fetchbox.cli import run
from fetchbox.testing import Origin, running_origin

MANUAL = (Path(__file__).parents[2] / "docs/hostile-origin.md").read_text(encoding="utf-8")
ROW = re.compile(r"^\| ([^|]+) \| `((?:[A-Z_]+=\S+ )*try [^|]+)` \| ([^|]+) \|$", re.MULTILINE)
TRY = re.search(r'try\(\) \{ fetchbox (get .+) "\$@"; \}', MANUAL)
EXPORTS = re.search(r"^export (.+)$", MANUAL, re.MULTILINE)
PORTS = {"8443": "ca", "8444": "self-signed", "8445": "expired", "8446": "wrong-host"}


@dataclass(frozen=True, slots=True)
class Case:
    name: str
    command: str
    outcome: str


CASES = [Case(*(cell.strip() for cell in row)) for row in ROW.findall(MANUAL[MANUAL.index("## Case by case") :])]


@pytest.fixture(scope="module")
def world() -> Iterator[tuple[dict[str, str], list[Origin]]]:
    """What stands in the commands, and what it is here; all origins."""
    pytest.importorskip("cryptography")
    with contextlib.ExitStack() as stack:
        origin = stack.enter_context(running_origin(host="0.0.0.0", proxy_port=0))
        secure = {port: stack.enter_context(running_origin(tls=mode)) for port, mode in PORTS.items()}  # type: ignore[arg-type]
        assert origin.proxy is not None
        names = {"$O": origin.base_url, "$P": f"127.0.0.1:{origin.proxy.port}"}
        names |= {f"127.0.0.1:{port}": f"127.0.0.1:{server.port}" for port, server in secure.items()}
        yield names, [origin, *secure.values()]


@pytest.fixture(autouse=True)
def settings(monkeypatch: pytest.MonkeyPatch) -> None:
    assert EXPORTS is not None
    for setting in EXPORTS[1].split():
        monkeypatch.setenv(*setting.split("=", 1))


def perform(case: Case, names: dict[str, str], out: Path, monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """Runs the command and returns its outcomes."""
    assert TRY is not None
    command, _, given = case.command.partition(" <<< ")
    texts = [command, given]
    for name, value in names.items():
        texts = [text.replace(name, value) for text in texts]
    words = shlex.split(texts[0])
    while words[0] != "try":
        monkeypatch.setenv(*words.pop(0).split("=", 1))
    arguments = [word if word != "/tmp/hostile" else str(out) for word in shlex.split(TRY[1])] + words[1:]
    stdin = io.TextIOWrapper(io.BufferedReader(io.BytesIO("".join(shlex.split(texts[1])).encode())))
    printed = io.StringIO()
    with mock.patch("sys.stdin", stdin), contextlib.redirect_stdout(printed), contextlib.redirect_stderr(io.StringIO()) as told:
        status = run(arguments)
    outcomes = [json.loads(line) for line in printed.getvalue().splitlines()]
    assert outcomes, told.getvalue()
    assert status == (0 if all(outcome["state"] == "stored" for outcome in outcomes) else 1)
    return outcomes


@pytest.mark.parametrize("case", CASES, ids=[case.name for case in CASES])
def test_a_case_is_as_the_manual_says(
    case: Case, world: tuple[dict[str, str], list[Origin]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names, origins = world
    codes = set(re.findall(r"[A-Z]+_[A-Z0-9_]+", case.outcome))
    for outcome in perform(case, names, tmp_path, monkeypatch):
        if codes:
            assert (outcome["state"], outcome["code"] in codes) == ("failed", True), outcome
        else:
            assert outcome["state"] == "stored", outcome
            stored = Path(unquote(urlsplit(outcome["storage_url"]).path))
            assert stored.is_relative_to(tmp_path)
            assert b"s3cret" not in stored.read_bytes()[:100_000]
        assert (outcome["attempts"] > 1) == ("retried" in case.outcome), outcome
        # The password of a proxy is in no outcome; here it is always x.
        assert ":x@" not in json.dumps(outcome)
    if "s3cret" in case.command:
        assert any(request.headers.get("x-key") == "s3cret" for origin in origins for request in origin.requests)


def test_the_manual_was_understood() -> None:
    table = MANUAL[MANUAL.index("| case | command | outcome |") :].partition("\n\n")[0]
    assert len(CASES) == table.count("\n") - 1 > 40
    assert TRY is not None
