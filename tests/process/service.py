"""`fetchbox up` as a user starts it: a process of its own with a configuration file, to be asked over HTTP and killed by pid."""

from __future__ import annotations

import copy
import os
import re
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Final

from fetchbox import testing
from tests.process.client import Client
from tests.process.processes import Process, await_end, descendants, kill_all, look
from tests.process.waiting import wait_for

START_LIMIT: Final = 30.0
"""Seconds from exec to ready, on a busy machine of two cores."""
DRAIN_TIMEOUT: Final = 10
"""Seconds that the services of the harness may take to drain."""
LINE_LIMIT: Final = 600
"""Characters of a log line that a failed test shows."""
_ESCAPES = re.compile(r"\x1b\[[0-9;]*m")

DEFAULTS: Final[Mapping[str, Mapping[str, Any]]] = {
    # The harness posts faster than any one tenant should, and to one origin.
    "server": {"rate_limit": "100000/s", "processes": 1},
    "worker": {"processes": 1, "concurrency": 32},
    "fetch": {"allow_networks": ["127.0.0.1/32"], "per_host_concurrency": 32, "backoff_base": 0.05, "backoff_max": 0.5},
}

Overrides = Mapping[str, Any]


def command(*arguments: str) -> list[str]:
    """The `fetchbox` command of this interpreter's environment."""
    return [sys.executable, "-m", "fetchbox.cli", *arguments]


def clean_environment() -> dict[str, str]:
    """This environment without anything that configures FetchBox."""
    return {name: value for name, value in os.environ.items() if not name.startswith("FETCHBOX")}


class Service(testing.Service):
    """`fetchbox.testing.Service`, to be started in any way and as often as wanted over one directory, with its processes within reach.

    `prefix` is put before the command (strace, say), `script` is run in place of `fetchbox up`, and `environment` is added to what the
    processes inherit. It is not started by being made.
    """

    def __init__(
        self,
        directory: Path,
        overrides: Overrides | None = None,
        *,
        headers: Mapping[str, str] | None = None,
        prefix: Sequence[str] = (),
        script: Path | None = None,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self.directory = directory
        self.data_dir = directory / "data"
        self.config_path = directory / "fetchbox.toml"
        self.log_path = directory / "service.log"
        self.port = testing.free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.metrics_url = f"http://127.0.0.1:{testing.free_port()}"
        self.configure(overrides or {})
        up = command("up", "--config", str(self.config_path)) if script is None else [sys.executable, str(script), str(self.config_path)]
        self.command = [*prefix, *up]
        self.environment = dict(environment or {})
        self.http = Client(self.url, headers)
        self.started = False

    def configure(self, overrides: Overrides) -> None:
        """Writes the configuration; it counts from the next start on."""
        sections: dict[str, Any] = copy.deepcopy(dict(DEFAULTS))
        sections["data_dir"] = str(self.data_dir)
        sections["drain_timeout"] = DRAIN_TIMEOUT
        sections["server"]["bind_addr"] = self.url.removeprefix("http://")
        sections["telemetry"] = {"metrics_addr": self.metrics_url.removeprefix("http://"), "log_format": "json"}
        for name, values in overrides.items():
            if isinstance(values, Mapping):
                sections.setdefault(name, {}).update(values)
            else:
                sections[name] = values
        self.config = sections
        self.config_path.write_text(testing.to_toml(sections), encoding="utf-8")

    # ---- life ---------------------------------------------------------------------------------------------------------------

    def launch(self) -> None:
        """Starts `fetchbox up` and does not wait for it."""
        assert not self.running, "it runs already"
        with self.log_path.open("ab") as log:
            # A session of its own: signals that a test sends to the group reach nobody else.
            self.process = subprocess.Popen(
                self.command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                text=True,
                cwd=self.directory,
                env=clean_environment() | self.environment,
                start_new_session=True,
            )
        self.started = True

    def start(self, limit: float = START_LIMIT) -> Service:
        """Starts it and waits until posts are taken; AssertionError when it ends instead."""
        self.launch()
        self.wait_ready(limit)
        return self

    def wait_ready(self, timeout: float = START_LIMIT) -> None:
        """Waits until posts are taken; AssertionError when it ends instead."""

        def ready() -> bool:
            assert self.running, f"fetchbox up ended with {self.process.returncode}\n{self.dump()}"
            return self.ready()

        wait_for("/health/ready to be 200", ready, timeout, every=0.05, describe=self.dump)

    def all_ready(self) -> bool:
        """Whether the supervisor says that every process can do its part."""
        return self.http.status(self.metrics_url + "/health/ready") == 200

    @property
    def running(self) -> bool:
        """Whether the top process lives."""
        return self.started and self.process.poll() is None

    def end(self, number: signal.Signals = signal.SIGTERM) -> None:
        """Ends it as an operator does, and holds it to the contract: exit 0 within the drain time, no child left."""
        below = descendants(self.process.pid)
        self.process.send_signal(number)
        self.await_exit(0)
        await_end(below, 1.0)

    def await_exit(self, expected: int | None = None, limit: float = DRAIN_TIMEOUT + 3.0) -> int:
        """Waits for the top process; AssertionError when it takes longer or ends otherwise than with `expected`."""
        try:
            code = self.process.wait(limit)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"fetchbox up did not end within {limit:g} s\n{self.dump()}") from None
        assert expected is None or code == expected, f"fetchbox up ended with {code}, not {expected}\n{self.dump()}"
        return code

    def kill_tree(self) -> None:
        """SIGKILL for the supervisor and all below it, as when power fails. It is frozen first, so that it starts nothing meanwhile."""
        top = look(self.process.pid)
        assert top is not None
        top.send(signal.SIGSTOP)
        everyone = [*descendants(top.pid), top]
        kill_all(everyone)
        self.process.wait(10)
        await_end(everyone, 10)

    def close(self) -> None:
        """Leaves nothing running, whatever happened."""
        if self.running:
            self.kill_tree()
        self.http.close()

    def __enter__(self) -> Service:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    # ---- its processes ------------------------------------------------------------------------------------------------------

    def processes(self, role: str) -> list[Process]:
        """The living processes of a role below the supervisor."""
        return [process for process in descendants(self.process.pid) if process.role == role]

    def a_process(self, role: str, limit: float = START_LIMIT) -> Process:
        """One process of a role, waited for while it restarts."""
        return wait_for(f"a {role} process", lambda: self.processes(role), limit, describe=self.dump)[0]

    def kill_one(self, role: str) -> Process:
        """SIGKILL for one process of a role; returns it when it is gone."""
        victim = self.a_process(role)
        victim.send(signal.SIGKILL)
        await_end([victim], 10)
        return victim

    # ---- what went wrong ----------------------------------------------------------------------------------------------------

    def log_tail(self, lines: int = 40) -> str:
        """The last lines of its log, without those that only say that something is tried again."""
        if not self.log_path.exists():
            return ""
        with self.log_path.open("rb") as file:
            file.seek(max(0, self.log_path.stat().st_size - 256 * 1024))
            text = _ESCAPES.sub("", file.read().decode(errors="replace"))
        told = [line[:LINE_LIMIT] for line in text.splitlines() if "trying again" not in line]
        return "\n".join(told[-lines:])

    def dump(self) -> str:
        """The state of things for a failed test: processes, health, the end of the log."""
        tree = ["(not running)"]
        if self.running:
            top = look(self.process.pid)
            tree = [str(process) for process in ([top] if top else []) + descendants(self.process.pid)]
        return "\n".join(["-- processes", *tree, f"-- log ({self.log_path})", self.log_tail()])
