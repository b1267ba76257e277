"""One key, one job: repeated, at the same time, with another body, across restarts and crashes."""

from __future__ import annotations

import random
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

from tests.process import crash
from tests.process.background import Background
from tests.process.hasty import HASTY
from tests.process.load import Load, plain
from tests.process.oracle import Oracle
from tests.process.origins import OriginProcess
from tests.process.service import Service
from tests.process.waiting import pause

KILLS = 16
"""While crowds post."""


def other_body(load: Load) -> bytes:
    """The same manifest, told apart by a space."""
    return load.body.replace(b'"v1"', b' "v1"', 1)


def jobs_now(service: Service) -> int:
    """Jobs the service knows."""
    return len(service.http.jobs())


def test_case_38_the_same_key_and_body_is_the_same_job(service: Service, origin: OriginProcess) -> None:
    load = plain(origin.base_url, 1, 4, key="same")
    before = jobs_now(service)
    first = service.http.post(load.body, key=load.key)
    again = service.http.post(load.body, key=load.key)
    assert (first.status_code, again.status_code) == (202, 200)
    assert again.json() == first.json()
    assert jobs_now(service) == before + 1


def test_both_header_names_mean_the_same(service: Service, origin: OriginProcess) -> None:
    load = plain(origin.base_url, 2, 1, key="names")
    first = service.http.post(load.body, headers={"x-fetchbox-idempotency-key": load.key})
    again = service.http.post(load.body, headers={"idempotency-key": load.key})
    assert (first.status_code, again.status_code) == (202, 200)
    assert again.json()["job_id"] == first.json()["job_id"]


def test_case_38_another_body_is_a_conflict_that_names_the_job(service: Service, origin: OriginProcess) -> None:
    load = plain(origin.base_url, 3, 1, key="conflict")
    first = service.http.post(load.body, key=load.key)
    before = jobs_now(service)
    refused = service.http.post(other_body(load), key=load.key)
    assert refused.status_code == 409
    error = refused.json()["error"]
    assert (error["code"], error["job_id"]) == ("IDEMPOTENCY_CONFLICT", first.json()["job_id"])
    assert jobs_now(service) == before


def test_a_key_belongs_to_its_tenant_and_job_type(service: Service, origin: OriginProcess) -> None:
    load = plain(origin.base_url, 4, 1, key="scope")
    posts = [service.http.post(load.body, key="scoped", headers={"x-fetchbox-tenant": tenant}) for tenant in ("a", "b", "a", "b")]
    assert [post.status_code for post in posts] == [202, 202, 200, 200]
    ids = {post.json()["job_id"] for post in posts}
    assert len(ids) == 2


def test_without_a_key_each_post_is_a_job(service: Service, origin: OriginProcess) -> None:
    load = plain(origin.base_url, 5, 1, key="none")
    assert service.http.post(load.body).json()["job_id"] != service.http.post(load.body).json()["job_id"]


def test_case_38_at_the_same_time_one_wins_and_all_get_its_job(service: Service, origin: OriginProcess) -> None:
    before = jobs_now(service)
    with ThreadPoolExecutor(16) as crowd:
        for number in range(10):
            load = plain(origin.base_url, 100 + number, 20, key="crowd")

            def post(_: int, load: Load = load) -> httpx.Response:
                return service.http.post(load.body, key=load.key)

            answers = list(crowd.map(post, range(16)))
            assert sorted(answer.status_code for answer in answers) == [200] * 15 + [202]
            assert len({answer.json()["job_id"] for answer in answers}) == 1
    assert jobs_now(service) == before + 10


def test_case_38_at_the_same_time_with_two_bodies_one_wins_and_the_other_conflicts(service: Service, origin: OriginProcess) -> None:
    with ThreadPoolExecutor(16) as crowd:
        for number in range(5):
            load = plain(origin.base_url, 200 + number, 5, key="rivals")
            bodies = [load.body, other_body(load)] * 8

            def post(body: bytes, key: str = load.key) -> httpx.Response:
                return service.http.post(body, key=key)

            answers = list(crowd.map(post, bodies))
            assert sorted(answer.status_code for answer in answers) == [200] * 7 + [202] + [409] * 8
            won = {answer.json()["job_id"] for answer in answers if answer.status_code < 300}
            assert won == {answer.json()["error"]["job_id"] for answer in answers if answer.status_code == 409}
            assert len(won) == 1


def test_case_38_a_key_outlives_restarts_and_kills(tmp_path: Path, origin: OriginProcess) -> None:
    with Service(tmp_path).start() as service:
        oracle = Oracle(service.http, service.assets, origin.journal)
        load = plain(origin.base_url, 300, 5, key="long-lived")
        job_id = oracle.post(load)
        service.end()
        service.start()
        assert oracle.post(load) == job_id
        service.kill_tree()
        service.start()
        assert oracle.post(load) == job_id
        service.kill_one("hub")
        assert oracle.post(load) == job_id
        assert service.http.post(other_body(load), key=load.key, headers=load.headers).status_code == 409
        assert len(service.http.jobs()) == 1
        oracle.await_settled(30)
        service.end()


def insist(service: Service, load: Load, body: bytes) -> httpx.Response:
    """The first answer that is no 5xx: a post is repeated with its key until somebody knows."""
    for _ in range(600):
        try:
            response = service.http.post(body, key=load.key, headers=load.headers)
        except httpx.TransportError:
            pass
        else:
            if response.status_code < 500:
                return response
        pause(0.05)
    raise AssertionError(f"no answer for {load.key}\n{service.dump()}")


@pytest.mark.timeout(180)
def test_case_38_crowds_with_one_key_each_while_apis_and_the_hub_are_killed(tmp_path: Path, origin: OriginProcess) -> None:
    """Half of the keys are of a job type with a handler, which reserves first. In each crowd two bodies compete for the key."""
    seed = crash.chosen_seed()
    print(f"{crash.SEED_VARIABLE}={seed}")
    chance = random.Random(seed)
    overrides = {"server": {"processes": 2}, "job_types": {"handled": {"handler": "fetchbox.handlers:Handler"}}}
    with Service(tmp_path, overrides, script=HASTY).start() as service:
        oracle = Oracle(service.http, service.assets, origin.journal, asked_before=origin.journal.total)
        killed: list[str] = []

        def kill(stopped: threading.Event) -> None:
            # Only when the one before is healed: else nobody would ever be acknowledged.
            while not stopped.wait(chance.uniform(0.0, 0.4)) and len(killed) < KILLS:
                if not service.ready():
                    continue
                whom = chance.choice(["api", "api", "hub"])
                service.kill_one(whom)
                killed.append(whom)

        with Background("killing", kill), ThreadPoolExecutor(16) as crowd:
            number = 0
            while len(killed) < KILLS:
                number += 1
                load = plain(origin.base_url, 400 + number, 10, key="embattled")
                if number % 2:
                    load.headers["x-fetchbox-job-type"] = "handled"
                bodies = [load.body, other_body(load)]

                def post(at: int, load: Load = load, bodies: list[bytes] = bodies) -> tuple[int, httpx.Response]:
                    return at % 2, insist(service, load, bodies[at % 2])

                answers = list(crowd.map(post, range(16)))
                won = {side for side, answer in answers if answer.status_code in (200, 202)}
                assert len(won) == 1, f"{load.key}: both bodies, or none, were accepted: {[a.status_code for _, a in answers]}"
                jobs = {answer.json()["job_id"] for side, answer in answers if side in won}
                named = {answer.json()["error"]["job_id"] for side, answer in answers if side not in won}
                assert all(answer.status_code == 409 for side, answer in answers if side not in won)
                assert len(jobs) == 1
                assert named == jobs, f"{load.key}: accepted as {jobs}, the conflicts name {named}"
                kept = Load(load.key, bodies[won.pop()], load.resources, load.headers)
                oracle.acknowledge(kept, {"job_id": jobs.pop(), "resource_count": 10}, 200)
        service.wait_ready()
        oracle.await_settled(60)
        print(f"{len(killed)} kills ({killed.count('hub')} of the hub) met {number} crowds; {oracle.check()}")
        service.end()
