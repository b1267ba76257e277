"""A static origin: nginx over files in memory, so that a bench measures the client and not a disk or a slow server."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from fetchbox.origin import free_port

MEMORY = Path("/dev/shm")  # noqa: S108 - the machine's own tmpfs; every use makes a private directory in it
BLOCK = 1 << 20
FAN_OUT = 256
"""Directories that the files are spread over."""
START_SECONDS = 10.0

_CONFIG = """
daemon off;
master_process {master};
{user}
worker_processes {workers};
pid {root}/nginx.pid;
error_log {root}/error.log;
worker_rlimit_nofile 65536;
events {{ worker_connections 16384; multi_accept on; }}
http {{
  access_log off;
  default_type application/octet-stream;
  sendfile on;
  tcp_nodelay on;
  keepalive_requests 1000000000;
  keepalive_timeout 300s;
  client_body_temp_path {root}/tmp-body;
  proxy_temp_path {root}/tmp-proxy;
  fastcgi_temp_path {root}/tmp-fastcgi;
  uwsgi_temp_path {root}/tmp-uwsgi;
  scgi_temp_path {root}/tmp-scgi;
  server {{
    listen 127.0.0.1:{port} backlog=4096;
    root {root}/files;
  }}
}}
"""


@dataclass(frozen=True, slots=True)
class Files:
    """So many files of one size in bytes."""

    count: int
    size: int

    @property
    def total(self) -> int:
        """Bytes in all."""
        return self.count * self.size

    def label(self) -> str:
        """`20,000 x 10 KiB`."""
        return f"{self.count:,} x {size_label(self.size)}"


def size_label(size: int) -> str:
    """Bytes with a binary unit: `10 KiB`."""
    for unit, factor in (("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)):
        if size >= factor and size % factor == 0:
            return f"{size // factor} {unit}"
    return f"{size} B"


@dataclass(frozen=True, slots=True)
class StaticOrigin:
    """A running nginx and what it serves."""

    base_url: str
    files: Files
    process: subprocess.Popen[bytes]

    def urls(self) -> list[str]:
        """One URL per file."""
        return [f"{self.base_url}/{_name(index)}" for index in range(self.files.count)]


def find_nginx() -> str | None:
    """The nginx program; Debian keeps it out of a user's PATH."""
    return shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin:/usr/local/sbin")


@contextlib.contextmanager
def static_origin(files: Files, *, workers: int = 1) -> Iterator[StaticOrigin]:
    """nginx on a free loopback port over fresh files in memory; both are gone on leaving. FileNotFoundError when nginx is not installed."""
    program = find_nginx()
    if program is None:
        raise FileNotFoundError("nginx is not installed; on Debian: apt-get install nginx-light")
    with tempfile.TemporaryDirectory(prefix="fetchbox-bench-origin-", dir=memory_directory()) as name:
        root = Path(name)
        root.chmod(0o755)  # nginx's workers may run as another user
        write_files(root / "files", files)
        port = free_port()
        # As root the workers would change to an unprivileged user that may not exist here.
        user = "user root;" if os.geteuid() == 0 else ""
        config = root / "nginx.conf"
        config.write_text(_CONFIG.format(root=root, port=port, workers=workers, user=user, master="off" if workers == 1 else "on"))
        process = subprocess.Popen([program, "-p", str(root), "-c", str(config), "-e", str(root / "error.log")], stderr=subprocess.DEVNULL)
        try:
            _wait_listening(port, process, root / "error.log")
            yield StaticOrigin(f"http://127.0.0.1:{port}", files, process)
        finally:
            process.terminate()
            process.wait(10)


def memory_directory() -> str | None:
    """A directory that lives in memory, or None where the machine has none and the default must do."""
    return str(MEMORY) if MEMORY.is_dir() and os.access(MEMORY, os.W_OK) else None


def write_files(root: Path, files: Files) -> None:
    """The files, each with content of its own: its number, then one random block over and over."""
    block = os.urandom(min(max(files.size, 1), BLOCK))
    for directory in {_name(index).partition("/")[0] for index in range(files.count)}:
        (root / directory).mkdir(parents=True, exist_ok=True)
    for index in range(files.count):
        with open(root / _name(index), "wb", buffering=0) as file:
            file.write((index.to_bytes(8, "big") + block)[: files.size])
            while (left := files.size - file.tell()) > 0:
                file.write(block[:left])


def _name(index: int) -> str:
    return f"{index % FAN_OUT:02x}/{index}.bin"


def _wait_listening(port: int, process: subprocess.Popen[bytes], errors: Path) -> None:
    limit = time.monotonic() + START_SECONDS
    while time.monotonic() < limit and process.poll() is None:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
            return
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(0.02)
    raise RuntimeError(f"nginx did not start: {errors.read_text(errors='replace')[-1000:] if errors.exists() else ''}")
