#!/usr/bin/python3 -IS
"""The image's HEALTHCHECK: asks /health/ready on this container's telemetry port. Runs every few seconds, so it imports next to nothing."""

import os
import socket
import sys

TIMEOUT = 4.0
"""Seconds; the engine gives up after five."""


def main() -> int:
    """0 when the processes of this container can do their part, 1 otherwise, with the reason on stdout for `docker inspect`."""
    address = os.environ.get("FETCHBOX__TELEMETRY__METRICS_ADDR", "")
    if not address:
        print("FETCHBOX__TELEMETRY__METRICS_ADDR is empty: there is no telemetry port to ask")
        return 0
    host, _, port = address.rpartition(":")
    # What is bound on every address answers on loopback.
    host = {"0.0.0.0": "127.0.0.1", "[::]": "::1", "": "127.0.0.1"}.get(host, host.strip("[]"))  # noqa: S104  (compared, not bound)
    try:
        with socket.create_connection((host, int(port)), TIMEOUT) as connection:
            connection.sendall(b"GET /health/ready HTTP/1.0\r\n\r\n")
            answer = b""
            while chunk := connection.recv(65536):
                answer += chunk
    except (OSError, ValueError) as error:
        print(f"{address} does not answer: {error}")
        return 1
    head, _, body = answer.partition(b"\r\n\r\n")
    print(body.decode(errors="replace")[:2000])
    return 0 if head.split(b" ", 2)[1:2] == [b"200"] else 1


sys.exit(main())
