"""Proxies that fail in every way, over every protocol, and what becomes of the task; their credentials are seen nowhere."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

import fetchbox
from fetchbox import DownloadTask
from fetchbox.cli import run
from fetchbox.testing import Origin, content_sha256, free_port, running_origin, running_service

DOC = (Path(__file__).parents[2] / "docs" / "proxies.md").read_text(encoding="utf-8")
ROWS = re.findall(r"^\| `(\w+)` .*\| ([A-Z_]+) \| stored, attempt (\d) \|$", DOC, re.MULTILINE)
SCHEMES = ("http", "https", "socks5")
SIZE = 5000
"""More than the truncating proxy lets through."""
FETCH = {
    "allow_networks": ["127.0.0.0/8"], "max_attempts": 2, "connect_timeout": 1, "backoff_base": 0.001, "backoff_max": 0.001
}  # fmt: skip
PASSWORD = "pr0xy-pa55word"


@pytest.fixture(scope="module")
def origin() -> Iterator[Origin]:
    """An origin with a proxy whose certificate is one of the origin's own authority."""
    with running_origin(proxy_port=0, tls="ca") as running:
        yield running


@pytest.fixture(scope="module")
def unknown() -> Iterator[Origin]:
    """One with a proxy whose certificate nobody vouches for."""
    with running_origin(proxy_port=0) as running:
        yield running


def test_the_table_was_read() -> None:
    assert len(ROWS) == 9


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize(("fault", "alone", "attempt"), ROWS, ids=[row[0] for row in ROWS])
def test_a_fault_has_the_outcome_of_the_manual(
    origin: Origin, unknown: Origin, tmp_path: Path, scheme: str, fault: str, alone: str, attempt: str
) -> None:
    if fault == "tls":
        if scheme != "https":
            pytest.skip("there is no certificate to look at")
        bad = unknown.proxy_url("", scheme)
    else:
        bad = origin.proxy_url(fault, scheme)
    good = origin.proxy_url("someone", scheme)
    assert origin.certificates is not None
    pools = {
        "bad": {"endpoints": [bad], "backoff_base": 0.001},
        "second": {"endpoints": [good]},
        "both": {"endpoints": [bad], "fallbacks": ["second"]},
    }
    config: dict[str, Any] = {"fetch": {**FETCH, "ca_file": str(origin.certificates.ca_file)}, "proxy": {"pools": pools}}
    url = f"http://127.0.0.1:{origin.port}/bytes/{SIZE}?seed=4"
    tasks = [DownloadTask(url, id=pool, proxy=pool) for pool in ("bad", "both")]
    outcomes = {outcome.id: outcome for outcome in fetchbox.fetch(tasks, store=tmp_path, config=config)}
    failed, stored = outcomes["bad"], outcomes["both"]
    assert (failed.state, failed.code, failed.attempts) == ("failed", alone, 2), failed.message
    assert (stored.state, stored.attempts, stored.sha256) == ("stored", int(attempt), content_sha256(4, SIZE)), stored.message
    assert stored.proxy == f"{scheme}://127.0.0.1:{origin.proxy.port if origin.proxy else 0}"
    assert ":x@" not in repr(failed.as_dict()) + repr(stored.as_dict())


def test_a_proxy_that_is_well_again_is_asked_again(origin: Origin, tmp_path: Path) -> None:
    """The endpoint fails, rests, and has its share of what comes after its rest."""
    dead = free_port()
    config = {
        "fetch": FETCH,
        "proxy": {"pools": {"main": {"endpoints": [f"http://127.0.0.1:{dead}", origin.proxy_url()], "backoff_base": 0.2}}},
    }
    urls = (f"http://127.0.0.1:{origin.port}/bytes/10?seed={n}" for n in range(10_000))
    used: list[str | None] = []
    tasks = (DownloadTask(url, proxy="main") for url in urls)
    with contextlib.ExitStack() as stack:
        outcomes = fetchbox.fetch(tasks, store=tmp_path, config=config, concurrency=1)
        stack.callback(outcomes.close)
        for outcome in outcomes:
            assert outcome.state == "stored", outcome.message
            used.append(outcome.proxy)
            if len(used) == 20:
                assert set(used) == {origin.proxy_url()}
                stack.enter_context(running_origin(proxy_port=dead))
            if len(set(used)) == 2:
                break
    assert used[-1] == f"http://127.0.0.1:{dead}"


def test_credentials_are_seen_nowhere(origin: Origin, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Neither in outcomes, dead letters and logs of a service nor in its metrics, its log, its files and what `config show` prints."""
    endpoints = [origin.proxy_url(fault).replace(":x@", f":{PASSWORD}@") for fault in ("407", "refuse", "garbage", "close")]
    config: dict[str, Any] = {
        "fetch": {**FETCH, "allow_networks": ["127.0.0.0/8"]},
        "telemetry": {"log_level": "debug"},
        "proxy": {"pools": {"bad": {"endpoints": endpoints, "backoff_base": 0.001}}},
        "job_types": {"default": {"proxy": {"primary": "bad"}}},
    }
    with running_service(tmp_path / "service", **config) as service:
        resources = [{"url": f"http://127.0.0.1:{origin.port}/bytes/{n}"} for n in range(1, 5)]
        with service.client() as client:
            job = client.submit({"manifest_version": "v1", "metadata": {}, "resources": resources})
            assert client.wait(job.job_id, timeout=60).status == "failed"
        answers = [
            service.get(path)[1]
            for path in (
                f"/operators/jobs/{job.job_id}", f"/operators/jobs/{job.job_id}/resources", f"/operators/jobs/{job.job_id}/logs",
                f"/operators/jobs/{job.job_id}/manifest", "/operators/dlq", "/operators/health",
            )
        ]  # fmt: skip
        assert b"DOWNLOAD_PROXY_EXHAUSTED" in answers[1]
        assert b"DOWNLOAD_PROXY_EXHAUSTED" in answers[4]
        metrics = httpx.get(service.metrics_url + "/metrics", timeout=10, trust_env=False).content
        assert b"fetchbox_proxy_failures_total{" in metrics
        assert b'pool="bad"' in metrics
    assert run(["config", "show", "--config", str(service.config_path)]) == 0
    shown = capsys.readouterr().out
    assert "proxy.pools.bad.tiers" in shown
    written = [path.read_bytes() for path in service.data_dir.rglob("*") if path.is_file()]
    assert len(written) > 3
    for text in [*answers, metrics, shown.encode(), service.log().encode(), *written]:
        assert PASSWORD.encode() not in text
