"""Downloaders side by side: how each is called, whether it is installed, and whether it brought everything."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from fetchbox.bench.measure import Usage, measure
from fetchbox.bench.nginx import memory_directory

CLIENTS = Path(__file__).parent / "clients"
LIMIT_SECONDS = 1800.0


@dataclass(frozen=True, slots=True)
class Job:
    """What a peer is asked to do: download `urls` into the empty directory `out`. `scratch` is for its own files."""

    urls: Sequence[str]
    url_list: Path
    out: Path
    scratch: Path
    concurrency: int


@dataclass(frozen=True, slots=True)
class Stored:
    """What a peer left behind: files (or records of an archive) and their bytes."""

    files: int
    size: int


def count_files(out: Path) -> Stored:
    """Regular files below `out`."""
    files = size = 0
    pending = [str(out)]
    while pending:
        with os.scandir(pending.pop()) as entries:
            for entry in entries:
                if entry.is_dir(follow_symlinks=False):
                    pending.append(entry.path)
                else:
                    files += 1
                    size += entry.stat(follow_symlinks=False).st_size
    return Stored(files, size)


@dataclass(frozen=True, slots=True)
class Peer:
    """One way to download many URLs. `missing` says why it cannot run here, or None."""

    name: str
    command: Callable[[Job], list[str]]
    missing: Callable[[], str | None]
    count: Callable[[Path], Stored] = count_files
    env: Callable[[Job], dict[str, str]] = lambda _job: {}
    slow: bool = False
    """So slow that one round has to do."""


class IncompleteError(RuntimeError):
    """A peer ended well but did not bring every file whole."""


def run_peer(peer: Peer, urls: Sequence[str], concurrency: int, expected: Stored | None = None, directory: str | None = None) -> Usage:
    """Runs a peer once in fresh directories, in memory unless `directory` is given, and checks what it brought.

    Raises MeasureError when it fails and IncompleteError when files or bytes are missing.
    """
    with tempfile.TemporaryDirectory(prefix="fetchbox-bench-", dir=directory or memory_directory()) as name:
        root = Path(name)
        job = Job(urls, root / "urls.txt", root / "out", root / "scratch", concurrency)
        job.out.mkdir()
        job.scratch.mkdir()
        job.url_list.write_text("".join(f"{url}\n" for url in urls), encoding="utf-8")
        command = peer.command(job)
        usage = measure(command, env=peer.env(job), cwd=job.scratch, timeout=LIMIT_SECONDS)
        stored = peer.count(job.out)
        if expected is not None and stored != expected:
            raise IncompleteError(
                f"{peer.name} left {stored.files:,} files of {stored.size:,} bytes, not {expected.files:,} of {expected.size:,}"
            )
        return usage


def fetchbox_peer(python: str = sys.executable, *, per_host: bool = True) -> Peer:
    """Our own `fetchbox get`, by this interpreter. With `per_host` the politeness towards one host is lifted, as no other peer has any."""

    def command(job: Job) -> list[str]:
        extra = ["--allow-network", "127.0.0.0/8"] if per_host else []
        return [python, "-m", "fetchbox.cli", "get", "-i", str(job.url_list), "-o", str(job.out), "-j", str(job.concurrency), "-q", *extra]

    def env(job: Job) -> dict[str, str]:
        return {"FETCHBOX__FETCH__PER_HOST_CONCURRENCY": str(job.concurrency)} if per_host else {}

    return Peer("fetchbox get", command, lambda: None, _count_objects, env)


def engine_peer(python: str = sys.executable) -> Peer:
    """Our engine without the command around it."""

    def command(job: Job) -> list[str]:
        return [python, "-m", "fetchbox.bench.engine", str(job.url_list), str(job.out), str(job.concurrency)]

    return Peer("engine alone", command, lambda: None, _count_objects)


def _count_objects(out: Path) -> Stored:
    """Objects of the local store; its own files beside them (a journal for resuming, notes on objects) begin with a dot."""
    objects = [path for path in out.rglob("*") if path.is_file() and not any(part.startswith(".") for part in path.relative_to(out).parts)]
    return Stored(len(objects), sum(path.stat().st_size for path in objects))


def curl_peer() -> Peer:
    """`curl --parallel` with a config file that names every URL and its output."""

    def command(job: Job) -> list[str]:
        config = job.scratch / "curl.conf"
        with open(config, "w", encoding="utf-8") as file:
            file.writelines(f'url = "{url}"\noutput = "{job.out}/{index}"\n' for index, url in enumerate(job.urls))
        return [
            "curl",
            "--disable",
            "--parallel",
            "--parallel-max",
            str(job.concurrency),
            "--silent",
            "--show-error",
            "--fail",
            "--config",
            str(config),
        ]

    return Peer("curl --parallel", command, needs_program("curl"))


def aria2c_peer() -> Peer:
    """aria2c with one connection a file."""

    def command(job: Job) -> list[str]:
        listing = job.scratch / "aria2.txt"
        listing.write_text("".join(f"{url}\n  out={index}\n" for index, url in enumerate(job.urls)), encoding="utf-8")
        fixed = [
            "--no-conf",
            "--quiet",
            "--file-allocation=none",
            "--max-connection-per-server=1",
            "--split=1",
            "--auto-file-renaming=false",
        ]
        return ["aria2c", *fixed, f"--max-concurrent-downloads={job.concurrency}", "--dir", str(job.out), "--input-file", str(listing)]

    return Peer("aria2c", command, needs_program("aria2c"))


def python_peer(name: str, script: Path, modules: Sequence[str], python: str = sys.executable, **options: object) -> Peer:
    """A client script run by `python`, if that has these modules."""

    def command(job: Job) -> list[str]:
        return [python, str(script), str(job.url_list), str(job.out), str(job.concurrency)]

    return Peer(name, command, needs_modules(modules, python), **options)  # type: ignore[arg-type]


def needs_program(program: str) -> Callable[[], str | None]:
    """Missing unless the program is on the PATH."""
    return lambda: None if shutil.which(program) else f"{program} is not installed"


def needs_modules(modules: Iterable[str], python: str) -> Callable[[], str | None]:
    """Missing unless the interpreter finds the modules."""
    names = list(modules)

    def missing() -> str | None:
        code = "import sys, importlib.util as u; print(*[m for m in sys.argv[1:] if u.find_spec(m) is None])"
        try:
            done = subprocess.run([python, "-c", code, *names], capture_output=True, text=True, timeout=60, check=True)
        except (OSError, subprocess.SubprocessError) as error:
            return f"{python} does not run: {error}"
        return f"not installed: {done.stdout.strip()}" if done.stdout.strip() else None

    return missing


def simple_peers(python: str = sys.executable) -> list[Peer]:
    """Peers that need no setup of their own: programs and two small scripts."""
    return [
        python_peer("pycurl multi", CLIENTS / "pycurl_multi.py", ["pycurl"], python),
        curl_peer(),
        python_peer("aiohttp", CLIENTS / "aiohttp_loop.py", ["aiohttp"], python),
        aria2c_peer(),
    ]


def all_peers(python: str = sys.executable, *, per_host: bool = True) -> list[Peer]:
    """Ours first, then everybody else; those whose start takes seconds come last."""
    return [
        fetchbox_peer(per_host=per_host),
        *simple_peers(python),
        python_peer(
            "img2dataset",
            CLIENTS / "img2dataset_shards.py",
            ["img2dataset"],
            python,
            count=count_shards,
            # One of its packages asks for news of itself when it is loaded; that is no part of the work.
            env=lambda _job: {"NO_ALBUMENTATIONS_UPDATE": "1"},
            slow=True,
        ),
        python_peer("Scrapy FilesPipeline", CLIENTS / "scrapy_files.py", ["scrapy"], python, slow=True),
    ]


def count_shards(out: Path) -> Stored:
    """Bodies in img2dataset's tar shards."""
    files = size = 0
    for shard in sorted(out.glob("shards/*.tar")):
        with tarfile.open(shard) as archive:
            bodies = [member for member in archive if not member.name.endswith((".json", ".txt"))]
        files += len(bodies)
        size += sum(member.size for member in bodies)
    return Stored(files, size)
