"""Manifests with known content: each URL's bytes follow from the URL, so what must be in the store needs no asking."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from fetchbox.origin import content_sha256

KIB = 1024
SEEDS = 251
"""Different seeds in use: as many as the origin keeps ready, so that serving costs it next to nothing."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """One resource and what must become of it. `seed` and `size` name the content of a stored one."""

    id: str
    target: str
    size: int = 0
    seed: int = 0
    state: str = "stored"
    code: str = ""

    @property
    def sha256(self) -> str:
        """Digest of its content in hex."""
        return content_sha256(self.seed, self.size)


@dataclass(slots=True)
class Load:
    """One job to post, and what must become of it."""

    key: str
    body: bytes
    resources: Sequence[Wanted]
    headers: dict[str, str] = field(default_factory=dict)

    @property
    def digest(self) -> str:
        """SHA-256 of the body in hex."""
        return hashlib.sha256(self.body).hexdigest()


def manifest(origin: str, resources: Sequence[Wanted], *, metadata: object = None, attributes: dict[str, object] | None = None) -> bytes:
    """A manifest as a crawler would post it. A target that is a whole URL already stays as it is."""
    document: dict[str, object] = {
        "manifest_version": "v1",
        "metadata": metadata if metadata is not None else {},
        "resources": [{"id": r.id, "url": r.target if r.target.startswith("http") else origin + r.target} for r in resources],
    }
    if attributes is not None:
        document["attributes"] = attributes
    return json.dumps(document, ensure_ascii=False).encode()


def content_of(job: int, index: int, base: int = 10 * KIB) -> tuple[int, int]:
    """Seed and size of a resource: 24,347 pairs before one repeats, so that objects that were mixed up are seen."""
    number = job * 1009 + index
    return number % SEEDS, base - number % 97


def plain(origin: str, job: int, count: int, *, key: str = "job", size: int = 10 * KIB, tenants: int = 1) -> Load:
    """A job of `count` resources of about `size` bytes, each with a URL of its own."""

    def one(index: int) -> Wanted:
        seed, length = content_of(job, index, size)
        return Wanted(id=f"r{index}", target=f"/bytes/{length}?seed={seed}&of={job}-{index}", size=length, seed=seed)

    return of(
        origin, f"{key}-{job}", [one(index) for index in range(count)], job=job, headers={"x-fetchbox-tenant": f"tenant-{job % tenants}"}
    )


def of(origin: str, key: str, resources: Sequence[Wanted], *, job: int = 0, headers: dict[str, str] | None = None) -> Load:
    """A job of these resources."""
    return Load(key=key, body=manifest(origin, resources, metadata={"job": job, "key": key}), resources=resources, headers=headers or {})


def sized(sizes: Sequence[int], id_of: Callable[[int], str] = str, *, job: int = 0) -> list[Wanted]:
    """Resources of exactly these sizes."""
    return [
        Wanted(
            id=id_of(index), target=f"/bytes/{size}?seed={(job + index) % SEEDS}&of={job}-{index}", size=size, seed=(job + index) % SEEDS
        )
        for index, size in enumerate(sizes)
    ]
