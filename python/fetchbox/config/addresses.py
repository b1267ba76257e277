"""Addresses as the configuration writes them: `127.0.0.1:8080`, `[::1]:8080`, `localhost:0`, and the URLs of the hub."""

from __future__ import annotations

import hashlib
import ipaddress
import os
from urllib.parse import urlsplit

UNIX_PATH_LIMIT = 107
"""Bytes of a Unix socket's path that Linux takes."""


def parse_address(text: str) -> tuple[str, int]:
    """Host and port. Raises ValueError that shows how an address is written."""
    host, colon, port = text.rpartition(":")
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    elif ":" in host:
        raise ValueError(f'{text!r} is no address: an IPv6 address goes into brackets, "[::1]:8080"')
    if not colon or not host or not port.isascii() or not port.isdigit() or int(port) > 65535:
        raise ValueError(f'{text!r} is no address: write host and port, "127.0.0.1:8080"')
    return host, int(port)


def format_address(host: str, port: int) -> str:
    """The reverse of `parse_address`."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches the host."""
    if host.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def is_wildcard(host: str) -> bool:
    """Whether the host stands for every address of the machine."""
    try:
        return ipaddress.ip_address(host).is_unspecified
    except ValueError:
        return False


def parse_hub_url(url: str) -> tuple[str, str]:
    """("unix", path) or ("tcp", "host:port"). Raises ValueError that shows how it is written."""
    scheme, separator, rest = url.partition("://")
    if separator and scheme == "unix" and rest.startswith("/"):
        if len(os.fsencode(rest)) > UNIX_PATH_LIMIT:
            raise ValueError(f"the path of a Unix socket has at most {UNIX_PATH_LIMIT} bytes")
        return scheme, rest
    if separator and scheme == "tcp":
        parse_address(rest)
        return scheme, rest
    raise ValueError('must be "unix:///path" or "tcp://host:port"')


def default_socket(data_dir: str) -> str:
    """Where the hub of a data_dir listens: inside it, or under a short name where that path is too long for a socket."""
    inside = os.path.join(data_dir, "hub.sock")
    if len(os.fsencode(inside)) <= UNIX_PATH_LIMIT:
        return inside
    digest = hashlib.sha256(os.fsencode(data_dir)).hexdigest()[:24]
    base = os.environ.get("XDG_RUNTIME_DIR") or "/tmp"  # noqa: S108 - the directory below is our own and checked by its opener
    return os.path.join(base, f"fetchbox-{os.getuid()}", f"{digest}.sock")


def url_without_secrets(url: str) -> str:
    """The URL with its user information hidden."""
    if "@" not in url:
        return url
    try:
        parts = urlsplit(url)
    except ValueError:
        return "********"
    userinfo, at, host = parts.netloc.rpartition("@")
    return parts._replace(netloc=f"********@{host}").geturl() if at and userinfo else url
