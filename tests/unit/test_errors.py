"""Errors survive a trip through pickle, whatever their constructors look like."""

from __future__ import annotations

import pickle  # noqa: TID251 - what this file is about

import pytest

from fetchbox.errors import ConfigError, FetchboxError, HandlerError, HubUnavailable, Problem, ProcessError, Refused, StoreError, UsageError


@pytest.mark.parametrize(
    "error",
    [
        FetchboxError("plain"),
        UsageError("wrong"),
        ConfigError([Problem("a.b", "bad", "file"), Problem("c", "worse")]),
        HubUnavailable("away", retry_after=1.5),
        HubUnavailable(),
        Refused(
            "RATE_LIMITED", "slow down", retry_after=2.0, job_id="j", details=[{"pointer": "/x", "code": "c", "message": "m"}], status=429
        ),
        HandlerError("no", code="HANDLER_NO"),
        StoreError("denied"),
        ProcessError("taken"),
    ],
)
def test_errors_are_picklable(error: FetchboxError) -> None:
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is type(error)
    assert str(again) == str(error)
    assert again.__dict__ == error.__dict__
    assert again.code == error.code


def test_a_handlers_code_is_of_its_family() -> None:
    with pytest.raises(UsageError, match="HANDLER_"):
        HandlerError("x", code="DOWNLOAD_X")


def test_a_problem_reads_well() -> None:
    assert str(Problem("a.b", "is bad", "x.toml")) == "a.b: is bad (from x.toml)"
    assert str(ConfigError.single("a", "is bad")) == "a: is bad"
