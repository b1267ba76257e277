"""Several hosts with one hub: `fetchbox hub`, `fetchbox api` and `fetchbox worker`, each a top command with a directory of its own."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from fetchbox import testing
from fetchbox.origin.certificates import Certificates
from tests.process.service import START_LIMIT, Service, command
from tests.process.waiting import wait_for

TOKEN: Final = "a-token-of-the-tests"


class Host(Service):
    """One role on a host: it is ready when its supervisor says that all its processes are. `prefix` puts it into another network."""

    def __init__(
        self, directory: Path, role: str, overrides: Mapping[str, Any], *, address: str = "127.0.0.1", prefix: Sequence[str] = ()
    ) -> None:
        self.role = role
        self.address = address
        super().__init__(directory, overrides, environment={"FETCHBOX__HUB__TOKEN_FILE": str(directory / "token")})
        (directory / "token").write_text(TOKEN + "\n", encoding="utf-8")
        self.command = [*prefix, *command(role, "--config", str(self.config_path))]

    def run_by(self, interpreter: str) -> None:
        """From its next start on it runs the build that this interpreter has."""
        self.command[self.command.index("-m") - 1] = interpreter

    def configure(self, overrides: Mapping[str, Any]) -> None:
        """Writes the configuration; its ports are where the test can reach them."""
        self.url = f"http://{self.address}:{self.port}"
        self.metrics_url = f"http://{self.address}:{self.metrics_url.rpartition(':')[2]}"
        super().configure(overrides)

    def ready(self) -> bool:
        """Whether everything of this host can do its part."""
        return self.all_ready() and (self.role != "api" or super().ready())


@dataclass(frozen=True, slots=True)
class Fleet:
    """One hub, apis and workers, and the directory that they share as a store."""

    hub: Host
    apis: list[Host]
    workers: list[Host]
    store: Path

    @property
    def hosts(self) -> list[Host]:
        """All of them, the hub first."""
        return [self.hub, *self.apis, *self.workers]

    def dump(self) -> str:
        """The state of every host, for a failed test."""
        return "\n".join(f"== {host.directory.name}\n{host.dump()}" for host in self.hosts)

    def await_ready(self) -> None:
        """Waits until all can do their part, connected to the hub."""
        for host in self.hosts:
            host.wait_ready(START_LIMIT)

    def stop(self) -> None:
        """Ends all, the hub last."""
        for host in reversed(self.hosts):
            if host.running:
                host.end()


@contextmanager
def fleet(
    directory: Path,
    *,
    apis: int = 1,
    workers: Sequence[Sequence[str]] = ((), ()),
    hub_at: str = "127.0.0.1",
    overrides: Mapping[str, Any] | None = None,
    worker_at: Sequence[str] = (),
    interpreter: str = sys.executable,
) -> Iterator[Fleet]:
    """Starts a fleet over TLS and a token: `workers` are the prefixes of their commands, `worker_at` their addresses, `interpreter` has the
    build that they run."""
    store = directory / "store"
    store.mkdir()
    certificates = Certificates.create(("localhost", hub_at))
    pem, port = str(certificates.pem("ca")), testing.free_port()
    shared: dict[str, Any] = {"storage": {"url": store.as_uri()}, **(overrides or {})}
    listening = {"hub": {"listen": f"tcp://{hub_at}:{port}", "tls_cert": pem, "tls_key": pem}}
    calling = {"hub": {"url": f"tcp://{hub_at}:{port}", "tls_ca": str(certificates.ca_file)}}
    at = [*worker_at, *["127.0.0.1"] * (len(workers) - len(worker_at))]
    with ExitStack() as stack:
        stack.callback(certificates.remove)

        def host(name: str, role: str, tree: Mapping[str, Any], address: str = "127.0.0.1", prefix: Sequence[str] = ()) -> Host:
            made = Host(directory / name, role, {**shared, **tree}, address=address, prefix=prefix)
            stack.callback(made.close)
            made.run_by(interpreter)
            made.launch()
            return made

        hub = host("hub", "hub", listening)
        running = Fleet(
            hub,
            [host(f"api-{index}", "api", calling) for index in range(apis)],
            [host(f"worker-{index}", "worker", calling, at[index], prefix) for index, prefix in enumerate(workers)],
            store,
        )
        running.await_ready()
        if workers:
            wait_for("a worker at the hub", lambda: _workers(running.apis[0]) == "ok", START_LIMIT, every=0.1, describe=running.dump)
        yield running


def _workers(api: Host) -> str | None:
    response = api.http.http.get("/operators/health")
    return response.json().get("components", {}).get("workers", {}).get("status")  # type: ignore[no-any-return]
