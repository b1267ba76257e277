"""How `fetchbox get` ends and what it shows: signals at every stage, kill -9, terminals, pipes that close, a full disk."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import re
import signal
import struct
import subprocess
import sys
import termios
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from fetchbox.testing import Origin, running_origin, wait_until

LOOPBACK = ("--allow-network", "127.0.0.0/8")
LIMIT = 30.0


@pytest.fixture
def origin() -> Iterator[Origin]:
    with running_origin() as server:
        yield server


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "fetchbox.cli", "get", *LOOPBACK, *arguments]


def start(*arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(command(*arguments), stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def end(running: subprocess.Popen[str]) -> tuple[int, str, str]:
    try:
        said, told = running.communicate(timeout=LIMIT)
    finally:
        running.kill()
        running.wait()
    return running.returncode, said, told


class Terminal:
    """The other end of a pseudo terminal: a program's stderr, and its stdout if there is no pipe for it."""

    def __init__(self, *arguments: str, columns: int = 100, stdout: int | None = None, **environment: str) -> None:
        self._master, slave = pty.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
        kept = {name: value for name, value in os.environ.items() if name not in ("NO_COLOR", "COLUMNS", "LINES")}
        self.process = subprocess.Popen(
            command(*arguments), stdout=slave if stdout is None else stdout, stderr=slave, env={**kept, "TERM": "xterm", **environment}
        )
        os.close(slave)
        self._shown = bytearray()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        try:
            while piece := os.read(self._master, 65536):
                self._shown += piece
        except OSError:
            pass  # the last one has closed it

    @property
    def shown(self) -> str:
        return self._shown.decode()

    def finish(self) -> int:
        try:
            return self.process.wait(LIMIT)
        finally:
            self.process.kill()
            self.process.wait()
            self._reader.join(10)
            os.close(self._master)


def plain(text: str) -> str:
    return re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", text)


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_while_downloading(number: signal.Signals, status: int, origin: Origin, tmp_path: Path) -> None:
    running = start("-o", str(tmp_path / "out"), origin.url("/hostile/no-headers"))
    wait_until(lambda: origin.count("/hostile/no-headers"), LIMIT, what="the request")
    running.send_signal(number)
    code, said, told = end(running)
    assert (code, said) == (status, "")
    assert told.splitlines()[-1] == "interrupted: the same command again goes on from here"
    assert "Traceback" not in told
    assert [path for path in (tmp_path / "out").rglob("*") if path.is_file()] == []


def test_a_signal_while_the_input_is_waited_for(tmp_path: Path) -> None:
    running = start("-i", "-", "-o", str(tmp_path / "out"))
    wait_until((tmp_path / "out").exists, LIMIT, what="the store")
    running.send_signal(signal.SIGINT)
    # Standard input stays open: nobody waits for its end.
    wait_until(lambda: running.poll() is not None, LIMIT, what="the end")
    code, _, told = end(running)
    assert code == 130
    assert told.splitlines()[-1] == "interrupted: the same command again goes on from here"


def test_a_signal_before_anything_is_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "urls.csv")
    # Opening a pipe for reading waits for its writer.
    running = start("-i", str(tmp_path / "urls.csv"), "-o", str(tmp_path / "out"))
    wait_until(lambda: Path(f"/proc/{running.pid}/wchan").read_text() == "wait_for_partner", LIMIT, what="the opening of the pipe")
    running.send_signal(signal.SIGINT)
    code, _, told = end(running)
    assert code == 130
    assert "Traceback" not in told


def test_a_second_signal_does_not_wait(origin: Origin, tmp_path: Path) -> None:
    """The first one is given while the process is stopped, so that both are there when it goes on."""
    running = start("-o", str(tmp_path / "out"), origin.url("/hostile/no-headers"))
    wait_until(lambda: origin.count("/hostile/no-headers"), LIMIT, what="the request")
    running.send_signal(signal.SIGINT)
    deadline = time.monotonic() + LIMIT
    while running.poll() is None and time.monotonic() < deadline:
        running.send_signal(signal.SIGINT)
    code, _, told = end(running)
    assert code in (130, -signal.SIGINT)
    assert "Traceback" not in told


def test_after_kill_9_nothing_is_done_twice_and_nothing_is_missing(origin: Origin, tmp_path: Path) -> None:
    urls = [origin.url(f"/delay/0.01/bytes/20000?seed={i}") for i in range(200)]
    large = origin.url("/bytes/3000000?speed=1000000")
    listed, out = tmp_path / "urls.txt", tmp_path / "out"
    listed.write_text("\n".join([*urls, large]))
    for share in (40, 110):
        running = start("-q", "-i", str(listed), "-o", str(out))
        wait_until(lambda: origin.count("/delay/0.01/bytes/20000") >= share, LIMIT, what=f"{share} requests")  # noqa: B023
        running.kill()
        assert end(running)[0] == -signal.SIGKILL
    code, said, _ = end(start("--json", "-i", str(listed), "-o", str(out)))
    assert code == 0
    records = [json.loads(line) for line in said.splitlines()]
    assert sorted(record["index"] for record in records) == list(range(201))
    assert {record["state"] for record in records} == {"stored", "reused"}
    # Whole files only, and nothing beside them: what the kills left was cleared away.
    assert sorted(path.stat().st_size for path in out.rglob("*") if path.is_file()) == [20000] * 200 + [3_000_000]
    # Asked for again was only what was under way.
    assert origin.count("/delay/0.01/bytes/20000") <= 200 + 2 * 8


def test_results_go_to_stdout_and_the_bar_to_the_terminal(origin: Origin, tmp_path: Path) -> None:
    urls = [origin.url(f"/delay/{i / 20}/bytes/1000?seed={i}") for i in range(20)]
    reader, writer = os.pipe()
    terminal = Terminal("--json", "-o", str(tmp_path), *urls, origin.url("/status/404"), stdout=writer)
    os.close(writer)
    with os.fdopen(reader) as pipe:
        records = [json.loads(line) for line in pipe]
    assert terminal.finish() == 1
    assert len(records) == 21
    shown = plain(terminal.shown)
    assert re.search(r"get .*\d+/21 \d+/s · .* KiB, .* KiB/s · 1 failed: HTTP_4XX 1", shown), shown
    assert "20 stored, 1 failed" in shown
    assert '{"' not in shown
    # The cursor is back.
    assert terminal.shown.rindex("\x1b[?25h") > terminal.shown.rindex("\x1b[?25l")


@pytest.mark.parametrize("columns", [20, 40, 80, 300])
def test_the_bar_fits_any_width(columns: int, origin: Origin, tmp_path: Path) -> None:
    urls = [origin.url("/status/404"), *(origin.url(f"/delay/{i / 10}/bytes/10?seed={i}") for i in range(5))]
    terminal = Terminal("-q" if columns == 20 else "-v", "-o", str(tmp_path), *urls, columns=columns)
    assert terminal.finish() == 1
    frames = [line for line in re.split(r"[\r\n]+", plain(terminal.shown)) if line.startswith("get ")]
    assert bool(frames) == (columns > 20)
    assert all(len(frame) <= columns for frame in frames), frames


def test_no_color_is_respected(origin: Origin, tmp_path: Path) -> None:
    arguments = ("-o", str(tmp_path), *(origin.url(f"/delay/{i / 10}/bytes/10?seed={i}") for i in range(5)))
    coloured = Terminal(*arguments, "--overwrite")
    assert coloured.finish() == 0
    assert re.search(r"\x1b\[[0-9;]*3[0-9]", coloured.shown)
    grey = Terminal(*arguments, "--overwrite", NO_COLOR="1")
    assert grey.finish() == 0
    assert not re.search(r"\x1b\[[0-9;]*3[0-9]", grey.shown)


def test_a_reader_that_leaves(origin: Origin, tmp_path: Path) -> None:
    urls = [origin.url(f"/delay/{i / 20}/bytes/10?seed={i}") for i in range(20)]
    running = start("--json", "-o", str(tmp_path / "a"), *urls)
    assert running.stdout is not None
    running.stdout.readline()
    running.stdout.close()
    running.stdout = None
    code, _, told = end(running)
    assert code == 141
    assert "Traceback" not in told
    assert "rror" not in told
    # Progress that nobody reads is no reason to stop.
    running = start("-v", "-o", str(tmp_path / "b"), *urls)
    assert running.stderr is not None
    running.stderr.readline()
    running.stderr.close()
    running.stderr = None
    assert end(running)[0] == 0
    assert len([path for path in (tmp_path / "b").rglob("*") if path.is_file()]) == 20


def test_a_full_disk_stops_the_run_and_the_next_one_goes_on(origin: Origin, tmp_path: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("needs root to mount a small tmpfs")
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=300k", "tmpfs", str(disk)], check=False, capture_output=True).returncode:
        pytest.skip("no tmpfs can be mounted here")
    try:
        listed = tmp_path / "urls.txt"
        listed.write_text("\n".join(origin.url(f"/bytes/20000?seed={i}") for i in range(500)))
        arguments = ("--retry", "0", "-j", "4", "-i", str(listed), "-o", str(disk / "out"))
        code, _, told = end(start(*arguments))
        assert code == 1
        assert told.splitlines()[-1].startswith("stopped, ")
        assert "STORAGE_FULL" in told
        assert origin.count("/bytes/20000") < 300
        subprocess.run(["mount", "-o", "remount,size=20m", str(disk)], check=True)
        code, said, told = end(start("--json", *arguments))
        assert code == 0, told
        states = [json.loads(line)["state"] for line in said.splitlines()]
        assert len(states) == 500
        assert states.count("reused") >= 10
    finally:
        subprocess.run(["umount", "--lazy", str(disk)], check=True)
