"""The service on a real Iggy server: the same accounting as with the hub's own streams, whatever is killed or cut."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.process.iggy import IggyServer, iggy_server, needs_iggy
from tests.process.load import plain
from tests.process.oracle import Oracle, difference
from tests.process.origins import OriginProcess
from tests.process.service import Service

pytestmark = [needs_iggy, pytest.mark.timeout(240)]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[IggyServer]:
    """A server that tests leave as they found it."""
    with iggy_server(tmp_path_factory.mktemp("iggy")) as running:
        yield running


def on(url: str, **more: Any) -> dict[str, Any]:
    """The configuration of a service on this server."""
    return {"broker": {"url": url}, "tasks": {"partitions": 4}, **more}


def test_everything_is_stored_counted_and_told(server: IggyServer, tmp_path: Path) -> None:
    with OriginProcess(tmp_path) as origin, Service(tmp_path / "service", on(server.url, worker={"processes": 2})).start() as service:
        oracle = Oracle(service.http, service.assets, origin.journal)
        for job in range(20):
            oracle.post(plain(origin.base_url, job, 100))
        oracle.await_settled(90)
        report = oracle.check(ratio=1.05)
        print(report)
        before = oracle.snapshots()
        service.end()
        service.start()
        assert not difference(before, oracle.snapshots())
        service.end()
