"""The same load by wrk, where it is installed: about half of our own generator's CPU, and a tool that others know."""

from __future__ import annotations

import json
import shutil
import subprocess
import tempfile
from pathlib import Path

from fetchbox.bench.load import GRACE_SECONDS, Spec

_SCRIPT = """
local file = io.open("{body}", "rb")
wrk.method = "{method}"
wrk.body = file:read("*a")
file:close()
{headers}
done = function(summary, latency, requests)
  local lost = summary.errors.connect + summary.errors.read + summary.errors.write + summary.errors.timeout
  io.write(string.format('\\nRESULT {{"requests": %d, "micros": %d, "refused": %d, "lost": %d, "p50": %d, "p99": %d}}\\n',
    summary.requests, summary.duration, summary.errors.status, lost, latency:percentile(50), latency:percentile(99)))
end
"""


def find_wrk() -> str | None:
    """The program, if it is installed."""
    return shutil.which("wrk")


def run_wrk(spec: Spec, threads: int = 1) -> dict[str, float]:
    """Sends the load; returns `answered`, `refused`, `wall`, `p50` and `p99` in seconds. Knows one target, no keys, no count."""
    program = find_wrk()
    if program is None or spec.keys or spec.collect or spec.count is not None or len(spec.targets) != 1:
        raise ValueError("wrk is missing, or cannot send this")
    with tempfile.TemporaryDirectory(prefix="fetchbox-bench-wrk-") as name:
        body, script = Path(name) / "body", Path(name) / "load.lua"
        body.write_text(spec.body, encoding="utf-8")
        headers = "\n".join(f'wrk.headers["{key}"] = "{value}"' for key, value in spec.headers.items())
        script.write_text(_SCRIPT.format(body=body, method=spec.method, headers=headers), encoding="utf-8")
        threads = max(min(threads, spec.connections), 1)
        command = [
            program,
            f"-t{threads}",
            f"-c{spec.connections}",
            f"-d{max(int(spec.seconds), 1)}s",
            "--timeout",
            "30s",
            "-s",
            str(script),
        ]
        done = subprocess.run(
            [*command, spec.url + spec.targets[0]], capture_output=True, text=True, check=True, timeout=spec.seconds + GRACE_SECONDS
        )
    line = next(line for line in done.stdout.splitlines() if line.startswith("RESULT "))
    seen = json.loads(line.removeprefix("RESULT "))
    return {
        "answered": seen["requests"] - seen["refused"],
        "refused": seen["refused"] + seen["lost"],
        "wall": seen["micros"] / 1e6,
        "p50": seen["p50"] / 1e6,
        "p99": seen["p99"] / 1e6,
    }
