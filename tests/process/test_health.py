"""Components turn red with a reason and the time since when, and green again, by themselves. Full disks are in test_disks.py, stores that
deny in test_s3_service.py, hubs that stand still in test_stalls.py."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from fetchbox.testing import free_port, running_origin
from tests.process.iggy import Pass, iggy_server, needs_iggy
from tests.process.load import plain
from tests.process.service import Service
from tests.process.waiting import wait_for

PASSWORD = "pr0xy-pa55word"


def component(service: Service, name: str) -> dict[str, str]:
    """A component as /operators/health shows it, which is 503 exactly when one is degraded."""
    response = service.http.http.get("/operators/health")
    body = response.json()
    assert response.status_code == (200 if all(state["status"] == "ok" for state in body["components"].values()) else 503)
    state: dict[str, str] = body["components"][name]
    return state


def post(service: Service, urls: list[str]) -> str:
    resources = [{"url": url} for url in urls]
    response = service.http.post(json.dumps({"manifest_version": "v1", "metadata": {}, "resources": resources}).encode())
    assert response.status_code == 202, response.text
    return str(response.json()["job_id"])


def test_a_proxy_pool_of_which_no_endpoint_works_is_named_until_one_does(tmp_path: Path) -> None:
    port = free_port()
    pools: dict[str, Any] = {
        "dc": {"endpoints": [f"http://user:{PASSWORD}@127.0.0.1:{port}", f"http://other:{PASSWORD}@127.0.0.1:{port}"]},
        "unused": {"endpoints": ["http://127.0.0.1:9"]},
    }
    overrides = {
        "proxy": {"pools": pools},
        "job_types": {"default": {"proxy": {"primary": "dc"}}},
        "fetch": {"max_attempts": 8, "allow_networks": ["127.0.0.0/8"], "backoff_base": 0.05, "backoff_max": 0.3},
    }
    begun = datetime.now(UTC)
    with Service(tmp_path / "service", overrides).start() as service, running_origin() as origin:
        wait_for("the worker", lambda: component(service, "workers")["status"] == "ok", 20)
        assert component(service, "proxy_pools")["status"] == "ok"

        def out() -> bool:
            # An endpoint that failed once is asked again after its rest only: there is always something to do.
            post(service, [f"http://127.0.0.1:{origin.port}/bytes/10?seed={index}" for index in range(4)])
            return component(service, "proxy_pools")["status"] == "degraded"

        wait_for("the pool to be out", out, 20, every=0.5, describe=service.dump)
        red = component(service, "proxy_pools")
        assert red["reason"] == "no endpoint works of proxy pool dc"
        assert begun < datetime.fromisoformat(red["since"]) < datetime.now(UTC)
        assert service.http.status("/health/ready") == 200, "jobs are taken all the same"
        [worker] = service.http.get("/operators/overview")["workers"]
        assert (worker["name"], worker["pools_out"]) == ("worker 0", ["dc"])
        # Every api process says the same, also one that was not there when it began.
        service.kill_one("api")
        service.wait_ready()
        assert component(service, "proxy_pools") == red
        # What is worked through the proxy says that it is well again.
        with running_origin(proxy_port=port) as proxied:
            job_id = post(service, [f"http://127.0.0.1:{proxied.port}/bytes/10?seed=1"])
            wait_for("the pool to be well", lambda: component(service, "proxy_pools")["status"] == "ok", 30, describe=service.dump)
            assert service.http.await_job(job_id, 30, describe=service.dump)["status"] == "completed"
        assert component(service, "proxy_pools")["since"] > red["since"]
        service.end()
        assert PASSWORD not in service.log()


def test_no_worker_is_a_reason_since_the_last_one_went(tmp_path: Path) -> None:
    with Service(tmp_path / "service").start() as service:
        wait_for("the worker", lambda: component(service, "workers")["status"] == "ok", 20)
        green = component(service, "workers")
        # The supervisor brings another one: what is seen is the moment between.
        service.kill_one("worker")
        wait_for("another worker", lambda: component(service, "workers")["since"] > green["since"], 20, describe=service.dump)
        wait_for("health to be green", lambda: service.http.status("/operators/health") == 200, 20, describe=service.dump)
        service.end()


@needs_iggy
def test_without_the_broker_jobs_are_taken_until_the_outbox_is_full(tmp_path: Path) -> None:
    with iggy_server(tmp_path / "iggy") as server:
        way = Pass(server.port)
        overrides = {
            "broker": {"url": server.url.replace(str(server.port), str(way.port))},
            "hub": {"outbox_max_bytes": 100_000},
            "tasks": {"partitions": 4},
        }
        try:
            with running_origin() as origin, Service(tmp_path / "service", overrides).start() as service:
                wait_for("the broker", lambda: component(service, "broker")["status"] == "ok", 30, describe=service.dump)
                way.cut()
                wait_for("the broker to be missed", lambda: component(service, "broker")["status"] == "degraded", 30, every=0.1)
                red = component(service, "broker")
                assert red["reason"]
                assert service.http.status("/health/ready") == 200
                loads = (plain(f"http://127.0.0.1:{origin.port}", job, 200) for job in range(100))
                answers = [service.http.post(load.body, key=load.key) for load in loads]
                taken = [answer.json()["job_id"] for answer in answers if answer.status_code == 202]
                refused = {(answer.status_code, answer.json()["error"]["code"]) for answer in answers if answer.status_code != 202}
                assert taken
                assert refused == {(503, "BROKER_UNAVAILABLE")}
                wait_for("readiness to turn red", lambda: service.http.status("/health/ready") == 503, 20, every=0.1)
                assert component(service, "broker")["since"] == red["since"]
                way.mend()
                wait_for(
                    "readiness to turn green", lambda: service.http.status("/health/ready") == 200, 40, every=0.1, describe=service.dump
                )
                wait_for("the broker to be well", lambda: component(service, "broker")["status"] == "ok", 30, every=0.1)
                for job_id in taken:
                    assert service.http.await_job(job_id, 90, describe=service.dump)["status"] == "completed"
                service.end()
        finally:
            way.close()
