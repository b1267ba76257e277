"""The lists of what is secret in a URL: the hub's, the logs', and what `fetchbox streams tail` shows."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from fetchbox import telemetry
from fetchbox.cli.streams import _decoded
from fetchbox.proto import DeadLetterTask, DownloadTask, JobLog, JobStatus

ROOT = Path(__file__).resolve().parents[2]
SIGNED = "https://h.example/a?X-Amz-Signature=hush&b=2&Key-Pair-Id=hush#f"


def test_the_hub_and_the_logs_hide_the_same_parameters() -> None:
    source = (ROOT / "rust/hub/src/redact.rs").read_text(encoding="utf-8")
    listed = re.search(r"const SECRET: \[&str; \d+\] = \[(.*?)\];", source, re.DOTALL)
    assert listed is not None
    assert re.findall(r'"([^"]+)"', listed[1]) == list(telemetry.SECRET_PARAMETERS)


@pytest.mark.parametrize("name", telemetry.SECRET_PARAMETERS)
def test_each_parameter_is_hidden_in_texts(name: str) -> None:
    shown = telemetry.redact_text(f"GET https://h.example/a?b=1&{name.upper()}=hush&c=2 failed")
    assert "hush" not in shown
    assert "b=1" in shown
    assert "c=2 failed" in shown


def test_streams_tail_hides_signatures_and_headers() -> None:
    task = DownloadTask(job_id="j", url=SIGNED)
    task.headers.add(name="x-own", value="hush")
    letter = DeadLetterTask(task=task, context={"url": SIGNED, "final_url": SIGNED})
    status = JobStatus(job_id="j")
    outcome = status.outcomes.add(final_url=SIGNED, context={"url": SIGNED})
    outcome.task.CopyFrom(task)
    log = JobLog(job_id="j", message=f"redirected to {SIGNED}", fields={"to": SIGNED})
    for topic, message in (("jobs.tasks", task), ("jobs.dlq", letter), ("jobs.status", status), ("jobs.logs", log)):
        shown = str(_decoded(topic, message.SerializeToString()))
        assert "hush" not in shown, shown
        assert "b=2" in shown
