"""Every hostile path, looked at byte by byte on raw sockets: each must misbehave exactly as the table says."""

from __future__ import annotations

import asyncio
import gzip
import re
import socket
import ssl
import time
from collections.abc import AsyncIterator
from email.utils import parsedate_to_datetime
from pathlib import Path

import pytest

from fetchbox.origin import BlackHole, Origin, content, content_sha256
from fetchbox.origin.routes import ROUTES

ROOT = Path(__file__).parents[2]


@pytest.fixture
async def origin() -> AsyncIterator[Origin]:
    async with Origin() as server:
        yield server


async def raw(origin: Origin, path: str, *headers: str, limit: int = 1 << 24, seconds: float = 5, host: str = "x") -> tuple[bytes, str]:
    """All bytes of a response up to `limit`, and how it ended: closed, reset, silent (within `seconds`) or flowing (limit reached)."""
    context = None
    if origin.scheme == "https":
        context = ssl.create_default_context()
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    reader, writer = await asyncio.open_connection("127.0.0.1", origin.port, ssl=context)
    lines = [f"GET {path} HTTP/1.1", f"Host: {host}", "Connection: close", *headers]
    writer.write("\r\n".join([*lines, "", ""]).encode())
    got = bytearray()
    ending = "flowing"
    try:
        async with asyncio.timeout(seconds):
            while len(got) < limit:
                piece = await reader.read(1 << 16)
                if not piece:
                    ending = "closed"
                    break
                got += piece
    except ConnectionError:
        ending = "reset"
    except TimeoutError:
        ending = "silent"
    finally:
        writer.transport.abort()
        writer.close()
    return bytes(got), ending


def split(response: bytes) -> tuple[bytes, bytes]:
    head, _, body = response.partition(b"\r\n\r\n")
    return head, body


async def test_a_truncated_body_ends_halfway(origin: Origin) -> None:
    response, ending = await raw(origin, "/hostile/truncated?n=1000")
    head, body = split(response)
    assert b"Content-Length: 1000" in head
    assert body == content(0, 500)
    assert b"ETag" not in head
    assert ending == "closed"


async def test_chunked_bodies_lack_their_end(origin: Origin) -> None:
    for path, size in (("/hostile/truncated-chunked", 1000), ("/hostile/truncated-chunk", 500)):
        response, ending = await raw(origin, path)
        assert ending == "closed"
        assert not response.endswith(b"0\r\n\r\n")
        assert content(0, size) in response


async def test_framing_contradicts_itself(origin: Origin) -> None:
    assert (await raw(origin, "/hostile/two-lengths"))[0].count(b"Content-Length") == 2
    both = (await raw(origin, "/hostile/length-and-chunked"))[0]
    assert b"Content-Length: 5" in both
    assert b"Transfer-Encoding: chunked" in both
    assert b"Content-Length: -5\r\n" in (await raw(origin, "/hostile/bad-length"))[0]
    assert b"Content-Length: 1_0\r\n" in (await raw(origin, "/hostile/bad-length?value=1_0"))[0]
    assert b"\r\nwhat?\r\n" in (await raw(origin, "/hostile/bad-chunk-size"))[0]


async def test_heads_are_too_large_or_no_heads(origin: Origin) -> None:
    assert len(split((await raw(origin, "/hostile/headers-64k"))[0])[0]) > 64 * 1024
    assert split((await raw(origin, "/hostile/fields-200"))[0])[0].count(b"\r\n") > 200
    assert not (await raw(origin, "/hostile/garbage"))[0].startswith(b"HTTP")
    assert (await raw(origin, "/hostile/bad-status-line"))[0].startswith(b"HTTP/1.1 fine")
    hints, ending = await raw(origin, "/hostile/endless-1xx", limit=500_000)
    assert ending == "flowing"
    assert set(re.findall(rb"HTTP/1.1 (\d+)", hints)) == {b"103"}


async def test_connections_end_without_an_answer(origin: Origin) -> None:
    assert await raw(origin, "/hostile/empty-reply") == (b"", "closed")
    assert await raw(origin, "/hostile/reset") == (b"", "reset")
    assert [(await raw(origin, "/hostile/reset?fails=1&id=a"))[1] for _ in range(2)] == ["reset", "closed"]
    response, ending = await raw(origin, "/hostile/reset-body?n=1000")
    assert (split(response)[1], ending) == (content(0, 500), "reset")


async def test_silence(origin: Origin) -> None:
    assert await raw(origin, "/hostile/no-headers", seconds=0.3) == (b"", "silent")
    assert await raw(origin, "/hostile/no-headers?seconds=0.1") == (b"", "closed")
    half, ending = await raw(origin, "/hostile/half-headers", seconds=0.3)
    assert ending == "silent"
    assert b"\r\n\r\n" not in half
    response, ending = await raw(origin, "/hostile/stall?n=1000", seconds=0.3)
    assert (split(response)[1], ending) == (content(0, 500), "silent")


async def test_drips(origin: Origin) -> None:
    response, ending = await raw(origin, "/hostile/drip?rate=20", seconds=0.6)
    assert ending == "silent"
    assert 5 <= len(split(response)[1]) <= 15
    slow, _ = await raw(origin, "/hostile/slow-headers?rate=20", seconds=0.6)
    assert 5 <= len(slow) <= 15


async def test_bombs_are_small_on_the_wire_and_huge_inside(origin: Origin) -> None:
    head, body = split((await raw(origin, "/hostile/bomb/gzip?mib=100"))[0])
    assert b"Content-Encoding: gzip" in head
    assert len(body) < 200_000
    assert len(gzip.decompress(body)) == 100 << 20
    head, body = split((await raw(origin, "/hostile/bomb/zstd?mib=64"))[0])
    assert b"Content-Encoding: zstd" in head
    assert len(body) < 5000
    zstandard = pytest.importorskip("zstandard")
    assert zstandard.ZstdDecompressor().decompressobj().decompress(body) == bytes(64 << 20)
    head, body = split((await raw(origin, "/hostile/bomb/br"))[0])
    assert b"Content-Encoding: br" in head
    assert len(body) == 106


async def test_bodies_without_end(origin: Origin) -> None:
    for path in ("/hostile/endless", "/hostile/endless-chunked", "/hostile/huge-length"):
        response, ending = await raw(origin, path, limit=5_000_000)
        assert ending == "flowing"
        assert len(response) >= 5_000_000
    assert b"Content-Length: 10000000000000\r\n" in (await raw(origin, "/hostile/huge-length", limit=100))[0]


async def test_crumbs(origin: Origin) -> None:
    body = split((await raw(origin, "/hostile/one-byte-chunks?n=25001"))[0])[1]
    assert body == b"1\r\n\0\r\n" * 25_001 + b"0\r\n\r\n"


async def test_retry_after_in_every_form(origin: Origin) -> None:
    async def value(kind: str) -> str | None:
        head, _ = split((await raw(origin, f"/hostile/retry-after/{kind}?after=30"))[0])
        assert head.startswith(b"HTTP/1.1 429 ")
        match = re.search(rb"Retry-After: ?(.*)", head)
        return match[1].decode().strip() if match else None

    assert await value("seconds") == "30"
    date = await value("date")
    assert date is not None
    assert 25 < parsedate_to_datetime(date).timestamp() - time.time() <= 31
    assert int(await value("years") or 0) == 315_360_000
    assert await value("negative") == "-7"
    assert await value("garbage") == "soon, I think"
    assert await value("empty") == ""
    assert await value("none") is None
    assert (await raw(origin, "/hostile/retry-after/seconds"))[0].startswith(b"HTTP/1.1 200 ")


async def test_file_names_want_to_leave(origin: Origin) -> None:
    kinds = ("parent", "nul", "long", "windows")
    heads = {kind: split((await raw(origin, f"/hostile/content-disposition/{kind}"))[0])[0] for kind in kinds}
    assert b"../../../etc/passwd" in heads["parent"]
    assert b"a\0b.txt" in heads["nul"]
    assert b"n" * 4096 in heads["long"]
    assert b"..\\..\\CON.txt" in heads["windows"]
    for path in ("../../etc/passwd", "..%2F..%2Fetc%2Fpasswd", "a%00b", "n" * 4096):
        assert split((await raw(origin, f"/hostile/path/{path}"))[0])[1] == content("path", 1000)


async def test_metadata_that_must_be_cleaned(origin: Origin) -> None:
    head, _ = split((await raw(origin, "/hostile/crlf-headers"))[0])
    assert b"plain\rX-Injected: 1" in head
    assert b"de\n X-Folded" in head
    head, body = split((await raw(origin, "/hostile/oversize-metadata"))[0])
    assert head.count(b"\xe9" + b"m" * 4095) == 3
    assert body == b"ok\n"


async def test_one_wrong_byte(origin: Origin) -> None:
    head, body = split((await raw(origin, "/hostile/checksum-mismatch"))[0])
    right = content("checksum", 1000)
    assert content_sha256("checksum", 1000).encode() in head
    assert len(body) == 1000
    assert sum(a != b for a, b in zip(body, right, strict=True)) == 1


async def test_redirects_lead_astray(origin: Origin) -> None:
    async def target(path: str, host: str = "127.0.0.1") -> str:
        head, _ = split((await raw(origin, path, host=host))[0])
        assert head.startswith(b"HTTP/1.1 302 ")
        match = re.search(rb"Location: (.*)\r", head + b"\r")
        return match[1].decode() if match else ""

    assert await target("/hostile/redirect/private") == "http://10.0.0.1/secret"
    assert await target("/hostile/redirect/metadata") == "http://169.254.169.254/latest/meta-data/"
    assert await target("/hostile/redirect/file") == "file:///etc/passwd"
    assert (await target("/hostile/redirect/gopher")).startswith("gopher:")
    assert await target("/hostile/redirect-without-location") == ""
    assert await target("/hostile/redirect-cross-origin") == f"http://localhost:{origin.port}/echo"
    assert await target("/hostile/redirect-cross-origin", host="localhost") == f"http://127.0.0.1:{origin.port}/echo"
    assert (await target("/hostile/redirect-chain/2")).endswith("/hostile/redirect-chain/1")
    refused = await target("/hostile/redirect-refused")
    with pytest.raises(ConnectionRefusedError):
        await asyncio.open_connection("127.0.0.1", int(refused.split(":")[2].strip("/")))
    hole = await target("/hostile/redirect-black-hole")
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.3):
            await asyncio.open_connection("127.0.0.1", int(hole.split(":")[2].strip("/")))


def test_a_black_hole_gives_its_port_back() -> None:
    hole = BlackHole()
    port = hole.port
    hole.close()
    with pytest.raises(ConnectionRefusedError), socket.create_connection(("127.0.0.1", port), 1):
        pass


RANGE = ("Range: bytes=100000-", 'If-Range: "r-200000"')


@pytest.mark.parametrize(
    ("name", "status", "content_range", "body"),
    [
        ("wrong-content-range", 206, b"bytes 99000-199999/200000", content("r", 200_000)[99_000:]),
        ("no-content-range", 206, None, content("r", 200_000)[100_000:]),
        ("etag-changes", 200, None, content("r-new", 200_000)),
        ("etag-changes-206", 206, b"bytes 100000-199999/200000", content("r-new", 200_000)[100_000:]),
        ("ignores-range", 200, None, content("r", 200_000)),
        ("not-satisfiable", 416, b"bytes */200000", b""),
        ("weak-etag", 200, None, content("r", 200_000)),
    ],
)
async def test_lies_to_those_who_resume(origin: Origin, name: str, status: int, content_range: bytes | None, body: bytes) -> None:
    path = f"/hostile/resume/{name}/200000?seed=r"
    first, ending = await raw(origin, path)
    head, half = split(first)
    assert (half, ending) == (content("r", 100_000), "closed")
    assert b"Accept-Ranges: bytes" in head
    head, rest = split((await raw(origin, path, *RANGE))[0])
    assert head.startswith(f"HTTP/1.1 {status} ".encode())
    assert rest == body
    found = re.search(rb"Content-Range: (.*)", head)
    assert (found[1].strip() if found else None) == content_range
    # From the start it works at last, with the content that is current then.
    head, whole = split((await raw(origin, path))[0])
    assert head.startswith(b"HTTP/1.1 200 ")
    assert whole == content("r-new" if name.startswith("etag-changes") else "r", 200_000)


async def test_an_unasked_part_and_bytes_too_many(origin: Origin) -> None:
    head, body = split((await raw(origin, "/hostile/range-always/1000"))[0])
    assert head.startswith(b"HTTP/1.1 206 ")
    assert body == content(0, 500)
    assert b"forged" in (await raw(origin, "/hostile/trailing-bytes/10"))[0]


async def test_tls_ends_without_close_notify() -> None:
    async with Origin(tls="self-signed") as origin:
        context = ssl.create_default_context()
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE

        def ask(path: str) -> tuple[bytes, bool]:
            """The response and whether TLS said that it is complete."""
            got = b""
            plain = socket.create_connection(("127.0.0.1", origin.port), 5)
            with plain, context.wrap_socket(plain, suppress_ragged_eofs=False) as tls:
                tls.sendall(f"GET {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
                try:
                    while piece := tls.recv(65536):
                        got += piece
                except (ssl.SSLEOFError, ConnectionError):
                    return got, False
            return got, True

        response, notified = await asyncio.to_thread(ask, "/hostile/close-without-notify")
        assert split(response)[1] == content(0, 1000)
        assert not notified
        response, notified = await asyncio.to_thread(ask, "/close-delimited/1000")
        assert split(response)[1] == content(0, 1000)
        assert notified


async def test_one_stalled_client_does_not_hold_up_another(origin: Origin) -> None:
    bad = ("/hostile/no-headers", "/hostile/drip", "/hostile/endless-1xx")
    pending = [asyncio.create_task(raw(origin, path, limit=1 << 40, seconds=2)) for path in bad]
    started = time.monotonic()
    response, _ = await raw(origin, "/bytes/1000")
    assert split(response)[1] == content(0, 1000)
    assert time.monotonic() - started < 1
    for task in pending:
        task.cancel()
    await asyncio.gather(*pending, return_exceptions=True)


def test_the_manual_names_every_path_and_only_known_codes() -> None:
    manual = (ROOT / "docs/hostile-origin.md").read_text(encoding="utf-8")
    documented = set(re.findall(r"^\| `(/[^`]*)`", manual, re.MULTILINE))
    assert documented == {route.pattern for route in ROUTES}
    known = set(re.findall(r"^\| `([A-Z]+_[A-Z0-9_]+)`", (ROOT / "docs/failures.md").read_text(encoding="utf-8"), re.MULTILINE))
    assert known
    texts = [manual, *(f"{route.outcome} {route.summary}" for route in ROUTES)]
    named = {code for text in texts for code in re.findall(r"\b(?:DOWNLOAD|UPLOAD|AUTH)_[A-Z0-9_]+\b", text)}
    assert named <= known
