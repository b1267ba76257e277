"""No SYN to where nobody may go: every blocked form of cases 1 to 7 and 10 of docs/hostile-cases.md, counted by the kernel.

The network of these tests leads every address back to the machine, where something would answer: what is blocked is FetchBox's doing alone.
"""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterable
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

from tests.process.client import Client
from tests.process.netns import PUBLIC, PUBLIC6, Trap, count_syns, in_own_network, syns, trap
from tests.process.service import Service, command

BLOCKED = "DOWNLOAD_BLOCKED_ADDRESS"

LITERALS = [
    *("127.0.0.1", "127.9.9.9", "10.0.0.1", "172.16.0.1", "172.31.255.255", "192.168.0.1", "169.254.169.254", "100.64.0.1"),
    *("100.127.255.255", "0.0.0.0", "0.1.2.3", "192.0.0.1", "192.0.0.192", "192.0.2.1", "192.88.99.1", "198.18.0.1", "198.19.255.255"),
    *("198.51.100.1", "203.0.113.1", "224.0.0.1", "239.255.255.255", "240.0.0.1", "255.255.255.255"),
    *("[::]", "[::1]", "[fc00::1]", "[fd00:ec2::254]", "[fe80::1]", "[fec0::1]", "[ff02::1]", "[100::1]", "[5f00::1]", "[4000::1]"),
    *("[::ffff:169.254.169.254]", f"[::ffff:{PUBLIC}]", "[::127.0.0.1]", f"[::{PUBLIC}]", "[2001:db8::1]", "[3fff::1]"),
    *("[64:ff9b::a9fe:a9fe]", "[64:ff9b::5db8:d822]", "[64:ff9b:1::1]", "[2002:7f00:1::]", "[2002:5db8:d822::1]"),
    *("[2001::1]", "[2001:0:4136:e378:8000:63bf:3fff:fdd2]", "[2001:20::1]"),
]
SPELLINGS = [
    *("2130706433", "017700000001", "0x7f000001", "0177.0.0.1", "0x7f.1", "127.1", "127.0.1", "0xa9fea9fe", "2852039166"),
    *("0251.0376.0251.0376", "169.254.43518", "127.0.0.1.", "127%2e0.0.1", "%31%32%37.0.0.1", "１２７.0.0.1", "127。0。0。1"),
]
NAMES: dict[str, list[str] | list[list[str]]] = {
    "loop.test": ["127.0.0.1"],
    "metadata.test": ["169.254.169.254"],
    "six.test": ["fd00:ec2::254"],
    "mapped.test": ["::ffff:10.0.0.1"],
    "nat64.test": ["64:ff9b::a9fe:a9fe"],
    "public-then-private.test": [PUBLIC, "10.0.0.1"],
    "private-then-public.test": ["10.0.0.1", PUBLIC],
    "both-families.test": [PUBLIC, "::1"],
    "public.test": [PUBLIC, PUBLIC6],
    # The first answer is public, every later one is not.
    "rebind.test": [[PUBLIC], ["169.254.169.254"]],
}
REFUSED_NAMES = [*(name for name in NAMES if name not in ("public.test", "rebind.test")), "localhost", "LOCALHOST.", "x.localhost"]
HOSTS = LITERALS + SPELLINGS + REFUSED_NAMES
SCHEMES = ("file:///etc/passwd", "gopher://10.0.0.1/1", "ftp://10.0.0.1/x")


def redirects() -> dict[str, str]:
    """URLs of the public site that redirect to where nobody may go, and the code of each."""
    codes = {f"http://{host}/": BLOCKED for host in HOSTS} | dict.fromkeys(SCHEMES, "DOWNLOAD_BAD_SCHEME")
    return {f"http://{PUBLIC}/to?u={quote(url, safe='')}": code for url, code in codes.items()}


def get(directory: Path, urls: Iterable[str], *options: str, **environment: str) -> dict[str, dict[str, Any]]:
    """`fetchbox get` in this thread's network; the outcomes by URL."""
    listed = directory / "urls.txt"
    listed.write_text("\n".join(urls), encoding="utf-8")
    done = subprocess.run(
        command("get", "--json", "-q", "-i", str(listed), "-o", str(directory / "out"), "--overwrite", *options),
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ, "FETCHBOX__FETCH__PER_HOST_CONCURRENCY": "64", **environment},
        check=False,
    )
    assert done.returncode in (0, 1), done.stderr
    return {record["url"]: record for record in map(json.loads, done.stdout.splitlines())}


def assert_codes(outcomes: dict[str, dict[str, Any]], expected: dict[str, str]) -> None:
    """Every URL has its outcome, with the code that is expected of it, and none was tried twice."""
    assert {url: outcomes[url]["code"] for url in expected} == expected
    assert all(outcomes[url]["attempts"] == 1 for url in expected)


def test_get_sends_no_syn_to_any_blocked_form(tmp_path: Path) -> None:
    def body() -> None:
        with trap(NAMES) as server:
            count_syns()
            options = {"FETCHBOX__FETCH__DNS_SERVERS": json.dumps([server.name_server])}
            direct = {f"http://{host}/": BLOCKED for host in HOSTS} | {f"https://{host}/": BLOCKED for host in HOSTS}
            assert_codes(get(tmp_path, direct, **options), direct)
            assert syns() == {"public": 0, "own": 0, "refused": 0}
            redirected = redirects()
            assert_codes(get(tmp_path, redirected, **options), redirected)
            assert syns()["refused"] == 0
            assert syns()["public"] > 0
            assert set(server.connections) == {PUBLIC}

    in_own_network(body)


def test_the_trap_and_its_counters_see_what_is_allowed(tmp_path: Path) -> None:
    """The control: the same URLs, once allowed, are connected to and counted. Else the test above could pass for want of a network."""

    def body() -> None:
        with trap(NAMES) as server:
            count_syns()
            options = {"FETCHBOX__FETCH__DNS_SERVERS": json.dumps([server.name_server])}
            public = [f"http://{PUBLIC}/", f"http://[{PUBLIC6}]/", "http://public.test/"]
            outcomes = get(tmp_path, public, **options)
            assert [outcomes[url]["state"] for url in public] == ["stored"] * 3
            assert syns()["refused"] == 0
            assert syns()["public"] >= 3
            allowed = ["http://169.254.169.254/", "http://[fd00:ec2::254]/", "http://metadata.test/", "http://[::1]/", "http://2130706433/"]
            networks = [f"--allow-network={net}" for net in ("169.254.0.0/16", "fc00::/7", "::1/128", "127.0.0.0/8")]
            outcomes = get(tmp_path, allowed, *networks, **options)
            assert [outcomes[url]["state"] for url in allowed] == ["stored"] * 5
            assert syns()["refused"] >= 5
            assert {"169.254.169.254", "fd00:ec2::254", "::1", "127.0.0.1"} <= set(server.connections)

    in_own_network(body)


def test_only_vetted_addresses_of_a_rebinding_name_are_connected_to(tmp_path: Path) -> None:
    def body() -> None:
        with trap(NAMES) as server:
            count_syns()
            options = {"FETCHBOX__FETCH__DNS_SERVERS": json.dumps([server.name_server])}
            urls = [f"http://rebind.test/{n}" for n in range(20)]
            outcomes = get(tmp_path, urls, **options)
            assert {outcomes[url]["state"] for url in urls} == {"stored"}
            # A second run asks again and is told the private address.
            outcomes = get(tmp_path, urls, **options)
            assert {outcomes[url]["code"] for url in urls} == {BLOCKED}
            assert syns()["refused"] == 0
            assert set(server.connections) == {PUBLIC}

    in_own_network(body)


def run_job(http: Client, urls: list[str]) -> tuple[dict[str, dict[str, Any]], set[str]]:
    """A job of these URLs: the outcomes of those that were taken, and those that were refused at once by their text."""
    refused: set[str] = set()
    while True:
        taken = [url for url in urls if url not in refused]
        manifest = {"manifest_version": "v1", "metadata": {}, "resources": [{"url": url} for url in taken]}
        response = http.post(json.dumps(manifest).encode())
        if response.status_code == 202:
            break
        assert response.status_code == 400, response.text
        faults = {taken[int(fault["pointer"].split("/")[2])] for fault in response.json()["error"]["details"]}
        assert faults
        refused |= faults
    job_id = response.json()["job_id"]
    http.await_job(job_id, 60)
    return {outcome["url"]: outcome for outcome in http.resources(job_id)}, refused


@pytest.mark.timeout(120)
def test_the_service_sends_no_syn_to_any_blocked_form_nor_to_its_own_ports(tmp_path: Path) -> None:
    def body() -> None:
        with trap(NAMES) as server:
            fetch = {"allow_networks": [], "dns_servers": [server.name_server], "per_host_concurrency": 64, "max_attempts": 2}
            service = Service(tmp_path / "service", {"fetch": fetch})
            ports = service.port, int(service.metrics_url.rpartition(":")[2])
            count_syns(*ports)
            with service.start():
                direct = [f"http://{host}/" for host in HOSTS]
                outcomes, refused = run_job(service.http, direct)
                assert_codes(outcomes, {url: BLOCKED for url in direct if url not in refused})
                # Only what is no plain host is refused by its text.
                assert refused <= {f"http://{host}/" for host in SPELLINGS}
                assert syns()["public"] == 0
                assert syns()["refused"] == 0
                redirected = redirects()
                outcomes, refused = run_job(service.http, list(redirected))
                assert not refused
                assert_codes(outcomes, redirected)
                assert syns()["refused"] == 0
                assert set(server.connections) == {PUBLIC}
                service.end()

    in_own_network(body)


@pytest.mark.timeout(120)
def test_the_services_own_ports_are_refused_inside_allowed_networks(tmp_path: Path) -> None:
    def body() -> None:
        with trap(NAMES) as server:
            overrides = {"fetch": {"allow_networks": ["0.0.0.0/0", "::/0"], "dns_servers": [server.name_server], "max_attempts": 1}}
            with Service(tmp_path / "service", overrides).start() as service:
                ports = service.port, int(service.metrics_url.rpartition(":")[2])
                own = [
                    f"http://{host}:{port}/health/live"
                    for host in ("127.0.0.1", "2130706433", "[::ffff:127.0.0.1]", "loop.test")
                    for port in ports
                ]
                outcomes, refused = run_job(service.http, [*own, "http://10.0.0.1/"])
                assert not refused
                assert_codes(outcomes, dict.fromkeys(own, BLOCKED))
                assert outcomes["http://10.0.0.1/"]["state"] == "stored"
                assert set(server.connections) == {"10.0.0.1"}
                service.end()

    in_own_network(body)


def test_a_trap_counts_connections_of_other_clients_too() -> None:
    """The rules count SYNs of any process of the network."""

    def body() -> None:
        with trap({}) as server:
            count_syns()
            connect(server)
            assert syns()["refused"] == 1

    in_own_network(body)


def connect(server: Trap) -> None:
    """One connection by Python's own means."""
    import http.client

    client = http.client.HTTPConnection("10.20.30.40", timeout=5)
    client.request("GET", "/")
    assert client.getresponse().read() == b"trapped"
    client.close()
    assert server.connections == ["10.20.30.40"]
