"""The Python messages: the contract's fields and numbers, the same bytes as Rust writes, and nothing edited by hand."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import pytest
from google.protobuf.descriptor import EnumDescriptor, FieldDescriptor
from google.protobuf.internal import api_implementation
from google.protobuf.message import Message

from fetchbox.proto import jobs_pb2 as jobs

ROOT = Path(__file__).resolve().parents[2]
PROTO = ROOT / "proto"
GENERATED = ROOT / "python" / "fetchbox" / "proto"
SAMPLE = ROOT / "rust" / "model" / "tests" / "messages.hex"

STRINGS = "map<string, string>"
MESSAGES = {
    "HttpHeader": {"name": (1, "string"), "value": (2, "string")},
    "StorageHint": {"bucket": (1, "string"), "key_prefix": (2, "string"), "metadata": (3, STRINGS), "key": (16, "string")},
    "ProxyHint": {"primary_pool": (1, "string"), "fallbacks": (2, "repeated string")},
    "TaskAttributes": {"tags": (1, STRINGS), "checksum_hint": (2, "string"), "mime_hint": (3, "string"), "extra": (4, "bytes")},
    "DownloadTask": {
        "job_id": (1, "string"),
        "job_type": (2, "string"),
        "resource_id": (3, "string"),
        "url": (4, "string"),
        "headers": (5, "repeated HttpHeader"),
        "proxy_hint": (6, "ProxyHint"),
        "storage_hint": (7, "StorageHint"),
        "attributes": (8, "TaskAttributes"),
        "manifest_key": (9, "string"),
        "attempt": (10, "uint32"),
        "tenant": (11, "string"),
        "trace_id": (12, "string"),
        "resource_index": (16, "uint32"),
        "resources_total": (17, "uint32"),
        "generation": (18, "uint32"),
        "not_before_ms": (19, "uint64"),
        "deadline_ms": (20, "uint64"),
        "traceparent": (21, "string"),
    },
    "JobStatus": {
        "job_id": (1, "string"),
        "job_type": (2, "string"),
        "state": (3, "JobState"),
        "resources_total": (4, "uint32"),
        "resources_completed": (5, "uint32"),
        "resources_failed": (6, "uint32"),
        "manifest_key": (7, "string"),
        "tenant": (8, "string"),
        "last_error_code": (9, "string"),
        "last_error_message": (10, "string"),
        "log_offset": (11, "uint64"),
        "timestamp_ms": (12, "uint64"),
        "resources_reused": (16, "uint32"),
        "resources_filtered": (17, "uint32"),
        "resources_cancelled": (18, "uint32"),
        "outcomes": (19, "repeated ResourceOutcome"),
    },
    "ResourceOutcome": {
        "resource_id": (1, "string"),
        "resource_index": (2, "uint32"),
        "generation": (3, "uint32"),
        "state": (4, "ResourceState"),
        "code": (5, "string"),
        "message": (6, "string"),
        "http_status": (7, "uint32"),
        "final_url": (8, "string"),
        "redirects": (9, "uint32"),
        "attempts": (10, "uint32"),
        "proxy": (11, "string"),
        "size": (12, "uint64"),
        "sha256": (13, "bytes"),
        "etag": (14, "string"),
        "last_modified": (15, "string"),
        "content_type": (16, "string"),
        "sniffed_type": (17, "string"),
        "storage_url": (18, "string"),
        "storage_etag": (19, "string"),
        "timings": (20, "Timings"),
        "finished_at_ms": (21, "uint64"),
        "task": (22, "DownloadTask"),
        "context": (23, STRINGS),
        "reuse_key": (24, "bytes"),
    },
    "Timings": {
        name: (number, "uint32") for number, name in enumerate(("dns", "connect", "tls", "first_byte", "body", "store", "queued"), 1)
    },
    "JobLog": {
        "job_id": (1, "string"),
        "resource_id": (2, "string"),
        "level": (3, "LogLevel"),
        "message": (4, "string"),
        "fields": (5, STRINGS),
        "timestamp_ms": (6, "uint64"),
        "trace_id": (7, "string"),
    },
    "DeadLetterTask": {
        "task": (1, "DownloadTask"),
        "failure_code": (2, "string"),
        "failure_message": (3, "string"),
        "attempts": (4, "uint32"),
        "failed_at_ms": (5, "uint64"),
        "context": (16, STRINGS),
    },
}
ENUMS = {
    "JobState": ("JOB_STATE_", ["UNKNOWN", "QUEUED", "IN_PROGRESS", "PARTIAL", "COMPLETED", "FAILED", "CANCELLED"]),
    "ResourceState": ("RESOURCE_STATE_", ["UNKNOWN", "STORED", "REUSED", "FILTERED", "FAILED", "CANCELLED"]),
    "LogLevel": ("LOG_LEVEL_", ["TRACE", "DEBUG", "INFO", "WARN", "ERROR"]),
}
SCALARS = {
    FieldDescriptor.TYPE_STRING: "string",
    FieldDescriptor.TYPE_BYTES: "bytes",
    FieldDescriptor.TYPE_UINT32: "uint32",
    FieldDescriptor.TYPE_UINT64: "uint64",
}


def kind(field: FieldDescriptor) -> str:
    """A field's type as contracts and the .proto write it."""
    if field.message_type is not None and field.message_type.GetOptions().map_entry:
        key, value = (kind(field.message_type.fields_by_name[name]) for name in ("key", "value"))
        return f"map<{key}, {value}>"
    of = field.message_type or field.enum_type
    name = of.name if of is not None else SCALARS[field.type]
    return f"repeated {name}" if field.is_repeated else name


def test_the_fields_and_numbers_are_the_contracts() -> None:
    found = {
        name: {field.name: (field.number, kind(field)) for field in message.fields}
        for name, message in jobs.DESCRIPTOR.message_types_by_name.items()
    }
    assert found == MESSAGES
    assert jobs.DESCRIPTOR.package == "fetchbox.jobs"


def test_the_enums_are_the_contracts() -> None:
    enums: dict[str, EnumDescriptor] = dict(jobs.DESCRIPTOR.enum_types_by_name)
    found = {name: [(value.name, value.number) for value in enum.values] for name, enum in enums.items()}
    assert found == {name: [(prefix + value, number) for number, value in enumerate(values)] for name, (prefix, values) in ENUMS.items()}


def test_the_package_exports_every_message_and_enum() -> None:
    from fetchbox import proto

    assert sorted(proto.__all__) == sorted([*MESSAGES, *ENUMS])
    assert all(getattr(proto, name) is getattr(jobs, name) for name in proto.__all__)


def test_it_runs_on_upb() -> None:
    assert api_implementation.Type() == "upb"


def sample() -> dict[str, bytes]:
    return {name: bytes.fromhex(text) for name, text in (line.split() for line in SAMPLE.read_text().splitlines())}


@pytest.mark.parametrize("name", ["DownloadTask", "ResourceOutcome", "JobStatus", "JobLog", "DeadLetterTask"])
def test_what_rust_wrote_is_written_the_same_here(name: str) -> None:
    data = sample()[name]
    message: Message = getattr(jobs, name).FromString(data)
    assert message.SerializeToString(deterministic=True) == data
    set_fields = {field.name for field, _ in message.ListFields()}
    unset = set(MESSAGES[name]) - set_fields
    # The sample sets every field but those whose emptiness is a case of its own.
    assert unset == {"JobStatus": {"resources_cancelled"}, "JobLog": {"resource_id"}}.get(name, set())


def test_what_rust_wrote_means_the_same_here() -> None:
    outcome = jobs.ResourceOutcome.FromString(sample()["ResourceOutcome"])
    task = outcome.task
    assert (task.resource_id, task.resource_index, task.deadline_ms) == ("../é", 300, 2**64 - 1)
    assert [(header.name, header.value) for header in task.headers] == [("referer", "https://example.com/")]
    assert dict(task.storage_hint.metadata) == {"a": "1", "b": "2"}
    assert task.attributes.extra == b"\x00\xff"
    assert (outcome.state, outcome.size, outcome.sha256) == (jobs.RESOURCE_STATE_FAILED, 2**40, b"\xab" * 32)
    assert (outcome.timings.dns, outcome.timings.queued) == (1, 7)


def without_versions(generated: Path) -> str:
    """A generated file without the generator's version, which may be newer here than where it was made."""
    text = generated.read_text()
    text = re.sub(r"^# Protobuf Python Version: .*$", "", text, flags=re.MULTILINE)
    return re.sub(r"(ValidateProtobufRuntimeVersion\(\s*\S+,)\s*\d+,\s*\d+,\s*\d+,\s*'[^']*',", r"\1", text)


@pytest.mark.skipif(importlib.util.find_spec("grpc_tools") is None, reason="grpcio-tools is not installed")
def test_generating_again_gives_the_same_files(tmp_path: Path) -> None:
    (tmp_path / "fetchbox" / "proto").mkdir(parents=True)
    command = [sys.executable, "-m", "grpc_tools.protoc", f"-Ifetchbox/proto={PROTO}", f"--python_out={tmp_path}", f"--pyi_out={tmp_path}"]
    subprocess.run([*command, "fetchbox/proto/jobs.proto"], check=True, timeout=60)
    for name in ("jobs_pb2.py", "jobs_pb2.pyi"):
        made = without_versions(tmp_path / "fetchbox" / "proto" / name)
        assert made == without_versions(GENERATED / name), f"{name} is stale: run `make proto`"
