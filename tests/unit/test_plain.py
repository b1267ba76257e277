"""The short way to the engine's options says what the long one says, or nothing."""

from __future__ import annotations

from typing import Any

import orjson
import pytest

from fetchbox._core import fetch_defaults
from fetchbox.config import Config, engine_options, load_library
from fetchbox.plain import PREFIX, plain_fetch, plain_options

FETCH = "FETCHBOX__FETCH__"

PLAIN: list[tuple[dict[str, Any], dict[str, str]]] = [
    ({}, {}),
    ({"allow_networks": ["127.0.0.0/8", "::1/128"]}, {}),
    ({"allow_networks": ()}, {"HOME": "/", "FETCHBOX_CONFIG": "x"}),
    ({"max_attempts": 3, "max_bytes": 1_000_000, "verify_tls": False, "http2": False}, {}),
    ({"total_timeout": 0.5, "connect_timeout": 3, "read_timeout": 7.25}, {}),
    ({}, {FETCH + "PER_HOST_CONCURRENCY": "64", FETCH + "PER_HOST_RATE": "1000000"}),
    ({"per_host_concurrency": 9}, {FETCH + "PER_HOST_CONCURRENCY": "64", FETCH + "TOTAL_TIMEOUT": "12.5"}),
]

OTHER: list[tuple[dict[str, Any], dict[str, str]]] = [
    ({"max_bytes": "50MB"}, {}),
    ({"max_attempts": 0}, {}),
    ({"max_attempts": True}, {}),
    ({"max_attempts": 2.0}, {}),
    ({"verify_tls": 1}, {}),
    ({"allow_networks": ["127.0.0.1"]}, {}),
    ({"allow_networks": ["127.0.0.1/8"]}, {}),
    ({"allow_networks": ["nowhere/8"]}, {}),
    ({"allow_networks": "127.0.0.0/8"}, {}),
    ({"total_timeout": 0}, {}),
    ({"total_timeout": float("nan")}, {}),
    ({"user_agent": "me"}, {}),
    ({"no_such_key": 1}, {}),
    ({}, {FETCH + "VERIFY_TLS": "false"}),
    ({}, {FETCH + "MAX_BYTES": "5GiB"}),
    ({}, {FETCH + "MAX_ATTEMPTS": "2.0"}),
    ({}, {FETCH + "ALLOW_NETWORKS": "1.0.0.0/8"}),
    ({}, {FETCH: "1"}),
    ({}, {PREFIX + "STORAGE__REGION": "x"}),
    ({}, {PREFIX + "STORAGE__MAX_ATTEMPTS": "3"}),
]


@pytest.mark.parametrize(("values", "environ"), PLAIN)
def test_the_short_way_says_what_the_long_one_says(values: dict[str, Any], environ: dict[str, str]) -> None:
    fetch = plain_fetch(values, environ)
    assert fetch is not None
    short = plain_options(fetch, 7)
    assert short is not None
    long = engine_options(load_library(environ, None, concurrency=7, **values), library=True)
    defaults = orjson.loads(fetch_defaults())
    del defaults["user_agent"]  # the models leave it to the engine
    shown = orjson.loads(orjson.dumps({**defaults, **short["fetch"]}))
    assert shown == orjson.loads(orjson.dumps(long["fetch"]))
    assert {key: short[key] for key in ("concurrency", "memory_budget")} == {key: long[key] for key in ("concurrency", "memory_budget")}
    assert short["storage"] == {key: long["storage"][key] for key in short["storage"]}


@pytest.mark.parametrize(("values", "environ"), OTHER)
def test_what_is_not_plain_is_left_to_the_models(values: dict[str, Any], environ: dict[str, str]) -> None:
    assert plain_fetch(values, environ) is None


def test_what_the_engine_is_not_told_is_what_the_models_have_by_default() -> None:
    options = plain_options({}, None)
    assert options is not None
    assert options["concurrency"] == Config().worker.concurrency
    long = engine_options(load_library({}, None), library=True)
    rest = {"job_types": {}, "proxy_pools": {}, "blocked_endpoints": [], "outlast_full_store": False, "sync_files": False}
    assert {key: long[key] for key in rest} == rest
    assert plain_options({}, 0) is None
    assert plain_options({}, 100_001) is None
    storage = {key: value for key, value in long["storage"].items() if key not in {"url", *options["storage"]}}
    assert {key: value for key, value in storage.items() if value} == {"max_attempts": 5}
