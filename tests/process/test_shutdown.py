"""How it ends, and how it refuses to start: exit codes, messages, children, what is left afterwards."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from fetchbox.broker.hub import HubConnection
from fetchbox.config import Config, load
from fetchbox.testing import wait_until_async
from tests.process.background import posting
from tests.process.load import Wanted, of, plain
from tests.process.oracle import Oracle
from tests.process.origins import OriginProcess
from tests.process.processes import await_end, descendants
from tests.process.service import DRAIN_TIMEOUT, Service, clean_environment, command
from tests.process.waiting import wait_for

LAPS = int(os.environ.get("FETCHBOX_TEST_LAPS", "3"))
"""SIGTERMs under load; by hand 100."""


@pytest.mark.timeout(120 + 20 * LAPS)
def test_sigterm_under_load_drains_and_loses_nothing(tmp_path: Path) -> None:
    took = []
    with OriginProcess(tmp_path, pace=200) as origin, Service(tmp_path / "service", {"worker": {"processes": 2}}).start() as service:
        oracle = Oracle(service.http, service.assets, origin.journal)
        for lap in range(LAPS):
            with posting(oracle, (plain(origin.base_url, 8 * lap + job, 50) for job in range(8)), ahead=200) as poster:
                target = origin.journal.total + 100
                wait_for("requests at the origin", lambda target=target: origin.journal.total >= target, 30, describe=service.dump)  # type: ignore[misc]
                began = time.monotonic()
                service.end()
                took.append(time.monotonic() - began)
                service.start()
                poster.join(60)
        oracle.await_settled(60)
        report = oracle.check(ratio=1.1)
        assert report.jobs == 8 * LAPS
        assert max(took) <= DRAIN_TIMEOUT
        service.end()
    print(
        f"\n{LAPS} SIGTERMs under load, exit 0 within {max(took):.1f} s (median {sorted(took)[LAPS // 2]:.1f}) of {DRAIN_TIMEOUT}; {report}"
    )


def test_a_worker_without_a_hub_has_nothing_to_drain(tmp_path: Path) -> None:
    """Nobody there; somebody who takes the connection and says nothing."""
    with socket.socket(socket.AF_UNIX) as mute:
        mute.bind(str(tmp_path / "mute"))
        mute.listen(8)
        for name in ("nobody", "mute"):
            worker = Service(tmp_path / f"of-{name}", {"hub": {"url": f"unix://{tmp_path}/{name}"}})
            worker.command = command("worker", "--config", str(worker.config_path))
            with worker:
                worker.launch()
                wait_for("its first try", lambda log=worker.log_path: "poll failed" in log.read_text(), 30, describe=worker.dump)  # type: ignore[misc]
                began = time.monotonic()
                worker.end()
                assert time.monotonic() - began < DRAIN_TIMEOUT / 3


def test_ctrl_c_drains_like_sigterm(tmp_path: Path) -> None:
    with Service(tmp_path).start() as service:
        below = descendants(service.process.pid)
        # A terminal sends it to the whole group.
        os.killpg(service.process.pid, signal.SIGINT)
        service.await_exit(0)
        await_end(below, 1)


def test_a_second_ctrl_c_ends_it_at_once(tmp_path: Path, origin: OriginProcess) -> None:
    """The first one waits for a download that takes a minute; who presses again has no patience."""
    with Service(tmp_path / "service", {"drain_timeout": 30}).start() as service:
        oracle = Oracle(service.http, service.assets, origin.journal)
        oracle.post(of(origin.base_url, "slow", [Wanted(id="slow", target="/delay/60/bytes/10")]))
        wait_for("the request", lambda: origin.journal.total == 1, 15, describe=service.dump)
        below = descendants(service.process.pid)
        os.killpg(service.process.pid, signal.SIGINT)
        wait_for("the ingress to close", lambda: service.http.status("/health/ready") != 200, 10, describe=service.dump)
        os.killpg(service.process.pid, signal.SIGINT)
        service.await_exit(limit=5)
        await_end(below, 2)


def test_a_drain_ends_in_time_although_a_download_does_not(tmp_path: Path, origin: OriginProcess) -> None:
    with Service(tmp_path / "service", {"drain_timeout": 4}).start() as service:
        oracle = Oracle(service.http, service.assets, origin.journal)
        job_id = oracle.post(of(origin.base_url, "slow", [Wanted(id="slow", target="/delay/60/bytes/10")]))
        wait_for("the request", lambda: origin.journal.total == 1, 15, describe=service.dump)
        below = descendants(service.process.pid)
        service.process.send_signal(signal.SIGTERM)
        service.await_exit(0, limit=5)
        await_end(below, 1)
        service.start()
        job = service.http.job(job_id)
        assert (job["resource_pending"], job["resource_total"]) == (1, 1)
        wait_for("the request to come again", lambda: origin.journal.total == 2, 30, describe=service.dump)
        service.process.send_signal(signal.SIGTERM)
        service.await_exit(0, limit=5)


def fails(arguments: Sequence[str], directory: Path, environment: dict[str, str] | None = None) -> tuple[int, str]:
    """Exit status and stderr of a command that must end by itself."""
    done = subprocess.run(
        command(*arguments),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=30,
        cwd=directory,
        env={**clean_environment(), **(environment or {})},
        check=False,
    )
    return done.returncode, done.stderr + done.stdout


@pytest.mark.parametrize(
    ("text", "hints"),
    [
        ("[server]\nbind_adr = '127.0.0.1:1'\n", ["bind_adr", "bind_addr"]),
        ("[fetch]\nconnect_timeout = '-3s'\n", ["connect_timeout"]),
        ("[worker]\nprocesses = 65\n", ["partitions"]),
        ("[storage]\nurl = 'ftp://nowhere'\n", ["storage.url"]),
        ("[server]\nbind_addr = '0.0.0.0:0'\n", ["allow_anonymous"]),
        ("this is no TOML\n", ["fetchbox.toml"]),
    ],
)
def test_a_wrong_configuration_is_told_in_plain_words(tmp_path: Path, text: str, hints: list[str]) -> None:
    config = tmp_path / "fetchbox.toml"
    config.write_text(text)
    status, message = fails(["up", "--config", str(config)], tmp_path)
    assert status in (1, 2), message
    assert "Traceback" not in message
    assert all(hint in message for hint in hints), message
    assert len(message.strip().splitlines()) <= 3, message
    assert not (tmp_path / "fetchbox-data").exists(), "a refused start leaves nothing behind"


def test_an_unknown_option_and_a_missing_file(tmp_path: Path) -> None:
    status, message = fails(["up", "--wrokers", "3"], tmp_path)
    assert (status, "wrokers" in message) == (2, True), message
    status, message = fails(["up", "--config", str(tmp_path / "nowhere.toml")], tmp_path)
    assert status in (1, 2)
    assert "nowhere.toml" in message
    assert "Traceback" not in message


def test_what_is_taken_is_named(tmp_path: Path) -> None:
    """The API's port, the telemetry port and the directory. Side by side, because each is tried for a while before it is given up."""
    with Service(tmp_path / "first").start() as first, socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        overrides: list[dict[str, Any]] = [
            {"server": {"bind_addr": address}},
            {"telemetry": {"metrics_addr": address}},
            {"data_dir": str(first.data_dir)},
        ]
        services = [Service(tmp_path / str(number), changes) for number, changes in enumerate(overrides)]

        def start(service: Service) -> tuple[int, str]:
            return fails(["up", "--config", str(service.config_path)], tmp_path)

        with ThreadPoolExecutor(3) as side_by_side:
            ends = list(side_by_side.map(start, services))
        for (status, message), named in zip(ends, [address, address, str(first.data_dir)], strict=True):
            assert status == 1, message
            assert named in message, message
            assert "Traceback" not in message
        for service in services:
            service.close()
        assert first.ready(), "the first one must not notice"
        first.end()


def test_a_worker_that_ends_before_it_has_joined_leaves_without_a_word(tmp_path: Path) -> None:
    """A SIGTERM in the middle of a start: it had ended with an exception in the log."""

    async def leave(config: Config) -> None:
        hub = HubConnection(config, "worker")
        try:
            await wait_until_async(lambda: hub.connected, 10, what="the connection to the hub")
            await hub.leave()
        finally:
            hub.close()

    with Service(tmp_path, {"worker": {"processes": 0}}).start() as service:
        asyncio.run(leave(load(env={}, overrides={"data_dir": str(service.data_dir)})))
        service.end()


def test_every_process_names_itself(tmp_path: Path) -> None:
    with Service(tmp_path, {"worker": {"processes": 2}, "server": {"processes": 2}}).start() as service:

        def titles() -> set[str]:
            return {process.command.strip() for process in descendants(service.process.pid) if process.role}

        expected = {"fetchbox: hub", "fetchbox: api 0", "fetchbox: api 1", "fetchbox: worker 0", "fetchbox: worker 1"}
        wait_for(f"the titles {sorted(expected)}", lambda: titles() == expected, 15, describe=service.dump)
        assert str(service.data_dir) in service.log(), "the start prints where the data lies"
        assert service.url.removeprefix("http://") in service.log(), "the start prints its address"
        service.end()
