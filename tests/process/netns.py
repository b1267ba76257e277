"""A network of its own for a test: every address there is leads back to this machine, and each SYN is counted on its way out.

`in_own_network(test)` runs a function on a thread that has left this machine's network for an empty one; what it starts is there too.
In it a `Trap` listens on port 80 of every address of both families, so that whatever is connected to would also answer.
"""

from __future__ import annotations

import ctypes
import json
import os
import shutil
import socket
import struct
import subprocess
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from ipaddress import ip_address
from typing import Final
from urllib.parse import parse_qs, urlsplit

import pytest

PUBLIC: Final = "93.184.216.34"
"""The one address of the trap that may be connected to."""
PUBLIC6: Final = "2606:2800:220:1::1"
"""And its other."""
CLONE_NEWNET: Final = 0x40000000
LIMIT: Final = 100.0
"""Seconds for everything that a test does in there."""

RULES: Final = """
table inet trap {
  counter public { }
  counter own { }
  counter refused { }
  chain out {
    type filter hook output priority 0; policy accept;
    tcp flags & (syn | ack) == syn ip daddr %s counter name public accept
    tcp flags & (syn | ack) == syn ip6 daddr %s counter name public accept
    tcp flags & (syn | ack) == syn ip daddr 127.0.0.1 tcp dport { %s } counter name own accept
    tcp flags & (syn | ack) == syn counter name refused
  }
}
"""


def in_own_network(body: Callable[[], None], limit: float = LIMIT) -> None:
    """Runs `body` in a network of its own and raises what it raises; skips where that takes rights or tools that are missing."""
    if os.geteuid() != 0:
        pytest.skip("a network of its own needs root")
    for tool, package in (("ip", "iproute2"), ("nft", "nftables")):
        if shutil.which(tool) is None:
            pytest.skip(f"needs {tool}: apt-get install {package}")
    raised: list[BaseException] = []

    def run() -> None:
        try:
            if ctypes.CDLL(None, use_errno=True).unshare(CLONE_NEWNET) != 0:
                pytest.skip(f"no network of its own here: {os.strerror(ctypes.get_errno())}")
            for command in ("link set lo up", "route add local 0.0.0.0/0 dev lo", "-6 route add local ::/0 dev lo"):
                _run("ip", *command.split())
            body()
        except BaseException as error:
            raised.append(error)

    thread = threading.Thread(target=run, name="own network", daemon=True)
    thread.start()
    thread.join(limit)
    if raised:
        raise raised[0]
    assert not thread.is_alive(), f"not done within {limit:g} s"


def _run(*command: str, stdin: str = "") -> str:
    done = subprocess.run(command, input=stdin, capture_output=True, text=True, timeout=10, check=False)
    assert done.returncode == 0, f"{' '.join(command)}: {done.stderr}"
    return done.stdout


def count_syns(*own_ports: int) -> None:
    """Starts to count. SYNs to `own_ports` of 127.0.0.1, where tests talk to their service, are kept apart."""
    # A set may not be empty; nobody connects to port 1.
    rules = RULES % (PUBLIC, PUBLIC6, ", ".join(map(str, own_ports or (1,))))
    if (done := subprocess.run(["nft", "-f", "-"], input=rules, capture_output=True, text=True, timeout=10, check=False)).returncode:
        pytest.skip(f"nft counts nothing here: {done.stderr.strip()}")


def syns() -> dict[str, int]:
    """SYNs sent so far: to the public addresses, to our own ports, and to all others (`refused`)."""
    counters = [item["counter"] for item in json.loads(_run("nft", "-j", "list", "counters"))["nftables"] if "counter" in item]
    return {counter["name"]: counter["packets"] for counter in counters}


class Trap:
    """A web server on port 80 of every address and a name server, both in the network of the thread that starts them.

    `/to?u=URL` redirects there, every other path answers `trapped`. `names` gives the addresses of each name, or a list of them for each
    question in turn.
    """

    def __init__(self, names: Mapping[str, list[str] | list[list[str]]]) -> None:
        self.names = names
        self.asked: list[str] = []
        self.connections: list[str] = []
        """The addresses that were connected to."""
        self._web = [self._listener(socket.AF_INET, "0.0.0.0"), self._listener(socket.AF_INET6, "::")]
        self._dns = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._dns.bind(("127.0.0.1", 0))
        self.name_server = f"127.0.0.1:{self._dns.getsockname()[1]}"
        for listener in self._web:
            threading.Thread(target=self._serve, args=(listener,), daemon=True).start()
        threading.Thread(target=self._answer, daemon=True).start()

    @staticmethod
    def _listener(family: socket.AddressFamily, address: str) -> socket.socket:
        listener = socket.socket(family)
        if family == socket.AF_INET6:
            listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        listener.bind((address, 80))
        listener.listen(256)
        return listener

    def close(self) -> None:
        """Ends its threads."""
        for listener in self._web:
            listener.shutdown(socket.SHUT_RDWR)
            listener.close()
        # A datagram that is no question wakes the name server up, which sees the end.
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as waker:
            waker.sendto(b"", self._dns.getsockname())

    def _serve(self, listener: socket.socket) -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            with connection:
                self.connections.append(connection.getsockname()[0])
                connection.settimeout(5)
                head = b""
                while b"\r\n\r\n" not in head and (data := connection.recv(65536)):
                    head += data
                target = head.split(b" ")[1].decode() if head.count(b" ") >= 2 else "/"
                to = parse_qs(urlsplit(target).query).get("u")
                fields = f"HTTP/1.1 302 Found\r\nLocation: {to[0]}\r\n" if to else "HTTP/1.1 200 OK\r\n"
                connection.sendall(f"{fields}Content-Length: 7\r\nConnection: close\r\n\r\ntrapped".encode())

    def _answer(self) -> None:
        while True:
            query, peer = self._dns.recvfrom(4096)
            if not query:
                self._dns.close()
                return
            labels, at = [], 12
            while query[at]:
                labels.append(query[at + 1 : at + 1 + query[at]].decode("ascii", "replace").lower())
                at += 1 + query[at]
            name, (kind,) = ".".join(labels), struct.unpack(">H", query[at + 1 : at + 3])
            known = self.names.get(name)
            turn = sum(asked == name for asked in self.asked)
            if kind == 1:
                self.asked.append(name)
            listed = [] if known is None else known[min(turn, len(known) - 1)] if isinstance(known[0], list) else known
            packed = [ip_address(str(text)).packed for text in listed]
            records = [data for data in packed if len(data) == (4 if kind == 1 else 16)]
            code = 3 if known is None else 0
            reply = query[:2] + struct.pack(">HHHHH", 0x8180 | code, 1, len(records), 0, 0) + query[12 : at + 5]
            reply += b"".join(struct.pack(">HHHIH", 0xC00C, kind, 1, 0, len(data)) + data for data in records)
            self._dns.sendto(reply, peer)


@contextmanager
def trap(names: Mapping[str, list[str] | list[list[str]]]) -> Iterator[Trap]:
    """A trap for the block."""
    running = Trap(names)
    try:
        yield running
    finally:
        running.close()


@dataclass(frozen=True, slots=True)
class Link:
    """A further network, with a link to this one that can be cut. `prefix` put before a command runs it there."""

    prefix: tuple[str, ...]
    _device: str

    def cut(self) -> None:
        """Nothing passes any more, and nobody is told."""
        _run("ip", "link", "set", self._device, "down")

    def mend(self) -> None:
        """As before."""
        _run("ip", "link", "set", self._device, "up")


@contextmanager
def switch(address: str) -> Iterator[None]:
    """Lets this thread's own network have neighbours in `address`/24, instead of leading every address back to itself."""
    _run("ip", "route", "del", "local", "0.0.0.0/0", "dev", "lo")
    _run("ip", "link", "add", "switch", "type", "bridge")
    _run("ip", "address", "add", f"{address}/24", "dev", "switch")
    _run("ip", "link", "set", "switch", "up")
    yield


@contextmanager
def linked_namespace(name: str, address: str) -> Iterator[Link]:
    """A network of `address`/24 behind the switch of this one, for the block. Skips where named networks are not to be had."""
    namespace = f"fetchbox-{os.getpid()}-{name}"
    if (done := subprocess.run(["ip", "netns", "add", namespace], capture_output=True, text=True, timeout=10, check=False)).returncode:
        pytest.skip(f"no further network here: {done.stderr.strip()}")
    try:
        there = ("ip", "-n", namespace)
        _run("ip", "link", "add", f"to-{name}", "type", "veth", "peer", "name", "eth0", "netns", namespace)
        _run("ip", "link", "set", f"to-{name}", "master", "switch", "up")
        _run(*there, "address", "add", f"{address}/24", "dev", "eth0")
        for device in ("lo", "eth0"):
            _run(*there, "link", "set", device, "up")
        yield Link(("ip", "netns", "exec", namespace), f"to-{name}")
    finally:
        _run("ip", "netns", "delete", namespace)
