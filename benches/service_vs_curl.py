"""The whole service, durable queue and all, beside a bare `curl --parallel` on the same files in the same run.

Ours is measured from the first post until the last job is settled, CPU over all its processes (supervisor, api, hub, worker) in that
time, without starting and stopping them. curl is measured as a process, start and end included.
"""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common import HERE, finish, parser, say

from fetchbox.bench import table
from fetchbox.bench.nginx import Files, StaticOrigin, static_origin
from fetchbox.bench.peers import Stored, count_files, curl_peer, run_peer
from fetchbox.bench.results import Result
from fetchbox.bench.service import Caller, ServiceMeter, bench_service, manifest

COLUMNS = ("what", "files", "wall s", "files/s", "CPU us/file", "peak MiB", "peaks", "files/s x", "CPU x", "rounds", "spread")
SETTLE_SECONDS = 600.0
WARM_UP_FILES = 100


@dataclass(frozen=True, slots=True)
class Plan:
    """What is downloaded, and how."""

    files: Files
    jobs: int
    concurrency: int
    disk: Path | None


def run_service(plan: Plan, origin: StaticOrigin) -> dict[str, Any]:
    """One round of the service on fresh directories. RuntimeError unless every file is stored whole and every job is completed."""
    urls = origin.urls()
    per_job = -(-len(urls) // plan.jobs)
    manifests = [manifest(urls[at : at + per_job]) for at in range(0, len(urls), per_job)]
    with bench_service(
        workers=1, disk=plan.disk, worker={"concurrency": plan.concurrency}, fetch={"per_host_concurrency": plan.concurrency}
    ) as service:
        caller = Caller(service.url)
        warm = caller.wait_settled([caller.submit(manifest(urls[:WARM_UP_FILES]))], SETTLE_SECONDS)
        meter = ServiceMeter(service.process.pid)
        meter.start()
        started = time.perf_counter()
        jobs = [caller.submit(body) for body in manifests]
        posted = time.perf_counter() - started
        answers = caller.wait_settled(jobs, SETTLE_SECONDS)
        wall = time.perf_counter() - started
        usage = meter.stop()
        caller.close()
        check(answers, warm, plan, Path(service.config["storage"]["url"].removeprefix("file://")))
    return {
        "what": "fetchbox up",
        "wall": wall,
        "posted": posted,
        "cpu": usage.cpu,
        "per_process": usage.per_process,
        "peak": sum(usage.peak_rss.values()),
        "peaks": usage.peak_rss,
    }


def check(answers: list[dict[str, Any]], warm: list[dict[str, Any]], plan: Plan, store: Path) -> None:
    """Every job completed, every byte counted, and every object in the store."""
    unfinished = [answer["job_id"] for answer in [*answers, *warm] if answer["status"] != "completed"]
    counted = Stored(sum(answer["resource_completed"] for answer in answers), sum(answer["bytes_stored"] for answer in answers))
    expected = Stored(plan.files.count, plan.files.total)
    present = count_files(store / "resources")
    there = Stored(present.files - WARM_UP_FILES, present.size - WARM_UP_FILES * plan.files.size)
    if unfinished or counted != expected or there != expected:
        raise RuntimeError(f"not completed: {unfinished}; counted {counted}, in the store {there}, expected {expected}")


def run_curl(plan: Plan, origin: StaticOrigin) -> dict[str, Any]:
    """One round of curl."""
    usage = run_peer(curl_peer(), origin.urls(), plan.concurrency, Stored(plan.files.count, plan.files.total))
    return {"what": "curl --parallel", "wall": usage.wall, "cpu": usage.cpu, "peak": usage.peak_rss_max, "peaks": usage.peak_rss}


def main() -> int:
    """Runs the comparison."""
    made = parser(__doc__)
    made.add_argument("--files", type=int, default=20_000)
    made.add_argument("--size", type=int, default=10 << 10)
    made.add_argument("--jobs", type=int, default=20)
    made.add_argument("-j", "--concurrency", type=int, default=64)
    arguments = made.parse_args()
    files = Files(arguments.files // 10 if arguments.quick else arguments.files, arguments.size)
    rounds = 1 if arguments.quick else arguments.rounds
    plan = Plan(files, arguments.jobs, arguments.concurrency, arguments.disk)
    name = "service_vs_curl-quick" if arguments.quick else "service_vs_curl"
    result = Result(name, {"files": files.label(), "jobs": plan.jobs, "concurrency": plan.concurrency, "rounds": rounds}, HERE)
    with static_origin(files) as origin:
        for number in range(rounds):
            for run in (run_service, run_curl):
                seen = run(plan, origin)
                result.rounds.append(seen)
                detail = {role: round(seconds / files.count * 1e6, 1) for role, seconds in seen.get("per_process", {}).items()}
                rate, cost = files.count / seen["wall"], seen["cpu"] / files.count * 1e6
                say(f"round {number + 1}: {seen['what']}: {rate:,.0f} files/s, {cost:.0f} us CPU a file {detail}")
    base = table.medians([{key: seen[key] for key in ("wall", "cpu")} for seen in result.rounds if seen["what"].startswith("curl")])
    for what in ("fetchbox up", "curl --parallel"):
        taken = [seen for seen in result.rounds if seen["what"] == what]
        middle = table.medians([{key: seen[key] for key in ("wall", "cpu", "peak")} for seen in taken])
        peaks = {name: max(seen["peaks"].get(name, 0) for seen in taken) for name in taken[0]["peaks"]}
        result.rows.append(
            {
                "what": what,
                "files": files.label(),
                "wall s": middle["wall"],
                "files/s": files.count / middle["wall"],
                "CPU us/file": middle["cpu"] / files.count * 1e6,
                "peak MiB": middle["peak"] / 2**20,
                "peaks": ", ".join(f"{name} {size / 2**20:.0f}" for name, size in sorted(peaks.items())),
                "files/s x": base["wall"] / middle["wall"],
                "CPU x": middle["cpu"] / base["cpu"],
                "rounds": len(taken),
                "spread": f"{table.spread([seen['wall'] for seen in taken]) * 100:.0f} %",
            }
        )
    return finish(result, arguments, COLUMNS)


if __name__ == "__main__":
    sys.exit(main())
