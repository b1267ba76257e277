"""The whole configuration, section by section. Names, units and defaults here are what docs/configuration.md is made from."""

from __future__ import annotations

import os
from typing import Annotated, Literal

from pydantic import Field, PrivateAttr, SecretStr

from fetchbox.config.base import Count, CountOrZero, Name, Section
from fetchbox.config.fetching import Fetch, JobType, Proxy, Storage
from fetchbox.config.units import Duration, DurationOrZero, RateOrZero, Size, SizeOrZero

TASK_PARTITIONS = 64


class Server(Section):
    """The HTTP API."""

    bind_addr: str = "127.0.0.1:8080"
    """Address and port; port 0 takes a free one."""
    processes: Count = 1
    """API processes. One takes thousands of jobs a second; add more when it is at 100 % CPU."""
    max_manifest_bytes: Size = 5_000_000
    """Largest manifest, after decompression."""
    max_resources: Annotated[int, Field(ge=1, le=65_536)] = 1000
    """Most resources of one manifest."""
    max_header_bytes: Size = 8000
    """Longest value of a resource's header; at most 32 headers."""
    api_tokens: Annotated[dict[str, str], Field(repr=False)] = {}
    """Bearer token → tenant. Without tokens every client is taken at its word."""
    operator_token: SecretStr | None = None
    """Opens /operators."""
    allow_anonymous: bool = False
    """Whether an address that is not loopback may be bound although neither tokens nor operator_token are set."""
    rate_limit: RateOrZero = 50.0
    """Jobs per tenant, for the whole service; "50/s". 0 for no limit."""
    resource_rate_limit: RateOrZero = 0.0
    """Resources per tenant, for the whole service; "1000/s". At least one whole manifest passes at once. 0 for no limit."""
    daily_bytes: SizeOrZero = 0
    """Bytes that a tenant may have stored in a day (UTC). From then on its jobs are refused until midnight; those accepted before go on.
    0 for no limit."""
    tls_cert: str | None = None
    """PEM file with the certificate chain. SIGHUP shows a renewed one, without refusing a request."""
    tls_key: str | None = None
    """PEM file with its private key."""


class Tenant(Section):
    """Limits of one tenant that differ from those of `[server]`."""

    rate_limit: RateOrZero | None = None
    """Jobs; "50/s". 0 for no limit."""
    resource_rate_limit: RateOrZero | None = None
    """Resources; "1000/s". 0 for no limit."""
    daily_bytes: SizeOrZero | None = None
    """Bytes that it may have stored in a day (UTC). 0 for no limit."""


class Hub(Section):
    """The process that owns the database."""

    path: str = "{data_dir}/hub"
    """Directory of the database."""
    url: str | None = None
    """Where api and worker find the hub: `unix:///path` or `tcp://host:port`. Default: the socket in data_dir."""
    listen: str | None = None
    """A further address that the hub serves, for other hosts: `tcp://0.0.0.0:8090`. Needs token, and off loopback tls_cert and tls_key."""
    token: SecretStr | None = None
    """What whoever connects to the hub must show; the same for all who do."""
    tls_cert: str | None = None
    """PEM file with the hub's certificate chain, shown on listen. A renewed one is taken without a restart."""
    tls_key: str | None = None
    """PEM file with its private key."""
    tls_ca: str | None = None
    """PEM file with the roots that clients of the hub trust. Without it the system's; on loopback it is what turns TLS on."""
    durability: Literal["sync", "buffer"] = "sync"
    """`sync`: on disk before it is acknowledged. `buffer`: in the system's cache, lost when the machine (not the process) dies."""
    outbox_max_bytes: Size = 1_000_000_000
    """How much may wait for a broker that is away before ingest answers 503."""


class Broker(Section):
    """Where tasks and outcomes travel."""

    url: Annotated[str, Field(repr=False)] = "embedded"
    """`embedded` (in the hub), or `iggy://user:password@host:8090`. Like a secret it may come from a file (`url_file`)."""
    tls: bool = False
    """Whether the server is spoken to over TLS; its certificate is checked against the host of `url`."""
    tls_ca: str | None = None
    """PEM file with the roots that are trusted instead of those of the web that the client knows. Implies `tls`."""


class Tasks(Section):
    """How tasks spread over workers."""

    partitions: Annotated[int, Field(ge=1, le=1024)] = TASK_PARTITIONS
    """Partitions of jobs.tasks, the most workers that can share a fleet. An existing topic's number wins."""
    partition_by: Literal["job", "host"] = "job"
    """`host` sends all tasks of a host to one worker, so that its limits hold for the fleet."""


class Worker(Section):
    """The download processes."""

    processes: CountOrZero = 1
    """Worker processes on this machine. One uses several cores; add more when its loop is the limit."""
    concurrency: Annotated[int, Field(ge=1, le=100_000)] = 256
    """Downloads at once, in each process."""
    memory_budget: Size = 256_000_000
    """Bytes of bodies held in memory at once, in each process."""
    flush_interval: DurationOrZero = 0.02
    """How long outcomes wait for others to share one durable commit; on Iggy longer where publishing takes long (0.1 s)."""


class Retention(Section):
    """How long things are kept. Nothing unsettled is ever removed."""

    job_ttl: Duration = 30 * 86400.0
    """Settled jobs in the ledger."""
    ledger_max_bytes: Size = 5_000_000_000
    """Size of the ledger, from which on the oldest settled jobs go first."""
    tasks_ttl: Duration = 7 * 86400.0
    """Records of jobs.tasks and jobs.retry."""
    status_ttl: Duration = 14 * 86400.0
    """Records of jobs.status and jobs.events."""
    logs_ttl: Duration = 30 * 86400.0
    """Records of jobs.logs."""
    dlq_ttl: Duration = 90 * 86400.0
    """Records of jobs.dlq."""
    stream_max_bytes: Size = 10_000_000_000
    """Size of each topic, from which on the oldest consumed records go first."""


class Ledger(Section):
    """How ledger and store keep themselves in order (docs/ledger.md)."""

    sweep_after: DurationOrZero = 900.0
    """A job that nothing has changed for so long is examined for tasks that were lost; 0 for never."""
    direct_idle: DurationOrZero = 300.0
    """A job whose tasks a producer published itself, without saying how many, has ended when nothing came for so long; 0 for never."""
    collect_every: DurationOrZero = 20.0
    """How often what nobody owns is removed from the store; 0 for only by `fetchbox ledger collect`."""
    collect_after: Duration = 900.0
    """How long after a job settled it is looked at for such objects, and how old a manifest without a job must be. A post that takes
    longer is refused."""
    abort_uploads_after: Duration = 86400.0
    """Age from which an unfinished multipart upload is aborted even when its resource is not known to be settled."""


class Callbacks(Section):
    """Webhooks of settled jobs."""

    secret: SecretStr | None = None
    """Signs callbacks (Standard Webhooks): "whsec_" and base64."""
    allow_networks: Annotated[tuple[str, ...], Field(strict=False)] = ()
    """CIDR networks that callbacks may reach although the address policy refuses them."""


class Telemetry(Section):
    """What FetchBox says about itself."""

    metrics_addr: str = "127.0.0.1:9464"
    """Address and port of /metrics and /health on this node; "" for none."""
    log_format: Literal["auto", "json", "pretty"] = "auto"
    """`auto`: pretty on a terminal, JSON lines elsewhere."""
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    """The least level that is logged."""
    otlp_endpoint: str | None = None
    """OTLP over HTTP for traces; needs the extra `fetchbox[otel]`. The OTEL_* variables are honoured."""


class Client(Section):
    """For commands and clients that talk to a service."""

    url: str | None = None
    """The service. Default: server.bind_addr."""
    token: SecretStr | None = None
    """Sent as bearer token."""


class Config(Section):
    """Everything, checked. Make one with `fetchbox.config.load`."""

    data_dir: str = "fetchbox-data"
    """Where everything that must survive lies; {data_dir} in other values stands for its absolute path."""
    drain_timeout: Duration = 25.0
    """From SIGTERM to the end: work under way may finish within this, the rest is taken up by the next start."""
    server: Server = Server()
    tenants: dict[Annotated[str, Field(min_length=1, max_length=128)], Tenant] = {}
    hub: Hub = Hub()
    broker: Broker = Broker()
    tasks: Tasks = Tasks()
    storage: Storage = Storage()
    worker: Worker = Worker()
    fetch: Fetch = Fetch()
    job_types: dict[Name, JobType] = {}
    proxy: Proxy = Proxy()
    retention: Retention = Retention()
    ledger: Ledger = Ledger()
    callbacks: Callbacks = Callbacks()
    telemetry: Telemetry = Telemetry()
    client: Client = Client()

    _sources: dict[str, str] = PrivateAttr(default_factory=dict)

    def source_of(self, path: str) -> str | None:
        """What set the value at a dotted path, or a part of it: a file's name, a variable's name; None for a default."""
        while path:
            if (source := self._sources.get(path)) is not None:
                return source
            path = path.rpartition(".")[0]
        return None

    def job_type(self, name: str) -> JobType | None:
        """The job type of that name; `default` exists even when nothing configures it."""
        return self.job_types.get(name, JobType() if name == "default" else None)

    def fetch_for(self, job_type: str) -> Fetch:
        """`[fetch]` with the keys that the job type overrides."""
        chosen = self.job_types.get(job_type)
        if chosen is None or not chosen.fetch.model_fields_set:
            return self.fetch
        return self.fetch.model_copy(update={key: getattr(chosen.fetch, key) for key in chosen.fetch.model_fields_set})

    def in_data_dir(self, *names: str) -> str:
        """A path below data_dir."""
        return os.path.join(self.data_dir, *names)
