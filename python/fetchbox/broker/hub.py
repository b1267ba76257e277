"""The connection to the hub as Python sees it: one awaitable method a call, errors of `fetchbox.errors`."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from typing import Any

import orjson

from fetchbox._completions import Completions
from fetchbox._core import CoreError, Delivery, Engine, Follower, HubClient, Report, Settled, TaskBatch
from fetchbox.config import Config, hub_url
from fetchbox.errors import HubUnavailable, Refused

logger = logging.getLogger(__name__)

CALL_TIMEOUT = 30.0
"""Seconds that a call may take; the hub commits in milliseconds, so a longer wait means that it is in trouble."""
LEDGER_TIMEOUT = 600.0
"""The same for work on the whole ledger or the store."""


def hub_client_options(config: Config, name: str, role: str, url: str | None = None) -> bytes:
    """The native client's options for this configuration. `role` is "api", "worker" or "operator"."""
    token = config.hub.token.get_secret_value() if config.hub.token is not None else None
    return orjson.dumps({"url": url or hub_url(config), "name": name, "role": role, "token": token, "tls_ca": config.hub.tls_ca})


class HubConnection:
    """A connection that reconnects by itself; make it inside a running loop and close it there.

    Every method raises HubUnavailable when the hub is away or does not answer in time, and Refused with the hub's reason when it says no.
    """

    def __init__(
        self,
        config: Config,
        role: str,
        *,
        name: str | None = None,
        url: str | None = None,
        on_cancelled: Callable[[str], None] | None = None,
    ) -> None:
        # A service says in its log why the hub is not to be had; a command says it once, in its error.
        self._trouble_level = logging.DEBUG if role == "operator" else logging.WARNING
        self._client = HubClient(hub_client_options(config, name or f"{role}-{os.getpid()}", role, url))
        self._on_cancelled = on_cancelled
        self._on_connected: list[Callable[[bool], None]] = []
        self._completions = Completions(self._client, self._push)

    def reload(self, config: Config) -> None:
        """Takes the hub's token from a configuration that was read again; the connection that is up stays."""
        self._client.set_token(config.hub.token.get_secret_value() if config.hub.token is not None else None)

    @property
    def connected(self) -> bool:
        """Whether the hub answers at the moment."""
        return self._client.connected()

    @property
    def trouble(self) -> str:
        """Why the hub does not answer, in a sentence; empty while it does."""
        return self._client.trouble()

    @property
    def report_rest(self) -> float:
        """None: a report is one call and one commit."""
        return 0.0

    def on_connected(self, callback: Callable[[bool], None]) -> None:
        """Calls back with True when the connection is made and with False when it is lost."""
        self._on_connected.append(callback)

    async def query(self, name: str, params: dict[str, Any], *, timeout: float = CALL_TIMEOUT) -> bytes:
        """A question to the ledger; the answer is ready JSON."""
        return await self._call(self._client.query(name, orjson.dumps(params)), timeout)  # type: ignore[no-any-return]

    async def ledger(self, name: str, params: dict[str, Any], *, timeout: float = LEDGER_TIMEOUT) -> bytes:
        """Has the ledger or the store looked after; an operator's connection only. The answer is ready JSON."""
        return await self._call(self._client.ledger(name, orjson.dumps(params)), timeout)  # type: ignore[no-any-return]

    async def reserve(self, request: dict[str, Any]) -> dict[str, Any]:
        """Reserves an idempotency key; waits while a live post holds it."""
        return await self._call(self._client.reserve(orjson.dumps(request)), CALL_TIMEOUT * 2)  # type: ignore[no-any-return]

    async def release(self, request: dict[str, Any]) -> None:
        """Gives back a reservation whose post was refused."""
        await self._call(self._client.release(orjson.dumps(request)), CALL_TIMEOUT)

    async def accept(self, facts: dict[str, Any], tasks: TaskBatch, manifest: bytes | None) -> dict[str, Any]:
        """Makes a job durable with all its tasks. The answer comes after the commit."""
        return await self._call(self._client.accept(orjson.dumps(facts), tasks, manifest), CALL_TIMEOUT)  # type: ignore[no-any-return]

    async def rebuild(self, facts: dict[str, Any], tasks: TaskBatch, *, digests: bool) -> dict[str, Any]:
        """Makes a job that the ledger does not know, with what of its objects is in the store; an operator's connection only."""
        return await self._call(self._client.rebuild(orjson.dumps(facts), tasks, digests), LEDGER_TIMEOUT)  # type: ignore[no-any-return]

    async def cancel(self, job_id: str, tenant: str | None) -> bytes:
        """Cancels what is pending of a job; the job as JSON."""
        return await self._call(self._client.cancel(job_id, tenant), CALL_TIMEOUT)  # type: ignore[no-any-return]

    async def join(self, engine: Engine, member: str) -> None:
        """Enters the workers' group and gives the engine the partitions that are free; more may come with the polls."""
        await self._call(self._client.join(engine, member), CALL_TIMEOUT)

    async def leave(self) -> None:
        """Leaves the group, so that its partitions move at once."""
        await self._call(self._client.leave(), CALL_TIMEOUT)

    async def poll(self, engine: Engine, max_messages: int, wait_ms: int) -> Delivery:
        """The next batches of the engine's partitions that have room; empty when `wait_ms` pass without any."""
        return await self._call(self._client.poll(engine, max_messages, wait_ms), CALL_TIMEOUT + wait_ms / 1000)  # type: ignore[no-any-return]

    async def settled(self, delivery: Delivery) -> Settled:
        """What is settled already of the delivery's jobs."""
        return await self._call(self._client.settled(delivery), CALL_TIMEOUT)  # type: ignore[no-any-return]

    async def append(self, report: Report) -> None:
        """Publishes a report and commits its offsets, in one durable step."""
        await self._call(self._client.append(report), CALL_TIMEOUT)

    async def release_partitions(self, engine: Engine) -> None:
        """Gives up the partitions that are to move and have nothing in flight."""
        await self._call(self._client.release_partitions(engine), CALL_TIMEOUT)

    async def follow(self, follower: Follower) -> None:
        """Enters the follower's group."""
        await self._call(self._client.follow(follower), CALL_TIMEOUT)

    async def read(self, follower: Follower, max_messages: int, wait_ms: int) -> list[tuple[int, int, str, list[tuple[int, int]]]]:
        """What comes next: partition, offset behind the message, the job it speaks of, and index and generation of what failed.

        Empty when `wait_ms` pass without any.
        """
        return await self._call(self._client.read(follower, max_messages, wait_ms), CALL_TIMEOUT + wait_ms / 1000)  # type: ignore[no-any-return]

    async def commit(self, follower: Follower, offsets: list[tuple[int, int]]) -> None:
        """The follower's group is done with everything below these offsets, by partition."""
        await self._call(self._client.commit(follower, offsets), CALL_TIMEOUT)

    async def watch(self, engine: Engine, wait_ms: int) -> None:
        """Waits until the engine's partitions have changed, or for so long. For streams that are read elsewhere."""
        await self._call(self._client.watch(engine, wait_ms), CALL_TIMEOUT + wait_ms / 1000)

    async def commit_tasks(self, offsets: list[tuple[int, int]]) -> None:
        """The workers' group is done with everything below these offsets, by partition; those of others' partitions are ignored."""
        await self._call(self._client.commit_tasks(offsets), CALL_TIMEOUT)

    async def outbox(self, after: int, max_bytes: int, wait_ms: int) -> list[tuple[int, list[tuple[str, int, list[bytes]]]]]:
        """What waits to be published to another broker above a sequence: sequence and its (topic, partition, messages), in order."""
        return await self._call(self._client.outbox(after, max_bytes, wait_ms), CALL_TIMEOUT + wait_ms / 1000)  # type: ignore[no-any-return]

    async def outbox_done(self, up_to: int) -> None:
        """Everything up to and with this sequence is published."""
        await self._call(self._client.outbox_done(up_to), CALL_TIMEOUT)

    async def feed(self, topic: str, partition: int, base_offset: int, messages: list[bytes]) -> None:
        """Has the hub take over what was read from another broker; durable when this returns, and harmless to repeat."""
        await self._call(self._client.feed(topic, partition, base_offset, messages), CALL_TIMEOUT)

    def close(self) -> None:
        """Closes the connection; calls that wait end with HubUnavailable."""
        self._completions.close()
        self._client.close()

    async def _call(self, token: int, timeout: float) -> Any:
        try:
            return await self._completions.wait(token, timeout)
        except CoreError as error:
            if error.kind == "refused":
                raise Refused(
                    error.code, error.message, retry_after=error.retry_after, job_id=error.job_id, details=error.details
                ) from error
            if error.kind in ("unavailable", "closed"):
                raise HubUnavailable(error.message) from error
            raise
        except TimeoutError as error:
            raise HubUnavailable(str(error)) from error

    def _push(self, push: tuple[str, str]) -> None:
        kind, subject = push
        if kind == "cancelled":
            if self._on_cancelled is not None:
                self._on_cancelled(subject)
        elif kind == "trouble":
            # Each reason once, however often it is tried.
            logger.log(self._trouble_level, "no connection to the hub: %s", subject)
        else:
            for callback in self._on_connected:
                callback(kind == "connected")
