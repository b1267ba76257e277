"""The bundled origin's proxy: it forwards, or does what the user name in its URL asks for."""

from __future__ import annotations

import asyncio
import base64
import ssl
from collections.abc import AsyncIterator

import pytest

from fetchbox.origin import Origin, content
from fetchbox.origin.proxy import TRUNCATE_AT


@pytest.fixture
async def origin() -> AsyncIterator[Origin]:
    async with Origin(proxy_port=0) as server:
        yield server


async def exchange(origin: Origin, *messages: bytes, context: ssl.SSLContext | None = None, seconds: float = 5) -> tuple[bytes, str]:
    """Everything the proxy says to these messages, each sent after something came back; and how it ended."""
    assert origin.proxy is not None
    reader, writer = await asyncio.open_connection("127.0.0.1", origin.proxy.port, ssl=context)
    got = b""
    try:
        async with asyncio.timeout(seconds):
            for number, message in enumerate(messages):
                if number:
                    got += await reader.read(1 << 16)
                writer.write(message)
            while piece := await reader.read(1 << 16):
                got += piece
        return got, "closed"
    except ConnectionError:
        return got, "reset"
    except TimeoutError:
        return got, "silent"
    finally:
        writer.transport.abort()


def connect(origin: Origin, user: str = "") -> bytes:
    login = f"Proxy-Authorization: Basic {base64.b64encode(f'{user}:x'.encode()).decode()}\r\n" if user else ""
    return f"CONNECT 127.0.0.1:{origin.port} HTTP/1.1\r\nHost: h\r\n{login}\r\n".encode()


def get(path: str) -> bytes:
    return f"GET {path} HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n".encode()


def socks(origin: Origin, user: str = "") -> list[bytes]:
    greeting = [b"\x05\x01\x02", bytes([1, len(user)]) + user.encode() + b"\x01x"] if user else [b"\x05\x01\x00"]
    return [*greeting, b"\x05\x01\x00\x01\x7f\x00\x00\x01" + origin.port.to_bytes(2, "big")]


async def test_it_forwards(origin: Origin) -> None:
    said, ending = await exchange(origin, connect(origin), get("/bytes/5000?seed=1"))
    assert said.startswith(b"HTTP/1.1 200 Connection established\r\n\r\n")
    assert said.endswith(content(1, 5000))
    assert ending == "closed"
    said, _ = await exchange(origin, *socks(origin), get("/bytes/5000?seed=2"))
    assert said[:12] == b"\x05\x00\x05\x00\x00\x01\x00\x00\x00\x00\x00\x00"
    assert said.endswith(content(2, 5000))
    absolute = f"GET http://127.0.0.1:{origin.port}/bytes/100?seed=3 HTTP/1.1\r\nHost: h\r\nProxy-Connection: keep-alive\r\n\r\n"
    said, _ = await exchange(origin, absolute.encode())
    assert said.endswith(content(3, 100))
    assert "proxy-connection" not in origin.requests[-1].headers


async def test_it_misbehaves_as_asked(origin: Origin) -> None:
    for user, start, ending in (
        ("407", b"HTTP/1.1 407 ", "closed"),
        ("refuse", b"HTTP/1.1 403 ", "closed"),
        ("unreachable", b"HTTP/1.1 502 ", "closed"),
        ("close", b"", "closed"),
        ("reset", b"", "reset"),
    ):
        said, ended = await exchange(origin, connect(origin, user))
        assert (said[: len(start)], ended) == (start, ending), user
        assert bool(said) == bool(start)
    assert (await exchange(origin, connect(origin, "stall"), seconds=0.2)) == (b"", "silent")
    said, _ = await exchange(origin, connect(origin, "garbage"))
    assert len(said) == 1000
    assert not said.startswith(b"HTTP")
    said, ended = await exchange(origin, connect(origin, "truncate"), get("/bytes/5000"))
    assert (len(said.partition(b"\r\n\r\n")[2]), ended) == (TRUNCATE_AT, "closed")
    assert origin.proxy is not None
    assert origin.proxy.asked[0] == f"407 127.0.0.1:{origin.port}"


async def test_it_misbehaves_by_socks_too(origin: Origin) -> None:
    assert (await exchange(origin, *socks(origin, "407")[:2])) == (b"\x05\x02\x01\x01", "closed")
    for user, reply in (("refuse", 2), ("unreachable", 4)):
        said, ended = await exchange(origin, *socks(origin, user))
        assert (said, ended) == (b"\x05\x02\x01\x00" + bytes([5, reply, 0, 1, 0, 0, 0, 0, 0, 0]), "closed")


async def test_it_leads_nowhere_but_home(origin: Origin) -> None:
    for target in ("10.0.0.1:80", "example.org:443", "[fe80::1]:80"):
        said, _ = await exchange(origin, f"CONNECT {target} HTTP/1.1\r\n\r\n".encode())
        assert said.startswith(b"HTTP/1.1 403")


async def test_by_tls_it_shows_a_certificate_that_nobody_knows(origin: Origin) -> None:
    pytest.importorskip("cryptography")
    with pytest.raises(ssl.SSLCertVerificationError):
        await exchange(origin, connect(origin), context=ssl.create_default_context())
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    said, _ = await exchange(origin, connect(origin), get("/bytes/100?seed=4"), context=context)
    assert said.endswith(content(4, 100))


async def test_under_tls_the_origin_answers_plain_requests_on_the_same_port() -> None:
    pytest.importorskip("cryptography")
    async with Origin(tls="ca") as origin:
        reader, writer = await asyncio.open_connection("127.0.0.1", origin.port)
        writer.write(get("/bytes/100?seed=5"))
        assert (await reader.read()).endswith(content(5, 100))
        writer.write(b"")
        writer.close()
        assert origin.certificates is not None
        context = ssl.create_default_context(cafile=str(origin.certificates.ca_file))
        reader, writer = await asyncio.open_connection("127.0.0.1", origin.port, ssl=context)
        writer.write(get("/hostile/redirect-other-scheme"))
        head = await reader.read()
        assert b"Location: http://" in head
        writer.close()
