"""When a dead child starts again, and which processes a command starts."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Any

import pytest

from fetchbox.config import hub_socket, load
from fetchbox.supervisor.policy import Decision, History, Policy, after_death
from fetchbox.supervisor.roles import plan, warning

POLICY = Policy(first_delay=0.1, longest_delay=5.0, stable=10.0, tries=3)


def lives(*deaths: tuple[float | None, int]) -> list[float | None]:
    """The delay after each of the deaths (ready for, exit code)."""
    history, delays = History(), []
    for ready_for, code in deaths:
        decision: Decision = after_death(POLICY, history, ready_for, code)
        history = decision.history
        delays.append(decision.delay)
    return delays


def test_the_delay_doubles_up_to_its_limit() -> None:
    assert lives(*[(1.0, 1)] * 8) == pytest.approx([0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 5.0, 5.0])


def test_a_stable_life_sets_it_back() -> None:
    assert lives((1.0, 1), (1.0, 1), (10.0, 1), (1.0, 1)) == pytest.approx([0.1, 0.2, 0.1, 0.2])


def test_a_child_that_never_becomes_ready_is_given_up() -> None:
    assert lives((None, 1), (None, 1), (None, 1)) == [0.1, 0.2, None]
    assert lives((None, 0), (None, -11), (None, 1))[-1] is None


def test_one_that_was_ready_once_is_started_for_ever() -> None:
    assert None not in lives((None, 1), (None, 1), (0.0, 1), *[(None, 1)] * 50)


def test_being_killed_from_outside_says_nothing_about_starting() -> None:
    assert None not in lives(*[(None, -9)] * 20, *[(None, -15)] * 20)
    assert lives((None, -9), (None, 1), (None, -9), (None, 1), (None, 1))[-1] is None


def test_a_thousand_deaths_overflow_nothing() -> None:
    assert lives(*[(0.0, 1)] * 5000)[-1] == 5.0


@pytest.mark.parametrize(
    ("command", "overrides", "expected"),
    [
        ("up", {}, {"hub": 1, "api": 1, "worker": 1}),
        ("up", {"worker": {"processes": 0}, "server": {"processes": 2}}, {"hub": 1, "api": 2}),
        ("up", {"hub": {"url": "tcp://h:1", "token": "t"}}, {"api": 1, "worker": 1}),
        ("up", {"hub": {"url": "unix:///run/hub.sock"}}, {"hub": 1, "api": 1, "worker": 1}),
        ("api", {}, {"hub": 1, "api": 1}),
        ("api", {"hub": {"url": "unix:///run/hub.sock"}}, {"api": 1}),
        ("api", {"hub": {"url": "tcp://hub.test:1", "token": "t"}}, {"api": 1}),
        ("worker", {"hub": {"url": "tcp://hub.test:1", "token": "t"}}, {"worker": 1}),
        ("up", {"hub": {"url": "tcp://hub.test:1", "token": "t"}}, {"api": 1, "worker": 1}),
        ("hub", {"hub": {"listen": "tcp://127.0.0.1:1", "token": "t"}}, {"hub": 1}),
        ("worker", {"worker": {"processes": 3}}, {"worker": 3}),
        ("hub", {}, {"hub": 1}),
    ],
)
def test_which_processes_a_command_starts(tmp_path: Path, command: str, overrides: dict[str, Any], expected: dict[str, int]) -> None:
    config = load(env={}, overrides={"data_dir": str(tmp_path), **overrides})
    assert list(plan(config, command).items()) == list(expected.items())


LISTENING = {"hub": {"listen": "tcp://0.0.0.0:1", "token": "t", "tls_cert": "/dev/null", "tls_key": "/dev/null"}}
CALLING = {"hub": {"url": "tcp://hub.test:1", "token": "t"}}


@pytest.mark.parametrize(
    ("command", "overrides", "told"),
    [
        ("hub", LISTENING, True),
        ("worker", CALLING, True),
        ("api", CALLING, True),
        ("worker", {**CALLING, "storage": {"url": "s3://bucket", "access_key_id": "a", "secret_access_key": "b"}}, False),
        ("worker", {"hub": {"url": "tcp://127.0.0.1:1", "token": "t"}}, False),
        ("up", {}, False),
    ],
)
def test_a_directory_as_the_store_of_several_hosts_is_warned_of(command: str, overrides: dict[str, Any], told: bool) -> None:
    config = load(env={}, overrides=overrides)
    assert ("must find the same files" in (warning(config, plan(config, command)) or "")) == told


def test_an_api_uses_the_hub_that_runs_already(tmp_path: Path) -> None:
    config = load(env={}, overrides={"data_dir": str(tmp_path)})
    with socket.socket(socket.AF_UNIX) as hub:
        hub.bind(hub_socket(config))
        assert plan(config, "api") == {"hub": 1, "api": 1}, "a socket that nobody listens on is no hub"
        hub.listen()
        assert plan(config, "api") == {"api": 1}
