"""How often one host is asked over a minute, against its limit: by one worker and by four, with tasks partitioned by job and by host."""

from __future__ import annotations

import sys
import tempfile
import time
from bisect import bisect_left
from pathlib import Path

from common import HERE, finish, parser, say

from fetchbox.bench.results import Result
from fetchbox.testing import running_service, spawned_origin, wait_until

RATE = 20
JOBS = 24
TASKS = 250
"""A job: more than four workers send at this rate in a minute."""
COLUMNS = ("workers", "partition_by", "seconds", "limit", "requests", "x limit", "most in 1 s")


def measure(workers: int, partition_by: str, seconds: float, disk: Path | None) -> dict[str, float | str]:
    """Requests that an origin saw in so many seconds from the first one on."""
    config = {"tasks": {"partition_by": partition_by}, "fetch": {"allow_networks": ["127.0.0.0/8"], "per_host_rate": RATE}}
    with tempfile.TemporaryDirectory(dir=disk) as directory:
        journal = Path(directory) / "requests.log"
        with spawned_origin(journal=journal) as origin, running_service(Path(directory) / "service", workers=workers, **config) as service:
            with service.client() as client:
                for job in range(JOBS):
                    resources = [{"url": origin.url(f"/bytes/10?{job}.{n}")} for n in range(TASKS)]
                    client.submit({"manifest_version": "v1", "metadata": {}, "resources": resources})
            wait_until(origin.requests, 30, what="a first request")
            time.sleep(seconds)  # noqa: TID251 - so long is what is measured
            times = sorted(at for at, _ in origin.requests())
    times = times[: bisect_left(times, times[0] + seconds)]
    most = max(bisect_left(times, at + 1) - index for index, at in enumerate(times))
    return {
        "workers": workers,
        "partition_by": partition_by,
        "seconds": seconds,
        "limit": RATE * seconds,
        "requests": len(times),
        "x limit": round(len(times) / (RATE * seconds), 3),
        "most in 1 s": most,
    }


def main() -> int:
    """Runs the four."""
    arguments = parser(__doc__).parse_args()
    seconds = 6.0 if arguments.quick else 60.0
    result = Result("politeness", {"per_host_rate": RATE, "tasks": JOBS * TASKS}, HERE)
    for partition_by in ("job", "host"):
        for workers in (1, 4):
            result.rows.append(measure(workers, partition_by, seconds, arguments.disk))
            say(f"{workers} workers, by {partition_by}: {result.rows[-1]['requests']} requests")
    return finish(result, arguments, COLUMNS)


if __name__ == "__main__":
    sys.exit(main())
