"""The curl transport against real servers: FTP, FTPS, SFTP, digest, and the same answers as the native one."""

from __future__ import annotations

import hashlib
import json
import socket
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

import fetchbox
from fetchbox.config import curl
from fetchbox.origin.certificates import Certificates, TlsMode
from fetchbox.testing import Origin, content, content_sha256, running_origin, wait_until
from tests.process.bad_ftp import SIZE, BadFtp, bad_ftp
from tests.process.file_servers import PASSWORD, USER, file_servers
from tests.process.ntlm_server import md4, ntlm_server
from tests.process.test_cli_get import get, outcomes

LOOPBACK = ["127.0.0.0/8"]
FILES = {"empty.bin": 0, "one.bin": 1, "small.bin": 70_000, "big.bin": 12_000_000}
QUICK: dict[str, Any] = {"allow_networks": LOOPBACK, "max_attempts": 2, "backoff_base": 0.01}


@pytest.fixture(scope="module")
def certificates() -> Iterator[Certificates]:
    made = Certificates.create()
    yield made
    made.remove()


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory, certificates: Certificates) -> Iterator[dict[str, Any]]:
    root = tmp_path_factory.mktemp("served")
    (root / "sub dir").mkdir()
    for name, size in FILES.items():
        (root / name).write_bytes(content(size, size))
    (root / "sub dir" / "a b.bin").write_bytes(b"spaced")
    with file_servers(root, certificates.pem("ca")) as ports:
        yield ports


@pytest.fixture
def origin() -> Iterator[Origin]:
    with running_origin() as server:
        yield server


@pytest.fixture
def bad() -> Iterator[BadFtp]:
    with bad_ftp() as server:
        yield server


def run(urls: list[str], tmp_path: Path, **options: Any) -> dict[str, dict[str, Any]]:
    """Outcomes by URL."""
    settings = {**QUICK, "transport": "curl", **options}
    return {outcome.url: outcome.as_dict() for outcome in fetchbox.fetch(urls, store=tmp_path / "out", **settings)}


def one(url: str, tmp_path: Path, **options: Any) -> dict[str, Any]:
    return run([url], tmp_path, **options)[url]


def stored_of(record: Mapping[str, Any]) -> bytes:
    assert record["state"] == "stored", record
    return Path(record["storage_url"].removeprefix("file://")).read_bytes()


# ---- file servers ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scheme", ["ftp", "ftps", "sftp"])
def test_files_of_every_size_are_stored_whole(scheme: str, servers: dict[str, Any], certificates: Certificates, tmp_path: Path) -> None:
    known = tmp_path / "known_hosts"
    known.write_text(f"[127.0.0.1]:{servers['sftp']} {servers['host_key']}\n", encoding="utf-8")
    auth = {"username": USER, "password": PASSWORD} if scheme == "sftp" else None
    extra = {} if auth is None else {"auth": auth, "known_hosts": str(known)}
    base = f"{scheme}://127.0.0.1:{servers[scheme]}"
    found = run([f"{base}/{name}" for name in FILES], tmp_path, ca_file=str(certificates.ca_file), **extra)
    for name, size in FILES.items():
        record = found[f"{base}/{name}"]
        assert stored_of(record) == content(size, size)
        assert (record["size"], record["sha256"], record["http_status"]) == (size, content_sha256(size, size), None)
        assert record["attempts"] == 1
        if scheme != "sftp":
            assert record["last_modified"].endswith("GMT")
    spaced = one(f"{base}/sub%20dir/a%20b.bin", tmp_path, ca_file=str(certificates.ca_file), **extra)
    assert stored_of(spaced) == b"spaced"
    missing = one(f"{base}/nothing.bin", tmp_path, ca_file=str(certificates.ca_file), **extra)
    assert (missing["state"], missing["code"], missing["attempts"]) == ("failed", "DOWNLOAD_HTTP_4XX", 1)
    assert missing["http_status"] is None


def test_logins_of_file_servers(servers: dict[str, Any], tmp_path: Path) -> None:
    url = f"ftp://127.0.0.1:{servers['ftp']}/small.bin"
    assert stored_of(one(url, tmp_path, auth={"username": USER, "password": PASSWORD})) == content(70_000, 70_000)
    refused = one(url, tmp_path, auth={"username": USER, "password": "wrong"})
    assert (refused["code"], refused["attempts"]) == ("AUTH_ORIGIN_REFUSED", 1)
    assert "wrong" not in json.dumps(refused)
    sftp = f"sftp://127.0.0.1:{servers['sftp']}/small.bin"
    # Only a host key that is known is spoken to with a password.
    stranger = one(sftp, tmp_path, auth={"username": USER, "password": PASSWORD})
    assert stranger["code"] == "DOWNLOAD_TLS"
    assert "known_hosts" in stranger["message"]
    refused = one(sftp, tmp_path, auth={"username": USER, "password": "wrong"}, verify_tls=False)
    assert refused["code"] == "AUTH_ORIGIN_REFUSED"
    assert stored_of(one(sftp, tmp_path, auth={"username": USER, "password": PASSWORD}, verify_tls=False)) == content(70_000, 70_000)


def test_a_certificate_that_nobody_vouches_for_is_refused(servers: dict[str, Any], tmp_path: Path) -> None:
    url = f"ftps://127.0.0.1:{servers['ftps']}/one.bin"
    assert one(url, tmp_path)["code"] == "DOWNLOAD_TLS"
    assert stored_of(one(url, tmp_path, verify_tls=False)) == content(1, 1)


def test_what_file_servers_do_wrong(bad: BadFtp, tmp_path: Path) -> None:
    base = f"ftp://127.0.0.1:{bad.port}"
    found = run([f"{base}/{name}.bin" for name in ("fine", "unknown", "cut", "busy-1", "busy-9", "gone")], tmp_path)
    told = {url.removeprefix(f"{base}/"): (record["state"], record["code"], record["attempts"]) for url, record in found.items()}
    assert told == {
        "fine.bin": ("stored", None, 1),
        "unknown.bin": ("stored", None, 1),
        "cut.bin": ("failed", "DOWNLOAD_TRUNCATED", 2),
        "busy-1.bin": ("stored", None, 2),
        "busy-9.bin": ("failed", "DOWNLOAD_HTTP_5XX", 2),
        "gone.bin": ("failed", "DOWNLOAD_HTTP_4XX", 1),
    }
    assert stored_of(found[f"{base}/fine.bin"]) == content(0, SIZE)
    assert "450 busy" in found[f"{base}/busy-9.bin"]["message"]


def test_limits_hold_for_file_servers(bad: BadFtp, servers: dict[str, Any], tmp_path: Path) -> None:
    stalled = one(f"ftp://127.0.0.1:{bad.port}/stall.bin", tmp_path, read_timeout=0.5, max_attempts=1)
    assert stalled["code"] == "DOWNLOAD_TIMEOUT"
    assert bad.left.wait(10), "the connection of a transfer that was given up is closed"
    big = f"ftp://127.0.0.1:{servers['ftp']}/big.bin"
    large = one(big, tmp_path, max_bytes=1_000_000)
    assert (large["code"], large["attempts"]) == ("DOWNLOAD_TOO_LARGE", 1)
    # The size is known before the first byte.
    filtered = one(big, tmp_path, filter_max_bytes=1_000_000)
    assert (filtered["state"], filtered["code"]) == ("filtered", "DOWNLOAD_FILTERED")
    # Slower than it comes: curl is made to wait, and nothing is lost.
    slow = one(big, tmp_path, limit_rate=8_000_000)
    assert stored_of(slow) == content(12_000_000, 12_000_000)
    assert not [path for path in (tmp_path / "out").rglob("*") if "tmp" in path.suffix]


# ---- what may be asked for -------------------------------------------------------------------------------------------------------


def test_addresses_are_vetted_and_nothing_is_connected_to(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port = listening.getsockname()[1]
        urls = [
            f"{scheme}://{host}:{port}/x"
            for scheme in ("http", "ftp", "ftps", "sftp")
            for host in ("127.0.0.1", "localhost", "0x7f.1", "[::1]")
        ]
        found = run(urls, tmp_path, allow_networks=[])
        assert {record["code"] for record in found.values()} == {"DOWNLOAD_BLOCKED_ADDRESS"}
        listening.settimeout(0.05)
        with pytest.raises(TimeoutError):
            listening.accept()


def test_redirects_are_vetted_like_first_urls(origin: Origin, servers: dict[str, Any], tmp_path: Path) -> None:
    table = {
        f"ftp://127.0.0.1:{servers['ftp']}/one.bin": "DOWNLOAD_BAD_SCHEME",
        "file:///etc/passwd": "DOWNLOAD_BAD_SCHEME",
        "gopher://127.0.0.1/": "DOWNLOAD_BAD_SCHEME",
        "http://10.1.2.3/": "DOWNLOAD_BLOCKED_ADDRESS",
        "http://[::ffff:10.0.0.1]/": "DOWNLOAD_BLOCKED_ADDRESS",
        "http://169.254.169.254/latest": "DOWNLOAD_BLOCKED_ADDRESS",
    }
    found = run([origin.url(f"/redirect-to?url={target}") for target in table], tmp_path)
    assert {url.partition("?url=")[2]: record["code"] for url, record in found.items()} == table


def test_only_the_curl_transport_serves_file_servers(servers: dict[str, Any], tmp_path: Path) -> None:
    url = f"ftp://127.0.0.1:{servers['ftp']}/one.bin"
    assert one(url, tmp_path, transport="native")["code"] == "DOWNLOAD_BAD_SCHEME"
    for path, code in (("/", "DOWNLOAD_BAD_URL"), ("/x;type=d", "DOWNLOAD_BAD_URL"), ("/a%0d%0aDELE%20x", "DOWNLOAD_BAD_URL")):
        assert one(f"ftp://127.0.0.1:{servers['ftp']}{path}", tmp_path)["code"] == code, path
    assert one("gopher://127.0.0.1/x", tmp_path)["code"] == "DOWNLOAD_BAD_SCHEME"
    assert one(f"ftp://ann:secret@127.0.0.1:{servers['ftp']}/one.bin", tmp_path)["code"] == "DOWNLOAD_BAD_URL"


def test_the_environments_proxies_and_netrc_are_nobodys_business(origin: Origin, tmp_path: Path) -> None:
    nowhere = "http://127.0.0.1:9"
    (tmp_path / ".netrc").write_text("machine 127.0.0.1 login ann password pw\n", encoding="utf-8")
    arguments = ("--transport", "curl", "--json", "--allow-network", "127.0.0.0/8", "--retry", "0", "-o", str(tmp_path / "out"))
    urls = [origin.url("/echo"), origin.url("/auth/basic/ann/pw/bytes/10")]
    environment = {"http_proxy": nowhere, "HTTP_PROXY": nowhere, "ALL_PROXY": nowhere, "all_proxy": nowhere, "HOME": str(tmp_path)}
    found = outcomes(get(*arguments, *urls, stdin=b"", **environment))
    assert "authorization" not in json.loads(stored_of(found[urls[0]]))["headers"]
    assert (found[urls[1]]["code"], found[urls[1]]["http_status"]) == ("DOWNLOAD_HTTP_4XX", 401)


# ---- credentials -----------------------------------------------------------------------------------------------------------------


def test_digest(origin: Origin, tmp_path: Path) -> None:
    urls = [origin.url(f"/auth/digest/ann/pw/bytes/{n}?algorithm={algorithm}") for n in (0, 5, 200_000) for algorithm in ("MD5", "SHA-256")]
    login = {"type": "digest", "username": "ann", "password": "pw"}
    for url, record in run(urls, tmp_path, auth=login).items():
        size = int(url.partition("?")[0].rpartition("/")[2])
        assert (stored_of(record), record["http_status"], record["attempts"]) == (content(0, size), 200, 1)
    refused = one(urls[2], tmp_path, auth={**login, "password": "wrong"})
    assert (refused["code"], refused["http_status"], refused["attempts"]) == ("AUTH_ORIGIN_REFUSED", 401, 1)
    assert one(urls[2], tmp_path)["code"] == "DOWNLOAD_HTTP_4XX"


def test_the_ntlm_servers_digest_is_md4() -> None:
    assert md4(b"abc").hex() == "a448017aaf21d8525fc10ae87aa6729d"
    assert md4(b"1234567890" * 8).hex() == "e33b4ddc9c38f2199c3e7b164fcc0536"


@pytest.mark.skipif(curl.problem("ntlm") is not None, reason=f"{curl.problem('ntlm')}")
def test_ntlm(tmp_path: Path) -> None:
    login = {"type": "ntlm", "username": "ann", "password": "s3cret"}
    with ntlm_server() as base:
        for record in run([f"{base}/{n}" for n in range(4)], tmp_path, auth=login).values():
            assert (stored_of(record), record["http_status"], record["attempts"]) == (b"hello", 200, 1)
        refused = one(f"{base}/x", tmp_path, auth={**login, "password": "wrong"})
        assert (refused["code"], refused["http_status"], refused["attempts"]) == ("AUTH_ORIGIN_REFUSED", 401, 1)


def test_credentials_and_headers_stay_with_their_origin(origin: Origin, tmp_path: Path) -> None:
    elsewhere = f"http://127.0.0.2:{origin.port}"
    secret = {"X-Api-Key": "k", "Cookie": "c=1"}
    with running_origin(host="127.0.0.2") as other:
        elsewhere = other.base_url
        login = {"type": "digest", "username": "ann", "password": "pw"}
        digest = origin.url(f"/redirect-to?url={elsewhere}/auth/digest/ann/pw/bytes/10")
        echo = origin.url(f"/redirect-to?url={elsewhere}/echo")
        home = origin.url("/redirect-to?url=/auth/digest/ann/pw/bytes/10")
        tasks = [fetchbox.DownloadTask(url, id=str(n), headers=secret) for n, url in enumerate((digest, echo, home))]
        found = {o.url: o.as_dict() for o in fetchbox.fetch(tasks, store=tmp_path / "out", transport="curl", auth=login, **QUICK)}
    assert (found[digest]["state"], found[digest]["http_status"]) == ("failed", 401)
    seen = json.loads(stored_of(found[echo]))["headers"]
    assert not {"x-api-key", "cookie", "authorization"} & seen.keys()
    assert stored_of(found[home]) == content(0, 10)


# ---- proxies ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scheme", ["http", "https", "socks5"])
def test_proxies_are_asked_for_the_vetted_address(scheme: str, servers: dict[str, Any], tmp_path: Path) -> None:
    with running_origin(proxy_port=0) as origin:
        assert origin.proxy is not None
        good, bad = origin.proxy_url("ann", scheme), origin.proxy_url("refuse", scheme)
        pools = {"main": {"endpoints": [bad, good]}, "locked": {"endpoints": [origin.proxy_url("407", scheme)]}}
        url = origin.url("/bytes/1000?seed=1")
        config = {
            "fetch": {**QUICK, "verify_tls": False},
            "proxy": {"pools": pools},
            "job_types": {"default": {"transport": "curl"}},
        }
        login: dict[str, Any] = {"username": USER, "password": PASSWORD}
        for _ in range(2):
            [outcome] = fetchbox.fetch([fetchbox.DownloadTask(url, proxy="main")], store=tmp_path / "out", config=config)
            assert (outcome.state, outcome.sha256) == ("stored", content_sha256(1, 1000)), outcome.message
            assert outcome.proxy == good.replace("ann:x@", "")
        assert f"ann 127.0.0.1:{origin.port}" in origin.proxy.asked
        [locked] = fetchbox.fetch([fetchbox.DownloadTask(url, proxy="locked")], store=tmp_path / "out", config=config)
        assert locked.code in ("AUTH_PROXY_REFUSED", "DOWNLOAD_PROXY_EXHAUSTED"), locked.message
        [private] = fetchbox.fetch([fetchbox.DownloadTask("http://10.1.2.3/", proxy="main")], store=tmp_path / "out", config=config)
        assert private.code == "DOWNLOAD_BLOCKED_ADDRESS"
        files = {**config, "job_types": {"default": {"transport": "curl", "auth": login}}}
        sftp = f"sftp://127.0.0.1:{servers['sftp']}/one.bin"
        [by_ssh] = fetchbox.fetch([fetchbox.DownloadTask(sftp, proxy="main")], store=tmp_path / "out", config=files)
        assert (by_ssh.state, by_ssh.size) == ("stored", 1), by_ssh.message
        assert f"ann 127.0.0.1:{servers['sftp']}" in origin.proxy.asked
        ftp = "ftp://127.0.0.1:1/x"
        [refused] = fetchbox.fetch([fetchbox.DownloadTask(ftp, proxy="main")], store=tmp_path / "out", config=config)
        assert refused.code == "DOWNLOAD_BAD_SCHEME"


# ---- the same as the native transport --------------------------------------------------------------------------------------------

COMPARED = (
    *("state", "code", "http_status", "size", "sha256", "final_url", "content_type", "sniffed_type"),
    *("etag", "last_modified", "attempts"),
)


def thousand(origin: Origin) -> list[str]:
    """1,000 URLs of every kind whose answer does not depend on who asked before."""
    urls = [origin.url(f"/bytes/{(n * 7919) % 60_000}?seed={n}&type=image/{n % 7}") for n in range(450)]
    urls += [origin.url(f"/bytes/{n * 100_000}?seed={n}") for n in range(10)]
    urls += [origin.url(f"/chunked/{n * 997}?seed={n}") for n in range(100)]
    urls += [origin.url(f"/close-delimited/{n * 991}?seed={n}") for n in range(60)]
    urls += [origin.url(f"/gzip/{n * 983}?seed={n}") for n in range(40)]
    urls += [origin.url(f"/redirect/{n % 13 or 1}?n={n}") for n in range(60)]
    urls += [
        origin.url(f"/redirect-to?url=/bytes/{n}%3Fseed={n}&status={status}") for n in range(14) for status in (301, 302, 303, 307, 308)
    ]
    urls += [origin.url(f"/status/{code}") for code in (*range(200, 209), *range(400, 452), 499, *range(500, 512))]
    urls += [origin.url(f"/image/{n}.png") for n in range(60)]
    hostile = (
        "truncated",
        "chunked-truncated",
        "two-lengths",
        "length-and-chunked",
        "bad-length",
        "bad-chunk-size",
        "headers-64k",
        "fields-200",
    )
    known = {route["path"] for route in _routes(origin)}
    urls += [origin.url(f"/hostile/{name}?n={n}") for name in hostile if f"/hostile/{name}" in known for n in range(3)]
    urls += [origin.url(f"/nothing/here/{n}") for n in range(10)]
    urls += [f"http://127.0.0.1:9/{n}" for n in range(5)]
    urls += [f"http://10.0.0.{n}/x" for n in range(5)]
    urls += [origin.url(f"/redirect-to?url=ftp://127.0.0.1/{n}") for n in range(5)]
    urls += [origin.url("/loop"), "https://" + origin.base_url.removeprefix("http://") + "/bytes/1"]
    urls += [origin.url(f"/bytes/10?seed=more{n}") for n in range(1000 - len(urls))]
    assert len(urls) == len(set(urls)) == 1000
    return urls


def _routes(origin: Origin) -> list[dict[str, Any]]:
    from fetchbox.origin.routes import ROUTES

    return [{"path": route.pattern} for route in ROUTES]


def test_a_thousand_urls_come_out_the_same(origin: Origin, tmp_path: Path) -> None:
    urls = thousand(origin)
    settings = {**QUICK, "max_attempts": 1, "per_host_concurrency": 64, "max_bytes": 800_000, "connect_timeout": 2, "adaptive_rate": False}
    found = {}
    for transport in ("native", "curl"):
        found[transport] = run(urls, tmp_path / transport, transport=transport, **settings)
    differing = {}
    for url in urls:
        native, curl = ({key: found[transport][url].get(key) for key in COMPARED} for transport in ("native", "curl"))
        if native != curl:
            differing[url] = (native, curl, found["curl"][url]["message"])
    assert not differing
    states = [record["state"] for record in found["curl"].values()]
    assert states.count("stored") > 700
    assert states.count("failed") > 100
    for record in found["curl"].values():
        if record["state"] == "stored":
            assert hashlib.sha256(stored_of(record)).hexdigest() == record["sha256"]


@pytest.mark.parametrize("mode", ["ca", "self-signed", "expired", "wrong-host"])
def test_certificates_are_judged_the_same(mode: TlsMode, tmp_path: Path) -> None:
    with running_origin(tls=mode) as origin:
        assert origin.certificates is not None
        url = (
            origin.url("/bytes/1000?seed=1").replace("127.0.0.1", "localhost") if mode == "wrong-host" else origin.url("/bytes/1000?seed=1")
        )
        networks = [*LOOPBACK, "::1/128"]
        for ca_file in (None, str(origin.certificates.ca_file)):
            told = [
                one(url, tmp_path, transport=transport, ca_file=ca_file, allow_networks=networks, max_attempts=1)["code"]
                for transport in ("native", "curl")
            ]
            assert told == [None if mode == "ca" and ca_file else "DOWNLOAD_TLS"] * 2


# ---- the command line ------------------------------------------------------------------------------------------------------------


def test_get_by_curl(origin: Origin, servers: dict[str, Any], tmp_path: Path) -> None:
    urls = [origin.url("/auth/digest/ann/p:w/bytes/100"), f"ftp://127.0.0.1:{servers['ftp']}/small.bin"]
    arguments = ("--allow-network", "127.0.0.0/8", "--json", "-o", str(tmp_path / "out"))
    done = get(*arguments, "--transport", "curl", "-u", "ann:p:w", "--digest", urls[0])
    assert done.returncode == 0, done.stderr
    assert stored_of(outcomes(done)[urls[0]]) == content(0, 100)
    done = get(*arguments, "--transport", "curl", urls[1])
    assert done.returncode == 0, done.stderr
    assert stored_of(outcomes(done)[urls[1]]) == content(70_000, 70_000)
    for wrong in (
        ("-u", "ann:pw", "--digest"),
        ("--digest", "--transport", "curl"),
        ("-u", "ann:pw", "--digest", "--ntlm", "--transport", "curl"),
    ):
        done = get(*arguments, *wrong, urls[0])
        assert done.returncode == 2, wrong
        assert len(done.stderr.strip().splitlines()) == 1


async def test_afetch_and_leaving_early(servers: dict[str, Any], origin: Origin, tmp_path: Path) -> None:
    urls = [f"ftp://127.0.0.1:{servers['ftp']}/small.bin"]
    seen = [o.state async for o in fetchbox.afetch(urls, store=tmp_path / "out", transport="curl", **QUICK)]
    assert seen == ["stored"]
    slow = [origin.url(f"/bytes/1000000?speed=1000&n={n}") for n in range(4)] + [origin.url("/bytes/10")]
    async for outcome in fetchbox.afetch(slow, store=tmp_path / "out", transport="curl", **QUICK):
        assert outcome.state == "stored"
        break
    wait_until(lambda: not [path for path in (tmp_path / "out").rglob("*") if path.is_file() and path.suffix == ".tmp"])
