"""A service on the hub's own streams or on an Iggy server of its own."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.process.iggy import iggy_server
from tests.process.service import Service

PARTITIONS = 64
"""Of jobs.tasks, as the configuration's default."""


@contextmanager
def service_on(broker: str, directory: Path, overrides: Mapping[str, Any] | None = None) -> Iterator[Service]:
    """A running service on "embedded" or "iggy"; it is ended as an operator does."""
    settings = dict(overrides or {})
    if broker == "embedded":
        with Service(directory, settings).start() as running:
            yield running
            running.end()
        return
    with iggy_server(directory / "iggy", partitions=PARTITIONS) as server, Service(directory, settings) as running:
        running.configure({**settings, "broker": {"url": server.url}})
        running.start()
        yield running
        running.end()
