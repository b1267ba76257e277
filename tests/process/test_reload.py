"""SIGHUP: secrets, tokens and job types are in force within seconds in every process, and no request is refused meanwhile."""

from __future__ import annotations

import base64
import json
import os
import signal
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import httpx
import pytest

from fetchbox.origin import Origin
from fetchbox.testing import free_port, running_origin
from tests.process.background import Background
from tests.process.object_stores import KEY, SECRET, s3s_fs
from tests.process.service import Service, clean_environment, command
from tests.process.waiting import wait_for

LAPS: Final = int(os.environ.get("FETCHBOX_TEST_LAPS", "4"))
"""Reloads under load; by hand 100."""
SOON: Final = 10.0
"""Seconds within which a reload has to be in force, on a busy machine."""

HANDLERS = '''
import fetchbox


class Telling(fetchbox.Handler):
    """Sets the header that its options name, and writes a line for every job that is settled."""

    async def before_fetch(self, task):
        task.headers["x-fresh"] = self.options["mark"]

    def finalize_job(self, summary):
        with open(self.options["path"], "a") as file:
            file.write(f"{self.options['mark']} {summary['job_id']}\\n")
'''


@pytest.fixture(scope="module")
def origin() -> Iterator[Origin]:
    """An origin in this process, with a proxy: what it was sent can be looked at."""
    with running_origin(proxy_port=0) as running:
        yield running


def post(service: Service, url: str, *, job_type: str = "default", token: str | None = None, callback: str | None = None) -> httpx.Response:
    body = {
        "manifest_version": "v1",
        "metadata": {},
        "resources": [{"url": url}],
        "attributes": {} if callback is None else {"callback_url": callback},
    }
    headers = {"x-fetchbox-job-type": job_type} | ({} if token is None else {"authorization": f"Bearer {token}"})
    return service.http.http.post("/jobs", json=body, headers=headers)


def outcome(service: Service, answer: httpx.Response, headers: Mapping[str, str] | None = None) -> dict[str, Any]:
    """What became of the one resource of a job, waited for."""
    assert answer.status_code == 202, answer.text
    path = f"/operators/jobs/{answer.json()['job_id']}/resources"

    def settled() -> dict[str, Any] | None:
        page = service.http.http.get(path, headers=dict(headers or {}))
        resource: dict[str, Any] = page.json()["resources"][0]
        return None if resource["state"] == "pending" else resource

    return wait_for("the outcome", settled, 30, describe=service.dump)


def reload(service: Service) -> None:
    service.process.send_signal(signal.SIGHUP)


def sent(origin: Origin, mark: str, header: str) -> list[str]:
    """What the origin was sent in a header, of requests with a mark in their URL."""
    return [request.headers.get(header, "") for request in list(origin.requests) if mark in request.target]


def test_what_every_process_uses_is_read_again_from_its_files(tmp_path: Path, origin: Origin) -> None:
    """Tokens, the operator's, the hub's, a login, a proxy's user, a callback's secret, a handler: all new, none with a restart."""
    (tmp_path / "samples.py").write_text(HANDLERS, encoding="utf-8")
    told = tmp_path / "told"
    secrets = {name: tmp_path / name for name in ("tokens", "operator", "hub", "password", "whsec")}

    def whsec(key: str) -> str:
        return "whsec_" + base64.b64encode(key.encode() * 6).decode()

    def write(version: str) -> None:
        secrets["tokens"].write_text(json.dumps({f"token-{version}": "acme", "token-both": "acme"}))
        secrets["operator"].write_text(f"operator-{version}\n")
        secrets["hub"].write_text(f"hub-{version}")
        secrets["password"].write_text(f"pw-{version}")
        secrets["whsec"].write_text(whsec(version))

    def configuration(proxy_user: str, *, more: bool = False) -> dict[str, Any]:
        handler = {"handler": "samples:Telling", "options": {"path": str(told), "mark": "new"}}
        return {
            "server": {"api_tokens_file": str(secrets["tokens"]), "operator_token_file": str(secrets["operator"])},
            "hub": {"token_file": str(secrets["hub"])},
            "callbacks": {"secret_file": str(secrets["whsec"]), "allow_networks": ["127.0.0.1/32"]},
            "proxy": {"pools": {"pool": {"endpoints": [origin.proxy_url(proxy_user)]}}},
            "job_types": {
                "guarded": {"auth": {"type": "basic", "username": "ann", "password_file": str(secrets["password"])}},
                "proxied": {"proxy": {"primary": "pool"}, "fetch": {"max_attempts": 1}},
                **({"fresh": handler} if more else {}),
            },
        }

    write("one")
    with Service(tmp_path / "service", configuration("407"), environment={"PYTHONPATH": str(tmp_path)}).start() as service:
        old, new = {"x-fetchbox-operator-token": "operator-one"}, {"x-fetchbox-operator-token": "operator-two"}
        login = origin.url("/auth/basic/ann/pw-two/bytes/100?of=login")
        assert outcome(service, post(service, login, job_type="guarded", token="token-one"), old)["code"] == "AUTH_ORIGIN_REFUSED"
        through = origin.url("/bytes/100?of=proxy")
        assert outcome(service, post(service, through, job_type="proxied", token="token-one"), old)["state"] == "failed"
        assert post(service, through, job_type="fresh", token="token-one").status_code == 403
        answers: Counter[int] = Counter()

        def load(stopped: threading.Event) -> None:
            while not stopped.is_set():
                answers[post(service, origin.url("/bytes/10?of=load"), token="token-both").status_code] += 1

        pids = {process.pid for role in ("api", "hub", "worker") for process in service.processes(role)}
        with Background("load", load):
            write("two")
            service.configure(configuration("", more=True))
            reload(service)

            def tried(token: str) -> int:
                return post(service, through, token=token).status_code

            wait_for("the new token", lambda: tried("token-two") == 202, SOON, every=0.05, describe=service.dump)
            assert (tried("token-one"), tried("token-both")) == (401, 202)
            assert service.http.http.get("/operators/jobs", headers=old).status_code == 401

            def stored(url: str, job_type: str) -> bool:
                return outcome(service, post(service, url, job_type=job_type, token="token-two"), new)["state"] == "stored"  # type: ignore[no-any-return]

            wait_for("the new login", lambda: stored(login, "guarded"), SOON, describe=service.dump)
            wait_for("the new way", lambda: stored(through, "proxied"), SOON, describe=service.dump)
            fresh = post(service, origin.url("/bytes/100?of=fresh"), job_type="fresh", token="token-two")
            assert outcome(service, fresh, new)["state"] == "stored"
            assert sent(origin, "of=fresh", "x-fresh") == ["new"], "its handler had its look first"
            wait_for("finalize_job", lambda: told.exists() and fresh.json()["job_id"] in told.read_text(), 30, describe=service.dump)
        assert {process.pid for role in ("api", "hub", "worker") for process in service.processes(role)} == pids, "nobody was started again"
        assert set(answers) == {202}, answers
        assert answers[202] > 5

        post(service, through, token="token-two", callback=origin.url("/hook?mark=reload&fails=0&id=r"))
        wait_for("the callback", lambda: [r for r in origin.requests if "mark=reload" in r.target], 30, describe=service.dump)
        hook = next(request for request in origin.requests if "mark=reload" in request.target)
        from fetchbox.worker.callbacks import secret_bytes, signature

        signed = signature(secret_bytes(whsec("two")), hook.headers["webhook-id"], int(hook.headers["webhook-timestamp"]), hook.body)
        assert hook.headers["webhook-signature"] == signed

        # The next hub wants the new token, and those who were there before have it.
        service.kill_one("hub")
        wait_for("the hub", lambda: tried("token-two") == 202, 30, every=0.1, describe=service.dump)
        assert stored(origin.url("/bytes/100?of=after"), "default")
        service.end()
        log = service.log_path.read_text()
        assert not [secret for secret in ("token-one", "token-two", "operator-two", "hub-two", "pw-two", whsec("two")) if secret in log]


def test_the_stores_credentials_are_read_again_by_api_worker_and_hub(tmp_path: Path, origin: Origin) -> None:
    secret = tmp_path / "secret"
    secret.write_text("not the secret")
    with s3s_fs(tmp_path) as store:
        storage = {
            "url": "s3://bucket/prefix",
            "endpoint": store.endpoint,
            "allow_http": True,
            "access_key_id": KEY,
            "secret_access_key_file": str(secret),
            "region": "us-east-1",
            "max_attempts": 1,
        }
        with Service(tmp_path / "service", {"storage": storage}) as service:
            service.launch()
            wait_for("an answer", lambda: service.http.status("/health/live") == 200, 30, describe=service.dump)
            refused = post(service, origin.url("/bytes/100"))
            assert (refused.status_code, refused.json()["error"]["code"]) == (502, "STORAGE_UNAVAILABLE")
            secret.write_text(SECRET)
            reload(service)
            wait_for("a job", lambda: post(service, origin.url("/bytes/100")).status_code == 202, SOON, every=0.2, describe=service.dump)
            wait_for(
                "an object",
                lambda: outcome(service, post(service, origin.url("/bytes/100")))["state"] == "stored",
                30,
                describe=service.dump,
            )
            # The hub reads every object.
            check = command("ledger", "check", "--against-store", "--config", str(service.config_path))
            done = subprocess.run(check, capture_output=True, text=True, timeout=60, env=clean_environment(), check=False)
            assert done.returncode == 0, done.stdout + done.stderr
            service.end()


def test_a_broken_configuration_changes_nothing(tmp_path: Path, origin: Origin) -> None:
    with Service(tmp_path / "service").start() as service:
        good = service.config_path.read_text()
        service.config_path.write_text(good + "\n[nonsense]\na = 1\n")
        reload(service)
        wait_for("the complaint", lambda: "the old one stays" in service.log_path.read_text(), SOON, describe=service.dump)
        assert outcome(service, post(service, origin.url("/bytes/100")))["state"] == "stored"
        service.config_path.write_text(good)
        service.end()


@pytest.mark.slow
@pytest.mark.timeout(60 + 10 * LAPS)
def test_reloads_under_load_refuse_no_request(tmp_path: Path, origin: Origin) -> None:
    """Each reload brings another token, another header and another proxy; posts and looks go on all the while."""
    url = origin.url("/bytes/10?of=laps")

    def configuration(lap: int) -> dict[str, Any]:
        return {
            "server": {"processes": 2, "api_tokens": {"steady": "acme", f"lap-{lap}": "acme"}, "operator_token": "op", "rate_limit": 0},
            "job_types": {"default": {"default_headers": {"x-lap": str(lap)}}},
            "proxy": {"pools": {"pool": {"endpoints": [f"http://127.0.0.1:{free_port()}"]}}},
        }

    with Service(tmp_path / "service", configuration(0), headers={"x-fetchbox-operator-token": "op"}).start() as service:
        answers: Counter[int] = Counter()
        broken: list[str] = []

        def load(stopped: threading.Event) -> None:
            with httpx.Client(base_url=service.url, headers={"authorization": "Bearer steady"}, timeout=30, trust_env=False) as client:
                body = {"manifest_version": "v1", "metadata": {}, "resources": [{"url": url}]}
                while not stopped.is_set():
                    try:
                        answer = client.post("/jobs", json=body)
                        answers[answer.status_code] += 1
                        answers[client.get(answer.headers["location"]).status_code] += 1
                    except (httpx.HTTPError, KeyError) as error:
                        broken.append(repr(error))

        took: list[float] = []
        with Background("load 1", load), Background("load 2", load):
            for lap in range(1, LAPS + 1):
                service.configure(configuration(lap))
                began = time.monotonic()
                reload(service)
                # Both api processes: each connection may come to either.
                seen = wait_for(
                    "the new token everywhere",
                    lambda lap=lap: all(_status(service, f"lap-{lap}") == 202 for _ in range(6)) or None,  # type: ignore[misc]
                    SOON,
                    every=0.02,
                    describe=service.dump,
                )
                assert seen
                wait_for("the new header", lambda lap=lap: str(lap) in sent(origin, "of=laps", "x-lap")[-50:], SOON, every=0.02)  # type: ignore[misc]
                took.append(time.monotonic() - began)
        print(f"\n{LAPS} reloads, in force after {max(took):.2f} s at most; answers {dict(answers)}, broken {len(broken)}")
        assert broken == []
        assert set(answers) == {200, 202}, answers
        service.end()


def _status(service: Service, token: str) -> int:
    """Of a post on a connection of its own."""
    body = {"manifest_version": "v1", "metadata": {}, "resources": [{"url": "http://127.0.0.1:1/"}]}
    return httpx.post(service.url + "/jobs", json=body, headers={"authorization": f"Bearer {token}"}, trust_env=False).status_code
