"""The container image as its users run it, on a real engine; and the health check by itself, which needs none.

Runs where a container engine answers and an image is there: `make image`, or FETCHBOX_IMAGE=NAME.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread
from typing import Any, Final

import httpx
import pytest

from fetchbox.client import Client
from fetchbox.testing import content, free_port
from tests.process.containers import ANONYMOUS, READ_ONLY, Container, Engine, answers, docker, engine, find_image
from tests.process.waiting import wait_for

ROOT: Final = Path(__file__).parents[2]
ORIGIN_PORT: Final = 8000
PUBLISHED: Final = ("--publish", "127.0.0.1::8080", "--publish", "127.0.0.1::9464")
DOCKER_PATIENCE: Final = 10.0
USER: Final = "10001"
TITLES: Final = ("fetchbox: supervisor", "fetchbox: hub", "fetchbox: api 0", "fetchbox: worker 0")


@pytest.fixture(scope="module")
def containers() -> Iterator[Engine]:
    image, reason = find_image()
    if image is None:
        pytest.skip(reason)
    with engine(image) as made:
        yield made


@pytest.fixture(scope="module")
def origin(containers: Engine) -> str:
    """The bundled web server in a container of the same image; its URL for the others."""
    containers.start("origin", "origin", "--host", "0.0.0.0", "--port", str(ORIGIN_PORT), options=READ_ONLY)
    return f"http://origin:{ORIGIN_PORT}"


def environment(containers: Engine) -> dict[str, str]:
    """Enough for a service that may download from the network of the tests."""
    return {**ANONYMOUS, "FETCHBOX__FETCH__ALLOW_NETWORKS": containers.subnet()}


@pytest.fixture(scope="module")
def service(containers: Engine, origin: str) -> Container:
    """`docker run` of the image, as locked up as an engine can."""
    volume = containers.volume("data")
    options = [*READ_ONLY, *PUBLISHED, "--volume", f"{volume}:/data"]
    running = containers.start("service", options=options, environment=environment(containers))
    running.wait_healthy()
    return running


def submit(service: Container, urls: list[str], *, wait: bool = True) -> Any:
    """Posts a job from outside, and waits for it; what it came to."""
    resources = [{"url": url, "id": f"r{index}"} for index, url in enumerate(urls)]
    with Client(service.url(8080)) as client:
        job = client.submit({"manifest_version": "v1", "metadata": {}, "resources": resources})
        return client.wait(job.job_id, timeout=60) if wait else job


def outcomes(service: Container, job_id: str) -> list[dict[str, Any]]:
    """The outcomes of a job."""
    answer = httpx.get(f"{service.url(8080)}/operators/jobs/{job_id}/resources", timeout=20, trust_env=False)
    found: list[dict[str, Any]] = answer.json()["resources"]
    return found


def check_stored(service: Container, job_id: str, count: int, size: int) -> None:
    """Every resource of a job is in the volume, byte for byte."""
    found = outcomes(service, job_id)
    assert [(one["state"], one["size"]) for one in found] == [("stored", size)] * count
    for one in found:
        path = one["storage_url"].removeprefix("file://")
        assert path.startswith("/data/assets/")
        digest = service.exec("sha256sum", path).split()[0]
        assert digest == one["sha256"] == hashlib.sha256(content(int(one["id"][1:]), size)).hexdigest()


# ---- run ----------------------------------------------------------------------------------------------------------------------


def test_it_does_not_start_without_tokens_and_says_what_to_set(containers: Engine) -> None:
    done = containers.once(options=READ_ONLY)
    assert done.returncode == 1
    # An engine may have something to say as well.
    lines = [line for line in done.stderr.splitlines() if line.startswith("fetchbox")]
    assert len(lines) == 1, done.stderr
    for word in ("0.0.0.0:8080", "server.api_tokens", "server.operator_token", "server.allow_anonymous"):
        assert word in lines[0]


def test_a_job_end_to_end(service: Container, origin: str) -> None:
    job = submit(service, [f"{origin}/bytes/20000?seed={seed}" for seed in range(5)])
    assert (job.status, job.resource_completed) == ("completed", 5)
    check_stored(service, job.job_id, 5, 20000)


def test_what_runs_inside(service: Container) -> None:
    """As the fixed user, under its own titles, with a first process that passes signals on and collects what others leave."""
    processes = service.processes()
    assert {user for _, user, _ in processes.values()} == {USER}
    titles = [title for _, _, title in processes.values()]
    assert set(TITLES) <= set(titles)
    assert processes[1][2].startswith("tini ")
    assert service.inspect()["HostConfig"]["ReadonlyRootfs"] is True
    assert answers(f"{service.url(9464)}/metrics")


def test_commands_inside_reach_the_service(service: Container) -> None:
    """`docker exec` has the same configuration: nothing to give but the command."""
    assert "default" in service.exec("fetchbox", "jobs", "list")
    assert "jobs.tasks" in service.exec("fetchbox", "streams", "show")
    service.exec("fetchbox", "ledger", "check")


def test_a_killed_worker_comes_back_and_leaves_no_corpse(service: Container, origin: str) -> None:
    def worker() -> int | None:
        return next((pid for pid, (state, _, title) in service.processes().items() if title == "fetchbox: worker 0" and state != "Z"), None)

    before = worker()
    assert before is not None
    service.exec("python3", "-c", f"import os; os.kill({before}, 9)")
    wait_for("another worker", lambda: worker() not in (None, before), 30, every=0.1, describe=service.describe)
    # Somebody's child whose parent dies first belongs to the first process of the container.
    service.exec("python3", "-c", "import os, subprocess; subprocess.Popen(['true']); os._exit(0)")
    job = submit(service, [f"{origin}/bytes/3000?seed=0"])
    assert job.status == "completed"
    wait_for("no corpse", lambda: "Z" not in [state for state, _, _ in service.processes().values()], 10, every=0.1)


def test_a_stop_drains_and_ends_with_0_and_the_volume_keeps_everything(service: Container, origin: str) -> None:
    job = submit(service, [f"{origin}/bytes/5000?seed={seed}" for seed in range(3)])
    assert service.stop() == 0, service.describe()
    assert "stopped" in service.logs().splitlines()[-1]
    docker("start", service.name)
    service.wait_healthy()
    check_stored(service, job.job_id, 3, 5000)
    assert submit(service, [f"{origin}/bytes/100?seed=0"]).status == "completed"


def test_a_stop_in_the_middle_of_work_fits_into_the_patience_of_an_engine(service: Container, origin: str) -> None:
    """Slow downloads are given back, and fetched by the next start."""
    job = submit(service, [f"{origin}/bytes/60000?seed={seed}&speed=4000" for seed in range(4)], wait=False)

    def under_way() -> bool:
        page = httpx.get(f"{service.url(9464)}/metrics", timeout=10, trust_env=False).text
        return any(line.startswith("fetchbox_worker_tasks_inflight") and float(line.split()[-1]) > 0 for line in page.splitlines())

    wait_for("downloads under way", under_way, 20, every=0.1, describe=service.describe)
    assert service.stop("--time", str(int(DOCKER_PATIENCE))) == 0, service.describe()
    docker("start", service.name)
    service.wait_healthy()
    with Client(service.url(8080)) as client:
        done = client.wait(job.job_id, timeout=90)
    assert (done.status, done.resource_completed) == ("completed", 4)
    check_stored(service, job.job_id, 4, 60000)


def test_nothing_is_written_outside_of_data(containers: Engine, origin: str) -> None:
    """On a root file system that could be written to, at that."""
    running = containers.start("writable", options=PUBLISHED, environment=environment(containers))
    running.wait_healthy()
    assert submit(running, [f"{origin}/bytes/20000?seed={seed}" for seed in range(3)]).status == "completed"
    running.exec("fetchbox", "jobs", "list")
    assert running.stop() == 0
    assert docker("diff", running.name).stdout == ""


def test_tokens_are_read_again_on_sighup(containers: Engine) -> None:
    """Sent to the container, so to its first process."""
    settings = {"FETCHBOX__SERVER__API_TOKENS_FILE": "/data/tokens.json", "FETCHBOX__WORKER__PROCESSES": "0"}
    volume = containers.volume("tokens")
    writing = 'cat > /data/tokens.json <<< "$1"'
    once = ["--volume", f"{volume}:/data", "--entrypoint", "bash"]
    assert containers.once("-c", writing, "bash", '{"first": "a"}', options=once).returncode == 0
    options = [*READ_ONLY, *PUBLISHED, "--volume", f"{volume}:/data"]
    running = containers.start("tokens", options=options, environment=settings)
    running.wait_healthy()

    def status(token: str) -> int:
        body = {"manifest_version": "v1", "metadata": {}, "resources": [{"url": "http://example.com/a"}]}
        headers = {"Authorization": f"Bearer {token}"}
        return httpx.post(f"{running.url(8080)}/jobs", json=body, headers=headers, timeout=20, trust_env=False).status_code

    assert (status("first"), status("second")) == (202, 401)
    running.exec("bash", "-c", writing, "bash", '{"second": "a"}')
    docker("kill", "--signal", "HUP", running.name)
    wait_for("the new token", lambda: status("second") == 202, 10, every=0.1, describe=running.describe)
    assert status("first") == 401
    assert running.stop() == 0


def test_every_role_starts_from_the_same_image(containers: Engine) -> None:
    """A hub needs no token for an address that it does not bind; who waits for a hub in vain is unhealthy and still ends with 0."""
    hub = containers.start("hub", "hub", options=READ_ONLY)
    hub.wait_healthy()
    assert hub.stop() == 0
    wanting = {"FETCHBOX__HUB__URL": "tcp://nobody:8091", "FETCHBOX__HUB__TOKEN": "t"}
    worker = containers.start("worker", "worker", options=READ_ONLY, environment=wanting)
    wait_for("it to say so", lambda: "no connection to the hub" in worker.logs(), 30, every=0.1, describe=worker.logs)
    assert worker.state["Health"]["Status"] != "healthy"
    assert worker.stop() == 0


def test_a_signal_right_after_the_start_is_not_lost(containers: Engine) -> None:
    """Before Python has a handler: to the first process of a container signals do nothing by themselves."""
    running = containers.start("hasty", "origin", options=READ_ONLY)
    docker("kill", "--signal", "TERM", running.name)
    assert int(docker("wait", running.name, limit=8).stdout) in (0, 143)


def test_other_commands(containers: Engine) -> None:
    assert containers.once("--version", options=READ_ONLY).stdout.startswith("fetchbox ")
    assert containers.once("config", "check", options=READ_ONLY, environment=ANONYMOUS).stdout == "the configuration is fine\n"
    assert containers.once("nonsense", options=READ_ONLY).returncode == 2
    misspelt = containers.once(options=READ_ONLY, environment={**ANONYMOUS, "FETCHBOX__SERVER__BIND": "x"})
    assert misspelt.returncode == 1
    assert "FETCHBOX__SERVER__BIND_ADDR" in misspelt.stderr


def test_a_data_dir_that_cannot_be_written_is_said_in_one_line(containers: Engine) -> None:
    done = containers.once(options=[*READ_ONLY, "--tmpfs", "/data:uid=0,gid=0,mode=0700"], environment=ANONYMOUS)
    assert done.returncode == 1
    lines = [line for line in done.stderr.splitlines() if line.startswith(("fetchbox", "{"))]
    assert len(lines) == 1, done.stderr
    assert "/data" in lines[0]
    assert USER in lines[0]


def test_labels(containers: Engine) -> None:
    labels = docker("inspect", "--format", "{{json .Config.Labels}}", containers.image).stdout
    assert '"org.opencontainers.image.licenses":"Apache-2.0"' in labels
    assert '"org.opencontainers.image.version":"' in labels


# ---- the health check by itself -----------------------------------------------------------------------------------------------


def healthcheck(address: str) -> subprocess.CompletedProcess[str]:
    """A run of what HEALTHCHECK runs."""
    given = {**os.environ, "FETCHBOX__TELEMETRY__METRICS_ADDR": address}
    command = [sys.executable, "-IS", str(ROOT / "docker" / "healthcheck.py")]
    return subprocess.run(command, env=given, capture_output=True, text=True, timeout=20, check=False)


@pytest.mark.parametrize(("status", "expected"), [(200, 0), (503, 1), (404, 1)])
def test_the_health_check_says_what_the_telemetry_port_says(status: int, expected: int) -> None:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status if self.path == "/health/ready" else 500)
            self.end_headers()
            self.wfile.write(b'{"status":"so"}')

        def log_message(self, format: str, *args: object) -> None:
            """Nothing."""

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        try:
            done = healthcheck(f"0.0.0.0:{server.server_address[1]}")
        finally:
            server.shutdown()
            thread.join(10)
    assert done.returncode == expected, done.stderr
    assert '{"status":"so"}' in done.stdout


def test_a_port_where_nobody_listens_is_unhealthy_and_none_at_all_is_not_asked() -> None:
    refused = healthcheck(f"127.0.0.1:{free_port()}")
    assert refused.returncode == 1
    assert "does not answer" in refused.stdout
    assert healthcheck("nonsense").returncode == 1
    assert healthcheck("").returncode == 0
