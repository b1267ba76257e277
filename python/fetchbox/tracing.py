"""Traces over OTLP, where somebody asked for them: a span per manifest posted and one per resource settled, children of the caller's.

Needs the extra `fetchbox[otel]`; nothing of it is imported otherwise. Whether a trace is recorded is decided once, by the caller's
`traceparent` or at the ingress by OTEL_TRACES_SAMPLER, and travels with every task.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

import structlog

from fetchbox.config import Config
from fetchbox.errors import ConfigError
from fetchbox.telemetry import redact_text

if TYPE_CHECKING:
    from opentelemetry.context import Context
    from opentelemetry.trace import Span

    from fetchbox._core import Outcome

log = structlog.get_logger("fetchbox.tracing")

ENDPOINT_VARIABLES = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
EXPORT_SECONDS = 5
"""What one export may take, retries included."""
CLOSE_MILLISECONDS = 2000
"""What is still waiting at the end may take so long; the rest is lost."""
STEPS = ("dns", "connect", "tls", "first_byte", "body", "store")
"""Timings that follow each other and make up an attempt; in microseconds."""


def traces(config: Config, process: str) -> Traces | None:
    """The exporter of this process; None where no endpoint is named. ConfigError when ours is named and the extra is missing."""
    endpoint = config.telemetry.otlp_endpoint
    if endpoint is None and not any(os.environ.get(name) for name in ENDPOINT_VARIABLES):
        return None
    if (
        os.environ.get("OTEL_SDK_DISABLED", "").strip().lower() == "true"
        or os.environ.get("OTEL_TRACES_EXPORTER", "otlp").strip() == "none"
    ):
        return None
    try:
        import opentelemetry.exporter.otlp.proto.http.trace_exporter
        import opentelemetry.sdk.trace.export  # noqa: F401
    except ImportError as error:
        if endpoint is None:
            # The variables are often there for everybody on a machine: no reason not to start.
            log.warning("no traces, although OTEL_* variables name an endpoint: pip install 'fetchbox[otel]'")
            return None
        raise ConfigError.single("telemetry.otlp_endpoint", "needs OpenTelemetry: pip install 'fetchbox[otel]'") from error
    return Traces(endpoint, process)


class Traces:
    """Makes spans and exports them from a thread of its own. A collector that is away costs spans, never a download."""

    def __init__(self, endpoint: str | None, process: str) -> None:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor

        from fetchbox import __version__

        resource = Resource.create(
            {
                "service.name": os.environ.get("OTEL_SERVICE_NAME", "fetchbox"),
                "service.version": __version__,
                "service.instance.id": f"{socket.gethostname()} {process}",
            }
        )
        # As the specification has it for the endpoint of all signals; without one of ours the exporter reads the variables itself.
        url = None if endpoint is None else endpoint.rstrip("/") + "/v1/traces"
        self._provider = TracerProvider(resource=resource, shutdown_on_exit=False)
        self._provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(endpoint=url, timeout=EXPORT_SECONDS)))
        self._tracer = self._provider.get_tracer("fetchbox", __version__)

    def submission(self, traceparent: bytes | None) -> Submission:
        """The span of a manifest on its way in, a child of the caller's."""
        from opentelemetry.trace import SpanKind

        parent = _context(traceparent.decode("latin-1").strip()) if traceparent is not None else None
        return Submission(self._tracer.start_span("POST /jobs", context=parent or _no_context(), kind=SpanKind.SERVER))

    def settled(self, sampled: Iterable[tuple[str, str, str, int, Outcome]]) -> None:
        """A span per outcome, from its last attempt's beginning to its end."""
        from opentelemetry.trace import SpanKind, Status, StatusCode

        for traceparent, job_id, job_type, finished_ms, outcome in sampled:
            end = finished_ms * 1_000_000
            start = end - sum(outcome.timings.get(step, 0) for step in STEPS) * 1000
            attributes: dict[str, str | int] = {
                "url.full": redact_text(outcome.url),
                "fetchbox.job_id": job_id,
                "fetchbox.job_type": job_type,
                "fetchbox.resource_id": outcome.id,
                "fetchbox.state": outcome.state,
                "fetchbox.attempts": outcome.attempts,
                "fetchbox.size": outcome.size,
                **{f"fetchbox.{step}_us": outcome.timings[step] for step in ("queued", *STEPS) if step in outcome.timings},
            }
            if outcome.http_status:
                attributes["http.response.status_code"] = outcome.http_status
            if outcome.proxy:
                attributes["fetchbox.proxy_pool"] = outcome.proxy
            span = self._tracer.start_span(
                "download", context=_context(traceparent), kind=SpanKind.CLIENT, start_time=start, attributes=attributes
            )
            if outcome.code:
                span.set_attribute("error.type", outcome.code)
                span.set_status(Status(StatusCode.ERROR, redact_text(outcome.message or "")))
            span.end(end)

    def close(self) -> None:
        """Exports what waits, for at most two seconds."""
        self._provider.force_flush(CLOSE_MILLISECONDS)


class Submission:
    """A manifest on its way in."""

    def __init__(self, span: Span) -> None:
        self._span = span
        context = span.get_span_context()
        self.trace_id = f"{context.trace_id:032x}"
        self.traceparent = f"00-{self.trace_id}-{context.span_id:016x}-{int(context.trace_flags):02x}"

    def end(self, result: str, status: int, facts: Mapping[str, str | int]) -> None:
        """It was answered."""
        from opentelemetry.trace import Status, StatusCode

        self._span.set_attributes(
            {
                "http.request.method": "POST",
                "http.route": "/jobs",
                "http.response.status_code": status,
                "fetchbox.result": result,
                **facts,
            }
        )
        if status >= 500:
            self._span.set_status(Status(StatusCode.ERROR))
        self._span.end()


def _no_context() -> Context:
    from opentelemetry.context import Context

    return Context()


def _context(traceparent: str) -> Context | None:
    """The remote parent that a traceparent names; None for one that names none."""
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    return TraceContextTextMapPropagator().extract({"traceparent": traceparent}, context=_no_context())
