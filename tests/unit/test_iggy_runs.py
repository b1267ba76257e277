"""What a poll of an Iggy server brought, in runs without a gap."""

from __future__ import annotations

from typing import Any

import pytest

from fetchbox.broker.iggy import _runs


class Message:
    """A message as the client gives it."""

    def __init__(self, offset: int) -> None:
        self._offset = offset

    def offset(self) -> int:
        return self._offset

    def payload(self) -> bytes:
        return str(self._offset).encode()

    def timestamp(self) -> int:
        return self._offset * 10


@pytest.mark.parametrize(
    ("offsets", "expected"),
    [
        ([], []),
        ([7], [(7, 1)]),
        ([7, 8, 9], [(7, 3)]),
        ([7, 9], [(7, 1), (9, 1)]),
        ([0, 1, 5, 6, 7, 9], [(0, 2), (5, 3), (9, 1)]),
    ],
)
def test_runs_have_no_gap(offsets: list[int], expected: list[tuple[int, int]]) -> None:
    received: Any = [Message(offset) for offset in offsets]
    runs = _runs(3, received)
    assert [(run.base_offset, len(run.messages)) for run in runs] == expected
    assert [body for run in runs for body in run.messages] == [str(offset).encode() for offset in offsets]
    assert [stamp for run in runs for stamp in run.stamps_us] == [offset * 10 for offset in offsets]
    assert {run.partition for run in runs} <= {3}
