"""Lines of a pipe or a terminal as they come: nobody waits for the next one, so that what is under way can be told meanwhile."""

from __future__ import annotations

import codecs
import os
import select
import stat
import zlib
from collections.abc import Iterable, Iterator

from fetchbox.library import NOT_YET, PAUSE_MS, Pause

PIECE = 64 << 10
GZIP_MAGIC = b"\x1f\x8b"
_GZIP_WINDOW = 31
"""zlib's way to say: with a gzip header."""


def is_regular(descriptor: int) -> bool:
    """Whether it is a file, which never lets anybody wait."""
    return stat.S_ISREG(os.fstat(descriptor).st_mode)


def lines(descriptor: int) -> Iterator[str | Pause]:
    """The lines, unpacked if they begin as gzip does; NOT_YET when there is none now. Bytes that are no UTF-8 become surrogates."""
    rest = b""
    begun = False
    for piece in _unpacked(_pieces(descriptor)):
        if piece is NOT_YET:
            yield NOT_YET
            continue
        if not begun:
            begun = True
            piece = piece.removeprefix(codecs.BOM_UTF8)
        *whole, rest = (rest + piece).split(b"\n")
        for line in whole:
            yield line.decode("utf-8", "surrogateescape") + "\n"
    if rest:
        yield rest.decode("utf-8", "surrogateescape")


def patiently(source: Iterable[str | Pause]) -> Iterator[str]:
    """The lines only, for those who cannot go on without the next one."""
    pause = select.poll()
    for line in source:
        if line is NOT_YET:
            pause.poll(PAUSE_MS)
        else:
            yield line


def _pieces(descriptor: int) -> Iterator[bytes | Pause]:
    readable = select.poll()
    readable.register(descriptor, select.POLLIN)
    while True:
        if not readable.poll(0):
            yield NOT_YET
        elif piece := os.read(descriptor, PIECE):
            yield piece
        else:
            return


def _unpacked(pieces: Iterator[bytes | Pause]) -> Iterator[bytes | Pause]:
    head = b""
    for piece in pieces:
        if piece is NOT_YET:
            yield NOT_YET
            continue
        head += piece
        if len(head) >= len(GZIP_MAGIC):
            break
    if not head.startswith(GZIP_MAGIC):
        if head:
            yield head
        yield from pieces
        return
    unpacker = zlib.decompressobj(_GZIP_WINDOW)
    packed: bytes | Pause = head
    while True:
        if packed is NOT_YET:
            yield NOT_YET
        else:
            while packed:
                if unpacker.eof:
                    # Files of gzip may follow one another.
                    unpacker = zlib.decompressobj(_GZIP_WINDOW)
                if unpacked := unpacker.decompress(packed, PIECE):
                    yield unpacked
                packed = unpacker.unused_data or unpacker.unconsumed_tail
        following = next(pieces, None)
        if following is None:
            break
        packed = following
    if not unpacker.eof:
        raise EOFError("Compressed file ended before the end-of-stream marker was reached")
