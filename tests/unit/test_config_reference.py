"""The document and the example say what the models say, and the example works."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from fetchbox.config import Config, load, reference
from fetchbox.config.schema import known_paths

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(("path", "make"), [(reference.DOC, reference.document), (reference.EXAMPLE, reference.example)])
def test_files_are_as_made_from_the_models(path: Path, make: object) -> None:
    assert callable(make)
    assert (ROOT / path).read_text(encoding="utf-8") == make(), "run `make docs`"


def test_the_example_loads_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert load(ROOT / reference.EXAMPLE, env={}).model_dump() == load(env={}).model_dump()


def test_every_value_of_the_example_is_valid_once_uncommented() -> None:
    text = re.sub(r"^# ", "", (ROOT / reference.EXAMPLE).read_text(encoding="utf-8"), flags=re.MULTILINE)
    config = Config.model_validate(tomllib.loads(text))
    assert config.retention == Config().retention
    assert config.server.max_header_bytes == Config().server.max_header_bytes


def test_every_key_is_in_both() -> None:
    document = (ROOT / reference.DOC).read_text(encoding="utf-8")
    example = (ROOT / reference.EXAMPLE).read_text(encoding="utf-8")
    for path in known_paths():
        leaf = path.rpartition(".")[2]
        assert f"| `{leaf}` |" in document or "job_types.NAME.fetch" in path, path
        assert f"# {leaf} = " in example, path


def test_the_package_is_light() -> None:
    """Importing the configuration loads neither the native module nor an HTTP stack."""
    heavy = ("fetchbox._core", "uvloop", "httpx", "starlette", "rich", "asyncio")
    code = f"import sys, fetchbox.config; print([name for name in {heavy} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=30, check=True)
    assert done.stdout.strip() == "[]"
