"""Traces of a real service, received as OTLP over HTTP by a collector of our own that reads the official messages."""

from __future__ import annotations

import gzip
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest, ExportTraceServiceResponse

from fetchbox.testing import free_port, running_origin
from tests.process.service import Service
from tests.process.waiting import wait_for

CALLER = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-0"


class Collector:
    """What has been received: spans with the attributes of their resource."""

    def __init__(self) -> None:
        self.spans: list[dict[str, Any]] = []
        self.url = ""

    def take(self, body: bytes) -> None:
        request = ExportTraceServiceRequest.FromString(body)
        for resource in request.resource_spans:
            told = {entry.key: entry.value.string_value for entry in resource.resource.attributes}
            for scope in resource.scope_spans:
                for span in scope.spans:
                    attributes = {entry.key: entry.value.string_value or entry.value.int_value for entry in span.attributes}
                    self.spans.append({"span": span, "attributes": attributes, "resource": told})

    def named(self, name: str) -> list[dict[str, Any]]:
        return [entry for entry in self.spans if entry["span"].name == name]


@contextmanager
def collector() -> Iterator[Collector]:
    """A running one."""
    found = Collector()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            assert self.path == "/v1/traces", self.path
            found.take(gzip.decompress(body) if self.headers.get("content-encoding") == "gzip" else body)
            answer = ExportTraceServiceResponse().SerializeToString()
            self.send_response(200)
            self.send_header("content-type", "application/x-protobuf")
            self.send_header("content-length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

        def log_message(self, format: str, *args: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    found.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield found
    finally:
        server.shutdown()
        server.server_close()
        thread.join(10)


def post(service: Service, urls: list[str], **headers: str) -> Any:
    body = {"manifest_version": "v1", "metadata": {}, "resources": [{"id": f"r{n}", "url": url} for n, url in enumerate(urls)]}
    return service.http.http.post("/jobs", json=body, headers=headers)


def test_one_trace_from_the_caller_to_every_download(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Spans are sent at once instead of every five seconds.
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "100")
    with collector() as received, running_origin() as origin:
        overrides = {"telemetry": {"otlp_endpoint": received.url}, "job_types": {"default": {"fetch": {"max_attempts": 1}}}}
        with Service(tmp_path / "service", overrides).start() as service:
            urls = [origin.url("/bytes/1000"), origin.url("/status/404"), origin.url("/bytes/10") + "?X-Amz-Signature=s3cret"]
            job_id = post(service, urls, traceparent=CALLER + "1").json()["job_id"]
            job = service.http.await_job(job_id, 30, describe=service.dump)
            assert job["trace_id"] == CALLER.split("-")[1]
            unrecorded = post(service, urls, traceparent=CALLER.replace("319c", "319d") + "0").json()["job_id"]
            service.http.await_job(unrecorded, 30, describe=service.dump)
            refused = post(service, ["http://"], traceparent=CALLER + "1")
            assert refused.status_code == 400
            wait_for("all spans", lambda: len(received.spans) >= 5, 20, describe=lambda: str([e["span"].name for e in received.spans]))
            service.end()
        taken, turned_away = received.named("POST /jobs")
        assert {entry["span"].trace_id.hex() for entry in received.spans} == {CALLER.split("-")[1]}
        assert taken["span"].parent_span_id.hex() == CALLER.split("-")[2]
        assert taken["attributes"]["fetchbox.job_id"] == job_id
        assert taken["attributes"]["http.response.status_code"] == 202
        assert turned_away["attributes"]["fetchbox.result"] == "invalid_payload"
        assert taken["resource"]["service.name"] == "fetchbox"
        downloads = sorted(received.named("download"), key=lambda entry: str(entry["attributes"]["fetchbox.resource_id"]))
        assert [entry["span"].parent_span_id for entry in downloads] == [taken["span"].span_id] * 3
        assert [entry["attributes"]["fetchbox.state"] for entry in downloads] == ["stored", "failed", "stored"]
        assert downloads[1]["attributes"]["error.type"] == "DOWNLOAD_HTTP_4XX"
        assert downloads[1]["span"].status.code == 2
        for entry in downloads:
            assert 0 < entry["span"].start_time_unix_nano <= entry["span"].end_time_unix_nano
            assert "s3cret" not in str(entry)


def test_a_collector_that_is_away_stops_nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "100")
    with running_origin() as origin:
        overrides = {"telemetry": {"otlp_endpoint": f"http://127.0.0.1:{free_port()}"}}
        with Service(tmp_path / "service", overrides).start() as service:
            job_id = post(service, [origin.url(f"/bytes/{n}") for n in range(100)]).json()["job_id"]
            assert service.http.await_job(job_id, 30, describe=service.dump)["resource_completed"] == 100
            service.end()
