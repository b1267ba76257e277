"""What all tests share: an environment without settings of the machine they run on, and hypothesis without luck."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator

import pytest
import structlog
from hypothesis import HealthCheck, settings

# A shell ignores SIGINT for what it runs in the background, and children inherit that: the tests of Ctrl-C need it.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

settings.register_profile("fetchbox", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("fetchbox")


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """No variable of ours, no proxy and no cloud credentials leak into a test."""
    for name in list(os.environ):
        if name.startswith(("FETCHBOX", "AWS_", "OTEL_")) or name.lower() in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
            monkeypatch.delenv(name)


@pytest.fixture(autouse=True)
def clean_logging() -> Iterator[None]:
    """A test that configures logs does so for itself only."""
    yield
    structlog.reset_defaults()
    structlog.contextvars.clear_contextvars()
