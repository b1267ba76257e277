"""Metrics as an operator has them: the manual against a real run, the alert rules, a real Prometheus that scrapes a real service."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from fetchbox.testing import Origin, Service, free_port, running_origin, running_service, wait_until

ROOT = Path(__file__).parents[2]
RULES = ROOT / "docker" / "prometheus" / "alerts.yml"
DASHBOARD = json.loads((ROOT / "docker" / "grafana" / "dashboards" / "fetchbox.json").read_text(encoding="utf-8"))
MANUAL = (ROOT / "docs" / "observability.md").read_text(encoding="utf-8")
DOCUMENTED = set(re.findall(r"`(fetchbox_\w+)`", MANUAL))
RARE = {"fetchbox_proxy_failures_total", "fetchbox_worker_storage_failures_total", "fetchbox_worker_reused_total"}
"""Series that begin with an event that a healthy run does not have."""
PROXY_POOL = {"pools": {"dead": {"endpoints": ["http://127.0.0.1:1"]}}}


def expressions() -> list[str]:
    """Every query of the dashboard and of the rules, ready to be asked."""
    panels = [target["expr"] for panel in DASHBOARD["panels"] for target in panel.get("targets", [])]
    rules = re.findall(r"expr: (?:>-\n((?:          .*\n)+)|(.*))", RULES.read_text(encoding="utf-8"))
    return [text.replace("$__rate_interval", "1m") for text in panels + [" ".join(folded.split()) or plain for folded, plain in rules]]


@pytest.fixture(scope="module")
def origin() -> Iterator[Origin]:
    with running_origin() as running:
        yield running


@pytest.fixture(scope="module")
def service(origin: Origin, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """A service that has stored, failed and retried."""
    fetch = {"max_attempts": 2, "backoff_base": 0.01, "backoff_max": 0.02}
    with running_service(tmp_path_factory.mktemp("service"), fetch=fetch, proxy=PROXY_POOL) as running:
        resources = [{"url": origin.url(path)} for path in ("/bytes/1000", "/status/404", "/status/500")]
        with running.client() as client:
            job = client.submit({"manifest_version": "v1", "metadata": {}, "resources": resources})
            assert client.wait(job.job_id, timeout=30).status == "partial"
        yield running


def page(service: Service) -> str:
    return httpx.get(service.metrics_url + "/metrics", timeout=10, trust_env=False).text


def test_the_manual_has_every_metric_and_no_other(service: Service) -> None:
    def all_there() -> bool:
        return families(page(service)) >= DOCUMENTED - RARE

    wait_until(all_there, 15, what=f"{DOCUMENTED - RARE - families(page(service))} to be there")
    assert families(page(service)) <= DOCUMENTED


def families(text: str) -> set[str]:
    """Names of metrics; those of histograms without their endings."""
    return set(re.findall(r"^# TYPE (\S+) ", text, re.MULTILINE))


def test_nothing_that_is_done_has_an_age(service: Service) -> None:
    """And accepted resources are counted once, however many processes there are."""

    def value(name: str) -> float:
        return sum(float(line.split()[-1]) for line in page(service).splitlines() if line.startswith(name))

    wait_until(lambda: value('fetchbox_queue_lag{group="workers"') == 0, 15, what="everything to be committed")
    assert value("fetchbox_queue_oldest_age_seconds") == 0
    assert value("fetchbox_resources_accepted_total") == 3
    assert value("fetchbox_resources_settled_total") == 3


def test_what_is_asked_exists() -> None:
    """No panel and no rule asks for a metric that the manual does not know."""
    assert len(expressions()) >= 40
    for text in expressions():
        names = {re.sub(r"_(bucket|sum|count)$", "", name) for name in re.findall(r"fetchbox_\w+", text)}
        assert names <= DOCUMENTED, text


def test_every_alert_has_a_section_in_the_runbook() -> None:
    runbook = (ROOT / "docs" / "runbook.md").read_text(encoding="utf-8")
    alerts = re.findall(r"alert: (\w+)", RULES.read_text(encoding="utf-8"))
    assert re.findall(r"^## (\w+)$", runbook, re.MULTILINE) == alerts
    sections = runbook.split("\n## ")[1:]
    assert all("**Look:**" in section and "**Do:**" in section for section in sections)


@pytest.mark.skipif(shutil.which("promtool") is None, reason="no promtool: apt-get install prometheus")
def test_the_rules_and_the_configuration_are_valid_and_fire_when_they_should() -> None:
    for arguments in (["check", "rules", str(RULES)], ["check", "config", str(RULES.with_name("prometheus.yml"))],
                      ["test", "rules", str(RULES.with_name("alerts_test.yml"))]):  # fmt: skip
        done = subprocess.run(["promtool", *arguments], capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
    tested = set(re.findall(r"alertname: (\w+)", RULES.with_name("alerts_test.yml").read_text(encoding="utf-8")))
    assert tested == set(re.findall(r"alert: (\w+)", RULES.read_text(encoding="utf-8")))


@pytest.mark.skipif(shutil.which("prometheus") is None, reason="no prometheus: apt-get install prometheus")
def test_a_real_prometheus_scrapes_it_and_answers_every_question(service: Service, tmp_path: Path) -> None:
    target = service.metrics_url.removeprefix("http://")
    config = (RULES.with_name("prometheus.yml")).read_text(encoding="utf-8")
    config = config.replace("127.0.0.1:9464", target).replace("alerts.yml", str(RULES)).replace("15s", "1s")
    (tmp_path / "prometheus.yml").write_text(config, encoding="utf-8")
    port = free_port()
    command = [
        "prometheus",
        f"--config.file={tmp_path}/prometheus.yml",
        f"--storage.tsdb.path={tmp_path}/data",
        f"--web.listen-address=127.0.0.1:{port}",
    ]
    with (tmp_path / "log").open("wb") as log, subprocess.Popen(command, stdout=log, stderr=log, stdin=subprocess.DEVNULL) as process:
        try:

            def ask(query: str) -> list[Any]:
                answer = httpx.get(f"http://127.0.0.1:{port}/api/v1/query", params={"query": query}, timeout=10, trust_env=False).json()
                assert answer["status"] == "success", (query, answer)
                return list(answer["data"]["result"])

            def answers() -> bool:
                assert process.poll() is None, (tmp_path / "log").read_text(errors="replace")
                try:
                    return httpx.get(f"http://127.0.0.1:{port}/-/ready", timeout=10, trust_env=False).status_code == 200
                except httpx.TransportError:
                    return False

            wait_until(answers, 60, what="Prometheus to be ready")
            wait_until(lambda: [s["value"][1] for s in ask('up{job="fetchbox"}')] == ["1"], 60, what="a scrape")
            for query in expressions():
                ask(query)
            assert {sample["metric"]["state"]: sample["value"][1] for sample in ask("fetchbox_resources_settled_total")}["stored"] == "1"
            assert ask("min(fetchbox_service_ready)")[0]["value"][1] == "1"
            rules = httpx.get(f"http://127.0.0.1:{port}/api/v1/rules", timeout=10, trust_env=False).json()["data"]["groups"][0]["rules"]
            assert {rule["health"] for rule in rules} <= {"ok", "unknown"}
            assert all(rule["state"] != "firing" for rule in rules)
        finally:
            process.terminate()
            process.wait(30)
