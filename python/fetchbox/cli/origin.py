"""`fetchbox origin`: the bundled web server."""

from __future__ import annotations

import asyncio
import signal
from pathlib import Path
from typing import Annotated

import typer

from fetchbox.cli.output import emit, note
from fetchbox.errors import UsageError

app = typer.Typer(add_completion=False)


@app.command()
def origin(
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port; 0 takes a free one.")] = 0,
    host: Annotated[str, typer.Option(help="Address to bind.")] = "127.0.0.1",
    tls: Annotated[str | None, typer.Option(help="Speak TLS with this certificate: ca (valid), self-signed, expired, wrong-host.")] = None,
    journal: Annotated[Path | None, typer.Option(help="Append a line a request (time, target, method) to this file.")] = None,
    pace: Annotated[float | None, typer.Option(min=0.001, help="At most this many responses a second.")] = None,
    proxy_port: Annotated[
        int | None,
        typer.Option(
            "--proxy-port", min=0, max=65535, help="A proxy as well, which misbehaves as its user name says; 0 takes a free port."
        ),
    ] = None,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print the URL and nothing else.")] = False,
) -> int:
    """Run the bundled web server for demos, tests and benches; / lists its paths. Its URL is printed on stdout."""
    from fetchbox.origin.certificates import TLS_MODES
    from fetchbox.origin.server import Origin

    if tls is not None and tls not in TLS_MODES:
        raise UsageError(f"--tls is one of {', '.join(TLS_MODES)}, not {tls!r}")
    server = Origin(host=host, port=port, tls=tls, journal=journal, pace=pace, proxy_port=proxy_port)  # type: ignore[arg-type]  # checked above

    async def serve() -> None:
        loop = asyncio.get_running_loop()
        stop = asyncio.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, stop.set)
        async with server:
            emit(server.base_url)
            if server.proxy is not None:
                emit(f"proxy {server.proxy_url()}")
            if not quiet:
                note(f"fetchbox origin: {server.url('/')} lists what is served; Ctrl-C ends it")
                if server.certificates is not None:
                    note(f"fetchbox origin: the CA of its certificates: {server.certificates.ca_file}")
            await stop.wait()

    try:
        _run(serve())
    except ImportError as error:
        raise UsageError(str(error)) from error
    return 0


def _run(main: object) -> None:
    assert asyncio.iscoroutine(main)
    try:
        import uvloop
    except ImportError:
        asyncio.run(main)
    else:
        uvloop.run(main)
