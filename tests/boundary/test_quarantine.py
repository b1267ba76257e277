"""Tasks and outcomes between a worker and its quarantine process."""

from __future__ import annotations

import select
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import orjson
import pytest

from fetchbox._core import CoreError, Engine, OutcomeBatch
from fetchbox.proto import jobs_pb2


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[Engine]:
    """An engine that stores into a directory and may connect to nobody."""
    made = Engine(orjson.dumps({"storage": {"url": tmp_path.as_uri()}, "flight_dir": str(tmp_path / "flight")}))
    yield made
    made.close(2.0)


def task(**fields: Any) -> bytes:
    """A task as the hub delivers it."""
    facts: dict[str, Any] = {
        "job_id": "0190b6d4-0000-7000-8000-000000000001",
        "job_type": "default",
        "resource_id": "a",
        "resource_index": 7,
        **fields,
    }
    return jobs_pb2.DownloadTask(**facts).SerializeToString()


def drained(engine: Engine) -> OutcomeBatch:
    """The next finished tasks."""
    assert select.select([engine.fileno()], [], [], 10)[0]
    return engine.drain(10)


def test_what_ended_apart_is_settled_as_if_it_had_ended_here(engine: Engine) -> None:
    assert engine.submit_apart(42, task(url="http://127.0.0.1:9/")) == 1
    ended = drained(engine)
    ((place, encoded),) = ended.encode()
    again = OutcomeBatch.decode(encoded)
    assert place == 42
    assert [o.as_dict() for o in again.outcomes()] == [o.as_dict() for o in ended.outcomes()]
    assert again.outcomes()[0].code == "DOWNLOAD_BLOCKED_ADDRESS"
    assert len(engine.settle(again)) == len(engine.settle(ended)) > 0


def test_poison_is_a_failed_outcome_with_its_story(engine: Engine) -> None:
    poisoned = engine.poison(42, task(url="http://example.com/a", attempt=2, generation=1), "it died of signal 6")
    (outcome,) = poisoned.outcomes()
    assert (outcome.state, outcome.code, outcome.message) == ("failed", "SYSTEM_POISON", "it died of signal 6")
    assert (outcome.id, outcome.index, outcome.generation, outcome.attempts) == ("a", 7, 1, 3)
    assert 'code="SYSTEM_POISON"' in engine.metrics()
    assert len(engine.settle(poisoned)) > 0


def test_nothing_is_set_aside_without_a_delivery(engine: Engine) -> None:
    assert engine.set_aside() == []
    assert engine.unguarded() is None


def test_junk_is_refused(engine: Engine) -> None:
    with pytest.raises(CoreError):
        engine.submit_apart(1, b"\xff\xff")
    with pytest.raises(CoreError):
        OutcomeBatch.decode(b"\xff\xff")


def test_a_flight_record_that_cannot_be_kept_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    engine = Engine(orjson.dumps({"storage": {"url": tmp_path.as_uri()}, "flight_dir": str(tmp_path / "file" / "flight")}))
    assert engine.unguarded()
    engine.close(2.0)
