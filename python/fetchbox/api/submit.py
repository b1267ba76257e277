"""`POST /jobs`: from bytes to a durable job, or a refusal that leaves nothing behind."""

from __future__ import annotations

import asyncio
import hashlib
import logging
import time
from collections.abc import Awaitable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import msgspec
import orjson
from starlette.types import Receive, Scope, Send

from fetchbox.api.body import Disconnected, read_body
from fetchbox.api.ids import Trace, trace_of
from fetchbox.api.limits import Limits
from fetchbox.api.problems import Problem, invalid, of_hub_error
from fetchbox.api.service import Service
from fetchbox.api.settings import JobType, Settings
from fetchbox.api.types import HEADERS, Tasks
from fetchbox.errors import HandlerError, HubUnavailable, Refused
from fetchbox.manifest import DownloadTask, decode_manifest, encode_tasks

logger = logging.getLogger(__name__)

if TYPE_CHECKING:
    from fetchbox.tracing import Submission

INLINE_BYTES = 64 << 10
"""Bodies up to this are compiled on the loop: a fraction of a millisecond, less than handing them to a thread costs in latency. Larger
ones would hold up others."""

OWN_KEY = "\0"
"""What our own keys begin with; a caller's are printable."""

MAX_KEY = 255
"""Characters of an idempotency key."""


@dataclass(frozen=True, slots=True)
class Post:
    """One accepted-for-reading request, on its way to a job."""

    job_id: str
    job_type: JobType
    tenant: str
    key: str | None
    body: bytes
    digest: str | None
    trace: Trace
    now_ms: int
    settings: Settings
    partitions: int

    @property
    def manifest_key(self) -> str:
        """The URL under which the manifest is kept."""
        return self.settings.manifests.url(self.job_type.name, self.job_id)

    def context(self, attributes: Mapping[str, Any] | None = None) -> bytes:
        """What the native compiler has to know, as JSON; `attributes` are the manifest's, where the compiler does not see the manifest."""
        return orjson.dumps(
            {
                **self.job_type.context,
                "partitions": self.partitions,
                "attributes": attributes,
                "job_id": self.job_id,
                "tenant": self.tenant,
                "manifest_key": self.manifest_key,
                "trace_id": self.trace.trace_id,
                "traceparent": self.trace.traceparent,
                "now_ms": self.now_ms,
            }
        )

    @property
    def limits(self) -> Limits:
        """What its tenant may post."""
        return self.settings.limits_for(self.tenant)

    @property
    def stores_manifest(self) -> bool:
        """Whether the manifest is an object that this process stores before the job is accepted. The hub must know of it then, should the
        accept never come."""
        return not self.settings.manifests.local

    def reservation(self) -> dict[str, Any] | None:
        """The key and the body it stands for; a key of our own for a post without one that stores its manifest."""
        if self.key is not None:
            return {"key": self.key, "body_sha256": self.digest}
        return {"key": OWN_KEY + self.job_id, "body_sha256": ""} if self.stores_manifest else None


class Submit:
    """The endpoint, as an ASGI application of its own: it is the hot path."""

    def __init__(self, service: Service) -> None:
        self._service = service

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        started = time.perf_counter()
        headers = scope[HEADERS]
        traces = self._service.traces
        submission = None if traces is None else traces.submission(headers.get(b"traceparent"))
        result, status = "internal_error", 500
        told: dict[str, str | int] = {}
        try:
            reply, size = await self._post(headers, receive, submission)
            created = bool(reply["created"])
            result, status = ("accepted", 202) if created else ("duplicate", 200)
            if created:
                self._service.metrics.accepted(size)
            told = {"fetchbox.job_id": reply["job_id"], "fetchbox.resources": reply["resource_count"]}
            await _answer(send, reply, status)
        except Problem as problem:
            result, status = problem.code.lower(), problem.status
            raise
        except (HubUnavailable, Refused) as error:
            refusal = of_hub_error(error)
            result, status = refusal.code.lower(), refusal.status
            raise refusal from error
        except Disconnected:
            result = "disconnected"
            raise
        finally:
            self._service.metrics.job(result, time.perf_counter() - started)
            if submission is not None:
                submission.end(result, status, told)

    async def _post(self, headers: Mapping[bytes, bytes], receive: Receive, submission: Submission | None) -> tuple[dict[str, Any], int]:
        service = self._service
        settings = service.settings
        tenant, named = settings.tenant(headers)
        check_content_type(headers.get(b"content-type"))
        job_type = settings.job_type(headers.get(b"x-fetchbox-job-type"), tenant)
        key = idempotency_key(headers)
        body = await read_body(receive, headers, settings.max_manifest_bytes)
        digest = None
        if key is not None:
            digest = hashlib.sha256(body).hexdigest() if len(body) <= INLINE_BYTES else await asyncio.to_thread(_sha256, body)
        trace = trace_of(headers.get(b"traceparent")) if submission is None else Trace(submission.trace_id, submission.traceparent)
        now_ms = int(service.clock() * 1000)
        partitions = service.partitions or job_type.context["partitions"]
        post = Post(service.new_id(), job_type, tenant, key, body, digest, trace, now_ms, settings, partitions)
        if job_type.handler is not None:
            reply = await self._with_handler(post, named)
        else:
            reply = await self._plain(post, named)
        return reply, len(body)

    async def _plain(self, post: Post, tenant_named: bool) -> dict[str, Any]:
        """The default handler: the native module compiles the body as it is."""
        batch, facts = await self._compile(post)
        if facts.get("tenant") not in (None, post.tenant):
            post = _adopt_tenant(post, facts["tenant"], tenant_named)
            batch, facts = await self._compile(post)
        if post.settings.manifests.local:
            # The manifest's bytes ride in the same commit, so nothing can be left behind and nothing needs a reservation of its own.
            return await _limited(post, self._service.hub.accept(accept_facts(post, batch, facts, reserved=False), batch, post.body))
        compiled_for = post.job_id
        post, earlier = await self._reserve(post, len(batch))
        if earlier is not None:
            return earlier
        async with _Reserved(self._service, post) as reserved:
            if post.job_id != compiled_for:
                batch, facts = await self._compile(post)
            return await reserved.finish(batch, facts)

    async def _with_handler(self, post: Post, tenant_named: bool) -> dict[str, Any]:
        """A handler of the job type's own: it sees the manifest and builds the tasks."""
        service = self._service
        spec = post.job_type.handler
        assert spec is not None
        parsed = await self._native(service.core.parse_manifest, post, post.body)
        manifest = decode_manifest(parsed, job_id=post.job_id, job_type=post.job_type.name, tenant=post.tenant)
        attributes = dict(manifest.attributes)
        if attributes.get("tenant") not in (None, post.tenant):
            post = _adopt_tenant(post, attributes["tenant"], tenant_named)
            manifest.tenant = post.tenant
        post, earlier = await self._reserve(post, None)
        if earlier is not None:
            return earlier
        async with _Reserved(service, post, counted=False) as reserved:
            manifest.job_id = post.job_id
            try:
                tasks = await service.handlers.build(spec, manifest, post.settings.max_resources)
                encoded = _encode(tasks, post.settings)
                batch: Tasks = await self._native(service.core.compile_tasks, post, encoded, attributes)
            except HandlerError as error:
                raise Problem(500, error.code, str(error)) from error
            except Problem as problem:
                raise Problem(500, "HANDLER_BAD_TASK", "the handler built tasks that are not valid", details=problem.details) from problem
            return await reserved.finish(batch, orjson.loads(batch.facts()))

    async def _reserve(self, post: Post, resources: int | None) -> tuple[Post, dict[str, Any] | None]:
        """Reserves the key, also one of our own if the manifest is stored first: the post under its id, or the reply of the earlier job.

        `resources` is how many the job has, where that is known before its handler has run.
        """
        reservation = post.reservation()
        if reservation is None:
            return post, None
        limits = post.limits.facts() | ({} if resources is not None else {"resource_limit": None})
        request = {
            **reservation,
            **limits,
            "tenant": post.tenant,
            "job_type": post.job_type.name,
            "job_id": post.job_id,
            "resources": resources or 0,
            "stores_manifest": post.stores_manifest,
        }
        answer = await _limited(post, self._service.hub.reserve(request))
        if answer.get("accepted"):
            return post, {**answer, "created": False}
        # A post that died left its reservation: its retry goes on under the same id.
        return replace(post, job_id=answer["job_id"]), None

    async def _compile(self, post: Post) -> tuple[Tasks, dict[str, Any]]:
        batch = await self._native(self._service.core.compile_manifest, post, post.body)
        return batch, orjson.loads(batch.facts())

    async def _native(self, function: Any, post: Post, data: bytes, attributes: Mapping[str, Any] | None = None) -> Any:
        context = post.context(attributes)
        try:
            if len(data) <= INLINE_BYTES:
                return function(data, context)
            return await asyncio.to_thread(function, data, context)
        except self._service.core.CoreError as error:
            if error.kind != "validation":
                raise
            raise Problem(400, "INVALID_PAYLOAD", error.message, details=error.details) from error


class _Reserved:
    """A post that may hold a reservation: accepted at its end, or released.

    What a refused post wrote goes with it, unless it was written under a key: another post with that key may have taken the reservation
    over while this one stood still, and with it the job's id and its manifest. `counted`: its resources were known to the reservation.
    """

    def __init__(self, service: Service, post: Post, *, counted: bool = True) -> None:
        self._service = service
        self._post = post
        self._counted = counted
        self._stored = False
        self._unknown = False

    async def __aenter__(self) -> _Reserved:
        return self

    async def finish(self, batch: Tasks, facts: Mapping[str, Any]) -> dict[str, Any]:
        """Stores the manifest and accepts the job."""
        post = self._post
        manifests = post.settings.manifests
        if not manifests.local:
            self._stored = True
            await manifests.put(post.manifest_key, post.body)
        try:
            known = accept_facts(post, batch, facts, reserved=post.reservation() is not None, counted=self._counted)
            reply = await _limited(post, self._service.hub.accept(known, batch, post.body if manifests.local else None))
        except (Refused, Problem):
            raise
        except BaseException:
            # It may have been committed before the answer was lost: what it refers to must stay.
            self._unknown = True
            raise
        if reply["job_id"] != post.job_id:
            await self._discard()
        return reply

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        if error is None or self._unknown:
            return
        post = self._post
        if post.key is None:
            await self._discard()
        # Of a manifest that stays the hub knows from here on that it may go.
        reservation = post.reservation()
        if reservation is not None:
            try:
                await self._service.hub.release(
                    {"tenant": post.tenant, "job_type": post.job_type.name, "key": reservation["key"], "job_id": post.job_id}
                )
            except (HubUnavailable, Refused) as failure:
                # The hub lets go of it when this connection ends, and a retry takes it over before that.
                logger.warning("a reservation could not be released: %s", failure)

    async def _discard(self) -> None:
        if self._stored:
            self._stored = False
            await self._post.settings.manifests.discard(self._post.manifest_key)


async def _limited(post: Post, call: Awaitable[dict[str, Any]]) -> dict[str, Any]:
    """The hub's answer. Raises Problem 429, with the tenant's limits, when the post is beyond one of them."""
    try:
        return await call
    except Refused as error:
        problem = post.limits.refused(error)
        if problem is None:
            raise
        raise problem from error


def accept_facts(post: Post, batch: Tasks, facts: Mapping[str, Any], *, reserved: bool, counted: bool = True) -> dict[str, Any]:
    """What the hub has to know of the job, beside its tasks. What a reservation was counted for is not counted again."""
    limits = post.limits.facts()
    if reserved:
        limits |= {"rate_limit": None, "daily_bytes": 0} | ({"resource_limit": None} if counted else {})
    return {
        **limits,
        "job_id": post.job_id,
        "job_type": post.job_type.name,
        "tenant": post.tenant,
        "manifest_key": post.manifest_key,
        "created_ms": post.now_ms,
        "resource_count": len(batch),
        "crawl_id": facts.get("crawl_id"),
        "priority": facts.get("priority"),
        "callback_url": facts.get("callback_url"),
        "callback_events": facts.get("callback_events") or [],
        "trace_id": post.trace.trace_id,
        "reservation": post.reservation(),
        "stores_manifest": post.stores_manifest,
    }


def check_content_type(value: bytes | None) -> None:
    """Raises Problem 415 unless the body is said to be JSON in UTF-8."""
    if value == b"application/json":
        return
    media, _, parameters = (value or b"").partition(b";")
    if media.strip().lower() == b"application/json":
        charset = parameters.replace(b" ", b"").replace(b'"', b"").lower()
        if charset in (b"", b"charset=utf-8", b"charset=utf8"):
            return
    raise Problem(415, "UNSUPPORTED_MEDIA_TYPE", "Content-Type must be application/json", headers={"accept": "application/json"})


def idempotency_key(headers: Mapping[bytes, bytes]) -> str | None:
    """The key under either of its names. Raises Problem 400 for one that is empty, too long, not printable, or two that differ."""
    ours, common = headers.get(b"x-fetchbox-idempotency-key"), headers.get(b"idempotency-key")
    if ours is not None and common is not None and ours != common:
        raise invalid("X-Fetchbox-Idempotency-Key and Idempotency-Key differ")
    raw = ours if ours is not None else common
    if raw is None:
        return None
    try:
        key = raw.decode()
    except UnicodeDecodeError:
        raise invalid("the idempotency key is not UTF-8") from None
    if not 0 < len(key) <= MAX_KEY or not key.isprintable():
        raise invalid(f"the idempotency key must be 1 to {MAX_KEY} printable characters")
    return key


def _adopt_tenant(post: Post, tenant: object, named: bool) -> Post:
    if not isinstance(tenant, str):
        raise invalid("attributes.tenant must be a string", pointer="/attributes/tenant")
    if named:
        raise Problem(403, "FORBIDDEN", "attributes.tenant is another tenant than the request's")
    return replace(post, tenant=tenant)


def _encode(tasks: list[DownloadTask], settings: Settings) -> bytes:
    for task in tasks:
        if task.bucket is not None and task.bucket not in settings.buckets:
            raise HandlerError(f"the handler names bucket {task.bucket!r}, which is not configured", code="HANDLER_BAD_TASK")
    try:
        return encode_tasks(tasks)
    except (TypeError, ValueError, msgspec.MsgspecError) as error:
        raise HandlerError(f"the handler built a task that JSON cannot hold: {error}", code="HANDLER_BAD_TASK") from error


def _sha256(body: bytes) -> str:
    return hashlib.sha256(body).hexdigest()


async def _answer(send: Send, reply: Mapping[str, Any], status: int) -> None:
    job_id = reply["job_id"]
    body = orjson.dumps({"job_id": job_id, "manifest_key": reply["manifest_key"], "resource_count": reply["resource_count"]})
    headers = [
        (b"content-type", b"application/json"),
        (b"content-length", str(len(body)).encode()),
        (b"location", f"/jobs/{job_id}".encode()),
    ]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
