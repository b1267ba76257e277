"""Manifests through the boundary: faults come back all at once, tasks by the batch."""

import json
from typing import Any

import pytest

from fetchbox import _core

CONTEXT: dict[str, Any] = {
    "job_id": "01890000-0000-7000-8000-000000000001",
    "job_type": "default",
    "tenant": "default",
    "manifest_key": "file:///m",
    "partitions": 64,
    "partition_by": "job",
    "max_resources": 1000,
    "now_ms": 1_700_000_000_000,
}


def context(**changes: Any) -> bytes:
    return json.dumps({**CONTEXT, **changes}).encode()


def manifest(*resources: Any) -> bytes:
    return json.dumps({"manifest_version": "v1", "metadata": {}, "resources": list(resources)}).encode()


def test_a_manifest_becomes_a_task_per_resource() -> None:
    batch = _core.compile_manifest(manifest(*({"url": f"http://host.example/{i}"} for i in range(1000))), context())
    assert len(batch) == 1000
    assert isinstance(json.loads(batch.facts()), dict)


def test_every_fault_is_named_with_its_pointer() -> None:
    body = manifest({"url": "nope"}, {"url": "http://a.example/"}, {"url": "http://user:pw@a.example/"}, {"id": "x"})
    with pytest.raises(_core.CoreError) as caught:
        _core.compile_manifest(body, context())
    assert caught.value.kind == "validation"
    assert caught.value.details is not None
    pointers = {fault["pointer"] for fault in caught.value.details}
    assert {"/resources/0/url", "/resources/2/url"} <= pointers
    assert any(pointer.startswith("/resources/3") for pointer in pointers)


def test_handlers_see_normalised_json_and_their_tasks_are_validated_alike() -> None:
    seen = json.loads(_core.parse_manifest(manifest({"url": "http://a.example/x", "id": "one"}), context()))
    assert [resource["id"] for resource in seen["resources"]] == ["one"]
    batch = _core.compile_tasks(json.dumps([{"url": "http://a.example/x", "id": "one"}]).encode(), context())
    assert len(batch) == 1
    with pytest.raises(_core.CoreError):
        _core.compile_tasks(b'[{"url": "file:///etc/passwd"}]', context())


@pytest.mark.parametrize("body", [b"", b"\xff", b"[]", b"{", b'{"resources": NaN}', b"[" * 10_000])
def test_no_body_takes_the_process_down(body: bytes) -> None:
    with pytest.raises(_core.CoreError) as caught:
        _core.compile_manifest(body, context())
    assert caught.value.kind == "validation"
