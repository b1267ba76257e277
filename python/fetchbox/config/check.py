"""What one value cannot know by itself: references, combinations, files, addresses. Collects every problem."""

from __future__ import annotations

import importlib.machinery
import importlib.metadata
import ipaddress
import os
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from urllib.parse import urlsplit

from fetchbox.config import addresses, curl
from fetchbox.config.fetching import Fetch, Storage
from fetchbox.config.models import Config
from fetchbox.errors import Problem

STORE_SCHEMES = ("file", "s3", "gs", "az")
PROXY_SCHEMES = ("http", "https", "socks5")
PLACEHOLDERS = ("job_type", "job_id", "resource_id", "index", "tenant", "host", "ext", "date", "shard", "url_hash")
UNIQUE_PLACEHOLDERS = frozenset({"resource_id", "index", "url_hash"})
AMBIENT_AWS = (
    "AWS_ACCESS_KEY_ID",
    "AWS_WEB_IDENTITY_TOKEN_FILE",
    "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI",
    "AWS_CONTAINER_CREDENTIALS_FULL_URI",
    "AWS_METADATA_ENDPOINT",
)
ENTRY_POINTS = "fetchbox.handlers"
_GUARD = "set server.api_tokens or server.operator_token, or server.allow_anonymous = true if that is meant"
_NO_CREDENTIALS = (
    "no credentials for S3: set storage.access_key_id and storage.secret_access_key, or give ambient ones "
    "(AWS_ACCESS_KEY_ID, AWS_WEB_IDENTITY_TOKEN_FILE, a container's or an instance's role)"
)
_TYPE_PATTERN = re.compile(r"!?[\w!#$&^.+-]+/(\*|[\w!#$&^.+-]+)", re.ASCII)
_STATUSES = re.compile(r"[2-5](\d\d|xx|XX)", re.ASCII)
_DMI_VENDOR = Path("/sys/class/dmi/id/sys_vendor")

Found = Iterator[tuple[str, str]]


def check(config: Config, environ: Mapping[str, str], *, listens: bool = True) -> list[Problem]:
    """All problems of a service's configuration. `listens`: whether `server.bind_addr` is going to be bound, or only looked at."""
    return _collect(
        config,
        lambda c: _server(c, listens),
        _hub,
        _broker,
        _workers,
        lambda c: _storage(c.storage, environ),
        _fetching,
        _proxies,
        lambda c: _job_types(c, listens),
        _transports,
        _callbacks,
        _telemetry,
    )


def check_library(config: Config) -> list[Problem]:
    """The problems that matter to a library call, which listens nowhere and is handed its store."""
    return _collect(config, _fetching, _proxies, _transports)


def _collect(config: Config, *checks: Callable[[Config], Found]) -> list[Problem]:
    return [Problem(path, message, config.source_of(path)) for run in checks for path, message in run(config)]


def _server(config: Config, listens: bool) -> Found:
    server = config.server
    try:
        host, _ = addresses.parse_address(server.bind_addr)
    except ValueError as error:
        yield "server.bind_addr", str(error)
    else:
        guarded = bool(server.api_tokens) or server.operator_token is not None
        if listens and not addresses.is_loopback(host) and not guarded and not server.allow_anonymous:
            yield "server.bind_addr", f"{server.bind_addr} can be reached from other machines: {_GUARD}"
    for token, tenant in server.api_tokens.items():
        if not token or not tenant:
            yield "server.api_tokens", "neither a token nor a tenant may be empty"
    yield from _pair("server", server.tls_cert, server.tls_key)


def _hub(config: Config) -> Found:
    hub = config.hub
    for key, url in (("hub.url", hub.url), ("hub.listen", hub.listen)):
        if url is None:
            continue
        try:
            scheme, rest = addresses.parse_hub_url(url)
        except ValueError as error:
            yield key, str(error)
            continue
        if scheme == "unix" and key == "hub.listen":
            yield key, 'must be "tcp://host:port"; the Unix socket is there anyway, and hub.url moves it'
        if scheme == "tcp" and hub.token is None:
            # On loopback as well: every user of the machine can connect there.
            yield "hub.token", f"is needed, because {key} is a TCP address"
        if scheme == "tcp" and addresses.parse_address(rest)[1] == 0:
            yield key, "needs a port that both sides know"
        if scheme == "tcp" and key == "hub.listen" and hub.tls_cert is None and not addresses.is_loopback(addresses.parse_address(rest)[0]):
            yield key, f"{rest} can be reached from other machines: set hub.tls_cert and hub.tls_key"
    yield from _pair("hub", hub.tls_cert, hub.tls_key)
    yield from _file("hub.tls_ca", hub.tls_ca)


def _broker(config: Config) -> Found:
    broker = config.broker
    if broker.url != "embedded":
        parts = urlsplit(broker.url)
        if parts.scheme != "iggy" or not parts.hostname:
            yield "broker.url", 'must be "embedded" or "iggy://user:password@host:8090"'
        elif not parts.username or not parts.password:
            yield "broker.url", "names no user and password: iggy://user:password@host:8090"
    yield from _file("broker.tls_ca", broker.tls_ca)


def _workers(config: Config) -> Found:
    if config.worker.processes > config.tasks.partitions:
        more = f"{config.worker.processes} workers for {config.tasks.partitions} partitions"
        yield "worker.processes", f"{more}: those above tasks.partitions would never get a task"


def _storage(storage: Storage, environ: Mapping[str, str]) -> Found:
    parts = urlsplit(storage.url)
    if parts.scheme not in STORE_SCHEMES:
        yield "storage.url", f"must begin with {', '.join(f'{scheme}://' for scheme in STORE_SCHEMES)}"
        return
    if parts.scheme == "file":
        if parts.netloc or not parts.path.startswith("/"):
            yield "storage.url", "a file URL has an absolute path and no host: file:///var/lib/fetchbox"
    elif not parts.netloc:
        yield "storage.url", f"names no bucket: {parts.scheme}://bucket/prefix"
    if parts.scheme == "s3":
        yield from _s3(storage, environ)
    if storage.endpoint is not None:
        endpoint = urlsplit(storage.endpoint)
        if endpoint.scheme not in ("http", "https") or not endpoint.hostname:
            yield "storage.endpoint", "must be an http or https URL"
        elif endpoint.scheme == "http" and not storage.allow_http:
            yield "storage.endpoint", "is spoken to without TLS: set storage.allow_http = true if that is meant"
    yield from _template("storage.key_template", storage.key_template)


def _s3(storage: Storage, environ: Mapping[str, str]) -> Found:
    if (storage.access_key_id is None) != (storage.secret_access_key is None):
        missing = "access_key_id" if storage.access_key_id is None else "secret_access_key"
        yield f"storage.{missing}", "is missing: the key and its secret go together"
    elif storage.access_key_id is None:
        anonymous = storage.options.get("skip_signature", storage.options.get("aws_skip_signature", "")).lower() == "true"
        if not anonymous and not any(environ.get(name) for name in AMBIENT_AWS) and not _on_ec2():
            yield "storage.access_key_id", _NO_CREDENTIALS


def _on_ec2() -> bool:
    try:
        return "Amazon" in _DMI_VENDOR.read_text()
    except OSError:
        return False


def _fetching(config: Config) -> Found:
    yield from _fetch("fetch", config.fetch)
    for name in config.job_types:
        if config.job_types[name].fetch.model_fields_set:
            yield from _fetch(f"job_types.{name}.fetch", config.fetch_for(name))


def _fetch(prefix: str, fetch: Fetch) -> Found:
    yield from _networks(f"{prefix}.allow_networks", fetch.allow_networks)
    yield from _file(f"{prefix}.ca_file", fetch.ca_file)
    if fetch.backoff_base > fetch.backoff_max:
        yield f"{prefix}.backoff_base", "is longer than backoff_max"
    for server in fetch.dns_servers:
        try:
            ipaddress.ip_address(server)
        except ValueError:
            try:
                ipaddress.ip_address(addresses.parse_address(server)[0])
            except ValueError:
                yield f"{prefix}.dns_servers", f'{server!r} is neither "ip" nor "ip:port"'
    if any(ord(character) < 32 or ord(character) > 126 for character in fetch.user_agent):
        yield f"{prefix}.user_agent", "may only hold printable ASCII"
    yield from _filters(prefix, fetch)


def _filters(prefix: str, fetch: Fetch) -> Found:
    """The same rules as the native module's, which has the last word."""
    for pattern in fetch.filter_types:
        if not _TYPE_PATTERN.fullmatch(pattern):
            yield f"{prefix}.filter_types", f'{pattern!r} is not a type such as "image/png", "image/*" or "!image/svg+xml"'
    for status in fetch.filter_statuses:
        if not _STATUSES.fullmatch(status):
            yield f"{prefix}.filter_statuses", f'{status!r} is not a status such as 404, or a class such as "5xx"'
    if 0 < fetch.filter_max_bytes < fetch.filter_min_bytes:
        yield f"{prefix}.filter_min_bytes", "is above filter_max_bytes"


def _networks(path: str, networks: tuple[str, ...]) -> Found:
    for network in networks:
        try:
            ipaddress.ip_network(network)
        except ValueError as error:
            yield path, f"{error}; write CIDR networks like 10.0.0.0/8"


def _proxies(config: Config) -> Found:
    pools = config.proxy.pools
    for name, pool in pools.items():
        path = f"proxy.pools.{name}"
        for endpoint in pool.endpoints:
            parts = urlsplit(endpoint)
            if parts.scheme not in PROXY_SCHEMES or not parts.hostname:
                shown = addresses.url_without_secrets(endpoint)
                yield f"{path}.endpoints", f"{shown!r} must be a URL with {', '.join(f'{scheme}://' for scheme in PROXY_SCHEMES)}"
        for other in pool.fallbacks:
            if other not in pools:
                yield f"{path}.fallbacks", f"there is no pool {other!r}"
    for cycle in _cycles({name: pool.fallbacks for name, pool in pools.items()}):
        yield f"proxy.pools.{cycle[0]}.fallbacks", f"go in a circle: {' → '.join([*cycle, cycle[0]])}"


def _cycles(graph: Mapping[str, tuple[str, ...]]) -> list[tuple[str, ...]]:
    """Each cycle once, beginning at its first name in order."""
    found: dict[frozenset[str], tuple[str, ...]] = {}

    def walk(node: str, trail: tuple[str, ...]) -> None:
        if node in trail:
            cycle = trail[trail.index(node) :]
            first = cycle.index(min(cycle))
            found.setdefault(frozenset(cycle), cycle[first:] + cycle[:first])
        elif node in graph and node not in seen:
            for other in graph[node]:
                walk(other, (*trail, node))
            seen.add(node)

    seen: set[str] = set()
    for node in graph:
        walk(node, ())
    return list(found.values())


def _job_types(config: Config, listens: bool) -> Found:
    for name, job_type in config.job_types.items():
        path = f"job_types.{name}"
        if job_type.proxy is not None:
            for key, pools in (("primary", (job_type.proxy.primary,)), ("fallbacks", job_type.proxy.fallbacks)):
                for pool in pools:
                    if pool not in config.proxy.pools:
                        yield f"{path}.proxy.{key}", f"there is no pool {pool!r}"
        if job_type.tenants is not None:
            yield from _tenants(f"{path}.tenants", job_type.tenants, set(config.server.api_tokens.values()), listens)
        if job_type.handler is not None:
            yield from _handler(f"{path}.handler", job_type.handler)
        if job_type.storage.bucket is not None and config.storage.url.startswith("file:"):
            yield f"{path}.storage.bucket", "a local directory has no buckets; use key_prefix"
        yield from _template(f"{path}.storage.key_template", job_type.storage.key_template)
        for header, value in job_type.default_headers.items():
            if not re.fullmatch(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+", header) or any(character in value for character in "\r\n\0"):
                yield f"{path}.default_headers", f"{header!r} is no valid header"


def _transports(config: Config) -> Found:
    for name, job_type in config.job_types.items():
        path = f"job_types.{name}"
        kind = None if job_type.auth is None else job_type.auth.type
        if job_type.transport == "curl":
            if problem := curl.problem():
                yield f"{path}.transport", problem
            elif problem := curl.problem(kind):
                yield f"{path}.auth.type", problem
        elif kind not in (None, "basic"):
            yield f"{path}.auth.type", f'{kind} needs transport = "curl"'
        if job_type.known_hosts is not None and not os.path.isfile(job_type.known_hosts):
            yield f"{path}.known_hosts", f"there is no file {job_type.known_hosts}"


def _tenants(path: str, tenants: tuple[str, ...], known: set[str], listens: bool) -> Found:
    """Only where an api runs; hosts of workers need no tokens."""
    if listens and not known:
        yield path, "needs server.api_tokens: without them everybody names the tenant that suits"
    for tenant in tenants if listens and known else ():
        if tenant not in known:
            yield path, f"no token of server.api_tokens is tenant {tenant!r}'s"


def _handler(path: str, handler: str) -> Found:
    """Looks whether the handler can be there, without running its code: the api imports it and reports what fails then."""
    module, colon, attribute = handler.partition(":")
    if not colon:
        if not any(point.name == handler for point in importlib.metadata.entry_points(group=ENTRY_POINTS)):
            yield path, f'{handler!r} is no entry point of the group {ENTRY_POINTS}; a class is written "package.module:Class"'
    elif not all(part.isidentifier() for part in [*module.split("."), *attribute.split(".")]):
        yield path, f'{handler!r} must be "package.module:Class"'
    else:
        top = module.partition(".")[0]
        if top not in sys.modules and importlib.machinery.PathFinder.find_spec(top, [os.getcwd(), *sys.path]) is None:
            yield path, f"there is no module {top!r}; is it installed, or in the current directory or PYTHONPATH?"


def _template(path: str, template: str | None) -> Found:
    """The same rules as the native module's, which has the last word."""
    if template is None:
        return
    names = re.findall(r"{([^{}]*)}", template)
    if unknown := [name for name in names if name not in PLACEHOLDERS]:
        yield path, f"knows no {{{unknown[0]}}}; there are {', '.join(f'{{{name}}}' for name in PLACEHOLDERS)}"
    elif re.search(r"[{}]", re.sub(r"{[^{}]*}", "", template)):
        yield path, "has a lone brace"
    elif any(segment in ("", ".", "..") for segment in template.split("/")):
        yield path, "has an empty segment, or one of dots"
    elif not UNIQUE_PLACEHOLDERS & set(names):
        yield path, "gives all resources of a job one key; use {resource_id}, {index} or {url_hash}"


def _callbacks(config: Config) -> Found:
    yield from _networks("callbacks.allow_networks", config.callbacks.allow_networks)
    if config.callbacks.secret is not None and not re.fullmatch(
        r"whsec_[A-Za-z0-9+/]{16,}={0,2}", config.callbacks.secret.get_secret_value()
    ):
        yield "callbacks.secret", 'must be "whsec_" and base64 (openssl rand -base64 24)'


def _telemetry(config: Config) -> Found:
    if config.telemetry.metrics_addr:
        try:
            addresses.parse_address(config.telemetry.metrics_addr)
        except ValueError as error:
            yield "telemetry.metrics_addr", str(error)
    endpoint = config.telemetry.otlp_endpoint
    if endpoint is not None and urlsplit(endpoint).scheme not in ("http", "https"):
        yield "telemetry.otlp_endpoint", "must be an http or https URL"


def _pair(section: str, cert: str | None, key: str | None) -> Found:
    if (cert is None) != (key is None):
        yield f"{section}.{'tls_cert' if cert is None else 'tls_key'}", "is missing: certificate and key go together"
    yield from _file(f"{section}.tls_cert", cert)
    yield from _file(f"{section}.tls_key", key)


def _file(path: str, name: str | None) -> Found:
    if name is not None and not os.access(name, os.R_OK):
        yield path, f"cannot read {name}"
