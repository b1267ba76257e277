"""Real file servers for the curl transport, in a process of their own: FTP, FTPS (implicit) and SFTP over one directory.

    python -m tests.process.file_servers DIRECTORY CERTIFICATE.pem

prints one JSON line with their ports and the SFTP server's host key, and ends with its standard input.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

USER, PASSWORD = "ann", "s3cret word"


@contextlib.contextmanager
def file_servers(directory: Path, certificate: Path) -> Iterator[dict[str, Any]]:
    """The servers' ports (`ftp`, `ftps`, `sftp`) and `host_key` while they run."""
    command = [sys.executable, "-W", "ignore", "-m", "tests.process.file_servers", str(directory), str(certificate)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    watch = threading.Timer(20, process.kill)
    watch.start()
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        watch.cancel()
        assert line, "the file servers did not start"
        yield json.loads(line)
    finally:
        watch.cancel()
        process.kill()
        process.wait(10)
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                pipe.close()


def _ftp(directory: str, certificate: str) -> dict[str, int]:
    from pyftpdlib.authorizers import DummyAuthorizer
    from pyftpdlib.handlers import FTPHandler, TLS_FTPHandler
    from pyftpdlib.ioloop import IOLoop
    from pyftpdlib.servers import FTPServer

    class ImplicitTls(TLS_FTPHandler):  # type: ignore[misc]
        """TLS from the first byte, as ftps:// has it."""

        def handle(self) -> None:
            self.secure_connection(self.ssl_context)

        def handle_ssl_established(self) -> None:
            FTPHandler.handle(self)

    authorizer = DummyAuthorizer()
    authorizer.add_anonymous(directory)
    authorizer.add_user(USER, PASSWORD, directory)
    TLS_FTPHandler.certfile = certificate
    ports = {}
    for name, base in (("ftp", FTPHandler), ("ftps", ImplicitTls)):
        handler = type(name, (base,), {"authorizer": authorizer, "auth_failed_timeout": 0.1})
        # A loop and a thread each.
        server = FTPServer(("127.0.0.1", 0), handler, ioloop=IOLoop())
        ports[name] = server.address[1]
        threading.Thread(target=server.serve_forever, kwargs={"handle_exit": False}, daemon=True).start()
    return ports


async def _sftp(directory: str) -> tuple[Any, int, str]:
    import asyncssh

    class Server(asyncssh.SSHServer):
        def password_auth_supported(self) -> bool:
            return True

        def validate_password(self, username: str, password: str) -> bool:
            return (username, password) == (USER, PASSWORD)

    key = asyncssh.generate_private_key("ssh-ed25519")
    server = await asyncssh.create_server(
        Server,
        "127.0.0.1",
        0,
        server_host_keys=[key],
        sftp_factory=lambda channel: asyncssh.SFTPServer(channel, chroot=directory.encode()),
    )
    return server, server.get_port(), key.export_public_key().decode().strip()


async def _serve(directory: str, certificate: str) -> None:
    ports = _ftp(directory, certificate)
    server, sftp, host_key = await _sftp(directory)
    print(json.dumps({**ports, "sftp": sftp, "host_key": host_key}), flush=True)
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)
    server.close()


if __name__ == "__main__":
    logging.disable(logging.CRITICAL)
    asyncio.run(_serve(sys.argv[1], sys.argv[2]))
