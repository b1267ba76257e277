"""From the configuration to what requests need."""

from __future__ import annotations

from datetime import timedelta
from typing import Any
from urllib.parse import urlsplit

from fetchbox.api.auth import OperatorToken, TenantTokens
from fetchbox.api.limits import limits_of
from fetchbox.api.manifests import Manifests, open_manifests
from fetchbox.api.settings import DEFAULT_JOB_TYPE, JobType, Settings
from fetchbox.config import Config, is_loopback, parse_address
from fetchbox.config.curl import schemes as curl_schemes
from fetchbox.handler_host import spec_of

MAX_HEADERS = 32
"""Headers of one resource."""


def settings_of(config: Config, manifests: Manifests | None = None) -> Settings:
    """The settings of a configuration; `manifests` replaces the store it names."""
    server = config.server
    loopback = is_loopback(parse_address(server.bind_addr)[0])
    operator = None if server.operator_token is None else server.operator_token.get_secret_value()
    storage_url = config.storage.url
    buckets = {kind.storage.bucket for kind in config.job_types.values() if kind.storage.bucket}
    if not storage_url.startswith("file:"):
        buckets.add(urlsplit(storage_url).netloc)
    names = {DEFAULT_JOB_TYPE, *config.job_types}
    limits, tenant_limits = limits_of(config)
    return Settings(
        manifests=manifests or open_manifests(storage_url, store_options(config)),
        job_types={name: job_type_of(config, name) for name in names},
        tokens=TenantTokens(server.api_tokens),
        operator=OperatorToken(operator),
        # With an operator's token and no others, ingest was left open on purpose: the configuration is refused otherwise.
        open_ingest=loopback or server.allow_anonymous or operator is not None,
        open_operators=loopback or server.allow_anonymous,
        max_manifest_bytes=server.max_manifest_bytes,
        max_resources=server.max_resources,
        limits=limits,
        tenant_limits=tenant_limits,
        buckets=frozenset(buckets),
        proxy_pools=frozenset(config.proxy.pools),
        replay_context={
            "limits": {"max_headers": MAX_HEADERS, "max_header_bytes": server.max_header_bytes},
            "schemes": {name: list(curl_schemes()) for name, kind in config.job_types.items() if kind.transport == "curl"},
            "partition_by": config.tasks.partition_by,
        },
    )


def job_type_of(config: Config, name: str) -> JobType:
    """One job type, `default` included."""
    kind = config.job_type(name)
    assert kind is not None
    handler = spec_of(name, kind)
    storage = kind.storage
    context: dict[str, Any] = {
        "job_type": name,
        "partitions": config.tasks.partitions,
        "partition_by": config.tasks.partition_by,
        "max_resources": config.server.max_resources,
        "max_header_bytes": config.server.max_header_bytes,
        "max_headers": MAX_HEADERS,
        "allow_schemes": list(curl_schemes()) if kind.transport == "curl" else [],
        "default_headers": dict(kind.default_headers),
        "proxy": None if kind.proxy is None else {"primary": kind.proxy.primary, "fallbacks": list(kind.proxy.fallbacks)},
        "storage": {"bucket": storage.bucket, "key_prefix": storage.key_prefix, "key": None, "metadata": dict(storage.metadata)},
    }
    tenants = None if kind.tenants is None else frozenset(kind.tenants)
    return JobType(name=name, handler=handler, tenants=tenants, context=context)


def store_options(config: Config) -> dict[str, Any]:
    """obstore's options for the configured store; nothing for a local directory."""
    storage = config.storage
    if storage.url.startswith("file:"):
        return {}
    secrets = {
        "access_key_id": storage.access_key_id,
        "secret_access_key": storage.secret_access_key,
        "session_token": storage.session_token,
    }
    options: dict[str, Any] = {name: value.get_secret_value() for name, value in secrets.items() if value is not None}
    if storage.endpoint is not None:
        options["endpoint"] = storage.endpoint
    if storage.region is not None:
        options["region"] = storage.region
    if storage.url.startswith("s3:"):
        options["virtual_hosted_style_request"] = str(storage.virtual_hosted_style).lower()
    options.update(storage.options)
    return {
        "config": options,
        "client_options": {"allow_http": storage.allow_http, "timeout": timedelta(seconds=20), "connect_timeout": timedelta(seconds=5)},
        # The client waits for its answer meanwhile: a few quick attempts, then it is told to come back.
        "retry_config": {"max_retries": max(0, storage.max_attempts - 1), "retry_timeout": timedelta(seconds=15)},
    }
