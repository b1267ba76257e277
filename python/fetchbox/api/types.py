"""What the ingress needs of its neighbours, as protocols: tests bring fakes, the process brings the real ones."""

from __future__ import annotations

from typing import Any, Protocol

HEADERS = "fetchbox.headers"
"""Key in an ASGI scope: the request's headers as a dict of lower-case names; repeated ones joined by ", "."""


class Tasks(Protocol):
    """Encoded tasks, opaque (`_core.TaskBatch`)."""

    def __len__(self) -> int: ...
    def facts(self) -> bytes: ...


class Core(Protocol):
    """The functions of the native module that ingest uses."""

    CoreError: type[Any]

    def compile_manifest(self, body: bytes, context: bytes, /) -> Any: ...
    def parse_manifest(self, body: bytes, context: bytes, /) -> bytes: ...
    def compile_tasks(self, tasks: bytes, context: bytes, /) -> Any: ...


class Hub(Protocol):
    """The connection to the hub (`fetchbox.broker.HubConnection`). Its methods raise HubUnavailable and Refused."""

    @property
    def connected(self) -> bool: ...
    async def query(self, name: str, params: dict[str, Any], *, timeout: float = ...) -> bytes: ...
    async def reserve(self, request: dict[str, Any]) -> dict[str, Any]: ...
    async def release(self, request: dict[str, Any]) -> None: ...
    async def accept(self, facts: dict[str, Any], tasks: Any, manifest: bytes | None) -> dict[str, Any]: ...
    async def cancel(self, job_id: str, tenant: str | None) -> bytes: ...
