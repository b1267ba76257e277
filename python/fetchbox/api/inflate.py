"""Decompression in bounded steps: a bomb costs one step of memory and its limit of output, never more."""

from __future__ import annotations

import sys
import zlib
from collections.abc import Iterator
from typing import Protocol

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    import backports.zstd as zstd

__all__ = ["MAX_MEMBERS", "STEP", "Damaged", "Decoder", "Gzip", "Zstd", "decoder_of", "zstd"]

STEP = 256 << 10
"""Bytes of output that one step may make; about a millisecond of work, so that the loop can turn between steps."""

MAX_MEMBERS = 1000
"""gzip members or zstd frames in one body; each costs time although it may hold nothing."""

ZSTD_WINDOW_LOG = 23
"""8 MiB, what RFC 8878 asks every decoder to support; a frame may ask for gigabytes."""

_GZIP_WBITS = 31


class Damaged(Exception):
    """The body is not what its Content-Encoding says."""


class Decoder(Protocol):
    """Turns compressed pieces into plain ones."""

    def feed(self, data: bytes) -> Iterator[bytes]:
        """The output of some input, in pieces of at most STEP bytes. Raises Damaged."""

    def finish(self) -> None:
        """Raises Damaged when the input ended too early."""


class Gzip:
    """gzip, of several members if need be."""

    def __init__(self) -> None:
        self._inner = zlib.decompressobj(_GZIP_WBITS)
        self._members = 1
        self._fresh = True

    def feed(self, data: bytes) -> Iterator[bytes]:
        while data:
            if self._inner.eof:
                self._next_member()
            self._fresh = False
            try:
                piece = self._inner.decompress(data, STEP)
            except zlib.error as error:
                raise Damaged("the body is not valid gzip") from error
            if piece:
                yield piece
            data = self._inner.unused_data if self._inner.eof else self._inner.unconsumed_tail

    def finish(self) -> None:
        if self._fresh or not self._inner.eof:
            raise Damaged("the gzip body is cut short")

    def _next_member(self) -> None:
        self._members += 1
        if self._members > MAX_MEMBERS:
            raise Damaged(f"the gzip body has more than {MAX_MEMBERS} members")
        self._inner = zlib.decompressobj(_GZIP_WBITS)


class Zstd:
    """zstd, of several frames if need be."""

    def __init__(self) -> None:
        self._inner = self._frame()
        self._frames = 1
        self._fresh = True

    def feed(self, data: bytes) -> Iterator[bytes]:
        while True:
            if self._inner.eof:
                data = self._inner.unused_data + data if self._inner.unused_data else data
                if not data:
                    return
                self._next_frame()
            elif not data and self._inner.needs_input:
                return
            self._fresh = False
            try:
                piece = self._inner.decompress(data, STEP)
            except zstd.ZstdError as error:
                raise Damaged("the body is not valid zstd, or asks for a window beyond 8 MiB") from error
            data = b""
            if piece:
                yield piece

    def finish(self) -> None:
        if self._fresh or not self._inner.eof:
            raise Damaged("the zstd body is cut short")

    def _next_frame(self) -> None:
        self._frames += 1
        if self._frames > MAX_MEMBERS:
            raise Damaged(f"the zstd body has more than {MAX_MEMBERS} frames")
        self._inner = self._frame()

    @staticmethod
    def _frame() -> zstd.ZstdDecompressor:
        return zstd.ZstdDecompressor(options={zstd.DecompressionParameter.window_log_max: ZSTD_WINDOW_LOG})


def decoder_of(encoding: bytes) -> Decoder | None:
    """The decoder for a Content-Encoding; None for one that is not known."""
    name = encoding.strip().lower()
    if name in (b"gzip", b"x-gzip"):
        return Gzip()
    if name == b"zstd":
        return Zstd()
    return None
