"""Whether there is an exporter, and what is said when there cannot be one."""

from __future__ import annotations

import sys

import pytest

from fetchbox.config import Config
from fetchbox.errors import ConfigError
from fetchbox.tracing import ENDPOINT_VARIABLES, traces


@pytest.fixture(autouse=True)
def without_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ENDPOINT_VARIABLES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setitem(sys.modules, "opentelemetry.exporter.otlp.proto.http.trace_exporter", None)


def named(endpoint: str | None) -> Config:
    return Config.model_validate({"telemetry": {"otlp_endpoint": endpoint}})


def test_nobody_asked() -> None:
    assert traces(named(None), "api 0") is None


def test_an_endpoint_of_ours_wants_the_extra() -> None:
    with pytest.raises(ConfigError, match="fetchbox\\[otel\\]"):
        traces(named("http://127.0.0.1:4318"), "api 0")


def test_a_variable_for_everybody_stops_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:4318")
    assert traces(named(None), "api 0") is None
