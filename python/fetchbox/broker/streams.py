"""What workers ask of whoever holds the streams: the hub, or a broker beside it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

from fetchbox._core import Delivery, Engine, Follower, Report, Settled


class Streams(Protocol):
    """A place in the workers' group, and in that of those who finish jobs. Methods raise Unavailable, or Refused by the hub."""

    @property
    def connected(self) -> bool:
        """Whether it answers at the moment."""

    @property
    def report_rest(self) -> float:
        """Seconds that a worker with downloads under way gathers outcomes at most. What it holds is done again if it dies."""

    def on_connected(self, callback: Callable[[bool], None]) -> None:
        """Calls back with True when it answers and with False when it does not any more; then groups are to be entered anew."""

    async def query(self, name: str, params: dict[str, Any]) -> bytes:
        """A question to the ledger."""

    async def join(self, engine: Engine, member: str) -> None:
        """Enters the workers' group."""

    async def leave(self) -> None:
        """Leaves it, so that its partitions move at once."""

    async def release_partitions(self, engine: Engine) -> None:
        """Gives up the partitions that are to move and have nothing in flight."""

    async def poll(self, engine: Engine, max_messages: int, wait_ms: int) -> Delivery:
        """The next tasks of partitions with room; empty when `wait_ms` pass without any."""

    async def settled(self, delivery: Delivery) -> Settled:
        """What is settled already of the delivery's jobs."""

    async def append(self, report: Report) -> None:
        """Publishes a report durably and commits its offsets."""

    async def follow(self, follower: Follower) -> None:
        """Enters the follower's group."""

    async def read(self, follower: Follower, max_messages: int, wait_ms: int) -> list[tuple[int, int, str, list[tuple[int, int]]]]:
        """What comes next: partition, offset behind the message, the job it speaks of, and index and generation of what failed."""

    async def commit(self, follower: Follower, offsets: list[tuple[int, int]]) -> None:
        """The follower's group is done with everything below these offsets."""
