"""Which processes a command starts."""

from __future__ import annotations

import socket
from collections.abc import Mapping
from urllib.parse import urlsplit

from fetchbox.config import Config, hub_socket, is_loopback, parse_address

START_ORDER = ("hub", "api", "worker")
DRAIN_ORDER = ("api", "worker", "hub")
PROBE_TIMEOUT = 1.0


def plan(config: Config, command: str) -> dict[str, int]:
    """Role → number of processes for `fetchbox up`, `api`, `worker` or `hub`.

    A hub of its own belongs to `up`, unless hub.url names one on another host, and to `api` when hub.url is not set and none runs for
    this data_dir.
    """
    match command:
        case "up":
            elsewhere = config.hub.url is not None and config.hub.url.startswith("tcp://")
            roles = {"hub": 0 if elsewhere else 1, "api": config.server.processes, "worker": config.worker.processes}
        case "api":
            roles = {"hub": int(config.hub.url is None and not hub_answers(config)), "api": config.server.processes}
        case "worker":
            roles = {"worker": config.worker.processes}
        case "hub":
            roles = {"hub": 1}
        case _:
            raise ValueError(command)
    return {role: roles[role] for role in START_ORDER if roles.get(role)}


def hub_address(config: Config, roles: Mapping[str, int]) -> str | None:
    """Where the hub listens for other hosts, or where that of these roles is; None when it is all on this machine's own socket."""
    return config.hub.listen if "hub" in roles else config.hub.url


def warning(config: Config, roles: Mapping[str, int]) -> str | None:
    """What can only be known of this host alone, and will not do for several."""
    address = hub_address(config, roles) or ""
    if not address.startswith("tcp://") or is_loopback(parse_address(address.removeprefix("tcp://"))[0]):
        return None
    if urlsplit(config.storage.url).scheme != "file":
        return None
    return (
        f"storage.url is a directory, {config.storage.url}: the hub, apis and workers of all hosts must find the same files there. "
        "If it is not shared, use an object store"
    )


def hub_answers(config: Config) -> bool:
    """Whether a hub listens on this configuration's own socket."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(PROBE_TIMEOUT)
        try:
            probe.connect(hub_socket(config))
        except (TimeoutError, BlockingIOError):
            return True  # it listens, and has much to do
        except OSError:
            return False
        return True
