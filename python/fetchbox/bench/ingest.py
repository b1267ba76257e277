"""How fast manifests are accepted durably: jobs and resources a second, latency, CPU of the whole service."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fetchbox.bench import table
from fetchbox.bench.load import Spec, run_load
from fetchbox.bench.service import ServiceMeter, bench_service, manifest
from fetchbox.bench.wrk import find_wrk, run_wrk

WARM_UP_SECONDS = 1.0
COLUMNS = (
    "ingress",
    "resources/job",
    "jobs/s",
    "resources/s",
    "p50 ms",
    "p99 ms",
    "CPU us/job",
    "CPU us/resource",
    "peak MiB",
    "refused",
    "rounds",
)


@dataclass(frozen=True, slots=True)
class Running:
    """An ingress that takes posts at `url`; all its processes are below `root`."""

    url: str
    root: int


@dataclass(frozen=True, slots=True)
class Ingress:
    """Something that accepts manifests, and how to start it fresh."""

    name: str
    start: Callable[[], AbstractContextManager[Running]]


@dataclass(frozen=True, slots=True)
class Shape:
    """One kind of load."""

    resources: int
    connections: int
    seconds: float
    keys: bool = False
    processes: int = 1


def fetchbox_ingress(api_processes: int = 1, disk: Path | None = None) -> Ingress:
    """Our service without workers: what is accepted stays queued."""

    @contextmanager
    def start() -> Iterator[Running]:
        with bench_service(workers=0, api_processes=api_processes, disk=disk) as service:
            yield Running(service.url, service.process.pid)

    return Ingress("fetchbox" if api_processes == 1 else f"fetchbox, {api_processes} api", start)


def sample_manifest(resources: int) -> bytes:
    """What a crawler posts: image URLs of ordinary length whose names are random: they compress no better than real ones."""
    names = (hashlib.sha256(str(number).encode()).hexdigest()[:32] for number in range(resources))
    return manifest(
        [f"https://images.example.com/gallery/{name[:2]}/{name[2:]}.jpeg" for name in names], page="https://example.com/gallery"
    )


def drive(running: Running, shape: Shape) -> dict[str, Any]:
    """Puts one load on a running ingress, after a short one to warm it up; returns the figures."""
    spec = Spec(
        running.url,
        body=sample_manifest(shape.resources).decode(),
        headers={"Content-Type": "application/json"},
        connections=shape.connections,
        seconds=WARM_UP_SECONDS,
        keys=shape.keys,
    )
    run_load(spec)
    meter = ServiceMeter(running.root)
    meter.start()
    measured = Spec(**{name: getattr(spec, name) for name in Spec.__slots__} | {"seconds": shape.seconds})
    if find_wrk() and not shape.keys:
        seen, generator = run_wrk(measured, shape.processes), "wrk"
    else:
        report = run_load(measured, shape.processes)
        seen = {
            "answered": report.answered,
            "refused": report.refused,
            "wall": report.wall,
            "p50": report.latency(0.5),
            "p99": report.latency(0.99),
        }
        generator = "own"
    usage = meter.stop()
    jobs = max(seen["answered"], 1)
    return {
        "resources": shape.resources,
        "jobs": seen["answered"],
        "wall": seen["wall"],
        "jobs/s": seen["answered"] / seen["wall"],
        "resources/s": seen["answered"] * shape.resources / seen["wall"],
        "p50 ms": seen["p50"] * 1e3,
        "p99 ms": seen["p99"] * 1e3,
        "CPU us/job": usage.cpu / jobs * 1e6,
        "refused": seen["refused"],
        "peak MiB": sum(usage.peak_rss.values()) / 2**20,
        "generator": generator,
        "cores": {name: round(seconds / meter.wall, 3) for name, seconds in usage.per_process.items()},
    }


def compare(
    ingresses: Sequence[Ingress], shapes: Sequence[Shape], rounds: int, say: Callable[[str], None]
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Alternating rounds, each on a fresh start; returns rows of medians and the single rounds."""
    taken: list[dict[str, Any]] = []
    for shape in shapes:
        for number in range(rounds):
            for ingress in ingresses:
                with ingress.start() as running:
                    figures = drive(running, shape)
                taken.append({"ingress": ingress.name, **figures})
                say(
                    f"round {number + 1}: {ingress.name}, {shape.resources} resources a job: {figures['jobs/s']:,.0f} jobs/s, "
                    f"{figures['resources/s']:,.0f} resources/s, p99 {figures['p99 ms']:.1f} ms, cores {figures['cores']}"
                )
    return [_row(ingress.name, shape, taken) for shape in shapes for ingress in ingresses], taken


def _row(name: str, shape: Shape, taken: Sequence[dict[str, Any]]) -> dict[str, Any]:
    rounds = [entry for entry in taken if entry["ingress"] == name and entry["resources"] == shape.resources]
    middle = table.medians([{key: value for key, value in entry.items() if isinstance(value, int | float)} for entry in rounds])
    row = {"ingress": name, "resources/job": shape.resources, **{key: middle[key] for key in COLUMNS if key in middle}}
    return row | {"CPU us/resource": middle["CPU us/job"] / shape.resources, "refused": int(middle["refused"]), "rounds": len(rounds)}
