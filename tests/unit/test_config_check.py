"""What is wrong with combinations: one case a rule, and its harmless neighbour."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from fetchbox.config import load, load_library
from fetchbox.errors import ConfigError

POOL = {"endpoints": ["http://proxy:3128"]}


def paths(overrides: dict[str, Any], env: dict[str, str] | None = None) -> list[str]:
    """Where problems were found."""
    try:
        load(env=env or {}, overrides=overrides)
    except ConfigError as error:
        return [problem.path for problem in error.problems]
    return []


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        ({"server": {"bind_addr": "0.0.0.0:8080"}}, ["server.bind_addr"]),
        ({"server": {"bind_addr": "[::]:8080"}}, ["server.bind_addr"]),
        ({"server": {"bind_addr": "example.org:8080"}}, ["server.bind_addr"]),
        ({"server": {"bind_addr": "0.0.0.0:8080", "api_tokens": {"t": "x"}}}, []),
        ({"server": {"bind_addr": "0.0.0.0:8080", "operator_token": "t"}}, []),
        ({"server": {"bind_addr": "0.0.0.0:8080", "allow_anonymous": True}}, []),
        ({"server": {"bind_addr": "127.8.8.8:0"}}, []),
        ({"server": {"bind_addr": "[::1]:8080"}}, []),
        ({"server": {"bind_addr": "localhost:8080"}}, []),
        ({"server": {"bind_addr": "::1:8080"}}, ["server.bind_addr"]),
        ({"server": {"bind_addr": "127.0.0.1"}}, ["server.bind_addr"]),
        ({"server": {"bind_addr": "127.0.0.1:65536"}}, ["server.bind_addr"]),
        ({"server": {"api_tokens": {"": "x"}}}, ["server.api_tokens"]),
        ({"server": {"tls_cert": "/dev/null"}}, ["server.tls_key"]),
        ({"server": {"tls_cert": "/dev/null", "tls_key": "/nowhere"}}, ["server.tls_key"]),
        ({"hub": {"url": "unix:///tmp/x"}}, []),
        ({"hub": {"url": "unix://x"}}, ["hub.url"]),
        ({"hub": {"url": f"unix:///{'x' * 107}"}}, ["hub.url"]),
        ({"hub": {"url": "http://x"}}, ["hub.url"]),
        ({"hub": {"url": "tcp://h:1"}}, ["hub.token"]),
        ({"hub": {"url": "tcp://h:1", "token": "t"}}, []),
        ({"hub": {"listen": "tcp://0.0.0.0:1", "token": "t"}}, ["hub.listen"]),
        ({"hub": {"listen": "tcp://127.0.0.1:1", "token": "t"}}, []),
        ({"hub": {"listen": "tcp://127.0.0.1:1"}}, ["hub.token"]),
        ({"hub": {"listen": "tcp://[::]:1"}}, ["hub.token", "hub.listen"]),
        ({"hub": {"listen": "tcp://0.0.0.0:1", "token": "t", "tls_cert": "/dev/null", "tls_key": "/dev/null"}}, []),
        ({"hub": {"listen": "tcp://0.0.0.0:1", "token": "t", "tls_cert": "/dev/null"}}, ["hub.tls_key"]),
        ({"hub": {"listen": "tcp://127.0.0.1:0", "token": "t"}}, ["hub.listen"]),
        ({"hub": {"listen": "unix:///tmp/x"}}, ["hub.listen"]),
        ({"hub": {"url": "tcp://h:1", "token": "t", "tls_ca": "/nowhere"}}, ["hub.tls_ca"]),
        ({"broker": {"url": "kafka://x"}}, ["broker.url"]),
        ({"broker": {"url": "iggy://u:p@h:8090"}}, []),
        ({"worker": {"processes": 65}}, ["worker.processes"]),
        ({"worker": {"processes": 65}, "tasks": {"partitions": 65}}, []),
        ({"worker": {"processes": 0}}, []),
        ({"server": {"processes": 0}}, ["server.processes"]),
        ({"drain_timeout": 0}, ["drain_timeout"]),
        ({"drain_timeout": -1}, ["drain_timeout"]),
        ({"fetch": {"total_timeout": 0}}, []),
        ({"fetch": {"read_timeout": 0}}, ["fetch.read_timeout"]),
        ({"fetch": {"max_attempts": 0}}, ["fetch.max_attempts"]),
        ({"fetch": {"backoff_base": 10, "backoff_max": 5}}, ["fetch.backoff_base"]),
        ({"fetch": {"allow_networks": ["10.0.0.1/8"]}}, ["fetch.allow_networks"]),
        ({"fetch": {"allow_networks": ["10.0.0.0/8", "::1"]}}, []),
        ({"fetch": {"dns_servers": ["1.1.1.1", "1.1.1.1:53", "[::1]:53"]}}, []),
        ({"fetch": {"dns_servers": ["dns.example.org"]}}, ["fetch.dns_servers"]),
        ({"fetch": {"user_agent": "a\r\nb"}}, ["fetch.user_agent"]),
        ({"fetch": {"ca_file": "/nowhere"}}, ["fetch.ca_file"]),
        ({"fetch": {"filter_types": ["image/*", "!image/svg+xml"], "filter_statuses": [404, "5xx"]}}, []),
        ({"fetch": {"filter_types": ["image"]}}, ["fetch.filter_types"]),
        ({"fetch": {"filter_statuses": [99, True]}}, ["fetch.filter_statuses.1"]),
        ({"fetch": {"filter_statuses": ["7xx", 99]}}, ["fetch.filter_statuses", "fetch.filter_statuses"]),
        ({"fetch": {"filter_min_bytes": "2KB", "filter_max_bytes": "1KB"}}, ["fetch.filter_min_bytes"]),
        ({"job_types": {"a": {"fetch": {"filter_types": ["*/*"]}}}}, ["job_types.a.fetch.filter_types"]),
        ({"storage": {"url": "ftp://x"}}, ["storage.url"]),
        ({"storage": {"url": "file://host/x"}}, ["storage.url"]),
        ({"storage": {"url": "gs://"}}, ["storage.url"]),
        ({"storage": {"url": "gs://bucket"}}, []),
        ({"storage": {"url": "s3://bucket"}}, ["storage.access_key_id"]),
        ({"storage": {"url": "s3://bucket", "access_key_id": "a"}}, ["storage.secret_access_key"]),
        ({"storage": {"url": "s3://bucket", "access_key_id": "a", "secret_access_key": "b"}}, []),
        ({"storage": {"url": "s3://bucket", "options": {"skip_signature": "true"}}}, []),
        ({"storage": {"endpoint": "http://127.0.0.1:9000"}}, ["storage.endpoint"]),
        ({"storage": {"endpoint": "http://127.0.0.1:9000", "allow_http": True}}, []),
        ({"storage": {"endpoint": "127.0.0.1:9000"}}, ["storage.endpoint"]),
        ({"storage": {"key_template": "{job_id}/{resource_id}"}}, []),
        ({"storage": {"key_template": "{job_id}/{name}"}}, ["storage.key_template"]),
        ({"storage": {"key_template": "{job_id}"}}, ["storage.key_template"]),
        ({"storage": {"key_template": "../{resource_id}"}}, ["storage.key_template"]),
        ({"storage": {"key_template": "{resource_id"}}, ["storage.key_template"]),
        ({"job_types": {"g": {"proxy": {"primary": "none"}}}}, ["job_types.g.proxy.primary"]),
        (
            {"job_types": {"g": {"proxy": {"primary": "a", "fallbacks": ["b"]}}}, "proxy": {"pools": {"a": POOL}}},
            ["job_types.g.proxy.fallbacks"],
        ),
        ({"job_types": {"g": {"tenants": ["a"]}}}, ["job_types.g.tenants"]),
        ({"job_types": {"g": {"tenants": ["a", "b"]}}, "server": {"api_tokens": {"t": "a"}}}, ["job_types.g.tenants"]),
        ({"job_types": {"g": {"tenants": ["a"]}}, "server": {"api_tokens": {"t": "a"}}}, []),
        ({"job_types": {"g": {"tenants": []}}, "server": {"api_tokens": {"t": "a"}}}, ["job_types.g.tenants"]),
        ({"job_types": {"bad name": {}}}, ["job_types.bad name"]),
        ({"job_types": {"g": {"handler": "json:JSONDecoder"}}}, []),
        ({"job_types": {"g": {"handler": "no_such_module_here:X"}}}, ["job_types.g.handler"]),
        ({"job_types": {"g": {"handler": "no-such-entry-point"}}}, ["job_types.g.handler"]),
        ({"job_types": {"g": {"handler": "os:"}}}, ["job_types.g.handler"]),
        ({"job_types": {"g": {"auth": {"type": "digest", "username": "u", "password": "p"}}}}, ["job_types.g.auth.type"]),
        ({"job_types": {"g": {"auth": {"type": "digest", "username": "u", "password": "p"}, "transport": "curl"}}}, []),
        ({"job_types": {"g": {"storage": {"bucket": "b"}}}}, ["job_types.g.storage.bucket"]),
        ({"job_types": {"g": {"default_headers": {"X-A": "b\r\nX-B: c"}}}}, ["job_types.g.default_headers"]),
        ({"job_types": {"g": {"fetch": {"backoff_base": "1h"}}}}, ["job_types.g.fetch.backoff_base"]),
        ({"proxy": {"pools": {"a": {**POOL, "fallbacks": ["b"]}}}}, ["proxy.pools.a.fallbacks"]),
        ({"proxy": {"pools": {"a": {**POOL, "fallbacks": ["b"]}, "b": POOL}}}, []),
        ({"proxy": {"pools": {"a": {**POOL, "fallbacks": ["a"]}}}}, ["proxy.pools.a.fallbacks"]),
        ({"proxy": {"pools": {"a": {"endpoints": []}}}}, ["proxy.pools.a.endpoints"]),
        ({"proxy": {"pools": {"a": {"endpoints": ["socks4://x"]}}}}, ["proxy.pools.a.endpoints"]),
        ({"callbacks": {"secret": "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"}}, []),
        ({"callbacks": {"secret": "plain"}}, ["callbacks.secret"]),
        ({"telemetry": {"metrics_addr": "9464"}}, ["telemetry.metrics_addr"]),
        ({"telemetry": {"metrics_addr": ""}}, []),
        ({"telemetry": {"otlp_endpoint": "grpc://x"}}, ["telemetry.otlp_endpoint"]),
    ],
)
def test_rules(overrides: dict[str, Any], expected: list[str]) -> None:
    assert paths(overrides) == expected


@pytest.mark.parametrize(
    ("links", "told"),
    [
        ({"a": ["b"], "b": ["c"], "c": ["a"]}, ["a → b → c → a"]),
        ({"x": ["a"], "a": ["b"], "b": ["a"]}, ["a → b → a"]),
        ({"a": ["b", "c"], "b": ["d"], "c": ["d"], "d": []}, []),
        ({"a": ["a"], "b": ["b"]}, ["a → a", "b → b"]),
    ],
)
def test_circles_of_fallbacks_are_told_once_each(links: dict[str, list[str]], told: list[str]) -> None:
    pools = {name: {**POOL, "fallbacks": others} for name, others in links.items()}
    try:
        load(env={}, overrides={"proxy": {"pools": pools}})
        found = []
    except ConfigError as error:
        found = [problem.message.removeprefix("go in a circle: ") for problem in error.problems]
    assert found == told


@pytest.mark.parametrize("name", ["AWS_ACCESS_KEY_ID", "AWS_WEB_IDENTITY_TOKEN_FILE", "AWS_CONTAINER_CREDENTIALS_FULL_URI"])
def test_ambient_credentials_are_enough(name: str) -> None:
    assert paths({"storage": {"url": "s3://bucket"}}, {name: "x"}) == []


def test_a_handler_beside_the_current_directory_is_found_without_running_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_own_handlers.py").write_text("raise RuntimeError('imported')\n")
    monkeypatch.chdir(tmp_path)
    assert paths({"job_types": {"g": {"handler": "my_own_handlers:Handler"}}}) == []


def test_a_problem_says_what_set_the_value() -> None:
    with pytest.raises(ConfigError) as caught:
        load(env={"FETCHBOX__WORKER__PROCESSES": "99"})
    assert str(caught.value).endswith("(from FETCHBOX__WORKER__PROCESSES)")


def test_the_library_checks_its_own_part() -> None:
    with pytest.raises(ConfigError, match=r"fetch\.allow_networks"):
        load_library({}, allow_networks=["everything"])
