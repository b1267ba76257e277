"""Fixtures of the acceptance tests: one service and one origin for a module's tests, which get along with each other's jobs."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.process.origins import OriginProcess
from tests.process.service import Service


@pytest.fixture(scope="module")
def origin(tmp_path_factory: pytest.TempPathFactory) -> Iterator[OriginProcess]:
    """An origin as fast as it goes."""
    with OriginProcess(tmp_path_factory.mktemp("origin")) as process:
        yield process


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """`fetchbox up` with the harness's configuration."""
    with Service(tmp_path_factory.mktemp("service")).start() as running:
        yield running
        running.end()
