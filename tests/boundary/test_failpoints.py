"""Fail points are in the module that tests load, and in no other."""

from __future__ import annotations

import re
import subprocess
import tomllib
from pathlib import Path

import pytest

from fetchbox import _core

ROOT = Path(__file__).parents[2]
MARKS = (b"FETCHBOX_FAILPOINTS", b"hub::commit::before", b"worker::report::after", b"engine::store::before")
"""The variable that arms points, and some of their names."""


def test_the_module_under_test_has_them() -> None:
    """Else the tests of kills at named points would wait for nothing, and the ones below would find nothing by looking wrongly."""
    content = Path(_core.__file__).read_bytes()
    assert all(mark in content for mark in MARKS)


def test_no_build_has_them_that_does_not_ask_for_them() -> None:
    features = tomllib.loads((ROOT / "rust" / "py" / "Cargo.toml").read_text())["features"]
    assert features["default"] == []
    assert "features" not in tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["maturin"]
    command = ["cargo", "tree", "--locked", "--package", "fetchbox-py", "--edges", "normal", "--prefix", "none", "--format", "{p} [{f}]"]
    plain, asked = (
        subprocess.run([*command, *more], cwd=ROOT, capture_output=True, text=True, timeout=120, check=True).stdout
        for more in ([], ["--features", "failpoints"])
    )
    assert re.search(r"^fetchbox-failpoint .*\[]$", plain, re.MULTILINE), plain
    assert "[enabled]" not in plain
    assert re.search(r"^fetchbox-failpoint .*\[enabled]$", asked, re.MULTILINE), asked


def test_what_make_install_built_has_none() -> None:
    built = sorted(ROOT.glob(".venv/lib/python*/site-packages/fetchbox/_core*.so"))
    if not built:
        pytest.skip("no release build here; `make install` makes one")
    for module in built:
        content = module.read_bytes()
        assert not [mark for mark in MARKS if mark in content], module
