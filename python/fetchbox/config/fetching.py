"""Sections about downloads: `[fetch]`, `[storage]`, `[job_types.NAME]`, `[proxy.pools.NAME]`."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, SecretStr

from fetchbox.config.base import Count, CountOrZero, Name, Section, Statuses, StringMap, Strings
from fetchbox.config.units import Duration, DurationOrZero, RateOrZero, Size, SizeOrZero


class Fetch(Section):
    """How URLs are fetched."""

    connect_timeout: Duration = 10.0
    """Limit for name resolution, TCP and TLS together."""
    read_timeout: Duration = 30.0
    """Limit without a single byte arriving."""
    total_timeout: DurationOrZero = 3600.0
    """Limit for one attempt, redirects and body included; 0 for none."""
    min_speed: SizeOrZero = 0
    """Bytes per second; a transfer that is slower over 30 s is stopped and tried again. 0 for none."""
    limit_rate: SizeOrZero = 0
    """Bytes per second of all bodies together, in each process that downloads; 0 for no limit. With a limit HTTP/2 is not offered. A job
    type's own limit holds for its resources alone."""
    max_attempts: Count = 5
    """Attempts per resource; the first one counts."""
    backoff_base: Duration = 1.0
    """Upper bound of the first wait between attempts; it doubles, with full jitter."""
    backoff_max: Duration = 300.0
    """Upper bound of every wait between attempts."""
    retry_after_max: Duration = 3600.0
    """A longer Retry-After is cut to this."""
    max_bytes: Size = 5 * 1024**3
    """Largest body; a larger one is stopped and fails as DOWNLOAD_TOO_LARGE."""
    max_redirects: CountOrZero = 10
    """Redirects that are followed."""
    per_host_concurrency: Count = 8
    """Downloads from one host at once, in each worker process."""
    per_host_rate: RateOrZero = 0.0
    """Requests per second to one host, in each worker process; 20 or "20/s". 0 for no limit."""
    adaptive_rate: bool = True
    """Whether a host that answers 429 or 503, or ever more slowly, is asked less often until it is well again."""
    user_agent: str = ""
    """The User-Agent header; empty sends fetchbox/VERSION. A header of the task wins."""
    allow_networks: Strings = ()
    """CIDR networks that may be connected to although the address policy refuses them."""
    verify_tls: bool = True
    """Whether certificates are checked."""
    ca_file: str | None = None
    """PEM file with further roots."""
    dns_servers: Strings = ()
    """Resolvers as `ip` or `ip:port`; empty reads /etc/resolv.conf."""
    http2: bool = True
    """Whether HTTP/2 is offered under TLS."""
    robots: bool = False
    """Whether robots.txt and X-Robots-Tag are obeyed; what they forbid is filtered."""
    robots_tags: Strings = ("noai", "noimageai", "noindex", "noimageindex")
    """Directives of X-Robots-Tag that filter an answer, with `robots`."""
    filter_types: Strings = ()
    """Types that are kept, by what the origin declares and by what the first bytes show: `["image/*", "!image/svg+xml"]`; a `!` leaves a
    type out. Others are filtered. Empty keeps all."""
    filter_min_bytes: SizeOrZero = 0
    """Smaller bodies are filtered."""
    filter_max_bytes: SizeOrZero = 0
    """Larger bodies are filtered, where `max_bytes` makes them fail; 0 for no limit."""
    filter_statuses: Statuses = ()
    """Statuses that are filtered instead of failed or tried again: `[404, 410]`, `["5xx"]`."""
    reuse: bool = False
    """Whether what has not changed since it was stored is reused instead of fetched again: docs/reuse.md."""
    reuse_max_age: DurationOrZero = 0.0
    """With `reuse`: how long after its origin confirmed it an object is reused without asking; 0 always asks."""


class Storage(Section):
    """Where objects and manifests go."""

    url: str = "file://{data_dir}/assets"
    """`file:///path`, `s3://bucket/prefix`, `gs://bucket/prefix` or `az://container/prefix`."""
    endpoint: str | None = None
    """Another endpoint than the provider's own: `http://127.0.0.1:3900`."""
    region: str | None = None
    """The bucket's region."""
    access_key_id: SecretStr | None = None
    """Access key; without one the provider's ambient credentials are used."""
    secret_access_key: SecretStr | None = None
    """The access key's secret."""
    session_token: SecretStr | None = None
    """Token of temporary credentials."""
    allow_http: bool = False
    """Whether the store may be spoken to without TLS."""
    virtual_hosted_style: bool = False
    """Whether the bucket is part of the host name."""
    multipart_threshold: Size = 8_000_000
    """Bodies from this size on are uploaded in parts."""
    part_size: Size = 8_000_000
    """Size of a part; it grows with the object, so that no object needs more than 10,000 parts."""
    max_attempts: Count = 5
    """Attempts of one request to the store; the first one counts."""
    metadata: StringMap = {}
    """Kept as metadata on every object."""
    key_template: str | None = None
    """Where objects lie below the URL, from {job_type}, {job_id}, {resource_id}, {index}, {tenant}, {host}, {ext}, {date}, {shard}
    and {url_hash}. Default: resources/{job_type}/{job_id}/{resource_id}."""
    options: Annotated[StringMap, Field(repr=False)] = {}
    """Further options of the store, by object_store's names; hidden in `config show`."""


class ProxyChoice(Section):
    """The proxies of a job type."""

    primary: Name
    """The pool that is asked first."""
    fallbacks: Strings = ()
    """Pools that are asked when it is exhausted, in order."""


class JobStorage(Section):
    """Where objects of a job type go."""

    bucket: str | None = None
    """Another bucket of the same store."""
    key_prefix: str | None = None
    """Put before every key."""
    key_template: str | None = None
    """Another key template."""
    metadata: StringMap = {}
    """Kept on every object, over that of [storage]."""


class Auth(Section):
    """Credentials for the task's own origin; no redirect to another one carries them."""

    type: Literal["basic", "digest", "ntlm"] = "basic"
    """`digest` and `ntlm` need transport = "curl"."""
    username: str
    """User name."""
    password: SecretStr
    """Password."""


class JobType(Section):
    """One kind of job."""

    handler: str | None = None
    """`package.module:Class`, or the name of an entry point in the group fetchbox.handlers. Without one manifests are passed through."""
    default_headers: Annotated[StringMap, Field(repr=False)] = {}
    """Request headers, unless the resource has them itself."""
    proxy: ProxyChoice | None = None
    """The proxies of tasks that name none: `primary`, `fallbacks`."""
    storage: JobStorage = JobStorage()
    """Where objects go: `bucket`, `key_prefix`, `key_template`, `metadata`."""
    transport: Literal["native", "curl"] = "native"
    """`curl` for ftp, ftps, sftp, digest and NTLM; it needs the extra `fetchbox[curl]`."""
    known_hosts: str | None = None
    """OpenSSH's file of host keys, for sftp; a host that it does not know is refused while verify_tls is on."""
    auth: Auth | None = None
    """Credentials for the origin: `type`, `username`, `password`."""
    tenants: Annotated[tuple[str, ...], Field(strict=False, min_length=1)] | None = None
    """Only these tenants may post such jobs, 403 for others; all may without it. For what not every tenant may read: `auth` and
    `default_headers` go to whatever origin a URL names."""
    handler_timeout: Duration = 30.0
    """Limit of each call to the handler."""
    options: Annotated[dict[str, Any], Field(repr=False)] = {}
    """Given to the handler's constructor as it is."""
    fetch: Fetch = Fetch()
    """Keys of [fetch] that differ for this job type."""


class ProxyPool(Section):
    """Some proxies that are as good as one another."""

    endpoints: Annotated[tuple[str, ...], Field(strict=False, min_length=1, repr=False)]
    """`http://`, `https://` or `socks5://` URLs, with user and password where needed."""
    fallbacks: Strings = ()
    """Pools that are asked when this one is exhausted, in order."""
    max_attempts: CountOrZero = 0
    """Endpoints tried per attempt; 0 for all."""
    backoff_base: Duration = 1.0
    """How long a failing endpoint rests at first; it doubles."""
    remote_dns: bool = False
    """Whether the proxy resolves names. The address policy then covers only what it can see."""


class Proxy(Section):
    """Proxies."""

    pools: dict[Name, ProxyPool] = {}
    """Pools by name."""
