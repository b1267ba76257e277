"""The supervisor's one loop: start hub, then api and workers; keep each alive; drain api, workers, hub."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Coroutine, Mapping, Sequence
from typing import Any

import structlog

from fetchbox.config import Config, hub_socket, to_child_json
from fetchbox.errors import ConfigError, ProcessError
from fetchbox.supervisor.listen import bind
from fetchbox.supervisor.page import Page
from fetchbox.supervisor.policy import Policy
from fetchbox.supervisor.port import TelemetryPort
from fetchbox.supervisor.roles import DRAIN_ORDER, START_ORDER, hub_address, hub_answers, warning
from fetchbox.supervisor.slot import Slot

log = structlog.get_logger("fetchbox.supervisor")

Command = Callable[[str, int], Sequence[str]]

LEFTOVER_PATIENCE = 8.0
"""Seconds that the children of a killed supervisor get to end before their hub or port counts as somebody else's."""
HASTE = 1.0
"""Seconds that children get after a second Ctrl-C."""
KILL_MARGIN = 0.5
"""Of the drain timeout, kept for ending what did not end by itself."""
SHARES = {"api": 0.4, "worker": 0.85, "hub": 1.0}
"""By which part of the drain timeout each role must have ended; quick ones leave their time to the next."""
POLL_INTERVAL = 0.2


def child_command(role: str, index: int) -> Sequence[str]:
    """How a role is exec'd."""
    return sys.executable, "-m", "fetchbox._child", role, str(index)


class Supervisor:
    """Runs `roles` (role → number of processes) until a signal ends it.

    `command` says how a child is exec'd; tests bring their own. `reload` makes a new Config on SIGHUP and may raise ConfigError: the old
    one stays then.
    """

    def __init__(
        self,
        config: Config,
        roles: Mapping[str, int],
        *,
        command: Command = child_command,
        policy: Policy | None = None,
        reload: Callable[[], Config] | None = None,
    ) -> None:
        self._config = config
        self._roles = {role: roles[role] for role in START_ORDER if roles.get(role)}
        self._command = command
        self._policy = policy if policy is not None else Policy()
        self._reload = reload
        self._slots: list[Slot] = []
        self._stops = 0
        self._reloads = 0
        self._woken = asyncio.Event()
        self._listener: socket.socket | None = None
        self._telemetry: socket.socket | None = None
        self._addresses: dict[str, str] = {}
        self._failure: BaseException | None = None

    def run(self) -> int:
        """Blocks until everything has ended; the exit code. Raises ProcessError when it cannot start or a child never becomes ready."""
        return asyncio.run(self.serve())

    async def serve(self) -> int:
        """`run` on a loop that is there already, in the main thread."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stop_requested)
        loop.add_signal_handler(signal.SIGHUP, self._reload_requested)
        port: TelemetryPort | None = None
        try:
            if not await self._unless_stopped(self._take_addresses()):
                return 0
            self._make_slots()
            page = Page(self._slots, self._roles)
            if self._telemetry is not None:
                port = TelemetryPort(self._telemetry, page.metrics, page.ready)
            log.info("starting", data_dir=self._config.data_dir, **self._addresses, processes=[slot.name for slot in self._slots])
            if told := warning(self._config, self._roles):
                log.warning(told)
            await self._run()
        finally:
            if port is not None:
                await port.close()
            for sock in (self._listener, self._telemetry):
                if sock is not None:
                    sock.close()
            for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
                loop.remove_signal_handler(number)
        if self._failure is not None:
            raise self._failure
        log.info("stopped")
        return 0

    async def _unless_stopped(self, work: Coroutine[Any, Any, None]) -> bool:
        """Does the work; False when a signal came first."""
        task = asyncio.create_task(work)
        while not task.done():
            self._woken.clear()
            woken = asyncio.create_task(self._woken.wait())
            await asyncio.wait({task, woken}, return_when=asyncio.FIRST_COMPLETED)
            woken.cancel()
            if self._stops:
                task.cancel()
                await asyncio.wait({task})
                return False
        task.result()
        return True

    # ---- start ------------------------------------------------------------------------------------------------------------

    async def _take_addresses(self) -> None:
        _check_writable(self._config.data_dir)
        if "hub" in self._roles:
            await self._claim_data_dir()
        if "api" in self._roles:
            self._listener, bound = await bind(self._config.server.bind_addr, "server.bind_addr", LEFTOVER_PATIENCE)
            scheme = "https" if self._config.server.tls_cert else "http"
            self._addresses["api"] = f"{scheme}://{bound}"
            # A port of 0 is known now; children guard it and tell it.
            server = self._config.server.model_copy(update={"bind_addr": bound})
            self._config = self._config.model_copy(update={"server": server})
        if address := hub_address(self._config, self._roles):
            self._addresses["hub"] = address
        if self._config.telemetry.metrics_addr:
            self._telemetry, bound = await bind(self._config.telemetry.metrics_addr, "telemetry.metrics_addr", LEFTOVER_PATIENCE)
            self._addresses["telemetry"] = f"http://{bound}"
            telemetry = self._config.telemetry.model_copy(update={"metrics_addr": bound})
            self._config = self._config.model_copy(update={"telemetry": telemetry})

    async def _claim_data_dir(self) -> None:
        try:
            os.makedirs(self._config.data_dir, exist_ok=True)
            directory = os.path.dirname(hub_socket(self._config))
            os.makedirs(directory, mode=0o700, exist_ok=True)
            if directory != self._config.data_dir and os.stat(directory).st_uid != os.getuid():
                raise ProcessError(f"{directory} belongs to somebody else; set hub.url to a socket in a directory of your own")
        except OSError as error:
            raise ProcessError(f"cannot create {error.filename}: {error.strerror}; choose another data_dir") from error
        deadline = time.monotonic() + LEFTOVER_PATIENCE
        while await asyncio.to_thread(hub_answers, self._config):
            if time.monotonic() >= deadline:
                raise ProcessError(f"another FetchBox serves {self._config.data_dir}: stop it, or choose another data_dir")
            await asyncio.sleep(POLL_INTERVAL)

    def _make_slots(self) -> None:
        for role, count in self._roles.items():
            for index in range(count):
                self._slots.append(Slot(role, index, self._command(role, index), self._policy, self._listen_fd(role), self._child_config))

    def _listen_fd(self, role: str) -> int | None:
        return self._listener.fileno() if role == "api" and self._listener is not None else None

    def _child_config(self) -> str:
        return to_child_json(self._config)

    # ---- the loop ---------------------------------------------------------------------------------------------------------

    async def _run(self) -> None:
        keepers: set[asyncio.Task[None]] = set()
        for slot in self._slots:
            slot.task = asyncio.create_task(self._keep(slot))
            keepers.add(slot.task)
        try:
            announced = False
            handled_reloads = 0
            while not self._stops and self._failure is None:
                self._woken.clear()
                if handled_reloads != self._reloads:
                    handled_reloads = self._reloads
                    self._reload_now()
                if not announced and all(slot.is_ready for slot in self._slots):
                    announced = True
                    log.info("ready", **self._addresses)
                await self._woken.wait()
            await self._drain()
        finally:
            for slot in self._slots:
                slot.kill()
            for keeper in keepers:
                keeper.cancel()
            await asyncio.gather(*keepers, return_exceptions=True)

    async def _keep(self, slot: Slot) -> None:
        hub = next((other for other in self._slots if other.role == "hub" and slot.role != "hub"), None)
        try:
            if hub is None or await slot.wait_for(hub.first_ready):
                await slot.keep(self._woken.set)
        except Exception as error:
            self._failure = error
        finally:
            self._woken.set()

    async def _drain(self) -> None:
        began = time.monotonic()
        timeout = self._config.drain_timeout
        log.info("draining", within=timeout)
        for role in DRAIN_ORDER:
            slots = [slot for slot in self._slots if slot.role == role]
            if not slots:
                continue
            until = began + SHARES[role] * (timeout - KILL_MARGIN)
            for slot in slots:
                slot.stop(max(until - time.monotonic(), 0.0))
            await self._until_ended(slots, until)
            for slot in slots:
                if not slot.has_ended:
                    log.warning("did not end in time, killing it", child=slot.name)
                    slot.kill()
            await self._until_ended(slots, time.monotonic() + KILL_MARGIN)

    async def _until_ended(self, slots: Sequence[Slot], until: float) -> None:
        tasks = {slot.task for slot in slots if slot.task is not None}
        hastened = self._stops > 1
        while not all(slot.has_ended for slot in slots):
            if self._stops > 1 and not hastened:
                hastened = True
                until = min(until, time.monotonic() + HASTE)
                for slot in slots:
                    slot.stop(HASTE)
            elif hastened:
                until = min(until, time.monotonic() + HASTE)
            left = until - time.monotonic()
            if left <= 0:
                return
            self._woken.clear()
            woken = asyncio.create_task(self._woken.wait())
            await asyncio.wait({woken, *(task for task in tasks if not task.done())}, timeout=left, return_when=asyncio.FIRST_COMPLETED)
            woken.cancel()

    # ---- signals: only flags; the loop acts -----------------------------------------------------------------------------

    def _stop_requested(self) -> None:
        self._stops += 1
        self._woken.set()

    def _reload_requested(self) -> None:
        self._reloads += 1
        self._woken.set()

    def _reload_now(self) -> None:
        if self._reload is None:
            return
        try:
            fresh = self._reload()
        except ConfigError as error:
            log.error("the new configuration has problems; the old one stays", problems=[str(problem) for problem in error.problems])
            return
        # What was taken at the start stays taken.
        server = fresh.server.model_copy(update={"bind_addr": self._config.server.bind_addr})
        telemetry = fresh.telemetry.model_copy(update={"metrics_addr": self._config.telemetry.metrics_addr})
        self._config = fresh.model_copy(
            update={
                "data_dir": self._config.data_dir,
                "server": server,
                "telemetry": telemetry,
                "storage": fresh.storage.model_copy(update={"url": self._config.storage.url}),
                "hub": fresh.hub.model_copy(update={key: getattr(self._config.hub, key) for key in ("path", "url", "listen")}),
            }
        )
        text = self._child_config()
        for slot in self._slots:
            slot.reload(text)
        log.info("configuration read again")


def _check_writable(data_dir: str) -> None:
    """Says it once and early: a mounted directory of somebody else is what goes wrong first with containers. ProcessError."""
    if os.path.isdir(data_dir) and not os.access(data_dir, os.W_OK | os.X_OK):
        raise ProcessError(f"cannot write to {data_dir}: permission denied for user {os.geteuid()}; chown it, or choose another data_dir")
