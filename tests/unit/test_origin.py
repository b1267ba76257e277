"""The bundled origin, over real sockets: good pages byte for byte, limits, journal and pace."""

from __future__ import annotations

import asyncio
import base64
import gzip
import hashlib
import json
import socket
import ssl
import time
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest

from fetchbox.origin import Origin, content, content_sha256, free_port
from fetchbox.origin.pattern import BLOCK, blocks
from fetchbox.origin.ports import LOWEST, RANGE, TRIES
from fetchbox.origin.routes import ROUTES
from fetchbox.testing import running_origin, wait_until, wait_until_async


@pytest.fixture
async def origin() -> AsyncIterator[Origin]:
    async with Origin() as server:
        yield server


@pytest.fixture
async def client(origin: Origin) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(base_url=origin.base_url, timeout=10) as session:
        yield session


def test_content_differs_by_seed_and_block_and_has_stable_prefixes() -> None:
    assert content(1, 10) != content(2, 10)
    large = content("x", 3 * BLOCK + 7)
    assert len(large) == 3 * BLOCK + 7
    assert large[:BLOCK] != large[BLOCK : 2 * BLOCK]
    assert content("x", BLOCK + 1) == large[: BLOCK + 1]
    assert content_sha256("x", len(large)) == hashlib.sha256(large).hexdigest()
    assert content(1, 0) == b""


def test_content_is_the_same_on_every_machine() -> None:
    assert content_sha256(0, 1_000_000) == "3caf5cec5544cbcd5ddcc57e41d4c7f7ba858955fd31d6f1631484b757fd59d2"


@pytest.mark.parametrize(("start", "stop"), [(0, 1), (BLOCK - 1, BLOCK + 1), (5, 5), (100, 3 * BLOCK), (2 * BLOCK, 2 * BLOCK + 9)])
def test_blocks_are_slices_of_the_content(start: int, stop: int) -> None:
    assert b"".join(blocks("s", start, stop)) == content("s", stop)[start:]


async def test_bytes_have_validators_and_the_right_content(client: httpx.AsyncClient) -> None:
    for n in (0, 1, 10_240, 3_000_000):
        answer = await client.get(f"/bytes/{n}?seed=7")
        assert answer.status_code == 200
        assert answer.content == content(7, n)
        assert answer.headers["etag"] == f'"7-{n}"'
        assert answer.headers["accept-ranges"] == "bytes"
        assert answer.headers["last-modified"]


async def test_head_has_the_length_and_no_body(client: httpx.AsyncClient) -> None:
    for path in ("/bytes/5000", "/chunked/5000", "/image/1.png", "/status/404"):
        answer = await client.head(path)
        assert answer.content == b""
    assert (await client.head("/bytes/5000")).headers["content-length"] == "5000"


@pytest.mark.parametrize(
    ("value", "status", "part"),
    [
        ("bytes=0-9", 206, (0, 10)),
        ("bytes=90000-", 206, (90_000, 100_000)),
        ("bytes=-5", 206, (99_995, 100_000)),
        ("bytes=99999-200000", 206, (99_999, 100_000)),
        ("bytes=100000-", 416, None),
        ("bytes=9-3", 200, (0, 100_000)),
        ("bytes=0-1,5-6", 200, (0, 100_000)),
        ("lines=1-2", 200, (0, 100_000)),
    ],
)
async def test_ranges(client: httpx.AsyncClient, value: str, status: int, part: tuple[int, int] | None) -> None:
    answer = await client.get("/bytes/100000?seed=r", headers={"Range": value})
    assert answer.status_code == status
    if part is None:
        assert answer.headers["content-range"] == "bytes */100000"
    else:
        assert answer.content == content("r", 100_000)[slice(*part)]
        if status == 206:
            assert answer.headers["content-range"] == f"bytes {part[0]}-{part[1] - 1}/100000"


async def test_if_range_and_conditional_requests(client: httpx.AsyncClient) -> None:
    first = await client.get("/bytes/1000?seed=c")
    etag, modified = first.headers["etag"], first.headers["last-modified"]
    part = {"Range": "bytes=500-"}
    assert (await client.get("/bytes/1000?seed=c", headers={**part, "If-Range": etag})).status_code == 206
    assert (await client.get("/bytes/1000?seed=c", headers={**part, "If-Range": '"other"'})).status_code == 200
    assert (await client.get("/bytes/1000?seed=c&etag=weak", headers={**part, "If-Range": "W/" + etag})).status_code == 200
    assert (await client.get("/bytes/1000?seed=c", headers={"If-None-Match": etag})).status_code == 304
    assert (await client.get("/bytes/1000?seed=c", headers={"If-None-Match": '"other"'})).status_code == 200
    assert (await client.get("/bytes/1000?seed=c", headers={"If-Modified-Since": modified})).status_code == 304


async def test_other_framings_carry_the_same_content(client: httpx.AsyncClient) -> None:
    assert (await client.get("/chunked/100000?seed=3")).content == content(3, 100_000)
    assert (await client.get("/close-delimited/100000?seed=3")).content == content(3, 100_000)
    async with client.stream("GET", "/gzip/100000?seed=3") as answer:
        raw = b"".join([piece async for piece in answer.aiter_raw()])
    assert gzip.decompress(raw) == content(3, 100_000)


async def test_speed_limits_the_body(client: httpx.AsyncClient) -> None:
    started = time.monotonic()
    answer = await client.get("/bytes/20000?speed=50000")
    assert len(answer.content) == 20_000
    assert 0.3 < time.monotonic() - started < 5


async def test_pages_images_and_the_index(client: httpx.AsyncClient) -> None:
    page = (await client.get("/page.html?images=3")).text
    assert page.count("<img") == 3
    one, two = (await client.get("/image/1.png")).content, (await client.get("/image/2.png")).content
    assert one.startswith(b"\x89PNG\r\n\x1a\n")
    assert one != two
    index = (await client.get("/")).text
    listed = (await client.get("/?format=json")).json()
    assert {row["path"] for row in listed} == {route.pattern for route in ROUTES}
    assert all(row["summary"] for row in listed)
    assert "/hostile/truncated" in index


async def test_redirects(client: httpx.AsyncClient) -> None:
    answer = await client.get("/redirect/3", follow_redirects=True)
    assert len(answer.history) == 3
    assert answer.content == content(0, 1000)
    assert (await client.get("/loop")).headers["location"] == "/loop"
    aimed = await client.get("/redirect-to", params={"url": "http://elsewhere.example/ä?x=1", "status": "307"})
    assert aimed.status_code == 307
    assert aimed.headers["location"].startswith("http://elsewhere.example/")


async def test_flaky_fails_so_often_for_each_id(client: httpx.AsyncClient) -> None:
    async def statuses(name: str) -> list[int]:
        return [(await client.get(f"/flaky/2/bytes/10?id={name}")).status_code for _ in range(4)]

    assert await statuses("a") == [503, 503, 200, 200]
    assert await statuses("b") == [503, 503, 200, 200]


async def test_cut_is_whole_only_by_resuming(client: httpx.AsyncClient, origin: Origin) -> None:
    got = b""
    etag = f'"{"k"}-200000"'
    for _ in range(10):
        headers = {"Range": f"bytes={len(got)}-", "If-Range": etag} if got else {}
        try:
            async with client.stream("GET", "/cut/60000/bytes/200000?seed=k", headers=headers) as answer:
                assert answer.status_code == (206 if got else 200)
                async for piece in answer.aiter_raw():
                    got += piece
        except httpx.RemoteProtocolError:
            continue
        break
    assert got == content("k", 200_000)
    assert origin.count("/cut/60000/bytes/200000") == 4


async def test_a_limited_host_asks_to_wait(client: httpx.AsyncClient) -> None:
    answers = [await client.get("/limited/2/bytes/5?id=x") for _ in range(8)]
    refused = [answer for answer in answers if answer.status_code == 429]
    assert refused
    assert refused[0].headers["retry-after"] == "1"
    assert any(answer.status_code == 200 for answer in answers)


async def test_logins_signatures_and_robots(client: httpx.AsyncClient) -> None:
    login = "Basic " + base64.b64encode(b"ann:pw").decode()
    assert (await client.get("/auth/basic/ann/pw/bytes/5")).status_code == 401
    assert (await client.get("/auth/basic/ann/pw/bytes/5", headers={"Authorization": login})).content == content(0, 5)
    assert (await client.get(f"/signed/bytes/5?expires={time.time() + 60}")).status_code == 200
    assert (await client.get(f"/signed/bytes/5?expires={time.time() - 60}")).status_code == 403
    assert "Disallow: /robots/denied/" in (await client.get("/robots.txt")).text
    assert (await client.get("/robots/tagged/bytes/5?tag=noindex")).headers["x-robots-tag"] == "noindex"


async def test_bad_requests_are_told_so(client: httpx.AsyncClient) -> None:
    assert (await client.get("/bytes/many")).status_code == 400
    assert (await client.get("/nothing/here")).status_code == 404
    assert (await client.post("/bytes/5")).status_code == 405
    assert (await client.get("/hostile/retry-after/whenever")).status_code == 404


async def test_hooks_keep_what_they_were_sent(client: httpx.AsyncClient, origin: Origin) -> None:
    assert (await client.post("/hook?fails=1&id=h", content=b"one")).status_code == 503

    async def pieces() -> AsyncIterator[bytes]:
        yield b"two "
        yield b"pieces"

    assert (await client.post("/hook?fails=1&id=h", content=pieces())).status_code == 204
    assert [request.body for request in origin.requests] == [b"one", b"two pieces"]
    echoed = (await client.get("/echo", headers={"X-Mine": "1"})).json()
    assert echoed["headers"]["x-mine"] == "1"


async def test_requests_are_counted_and_written_to_the_journal(tmp_path: Path) -> None:
    journal = tmp_path / "journal"
    async with Origin(journal=journal) as origin, httpx.AsyncClient() as client:
        for _ in range(2):
            await client.get(origin.url("/bytes/10?seed=1"))
        await client.head(origin.url("/bytes/10?seed=2"))
        lines = journal.read_text().splitlines()
        assert [line.partition(" ")[2] for line in lines] == ["/bytes/10?seed=1 GET", "/bytes/10?seed=1 GET", "/bytes/10?seed=2 HEAD"]
        assert abs(float(lines[0].split(" ")[0]) - time.time()) < 60
        assert origin.count("/bytes/10") == 3
        assert [request.query["seed"] for request in origin.requests] == ["1", "1", "2"]


async def test_pace_is_kept_across_connections() -> None:
    async with Origin(pace=50) as origin, httpx.AsyncClient() as client:
        started = time.monotonic()
        answers = await asyncio.gather(*(client.get(origin.url("/bytes/1")) for _ in range(20)))
        taken = time.monotonic() - started
    assert all(answer.status_code == 200 for answer in answers)
    assert 0.35 < taken < 5


async def test_closing_ends_connections_that_stall() -> None:
    async with Origin() as origin:
        reader, writer = await asyncio.open_connection("127.0.0.1", origin.port)
        writer.write(b"GET /hostile/no-headers HTTP/1.1\r\nHost: x\r\n\r\n")
        await wait_until_async(lambda: origin.count("/hostile/no-headers"), 5)
    async with asyncio.timeout(5):
        with pytest.raises((ConnectionError, asyncio.IncompleteReadError)):
            await reader.readexactly(1)
    writer.close()


@pytest.mark.parametrize("mode", ["ca", "self-signed", "expired", "wrong-host"])
async def test_tls_is_as_bad_as_asked_for(mode: str) -> None:
    async with Origin(tls=mode) as origin:  # type: ignore[arg-type]
        assert origin.certificates is not None
        directory = origin.certificates.directory
        trusting = ssl.create_default_context(cafile=str(origin.certificates.ca_file))
        async with httpx.AsyncClient(verify=trusting) as client:
            if mode == "ca":
                assert (await client.get(origin.url("/bytes/10"))).content == content(0, 10)
            else:
                reason = {"self-signed": "self.signed", "expired": "expired", "wrong-host": "not valid"}[mode]
                with pytest.raises(httpx.ConnectError, match=reason):
                    await client.get(origin.url("/bytes/10"))
    assert not directory.exists()


def test_an_origin_on_a_thread_serves_and_ends() -> None:
    with running_origin() as origin:
        assert httpx.get(origin.url("/bytes/10?seed=t")).content == content("t", 10)
        assert origin.count("/bytes/10") == 1
        url = origin.url("/")
    with pytest.raises(httpx.ConnectError):
        httpx.get(url)


def test_a_port_that_is_taken_is_an_error() -> None:
    with running_origin() as origin, pytest.raises(OSError, match="in use"), running_origin(port=origin.port):
        pass


def test_a_free_port_is_none_of_those_that_connections_take_by_themselves() -> None:
    if int(RANGE.read_text().split()[0]) <= LOWEST + TRIES:
        pytest.skip("this system gives away almost all ports by itself")
    ports = [free_port() for _ in range(200)]
    assert len(set(ports)) == len(ports)
    with socket.create_server(("127.0.0.1", 0)) as server:
        assert max(ports) < server.getsockname()[1]


def test_waiting_has_a_limit_and_names_what_it_waited_for() -> None:
    answers = iter([0, 0, 5])
    assert wait_until(lambda: next(answers), 5) == 5
    with pytest.raises(AssertionError, match=r"the moon did not come true within 0.02 s; last answer: None"):
        wait_until(lambda: None, 0.02, what="the moon")


def test_the_index_is_json_for_programs() -> None:
    with running_origin() as origin:
        rows = json.loads(httpx.get(origin.url("/?format=json")).content)
        assert all(row["example"].startswith(origin.base_url) for row in rows)
