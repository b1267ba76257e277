"""The configuration on its way to children and to the native module."""

from __future__ import annotations

import socket as socket_module
from pathlib import Path
from typing import Any

import pytest

from fetchbox.config import (
    default_socket,
    engine_options,
    from_child_json,
    hub_options,
    hub_socket,
    hub_storage,
    hub_url,
    load,
    load_library,
    to_child_json,
)

RICH: dict[str, Any] = {
    "server": {"api_tokens": {"t": "acme"}, "operator_token": "op"},
    "storage": {
        "url": "s3://bucket/p",
        "access_key_id": "a",
        "secret_access_key": "b",
        "endpoint": "http://127.0.0.1:9000",
        "allow_http": True,
    },
    "proxy": {"pools": {"dc": {"endpoints": ["http://u:p@h:1"], "remote_dns": True}}},
    "job_types": {"g": {"proxy": {"primary": "dc"}, "auth": {"username": "u", "password": "p"}, "fetch": {"max_bytes": "1MB"}}},
}


def test_children_get_the_whole_configuration_with_its_secrets() -> None:
    config = load(env={}, overrides=RICH)
    again = from_child_json(to_child_json(config))
    assert again.model_dump() == config.model_dump()
    assert again.server.operator_token is not None
    assert again.server.operator_token.get_secret_value() == "op"
    assert again.fetch_for("g").max_bytes == 1_000_000
    assert again.job_types["g"].fetch.model_fields_set == {"max_bytes"}


def test_the_engine_gets_plain_numbers_and_only_what_a_job_type_overrides() -> None:
    options = engine_options(load(env={}, overrides=RICH))
    assert options["fetch"]["connect_timeout"] == 10.0
    assert "user_agent" not in options["fetch"]
    assert options["storage"]["secret_access_key"] == "b"
    assert options["job_types"]["g"]["fetch"] == {"max_bytes": 1_000_000}
    assert options["job_types"]["g"]["auth"] == {"type": "basic", "username": "u", "password": "p"}
    assert options["proxy_pools"]["dc"]["endpoints"] == ["http://u:p@h:1"]
    assert options["sync_files"] is True
    assert options["flight_dir"].endswith("/flight")
    assert "handler" not in options["job_types"]["g"]


def test_our_own_ports_and_the_stores_are_guarded() -> None:
    overrides = {**RICH, "server": {"bind_addr": "0.0.0.0:8000", "allow_anonymous": True}, "telemetry": {"metrics_addr": "localhost:9000"}}
    endpoints = engine_options(load(env={}, overrides=overrides))["blocked_endpoints"]
    assert endpoints == ["0.0.0.0:8000", "127.0.0.1:8000", "[::1]:8000", "127.0.0.1:9000", "[::1]:9000"]


def test_a_store_that_is_named_is_guarded_by_its_addresses(monkeypatch: pytest.MonkeyPatch) -> None:
    def resolve(host: str, port: int, **_: object) -> list[Any]:
        if host != "minio.internal":
            return real(host, port, type=socket_module.SOCK_STREAM)
        return [(0, 0, 0, "", ("10.0.0.9", port)), (0, 0, 0, "", ("fd00::9", port, 0, 0))]

    real = socket_module.getaddrinfo
    monkeypatch.setattr(socket_module, "getaddrinfo", resolve)
    named = {**RICH, "storage": {**RICH["storage"], "endpoint": "http://minio.internal:9000"}}
    endpoints = engine_options(load(env={}, overrides=named))["blocked_endpoints"]
    assert endpoints[-2:] == ["10.0.0.9:9000", "[fd00::9]:9000"]

    def fail(*_: object, **__: object) -> list[Any]:
        raise OSError("no name server")

    monkeypatch.setattr(socket_module, "getaddrinfo", fail)
    assert engine_options(load(env={}, overrides=named))["blocked_endpoints"] == []


def test_a_library_has_no_ports_and_syncs_nothing() -> None:
    options = engine_options(load_library({}), library=True)
    assert options["blocked_endpoints"] == []
    assert options["sync_files"] is False
    # It has no stream to hand tasks on to, and dies with whoever uses it.
    assert (options["most_waiting"], options["flight_dir"]) == (None, None)


def test_the_hub_gets_its_paths_and_the_local_stores_root(tmp_path: Path) -> None:
    config = load(env={}, overrides={"data_dir": str(tmp_path / "a b")})
    options = hub_options(config)
    assert options["path"] == f"{tmp_path}/a b/hub"
    assert options["socket_path"] == f"{tmp_path}/a b/hub.sock"
    assert options["store_root"] == f"{tmp_path}/a b/assets"
    assert options["broker"] == "embedded"
    assert options["retention"]["job_ttl"] == 2_592_000.0
    assert "token" not in options
    assert "store_root" not in hub_options(load(env={}, overrides=RICH))


def test_the_hub_knows_where_objects_lie_and_how_to_reach_a_store_that_is_not_local() -> None:
    local = load(env={}, overrides={"ledger": {"collect_after": "5m"}, "storage": {"key_template": "{job_id}/{index}"}})
    keeping = hub_options(local)["keeping"]
    assert (keeping["collect_after"], keeping["sweep_after"], keeping["uploads_after"]) == (300.0, 900.0, 86400.0)
    assert (keeping["key_template"], keeping["key_templates"], keeping["buckets"]) == ("{job_id}/{index}", {}, [])
    assert hub_storage(local) is None
    kinds = {"g": {"storage": {"bucket": "other", "key_template": "g/{job_id}/{index}"}}}
    remote = load(env={}, overrides={**RICH, "job_types": kinds})
    keeping = hub_options(remote)["keeping"]
    assert (keeping["key_templates"], keeping["buckets"]) == ({"g": "g/{job_id}/{index}"}, ["other"])
    storage = hub_storage(remote)
    assert storage is not None
    assert (storage["storage"]["secret_access_key"], storage["buckets"]) == ("b", ["other"])


@pytest.mark.parametrize(
    ("url", "address", "socket"),
    [
        (None, "unix:///d/hub.sock", "/d/hub.sock"),
        ("unix:///run/x.sock", "unix:///run/x.sock", "/run/x.sock"),
        ("tcp://h:1", "tcp://h:1", "/d/hub.sock"),
    ],
)
def test_where_the_hub_answers(url: str | None, address: str, socket: str) -> None:
    hub = {"token": "t"} if url is None else {"token": "t", "url": url}
    config = load(env={}, overrides={"data_dir": "/d", "hub": hub})
    assert hub_url(config) == address
    assert hub_socket(config) == socket


def test_a_socket_path_that_would_be_too_long_moves_to_a_short_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", "/run/user/7")
    fits, too_long = "/" + "x" * 97, "/" + "x" * 98
    assert default_socket(fits) == f"{fits}/hub.sock"
    assert len(default_socket(fits)) == 107
    moved = default_socket(too_long)
    assert moved.startswith("/run/user/7/fetchbox-")
    assert len(moved) <= 107
    assert default_socket(too_long + "y") != moved
