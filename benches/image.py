"""The container image: its size, how long a new container takes to be ready, what its processes hold when there is nothing to do.

Needs a container engine and an image (`make image`), and root, to read the memory of processes that are not one's own.
"""

from __future__ import annotations

import contextlib
import gzip
import json
import subprocess
import sys
import time
import urllib.request
import uuid
from collections.abc import Iterator
from pathlib import Path
from statistics import median

from common import HERE, finish, parser, say

from fetchbox.bench.results import Result

COLUMNS = ("what", "value", "unit", "least", "most", "rounds")
READ_ONLY = ("--read-only", "--cap-drop", "ALL", "--security-opt", "no-new-privileges")
READY_SECONDS = 60.0
IDLE_SECONDS = 15.0
"""After it was ready, until memory is read: what the start took is given back by then."""
CHECKS = 20
CHECK_SCRIPT = (
    "import resource, subprocess\n"
    f"for _ in range({CHECKS}): subprocess.run(['fetchbox-healthcheck'], stdout=subprocess.DEVNULL, check=True)\n"
    "used = resource.getrusage(resource.RUSAGE_CHILDREN)\n"
    f"print((used.ru_utime + used.ru_stime) / {CHECKS})\n"
)


def docker(engine: str, *arguments: str) -> str:
    """What a command of the engine says."""
    done = subprocess.run([engine, *arguments], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"{engine} {' '.join(arguments)}: {done.stderr.strip()}")
    return done.stdout.strip()


@contextlib.contextmanager
def started(engine: str, image: str, volume: str) -> Iterator[tuple[str, float]]:
    """A container of `fetchbox up` over a volume: its name, and the seconds from the command line to ready."""
    name = f"fetchbox-bench-{uuid.uuid4().hex[:8]}"
    options = [*READ_ONLY, "--publish", "127.0.0.1::9464", "--volume", f"{volume}:/data", "--env", "FETCHBOX__SERVER__ALLOW_ANONYMOUS=true"]
    began = time.perf_counter()
    docker(engine, "run", "--detach", "--name", name, *options, image)
    try:
        url = f"http://{docker(engine, 'port', name, '9464').splitlines()[0]}/health/ready"
        while not ready(url):
            if time.perf_counter() - began > READY_SECONDS:
                raise RuntimeError(f"{name} is not ready: {docker(engine, 'logs', name)}")
            time.sleep(0.005)  # noqa: TID251  (a look with a limit)
        yield name, time.perf_counter() - began
    finally:
        docker(engine, "rm", "--force", name)


def ready(url: str) -> bool:
    """Whether the container says so."""
    try:
        with urllib.request.urlopen(url, timeout=2) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False


def memory(engine: str, name: str) -> dict[str, int]:
    """Proportional set size in bytes of each process of a container, by its title; shared pages count by their share."""
    found = {}
    for line in docker(engine, "top", name, "-eo", "pid").splitlines()[1:]:
        process = Path("/proc") / line.strip()
        # Titles only: what the health check is doing right now is not of interest.
        title = (process / "cmdline").read_bytes().replace(b"\0", b" ").decode().strip()
        rollup = (process / "smaps_rollup").read_text()
        if title.startswith(("fetchbox:", "tini")):
            found[title.split(" -s")[0]] = int(rollup.split("\nPss:")[1].split()[0]) * 1024
    return found


def compressed(engine: str, image: str) -> int:
    """Bytes of what a registry would keep, about: the layers, compressed as one."""
    with subprocess.Popen([engine, "save", image], stdout=subprocess.PIPE) as process:
        counter = Counter()
        assert process.stdout is not None
        with gzip.GzipFile(fileobj=counter, mode="wb", compresslevel=6) as packer:
            while chunk := process.stdout.read(1 << 20):
                packer.write(chunk)
    return counter.count


class Counter:
    """A file that only counts."""

    def __init__(self) -> None:
        self.count = 0

    def write(self, data: bytes) -> int:
        self.count += len(data)
        return len(data)

    def flush(self) -> None:
        """Nothing to do."""


def main() -> int:
    """Measures, prints, writes; the exit status."""
    made = parser(__doc__)
    made.add_argument("--image", default="fetchbox:dev")
    made.add_argument("--base", default="debian:bookworm-slim", help="the image that it was built on")
    made.add_argument("--docker", default="docker", help="the engine's command")
    arguments = made.parse_args()
    rounds = 1 if arguments.quick else arguments.rounds
    engine, image = arguments.docker, arguments.image
    labels = json.loads(docker(engine, "image", "inspect", image))[0]["Config"]["Labels"] or {}
    # The commit that the image was built from, not the one that is checked out.
    result = Result("image", {"rounds": rounds}, HERE.parent, commit=labels.get("org.opencontainers.image.revision", "")[:10])

    def row(what: str, values: list[float], unit: str) -> None:
        result.rows.append(
            {"what": what, "value": median(values), "unit": unit, "least": min(values), "most": max(values), "rounds": len(values)}
        )
        say(f"{what}: {median(values):.3g} {unit}")

    sizes = {name: json.loads(docker(engine, "image", "inspect", name))[0]["Size"] / 2**20 for name in (image, arguments.base)}
    row("image", [sizes[image]], "MiB")
    row("of it, beyond its base", [sizes[image] - sizes[arguments.base]], "MiB")
    row("image, compressed", [compressed(engine, image) / 2**20], "MiB")
    volumes = [docker(engine, "volume", "create") for _ in range(rounds)]
    try:
        cold, again, held = [], [], []
        for number, volume in enumerate(volumes):
            with started(engine, image, volume) as (name, seconds):
                cold.append(seconds)
                time.sleep(IDLE_SECONDS)  # noqa: TID251  (idleness is what is measured)
                held.append(memory(engine, name))
                if number == 0:
                    row("a health check", [float(docker(engine, "exec", name, "python3", "-c", CHECK_SCRIPT)) * 1000], "ms CPU")
            with started(engine, image, volume) as (_, seconds):
                again.append(seconds)
    finally:
        docker(engine, "volume", "rm", *volumes)
    row("docker run to ready, new volume", cold, "s")
    row("docker run to ready, old volume", again, "s")
    for title in held[0]:
        row(f"idle: {title}", [one[title] / 2**20 for one in held], "MiB PSS")
    row("idle: all of `up`", [sum(one.values()) / 2**20 for one in held], "MiB PSS")
    result.rounds += [{"cold": first, "again": second, "memory": one} for first, second, one in zip(cold, again, held, strict=True)]
    result.parameters = {
        **result.parameters,
        "idle": f"{IDLE_SECONDS:g} s",
        "engine": docker(engine, "version", "--format", "{{.Server.Version}}"),
    }
    return finish(result, arguments, COLUMNS)


if __name__ == "__main__":
    sys.exit(main())
