"""A bare pycurl multi loop: no checksum, no retry, no account. What a fast hand-written downloader costs."""

from __future__ import annotations

import os
import sys
from typing import Any

import pycurl

BUFFER = 128 << 10
"""Bytes to a write, about as curl itself has it; the library's default is 16 KiB."""


def main(url_list: str, out: str, concurrency: int) -> int:
    """Downloads every URL of the list into `out/<first byte of its number>/<number>`; returns how many failed."""
    with open(url_list, encoding="utf-8") as lines:
        urls = [line.strip() for line in lines if line.strip()]
    for shard in range(256):
        os.makedirs(f"{out}/{shard:02x}", exist_ok=True)
    multi: Any = pycurl.CurlMulti()
    multi.setopt(pycurl.M_MAXCONNECTS, concurrency)
    idle: list[Any] = []
    for _ in range(concurrency):
        handle: Any = pycurl.Curl()
        handle.setopt(pycurl.NOSIGNAL, 1)
        handle.setopt(pycurl.FOLLOWLOCATION, 1)
        handle.setopt(pycurl.FAILONERROR, 1)
        handle.setopt(pycurl.BUFFERSIZE, BUFFER)
        idle.append(handle)
    files: dict[Any, Any] = {}
    started = failed = active = 0
    while started < len(urls) or active:
        while idle and started < len(urls):
            handle = idle.pop()
            files[handle] = open(f"{out}/{started % 256:02x}/{started}", "wb", buffering=0)  # noqa: SIM115 - closed when its transfer ends
            handle.setopt(pycurl.URL, urls[started])
            handle.setopt(pycurl.WRITEDATA, files[handle])
            multi.add_handle(handle)
            started += 1
            active += 1
        while multi.perform()[0] == pycurl.E_CALL_MULTI_PERFORM:
            pass
        left = 1
        while left:
            left, succeeded, errors = multi.info_read()
            for handle in [*succeeded, *(item[0] for item in errors)]:
                multi.remove_handle(handle)
                files.pop(handle).close()
                idle.append(handle)
                active -= 1
            failed += len(errors)
        if active and not (idle and started < len(urls)):
            multi.select(1.0)
    return failed


if __name__ == "__main__":
    sys.exit(1 if main(sys.argv[1], sys.argv[2], int(sys.argv[3])) else 0)
