"""Fixtures of the tests that run FetchBox in processes of its own."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.process.origins import OriginProcess


@pytest.fixture
def origin(tmp_path: Path) -> Iterator[OriginProcess]:
    """An origin as fast as it goes."""
    with OriginProcess(tmp_path) as process:
        yield process
