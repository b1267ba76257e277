"""Layers: what wins over what, where values come from, and that every problem is told at once."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from fetchbox.config import Config, describe, load, load_library
from fetchbox.errors import ConfigError, Problem, UsageError


def problems(env: Mapping[str, str] | None = None, overrides: Mapping[str, Any] | None = None, path: Path | None = None) -> list[Problem]:
    """The problems of a configuration that must have some."""
    with pytest.raises(ConfigError) as caught:
        load(path, env or {}, overrides)
    return list(caught.value.problems)


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty current directory."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_without_any_configuration_everything_has_a_default(here: Path) -> None:
    config = load(env={})
    assert config.server.bind_addr == "127.0.0.1:8080"
    assert config.data_dir == str(here / "fetchbox-data")
    assert config.hub.path == str(here / "fetchbox-data/hub")
    assert config.storage.url == f"file://{here}/fetchbox-data/assets"


def test_the_environment_wins_over_the_file_and_the_command_line_over_both(here: Path) -> None:
    (here / "fetchbox.toml").write_text('drain_timeout = "1s"\n[server]\nprocesses = 2\nmax_resources = 10\n[worker]\nprocesses = 3\n')
    env = {"FETCHBOX__SERVER__PROCESSES": "4", "FETCHBOX__WORKER__PROCESSES": "5"}
    config = load(env=env, overrides={"worker": {"processes": 6}})
    assert (config.drain_timeout, config.server.max_resources, config.server.processes, config.worker.processes) == (1.0, 10, 4, 6)
    assert config.source_of("server.max_resources") == "fetchbox.toml"
    assert config.source_of("server.processes") == "FETCHBOX__SERVER__PROCESSES"
    assert config.source_of("worker.processes") == "the command line"
    assert config.source_of("server.bind_addr") is None


@pytest.mark.parametrize(
    ("explicit", "variable", "present", "expected"),
    [
        ("a.toml", "b.toml", ("config/fetchbox.toml", "fetchbox.toml"), "a.toml"),
        (None, "b.toml", ("config/fetchbox.toml", "fetchbox.toml"), "b.toml"),
        (None, None, ("config/fetchbox.toml", "fetchbox.toml"), "config/fetchbox.toml"),
        (None, None, ("fetchbox.toml",), "fetchbox.toml"),
        (None, None, (), None),
    ],
)
def test_which_file_is_read(here: Path, explicit: str | None, variable: str | None, present: tuple[str, ...], expected: str | None) -> None:
    (here / "config").mkdir()
    for number, name in enumerate(["a.toml", "b.toml", *present], start=1):
        (here / name).write_text(f"[server]\nprocesses = {number}\n")
    config = load(explicit, {"FETCHBOX_CONFIG": variable} if variable else {})
    assert config.source_of("server.processes") == expected


def test_a_file_that_was_asked_for_must_be_there(here: Path) -> None:
    assert "no.toml" in problems(path=Path("no.toml"))[0].message
    assert "gone.toml" in problems({"FETCHBOX_CONFIG": "gone.toml"})[0].message


def test_broken_toml_is_named(here: Path) -> None:
    (here / "fetchbox.toml").write_text("server = [")
    assert "not valid TOML" in problems()[0].message


@pytest.mark.parametrize(
    ("name", "text", "read"),
    [
        ("FETCHBOX__SERVER__OPERATOR_TOKEN", "12345", lambda c: c.server.operator_token.get_secret_value() == "12345"),
        ("FETCHBOX__SERVER__API_TOKENS", '{"t": "acme"}', lambda c: c.server.api_tokens == {"t": "acme"}),
        ("FETCHBOX__SERVER", '{"processes": 3}', lambda c: c.server.processes == 3),
        ("FETCHBOX__FETCH__HTTP2", "false", lambda c: c.fetch.http2 is False),
        ("FETCHBOX__FETCH__HTTP2", "0", lambda c: c.fetch.http2 is False),
        ("FETCHBOX__FETCH__MAX_BYTES", "8MB", lambda c: c.fetch.max_bytes == 8_000_000),
        ("FETCHBOX__FETCH__PER_HOST_RATE", "20/s", lambda c: c.fetch.per_host_rate == 20.0),
        ("FETCHBOX__FETCH__ALLOW_NETWORKS", '["10.0.0.0/8"]', lambda c: c.fetch.allow_networks == ("10.0.0.0/8",)),
        ("FETCHBOX__FETCH__ALLOW_NETWORKS", "10.0.0.0/8, ::1/128", lambda c: c.fetch.allow_networks == ("10.0.0.0/8", "::1/128")),
        ("FETCHBOX__DRAIN_TIMEOUT", "2", lambda c: c.drain_timeout == 2.0),
        ("FETCHBOX__HUB__URL", "", lambda c: c.hub.url is None),
        ("FETCHBOX__TELEMETRY__METRICS_ADDR", "", lambda c: c.telemetry.metrics_addr == ""),
        ("FETCHBOX__STORAGE__METADATA__Team", "crawl", lambda c: c.storage.metadata == {"Team": "crawl"}),
        ("FETCHBOX__JOB_TYPES__GALLERY__FETCH__MAX_ATTEMPTS", "2", lambda c: c.fetch_for("gallery").max_attempts == 2),
        ("FETCHBOX__JOB_TYPES__GALLERY__OPTIONS", '{"deep": {"n": [1]}}', lambda c: c.job_types["gallery"].options == {"deep": {"n": [1]}}),
        ("FETCHBOX__PROXY__POOLS__DC__ENDPOINTS", "http://p:1", lambda c: c.proxy.pools["dc"].endpoints == ("http://p:1",)),
    ],
)
def test_variables_are_text_where_text_is_wanted_and_json_elsewhere(here: Path, name: str, text: str, read: Any) -> None:
    assert read(load(env={name: text}))


def test_a_variable_reaches_the_name_that_the_file_gave(here: Path) -> None:
    (here / "fetchbox.toml").write_text("[job_types.My-Gallery]\nhandler_timeout = 5\n")
    config = load(env={"FETCHBOX__JOB_TYPES__MY_GALLERY__HANDLER_TIMEOUT": "7"})
    assert {name: job_type.handler_timeout for name, job_type in config.job_types.items()} == {"My-Gallery": 7.0}


def test_an_empty_table_names_a_job_type_and_clears_nothing(here: Path) -> None:
    (here / "fetchbox.toml").write_text("[job_types.plain]\n[job_types.set]\nhandler_timeout = 5\n[server]\nprocesses = 2\n")
    config = load(env={"FETCHBOX__SERVER": "{}"}, overrides={"server": {}, "job_types": {"set": {}}})
    assert {name: job_type.handler_timeout for name, job_type in config.job_types.items()} == {"plain": 30.0, "set": 5.0}
    assert config.server.processes == 2


def test_secrets_come_from_files(here: Path) -> None:
    (here / "token").write_text("s3cret\n")
    (here / "tokens.json").write_text('{"t1": "acme"}')
    (here / "fetchbox.toml").write_text('[server]\noperator_token_file = "token"\n')
    config = load(env={"FETCHBOX__SERVER__API_TOKENS_FILE": "tokens.json", "FETCHBOX__HUB__TOKEN_FILE": "token"})
    assert config.server.operator_token is not None
    assert config.hub.token is not None
    assert config.server.operator_token.get_secret_value() == config.hub.token.get_secret_value() == "s3cret"
    assert config.server.api_tokens == {"t1": "acme"}


def test_the_brokers_credentials_come_from_a_file(here: Path) -> None:
    (here / "broker").write_text("iggy://fetch%40box:hush@iggy:8090\n")
    for config in (load(env={"FETCHBOX__BROKER__URL_FILE": "broker"}), load(env={}, path=_toml(here, '[broker]\nurl_file = "broker"\n'))):
        assert config.broker.url == "iggy://fetch%40box:hush@iggy:8090"
        shown = {setting.path: setting for setting in describe(config)}["broker.url"]
        assert shown.value == "iggy://********@iggy:8090"
        assert shown.source != "default"
        assert "hush" not in repr(config)
    (problem,) = problems({"FETCHBOX__BROKER__URL_FILE": "nowhere"})
    assert (problem.path, problem.source) == ("broker.url", "FETCHBOX__BROKER__URL_FILE")
    (here / "broker").write_text("hush")
    (problem,) = problems({"FETCHBOX__BROKER__URL_FILE": "broker"})
    assert "hush" not in str(problem)


def _toml(here: Path, text: str) -> Path:
    path = here / "own.toml"
    path.write_text(text)
    return path


def test_only_secrets_come_from_files_and_a_missing_file_is_told(here: Path) -> None:
    (here / "x").write_text("y")
    assert problems({"FETCHBOX__SERVER__BIND_ADDR_FILE": "x"})[0].path == "FETCHBOX__SERVER__BIND_ADDR_FILE"
    (problem,) = problems({"FETCHBOX__HUB__TOKEN_FILE": "nowhere"})
    assert problem.path == "hub.token"
    assert "nowhere" in problem.message


@pytest.mark.parametrize(
    ("name", "nearest"),
    [
        ("FETCHBOX__SERVER__BIND_ADR", "FETCHBOX__SERVER__BIND_ADDR"),
        ("FETCHBOX__SERVR__BIND_ADDR", "FETCHBOX__SERVER__BIND_ADDR"),
        ("FETCHBOX__FETCH__MAX_BYTE", "FETCHBOX__FETCH__MAX_BYTES"),
        ("FETCHBOX__DATADIR", "FETCHBOX__DATA_DIR"),
        ("FETCHBOX__SERVER__CONCURRENCY", "FETCHBOX__WORKER__CONCURRENCY"),
    ],
)
def test_an_unknown_variable_names_the_nearest(here: Path, name: str, nearest: str) -> None:
    (problem,) = problems({name: "1"})
    assert problem.path == name
    assert problem.message.endswith(f"did you mean {nearest}?")


def test_an_unknown_key_names_the_nearest(here: Path) -> None:
    (here / "fetchbox.toml").write_text("[fetch]\nmax_byte = 1\n[retension]\njob_ttl = 1\n")
    found = {problem.path: problem for problem in problems()}
    assert "did you mean fetch.max_bytes?" in found["fetch.max_byte"].message
    assert "did you mean [retention]?" in found["retension"].message
    assert found["fetch.max_byte"].source == "fetchbox.toml"


@pytest.mark.parametrize("name", ["FETCHBOX_URL", "FETCHBOX_CONFIGURATION", "FETCHBOX", "XFETCHBOX__SERVER__X", "fetchbox__server__x"])
def test_other_names_are_none_of_our_business(here: Path, name: str) -> None:
    load(env={name: "whatever"})


def test_values_of_wrong_types_are_refused_without_coercion(here: Path) -> None:
    (here / "fetchbox.toml").write_text('[server]\nprocesses = "2"\nallow_anonymous = 1\nbind_addr = 8080\n[fetch]\nmax_redirects = 1.5\n')
    assert {problem.path for problem in problems()} == {
        "server.processes",
        "server.allow_anonymous",
        "server.bind_addr",
        "fetch.max_redirects",
    }


def test_all_kinds_of_problems_are_told_at_once(here: Path) -> None:
    (here / "fetchbox.toml").write_text('[fetch]\nmax_byte = 1\nconnect_timeout = "soon"\n[proxy.pools.a]\nfallbacks = ["b"]\n')
    env = {
        "FETCHBOX__NOPE": "1",
        "FETCHBOX__WORKER__PROCESSES": "99",
        "FETCHBOX__STORAGE__URL": "ftp://x",
        "FETCHBOX__FETCH__HTTP2": "maybe",
    }
    assert {problem.path for problem in problems(env)} >= {
        "fetch.max_byte",
        "fetch.connect_timeout",
        "proxy.pools.a.endpoints",
        "FETCHBOX__NOPE",
        "worker.processes",
        "storage.url",
        "fetch.http2",
    }


def test_the_data_dir_is_encoded_in_file_urls(tmp_path: Path) -> None:
    directory = tmp_path / "with space %41"
    config = load(env={"FETCHBOX__DATA_DIR": str(directory), "FETCHBOX__HUB__PATH": "{data_dir}/db"})
    assert config.storage.url == f"file://{tmp_path}/with%20space%20%2541/assets"
    assert config.hub.path == f"{directory}/db"


def test_the_library_reads_no_file_that_lies_around(here: Path) -> None:
    (here / "fetchbox.toml").write_text("this is not even TOML")
    assert load_library({"FETCHBOX__FETCH__MAX_ATTEMPTS": "3"}).fetch.max_attempts == 3


def test_the_library_takes_fetch_keys_as_keywords_over_its_config(here: Path) -> None:
    config = load_library(
        config={"fetch": {"max_attempts": 3, "max_bytes": "1MB"}}, max_bytes="2MB", concurrency=7, allow_networks=["127.0.0.0/8"]
    )
    assert (config.fetch.max_attempts, config.fetch.max_bytes, config.worker.concurrency) == (3, 2_000_000, 7)
    again = load_library(config=config, max_attempts=1)
    assert (again.fetch.max_attempts, again.fetch.max_bytes) == (1, 2_000_000)


def test_an_explicit_config_shuts_out_the_environment(here: Path) -> None:
    assert load_library({"FETCHBOX__FETCH__MAX_ATTEMPTS": "3"}, config={}).fetch.max_attempts == 5


def test_the_library_names_what_is_wrong_with_a_keyword() -> None:
    with pytest.raises(UsageError, match=r"max_byte=.*did you mean fetch\.max_bytes"):
        load_library({}, max_byte=1)
    with pytest.raises(ConfigError, match=r"fetch\.max_bytes"):
        load_library({}, max_bytes="lots")


def test_the_library_does_not_care_about_servers() -> None:
    load_library({"FETCHBOX__SERVER__BIND_ADDR": "0.0.0.0:1", "FETCHBOX__WORKER__PROCESSES": "99"})


def test_describe_shows_every_key_with_its_source_and_no_secret(here: Path) -> None:
    env = {
        "FETCHBOX__SERVER__API_TOKENS": '{"hush-1": "acme"}',
        "FETCHBOX__SERVER__OPERATOR_TOKEN": "hush-2",
        "FETCHBOX__STORAGE__OPTIONS": '{"aws_token": "hush-3"}',
        "FETCHBOX__BROKER__URL": "iggy://root:hush-4@broker:8090",
        "FETCHBOX__PROXY__POOLS__DC__ENDPOINTS": "http://user:hush-5@proxy:3128",
        "FETCHBOX__JOB_TYPES__G__AUTH": '{"username": "u", "password": "hush-6"}',
        "FETCHBOX__JOB_TYPES__G__DEFAULT_HEADERS": '{"Authorization": "hush-7", "Referer": "r"}',
        "FETCHBOX__JOB_TYPES__G__OPTIONS": '{"api_key": "hush-8"}',
    }
    config = load(env=env)
    settings = {setting.path: setting for setting in describe(config)}
    assert "hush" not in repr(settings)
    assert "hush" not in repr(config)
    assert "hush" not in str(config)
    assert settings["server.operator_token"].source == "FETCHBOX__SERVER__OPERATOR_TOKEN"
    assert settings["server.api_tokens"].value == {"********": ["acme"]}
    assert settings["broker.url"].value == "iggy://********@broker:8090"
    assert settings["job_types.g.default_headers"].value == {"Authorization": "********", "Referer": "r"}
    assert settings["retention.job_ttl"].source == "default"
    from fetchbox.config.schema import known_paths

    assert {path for path in known_paths() if "NAME" not in path} <= set(settings)


def test_a_problem_shows_no_secret(here: Path) -> None:
    env = {
        "FETCHBOX__CALLBACKS__SECRET": "hush",
        "FETCHBOX__PROXY__POOLS__A__ENDPOINTS": "ftp://u:hush@h",
        "FETCHBOX__SERVER__API_TOKENS": '{"hush": 1}',
    }
    assert "hush" not in "\n".join(map(str, problems(env))).replace("server.api_tokens.hush", "")


def test_the_configuration_is_read_only() -> None:
    with pytest.raises(ValueError, match="frozen"):
        Config().server.processes = 2  # type: ignore[misc]
