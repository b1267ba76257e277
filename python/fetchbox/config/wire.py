"""The configuration on its way to other processes and to the native module."""

from __future__ import annotations

import json
import os
import socket
from typing import Any
from urllib.parse import unquote, urlsplit

from pydantic import SecretStr

from fetchbox.config import addresses
from fetchbox.config.models import Config

MOST_WAITING = 49_152
"""Tasks that may wait in a worker's engine; it takes 65,536 in all."""


def to_child_json(config: Config) -> str:
    """The whole configuration, secrets included: for the supervisor's channel to a child and nowhere else."""
    return json.dumps(_plain(config.model_dump(exclude_unset=True)), separators=(",", ":"))


def from_child_json(text: str) -> Config:
    """What `to_child_json` wrote; it was checked before."""
    return Config.model_validate(json.loads(text))


def hub_url(config: Config) -> str:
    """Where this configuration's hub answers."""
    return config.hub.url or f"unix://{addresses.default_socket(config.data_dir)}"


def engine_options(config: Config, *, library: bool = False) -> dict[str, Any]:
    """The native engine's options: seconds, bytes, bytes per second.

    A library's engine syncs no files and has no ports of its own to guard.
    """
    job_types = {}
    for name, job_type in config.job_types.items():
        plain: dict[str, Any] = _plain(
            job_type.model_dump(include={"default_headers", "auth", "proxy", "storage", "transport", "known_hosts"})
        )
        plain["fetch"] = _plain(job_type.fetch.model_dump(exclude_unset=True))
        job_types[name] = plain
    return {
        "concurrency": config.worker.concurrency,
        "memory_budget": config.worker.memory_budget,
        "fetch": _fetch(_plain(config.fetch.model_dump())),
        "storage": _plain(config.storage.model_dump()),
        "job_types": job_types,
        "proxy_pools": {name: _plain(pool.model_dump()) for name, pool in config.proxy.pools.items()},
        "blocked_endpoints": [] if library else _own_endpoints(config),
        "outlast_full_store": not library,
        "most_waiting": None if library else MOST_WAITING,
        "flight_dir": None if library else os.path.join(config.data_dir, "flight"),
        "sync_files": not library and config.hub.durability == "sync",
    }


def _fetch(fetch: dict[str, Any]) -> dict[str, Any]:
    if not fetch["user_agent"]:
        del fetch["user_agent"]
    return fetch


def _own_endpoints(config: Config) -> list[str]:
    """Our own ports and the store's, as `ip:port`; a port bound on every address is guarded on loopback too."""
    bound = [config.server.bind_addr, config.telemetry.metrics_addr]
    bound += [url.removeprefix("tcp://") for url in (config.hub.listen, config.hub.url) if url is not None and url.startswith("tcp://")]
    found = []
    for text in filter(None, bound):
        host, port = addresses.parse_address(text)
        hosts = [host]
        if addresses.is_wildcard(host):
            hosts += ["127.0.0.1", "::1"]
        elif host == "localhost":
            hosts = ["127.0.0.1", "::1"]
        found += [addresses.format_address(name, port) for name in hosts if port]
    for url, default in ((config.storage.endpoint, None), (config.broker.url, 8090)):
        parts = urlsplit(url or "")
        if parts.hostname:
            port = parts.port or default or (443 if parts.scheme == "https" else 80)
            found.append(addresses.format_address(parts.hostname, port))
    return list(dict.fromkeys(address for endpoint in found for address in _numeric(endpoint)))


def _numeric(endpoint: str) -> list[str]:
    """An endpoint by its addresses. A name that cannot be resolved now has none: who cannot reach the store does not get far anyway."""
    host, port = addresses.parse_address(endpoint)
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError):
        return []
    return [addresses.format_address(str(address[0]).partition("%")[0], port) for *_, address in found]


def _plain(value: Any) -> Any:
    if isinstance(value, SecretStr):
        return value.get_secret_value()
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value


def hub_options(config: Config) -> dict[str, Any]:
    """The native hub's options: seconds and bytes. Keys that are not set are left out, so that the hub's own defaults hold."""
    hub = config.hub
    store = urlsplit(config.storage.url)
    options = {
        "path": hub.path,
        "socket_path": hub_socket(config),
        "durability": hub.durability,
        "partitions": config.tasks.partitions,
        "outbox_max_bytes": hub.outbox_max_bytes,
        "retention": _plain(config.retention.model_dump()),
        "store_root": unquote(store.path) if store.scheme == "file" else None,
        "broker": "embedded" if config.broker.url == "embedded" else "external",
        "token": _plain(hub.token),
        "listen": hub.listen,
        "tls_cert": hub.tls_cert,
        "tls_key": hub.tls_key,
        "keeping": _keeping(config),
    }
    return {key: value for key, value in options.items() if value is not None}


def _keeping(config: Config) -> dict[str, Any]:
    templates = {name: kind.storage.key_template for name, kind in config.job_types.items() if kind.storage.key_template is not None}
    return {
        "sweep_after": config.ledger.sweep_after,
        "direct_idle": config.ledger.direct_idle,
        "collect_every": config.ledger.collect_every,
        "collect_after": config.ledger.collect_after,
        "uploads_after": config.ledger.abort_uploads_after,
        "key_template": config.storage.key_template,
        "key_templates": templates,
        "buckets": _buckets(config),
    }


def _buckets(config: Config) -> list[str]:
    return sorted({kind.storage.bucket for kind in config.job_types.values() if kind.storage.bucket})


def hub_storage(config: Config) -> dict[str, Any] | None:
    """How the hub reaches the store to keep it in order; None for a local one, which it knows by its root."""
    if urlsplit(config.storage.url).scheme == "file":
        return None
    return {"storage": _plain(config.storage.model_dump()), "buckets": _buckets(config)}


def hub_socket(config: Config) -> str:
    """The Unix socket on which a hub of this configuration listens."""
    if config.hub.url is not None:
        scheme, path = addresses.parse_hub_url(config.hub.url)
        if scheme == "unix":
            return path
    return addresses.default_socket(config.data_dir)
