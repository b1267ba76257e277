"""Fixtures of the acceptance tests: one service and one origin for a module's tests, which get along with each other's jobs."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.acceptance.brokers import service_on
from tests.process.iggy import SERVER, SKIPPED
from tests.process.origins import OriginProcess
from tests.process.service import Service


@pytest.fixture(scope="module", params=["embedded", "iggy"])
def broker(request: pytest.FixtureRequest) -> str:
    """Every test is run on the hub's own streams, and on a real Iggy server where there is one."""
    if request.param == "iggy" and SERVER is None:
        pytest.skip(SKIPPED)
    return str(request.param)


@pytest.fixture(scope="module")
def origin(broker: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[OriginProcess]:
    """An origin as fast as it goes, for one broker's tests: they count its requests."""
    with OriginProcess(tmp_path_factory.mktemp("origin")) as process:
        yield process


@pytest.fixture(scope="module")
def service(broker: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """`fetchbox up` with the harness's configuration."""
    with service_on(broker, tmp_path_factory.mktemp("service")) as running:
        yield running
