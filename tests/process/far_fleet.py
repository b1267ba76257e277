"""A fleet on an Iggy server and an S3 server, every host in a network of its own behind one switch: what test_fleet.py breaks."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from fetchbox import testing
from fetchbox.origin.certificates import Certificates
from tests.process.bucket import PREFIX, BucketOracle
from tests.process.client import Client
from tests.process.hosts import Host
from tests.process.iggy import IggyServer, iggy_server
from tests.process.netns import Link, linked_namespace, switch
from tests.process.object_stores import S3, SERVERS
from tests.process.origins import OriginProcess
from tests.process.s3 import BUCKET
from tests.process.service import START_LIMIT

NETWORK: Final = "10.78.0.0/24"
HERE: Final = "10.78.0.1"
"""Where the servers and the origin are."""
PARTITIONS: Final = 12


@dataclass(frozen=True, slots=True)
class FarHost:
    """A host, and the link between its network and everybody else's."""

    host: Host
    link: Link


@dataclass(frozen=True, slots=True)
class FarFleet:
    """All of it."""

    iggy: IggyServer
    store: S3
    origin: OriginProcess
    hub: FarHost
    apis: list[FarHost]
    workers: list[FarHost]

    @property
    def hosts(self) -> list[FarHost]:
        """The hub first."""
        return [self.hub, *self.apis, *self.workers]

    def dump(self) -> str:
        """The state of every host, for a failed test."""
        return "\n".join(f"== {far.host.directory.name}\n{far.host.dump()}" for far in self.hosts)

    def await_ready(self) -> None:
        """Waits until every host can do its part."""
        for far in self.hosts:
            far.host.wait_ready(2 * START_LIMIT)

    def stop(self) -> None:
        """Ends all, the hub last, each with exit 0."""
        for far in reversed(self.hosts):
            if far.host.running:
                far.host.end()


class FarOracle(BucketOracle):
    """The oracle over a bucket of any server."""

    def __init__(self, client: Client, fleet: FarFleet) -> None:
        super().__init__(client, _Seen(fleet.store), fleet.origin.journal)  # type: ignore[arg-type]


class _Seen:
    """A server of `object_stores` as the oracle asks it."""

    def __init__(self, store: S3) -> None:
        self._store = store

    def settings(self) -> dict[str, Any]:
        return storage(self._store)

    def uploads(self) -> list[str]:
        return self._store.uploads()


def storage(store: S3) -> dict[str, Any]:
    """`[storage]` of everybody."""
    return {"url": f"s3://{BUCKET}/{PREFIX}", **store.storage(max_attempts=3)}


@contextmanager
def far_fleet(
    directory: Path, server: str, *, pace: float, apis: int = 2, workers: int = 3, overrides: Mapping[str, Any] | None = None
) -> Iterator[FarFleet]:
    """Starts it, inside `in_own_network`; `server` is the S3 server, `pace` the origin's responses a second."""
    with ExitStack() as stack:
        stack.enter_context(switch(HERE))
        iggy = stack.enter_context(iggy_server(directory / "iggy", partitions=PARTITIONS, host=HERE))
        store = stack.enter_context(SERVERS[server](directory, HERE))
        origin = stack.enter_context(OriginProcess(directory, host=HERE, pace=pace))
        secret = directory / "broker-url"
        secret.write_text(iggy.url + "\n", encoding="utf-8")
        hub_at = "10.78.0.10"
        certificates = Certificates.create(("localhost", hub_at))
        stack.callback(certificates.remove)
        pem, port = str(certificates.pem("ca")), testing.free_port()
        shared: dict[str, Any] = {
            "storage": storage(store),
            "server": {"allow_anonymous": True},
            "broker": {"url_file": str(secret)},
            "tasks": {"partitions": PARTITIONS},
            # moto says of every upload that it began in 2010.
            "ledger": {"collect_every": 2, "collect_after": 2, "abort_uploads_after": "36500d"},
            "fetch": {
                "allow_networks": [NETWORK],
                "per_host_concurrency": 16,
                "backoff_base": 0.05,
                "backoff_max": 0.5,
                "connect_timeout": 2,
                "read_timeout": 5,
                "max_attempts": 20,
            },
            **(overrides or {}),
        }
        calling = {"hub": {"url": f"tcp://{hub_at}:{port}", "tls_ca": str(certificates.ca_file)}}

        def host(name: str, role: str, address: str, tree: Mapping[str, Any]) -> FarHost:
            link = stack.enter_context(linked_namespace(name, address))
            made = Host(directory / name, role, {**shared, **tree}, address=address, prefix=link.prefix)
            stack.callback(made.close)
            made.launch()
            return FarHost(made, link)

        fleet = FarFleet(
            iggy,
            store,
            origin,
            host("hub", "hub", hub_at, {"hub": {"listen": f"tcp://{hub_at}:{port}", "tls_cert": pem, "tls_key": pem}}),
            [host(f"api{n}", "api", f"10.78.0.{20 + n}", calling) for n in range(apis)],
            [host(f"worker{n}", "worker", f"10.78.0.{30 + n}", calling) for n in range(workers)],
        )
        fleet.await_ready()
        yield fleet
