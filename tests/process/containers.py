"""Containers of FetchBox's image, driven by the command line of the engine. Without an engine or an image the tests of them are skipped."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Final

import httpx

from tests.process.waiting import wait_for

DOCKER: Final = os.environ.get("DOCKER") or shutil.which("docker")
"""The engine's command line."""
GIVEN: Final = os.environ.get("FETCHBOX_IMAGE")
"""Read here, because tests run without variables of ours."""
DEFAULT_IMAGE: Final = "fetchbox:dev"
"""What `make image` makes."""
COMMAND_LIMIT: Final = 60.0
HEALTHY_LIMIT: Final = 60.0
READ_ONLY: Final = ("--read-only", "--cap-drop", "ALL", "--security-opt", "no-new-privileges")
"""How the image is meant to be run."""
ANONYMOUS: Final = {"FETCHBOX__SERVER__ALLOW_ANONYMOUS": "true"}


def docker(*arguments: str, check: bool = True, limit: float = COMMAND_LIMIT) -> subprocess.CompletedProcess[str]:
    """One command of the engine; AssertionError with what it said when it fails."""
    assert DOCKER is not None
    done = subprocess.run([DOCKER, *arguments], capture_output=True, text=True, timeout=limit, check=False, stdin=subprocess.DEVNULL)
    assert not check or done.returncode == 0, f"docker {' '.join(arguments)}: {done.returncode}\n{done.stdout}{done.stderr}"
    return done


def find_image() -> tuple[str | None, str]:
    """The image to test, or None and why there is none."""
    if DOCKER is None:
        return None, "no docker on the PATH: the image was not tested"
    try:
        running = docker("version", check=False, limit=20).returncode == 0
    except (OSError, subprocess.TimeoutExpired):
        running = False
    if not running:
        return None, "no container engine answers: the image was not tested"
    name = GIVEN or DEFAULT_IMAGE
    if docker("image", "inspect", name, check=False).returncode == 0:
        return name, ""
    assert GIVEN is None, f"there is no image {GIVEN} (FETCHBOX_IMAGE)"
    return None, f"no image {DEFAULT_IMAGE}: make image, or FETCHBOX_IMAGE=NAME"


class Container:
    """A container that was started."""

    def __init__(self, name: str) -> None:
        self.name = name

    def inspect(self) -> dict[str, Any]:
        """What the engine says of it."""
        found: list[dict[str, Any]] = json.loads(docker("inspect", self.name).stdout)
        return found[0]

    @property
    def state(self) -> dict[str, Any]:
        """Its state."""
        state: dict[str, Any] = self.inspect()["State"]
        return state

    def url(self, port: int) -> str:
        """Where one of its published ports is reached."""
        return "http://" + docker("port", self.name, str(port)).stdout.splitlines()[0]

    def exec(self, *command: str, check: bool = True) -> str:
        """What a command inside says."""
        return docker("exec", self.name, *command, check=check).stdout

    def logs(self) -> str:
        """All that it has written."""
        done = docker("logs", self.name)
        return done.stdout + done.stderr

    def wait_healthy(self) -> None:
        """Waits until its own HEALTHCHECK is satisfied."""

        def healthy() -> bool:
            state = self.state
            assert state["Running"], f"{self.name} ended with {state['ExitCode']}\n{self.logs()[-3000:]}"
            return bool(state["Health"]["Status"] == "healthy")

        wait_for(f"{self.name} to be healthy", healthy, HEALTHY_LIMIT, every=0.2, describe=self.describe)

    def describe(self) -> str:
        """Health and the end of the log."""
        return f"{self.state.get('Health')}\n{self.logs()[-3000:]}"

    def stop(self, *options: str) -> int:
        """`docker stop`; the exit code."""
        docker("stop", *options, self.name, limit=90)
        return int(self.state["ExitCode"])

    def processes(self) -> dict[int, tuple[str, str, str]]:
        """What runs inside: pid there → state, user and title."""
        script = (
            "import os\n"
            "for pid in filter(str.isdigit, os.listdir('/proc')):\n"
            "    try:\n"
            "        status = dict(line.split(':', 1) for line in open(f'/proc/{pid}/status'))\n"
            "        title = ' '.join(open(f'/proc/{pid}/cmdline').read().replace('\\0', ' ').split())\n"
            "    except OSError:\n"
            "        continue\n"
            "    print(pid, status['State'].split()[0], status['Uid'].split()[1], title, sep='\\t')\n"
        )
        lines = self.exec("python3", "-c", script).splitlines()
        return {int(pid): (state, user, title) for pid, state, user, title in (line.split("\t") for line in lines)}


class Engine:
    """Starts containers of one image on a network of their own; what it made is gone afterwards."""

    def __init__(self, image: str) -> None:
        self.image = image
        self.prefix = f"fetchbox-test-{uuid.uuid4().hex[:8]}"
        self.network = self.prefix
        self._names: list[str] = []
        self._volumes: list[str] = []
        docker("network", "create", self.network)

    def subnet(self) -> str:
        """The network in CIDR notation."""
        found = json.loads(docker("network", "inspect", self.network).stdout)
        return str(found[0]["IPAM"]["Config"][0]["Subnet"])

    def volume(self, name: str) -> str:
        """A new volume."""
        made = f"{self.prefix}-{name}"
        docker("volume", "create", made)
        self._volumes.append(made)
        return made

    def start(self, name: str, *command: str, options: Sequence[str] = (), environment: Mapping[str, str] | None = None) -> Container:
        """Starts a container, to be found on the network by `name`; `command` in place of the image's own."""
        made = f"{self.prefix}-{name}"
        self._names.append(made)
        given = [part for key, value in (environment or {}).items() for part in ("--env", f"{key}={value}")]
        where = ["--detach", "--name", made, "--network", self.network, "--network-alias", name]
        docker("run", *where, *options, *given, self.image, *command)
        return Container(made)

    def once(self, *command: str, options: Sequence[str] = (), environment: Mapping[str, str] | None = None) -> Any:
        """Runs a container to its end: a CompletedProcess."""
        given = [part for key, value in (environment or {}).items() for part in ("--env", f"{key}={value}")]
        return docker("run", "--rm", "--network", self.network, *options, *given, self.image, *command, check=False)

    def close(self) -> None:
        """Removes everything that was made."""
        if self._names:
            docker("rm", "--force", "--volumes", *self._names, check=False)
        if self._volumes:
            docker("volume", "rm", "--force", *self._volumes, check=False)
        docker("network", "rm", self.network, check=False)


@contextmanager
def engine(image: str) -> Iterator[Engine]:
    """An engine for the block."""
    made = Engine(image)
    try:
        yield made
    finally:
        made.close()


def answers(url: str) -> bool:
    """Whether something answers 200 there."""
    try:
        return httpx.get(url, timeout=5, trust_env=False).status_code == 200
    except httpx.TransportError:
        return False
