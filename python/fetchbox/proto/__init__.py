"""The messages on FetchBox's streams, for direct producers and consumers: generated from `proto/jobs.proto` by `make proto`."""

from fetchbox.proto.jobs_pb2 import (
    DeadLetterTask,
    DownloadTask,
    HttpHeader,
    JobLog,
    JobState,
    JobStatus,
    LogLevel,
    ProxyHint,
    ResourceOutcome,
    ResourceState,
    StorageHint,
    TaskAttributes,
    Timings,
)

__all__ = [
    "DeadLetterTask",
    "DownloadTask",
    "HttpHeader",
    "JobLog",
    "JobState",
    "JobStatus",
    "LogLevel",
    "ProxyHint",
    "ResourceOutcome",
    "ResourceState",
    "StorageHint",
    "TaskAttributes",
    "Timings",
]
