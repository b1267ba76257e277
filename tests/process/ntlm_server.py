"""An HTTP server that wants NTLM (MS-NLMP, NTLMv2) and answers a right login with `hello`. Its MD4 is RFC 1320's: OpenSSL 3 has none."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import hmac
import os
import struct
import threading
from collections.abc import Callable, Iterator, Sequence

Mix = Callable[[int, int, int], int]
USER, PASSWORD = "ann", "s3cret"
_FLAGS = 0x00890201
"""Unicode, NTLM, target information, extended session security."""
_ORDER = (0, 8, 4, 12, 2, 10, 6, 14, 1, 9, 5, 13, 3, 11, 7, 15)


def md4(data: bytes) -> bytes:
    """The digest that NTLM makes of a password."""
    mask = 0xFFFFFFFF
    padded = data + b"\x80"
    padded += b"\0" * ((56 - len(padded)) % 64) + struct.pack("<Q", len(data) * 8)
    state = (0x67452301, 0xEFCDAB89, 0x98BADCFE, 0x10325476)
    rounds: tuple[tuple[Mix, Sequence[int], tuple[int, ...], int], ...] = (
        (lambda x, y, z: (x & y) | (~x & z), range(16), (3, 7, 11, 19), 0),
        (lambda x, y, z: (x & y) | (x & z) | (y & z), [i % 4 * 4 + i // 4 for i in range(16)], (3, 5, 9, 13), 0x5A827999),
        (lambda x, y, z: x ^ y ^ z, _ORDER, (3, 9, 11, 15), 0x6ED9EBA1),
    )
    for start in range(0, len(padded), 64):
        words = struct.unpack("<16I", padded[start : start + 64])
        a, b, c, d = state
        for mix, order, shifts, constant in rounds:
            for step, place in enumerate(order):
                value = (a + mix(b, c, d) + words[place] + constant) & mask
                shift = shifts[step % 4]
                a, b, c, d = d, ((value << shift) | (value >> (32 - shift))) & mask, b, c
        state = tuple((old + new) & mask for old, new in zip(state, (a, b, c, d), strict=True))  # type: ignore[assignment]
    return struct.pack("<4I", *state)


def _challenge(nonce: bytes) -> bytes:
    name = "TEST".encode("utf-16le")
    info = struct.pack("<HH", 2, len(name)) + name + b"\0\0\0\0"
    head = struct.pack("<8sIHHII8s8x", b"NTLMSSP\0", 2, len(name), len(name), 48, _FLAGS, nonce)
    return head + struct.pack("<HHI", len(info), len(info), 48 + len(name)) + name + info


def _fits(message: bytes, nonce: bytes) -> bool:
    def field(offset: int) -> bytes:
        size, _, place = struct.unpack("<HHI", message[offset : offset + 8])
        return message[place : place + size]

    answer, domain, user = field(20), field(28).decode("utf-16le"), field(36).decode("utf-16le")
    key = hmac.new(md4(PASSWORD.encode("utf-16le")), (user.upper() + domain).encode("utf-16le"), "md5").digest()
    return user == USER and hmac.compare_digest(hmac.new(key, nonce + answer[16:], "md5").digest(), answer[:16])


async def _serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    nonce, welcome = os.urandom(8), False
    with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError):
        while True:
            head = await reader.readuntil(b"\r\n\r\n")
            asked = b"NTLM"
            for line in head.split(b"\r\n"):
                if line.lower().startswith(b"authorization: ntlm "):
                    message = base64.b64decode(line.split(b" ")[2])
                    if message[8] == 1:
                        asked += b" " + base64.b64encode(_challenge(nonce))
                    else:
                        welcome = _fits(message, nonce)
            if welcome:
                writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello")
            else:
                writer.write(b"HTTP/1.1 401 Unauthorized\r\nWWW-Authenticate: " + asked + b"\r\nContent-Length: 4\r\n\r\nlog\n")
            await writer.drain()
    writer.transport.abort()


@contextlib.contextmanager
def ntlm_server() -> Iterator[str]:
    """Its URL while it runs, on a thread."""
    ready, urls, loop, stop = threading.Event(), [""], asyncio.new_event_loop(), asyncio.Event()

    async def run() -> None:
        listening = await asyncio.start_server(_serve, "127.0.0.1", 0)
        urls[0] = f"http://127.0.0.1:{listening.sockets[0].getsockname()[1]}"
        ready.set()
        await stop.wait()
        listening.close()
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        # Transports are closed by the loop's next turns.
        for _ in range(3):
            await asyncio.sleep(0)

    thread = threading.Thread(target=lambda: loop.run_until_complete(run()), daemon=True)
    thread.start()
    assert ready.wait(10)
    try:
        yield urls[0]
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join(10)
        loop.close()
