"""A manifest as handlers see it, and the tasks they make of it.

The default path never builds these: the native module compiles the posted bytes. They exist for job types with a handler of their own.
"""

from __future__ import annotations

from datetime import datetime
from typing import Any

import msgspec


class Resource(msgspec.Struct, omit_defaults=True):
    """One URL of a manifest. Handlers may change every field.

    `id` is the resource's id within its job (default: its index), `headers` go with the request, `tags` hold hints such as
    `checksum_hint` and `content_type`,
    `key` names the object.
    """

    url: str
    id: str | None = None
    headers: dict[str, str] = {}
    tags: dict[str, str] = {}
    key: str | None = None


class DownloadTask(msgspec.Struct, omit_defaults=True):
    """One URL to fetch and where to keep it.

    Beyond what a Resource says: `proxy` names a pool, `bucket` one of the configured buckets, `key_prefix` the prefix under which the
    object lies and `metadata`
    what is kept on it. `deadline` is when a signed link expires: a datetime with its zone, RFC 3339 text or Unix seconds; the library fails
    the task as DOWNLOAD_EXPIRED from then on. In a job all resources share the manifest's `attributes.deadline`.
    """

    url: str
    id: str | None = None
    headers: dict[str, str] = {}
    tags: dict[str, str] = {}
    proxy: str | None = None
    key: str | None = None
    bucket: str | None = None
    key_prefix: str | None = None
    metadata: dict[str, str] = {}
    deadline: datetime | str | float | None = None

    @classmethod
    def of(cls, resource: Resource, **changes: Any) -> DownloadTask:
        """The task for a resource, with `changes` to its fields."""
        fields: dict[str, Any] = {
            "url": resource.url,
            "id": resource.id,
            "headers": dict(resource.headers),
            "tags": dict(resource.tags),
            "key": resource.key,
        }
        fields.update(changes)
        return cls(**fields)


class Manifest(msgspec.Struct):
    """What a client posted, validated, with the job it became."""

    resources: list[Resource]
    metadata: dict[str, Any] = {}
    attributes: dict[str, Any] = {}
    manifest_version: str = "v1"
    job_id: str = ""
    job_type: str = "default"
    tenant: str = "default"


class _Wire(msgspec.Struct):
    resources: list[Resource]
    metadata: dict[str, Any] | None = None
    attributes: dict[str, Any] | None = None
    manifest_version: str = "v1"


_decoder = msgspec.json.Decoder(_Wire)
_encoder = msgspec.json.Encoder()


def decode_manifest(data: bytes, *, job_id: str, job_type: str, tenant: str) -> Manifest:
    """The manifest in what `_core.parse_manifest` returned."""
    wire = _decoder.decode(data)
    return Manifest(
        resources=wire.resources,
        metadata=wire.metadata or {},
        attributes=wire.attributes or {},
        manifest_version=wire.manifest_version,
        job_id=job_id,
        job_type=job_type,
        tenant=tenant,
    )


def encode_tasks(tasks: list[DownloadTask]) -> bytes:
    """The tasks as `_core.compile_tasks` takes them. Raises TypeError for a value that JSON cannot hold."""
    return _encoder.encode(tasks)
