"""What the telemetry port shows: this node's health and the metrics of all its processes."""

from __future__ import annotations

import asyncio
import functools
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.process_collector import ProcessCollector

from fetchbox.metrics import merge
from fetchbox.supervisor.slot import Slot

CHILD_TIMEOUT = 2.0
"""Seconds that a child may take for its metrics; a busy one is left out of this page."""
HARMLESS = frozenset({"proxy_pools", "workers"})
"""Components that may be degraded while a process still does its part."""
SPARE_DESCRIPTORS = 16
"""A process that may open fewer files than this is about to fail at something."""


class Page:
    """Answers for the processes of this node. `roles` says how many of each there should be."""

    def __init__(self, slots: Sequence[Slot], roles: Mapping[str, int]) -> None:
        self._slots = slots
        self._roles = roles

    def ready(self) -> tuple[bool, dict[str, Any]]:
        """Whether every process here can do its part, and the answer of /health/ready."""
        processes = {slot.name: self._state(slot) for slot in self._slots}
        ready = all(state["status"] == "ok" for state in processes.values())
        return ready, {"status": "ok" if ready else "degraded", "processes": processes}

    async def metrics(self) -> str:
        """The answer of /metrics."""
        children = {slot.name: slot.child for slot in self._slots if slot.child is not None and slot.child.is_ready}
        texts = await asyncio.gather(*(child.metrics(CHILD_TIMEOUT) for child in children.values()))
        pids = {slot.name: slot.child.pid for slot in self._slots if slot.child is not None}
        return merge(dict(zip(children, texts, strict=True)), [*self._own(), *_resources(pids)])

    def _state(self, slot: Slot) -> dict[str, Any]:
        if not slot.is_ready or slot.child is None:
            return {"status": "degraded", "reason": "starting" if slot.restarts == 0 else "starting again", "components": {}}
        components = slot.child.health
        bad = [name for name, state in components.items() if state["status"] != "ok" and name not in HARMLESS]
        reasons = [f"{name}: {components[name]['reason'] or 'degraded'}" for name in bad]
        if (short := descriptor_trouble(slot.child.pid)) is not None:
            reasons.append(short)
        return {"status": "degraded" if reasons else "ok", "reason": "; ".join(reasons) or None, "components": components}

    def _own(self) -> Iterator[Metric]:
        restarts = CounterMetricFamily("fetchbox_process_restarts", "Starts of a process after its first", labels=["process"])
        for slot in self._slots:
            restarts.add_metric([slot.name], slot.restarts)
        yield restarts
        ready = GaugeMetricFamily(
            "fetchbox_service_ready", "Whether all processes of a service on this node can do their part", labels=["service"]
        )
        for role in self._roles:
            ready.add_metric([role], float(all(self._state(slot)["status"] == "ok" for slot in self._slots if slot.role == role)))
        yield ready
        build = GaugeMetricFamily("fetchbox_build_info", "The version that runs; always 1", labels=["version", "python"])
        build.add_metric([_version(), ".".join(map(str, sys.version_info[:3]))], 1)
        yield build


def descriptor_trouble(pid: int) -> str | None:
    """What is to be said of a process that can hardly open any more files; None of any other, and of one that is gone."""
    try:
        with open(f"/proc/{pid}/limits", encoding="ascii") as limits:
            limit = next(line.split()[3] for line in limits if line.startswith("Max open files"))
        used = len(os.listdir(f"/proc/{pid}/fd"))
    except (OSError, StopIteration):
        return None
    if limit == "unlimited" or int(limit) - used >= SPARE_DESCRIPTORS:
        return None
    return f"{used} of {limit} file descriptors are in use: raise the limit (`ulimit -n`)"


def _resources(pids: Mapping[str, int]) -> Iterator[Metric]:
    """CPU, memory and descriptors of each child, from /proc."""
    for name, pid in pids.items():
        for family in ProcessCollector(namespace="fetchbox", pid=functools.partial(int, pid), registry=None).collect():
            family.samples = [sample._replace(labels={**sample.labels, "process": name}) for sample in family.samples]
            yield family


def _version() -> str:
    try:
        return version("fetchbox")
    except PackageNotFoundError:
        return "unknown"
