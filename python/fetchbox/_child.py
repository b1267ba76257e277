"""One role in this process: what the supervisor execs as `python -m fetchbox._child ROLE INDEX`."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import faulthandler
import os
import signal
import socket
import sys
import threading
from collections.abc import Awaitable, Callable
from importlib import import_module
from typing import Any

import structlog
from setproctitle import setproctitle

from fetchbox import telemetry
from fetchbox.config import Config, from_child_json
from fetchbox.control import ENV_CONTROL_FD, ENV_LISTEN_FD, ENV_PARENT_PID, Channel, Control, inherited_fd, process_name
from fetchbox.errors import ConfigError, FetchboxError

log = structlog.get_logger("fetchbox.child")

ROLES = {"api": "fetchbox.api", "hub": "fetchbox.hub", "worker": "fetchbox.worker", "quarantine": "fetchbox.worker.apart"}
UVLOOP_ROLES = frozenset({"hub", "api", "worker", "quarantine"})
START_TIMEOUT = 30.0
"""Seconds for the start order, which the supervisor writes right after the exec."""
ORPHAN_TIMEOUT = 5.0
"""Seconds to drain when the supervisor is gone: whoever starts FetchBox again wants the database and the port."""
EXIT_MARGIN = 1.0
"""Beyond the drain timeout, before the process ends by force."""
PR_SET_PDEATHSIG = 1

Role = Callable[[Config, Control], Awaitable[int]]


def main() -> None:
    """Runs the role that the command line names."""
    role, index = sys.argv[1], int(sys.argv[2])
    serve(role, index, lambda: import_module(ROLES[role]).run, uvloop=role in UVLOOP_ROLES)


def serve(role: str, index: int, load: Callable[[], Role], *, uvloop: bool = False) -> None:
    """Runs a role to its end and ends the process with its exit code. `load` imports it, after everything that must be in place is."""
    _die_with_parent()
    faulthandler.enable()
    setproctitle(f"fetchbox: {process_name(role, index)}")
    factory: Callable[[], asyncio.AbstractEventLoop] | None = None
    if uvloop:
        import uvloop as uv

        factory = uv.new_event_loop
    with asyncio.Runner(loop_factory=factory) as runner:
        code = runner.run(_run(role, index, load))
    sys.stdout.flush()
    sys.stderr.flush()
    # Every role has closed what it opened. Native threads of libraries may still run, and some abort in the interpreter's own finish.
    os._exit(code)


async def _run(role: str, index: int, load: Callable[[], Role]) -> int:
    descriptor = inherited_fd(ENV_CONTROL_FD)
    if descriptor is None:
        print("fetchbox: this is a part of `fetchbox up` and is started by it", file=sys.stderr)
        return 2
    channel = await Channel.open(socket.socket(fileno=descriptor))
    async with asyncio.timeout(START_TIMEOUT):
        start = await channel.receive()
    if start is None:
        return 0
    config = from_child_json(start["config"])
    control = Control(role, index, listen_fd=inherited_fd(ENV_LISTEN_FD), channel=channel)
    telemetry.configure(config.telemetry.log_format, config.telemetry.log_level, control.name)
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGTERM, control.drain, config.drain_timeout)
    for ignored in (signal.SIGINT, signal.SIGHUP):
        loop.add_signal_handler(ignored, _ignore)
    control.on_drain(_end_by_force)
    orders = asyncio.create_task(control.serve(from_child_json, min(ORPHAN_TIMEOUT, config.drain_timeout)))
    try:
        return await load()(config, control)
    except ConfigError as error:
        for problem in error.problems:
            log.error("cannot start", problem=str(problem))
    except FetchboxError as error:
        log.error("cannot go on", error=str(error))
    except Exception:
        log.exception("failed")
    finally:
        orders.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await orders
        await channel.close()
    return 1


def _end_by_force(within: float) -> None:
    """A thread, because a loop that hangs runs no timer."""
    timer = threading.Timer(within + EXIT_MARGIN, os._exit, (1,))
    timer.daemon = True
    timer.start()


def _ignore() -> None:
    """The supervisor decides; children have their own session and get no signals from a terminal."""


def _die_with_parent() -> None:
    """SIGTERM when the supervisor dies, however it dies. It may have died before this call: then there is nothing to do here any more."""
    parent = inherited_fd(ENV_PARENT_PID)
    libc: Any = ctypes.CDLL(None, use_errno=True)
    libc.prctl(PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
    if parent is not None and os.getppid() != parent:
        sys.exit(0)


if __name__ == "__main__":
    main()
