"""Who may use the bucket: ambient credentials, a bucket for each job type, and a readiness that looks at the bucket by itself."""

from __future__ import annotations

import itertools
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from tests.process.load import plain
from tests.process.object_stores import S3, front, moto
from tests.process.origins import OriginProcess
from tests.process.service import Service
from tests.process.waiting import wait_for

BUCKETS = itertools.count()
OWN, LENT = ("own-key", ""), ("lent-key", "lent-token")
RED_WITHIN = 20.0

pytestmark = pytest.mark.timeout(120)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3]:
    with moto(tmp_path_factory.mktemp("s3")) as running:
        yield running


@pytest.fixture
def store(server: S3) -> S3:
    return server.with_bucket(f"access-{next(BUCKETS)}")


def storage(store: S3, *without: str, **options: Any) -> dict[str, Any]:
    """`[storage]` on the store, without some of its keys."""
    settings = {"url": f"s3://{store.bucket}/at", **store.storage(**options)}
    return {name: value for name, value in settings.items() if name not in without}


class _Lender(BaseHTTPRequestHandler):
    """What gives credentials to containers and to instances."""

    def log_message(self, *_: object) -> None:
        """Nothing."""

    def _answer(self, text: str) -> None:
        self.send_response(200)
        self.send_header("content-length", str(len(text)))
        self.end_headers()
        self.wfile.write(text.encode())

    def do_PUT(self) -> None:
        self._answer("a-token")

    def do_GET(self) -> None:
        if self.path.endswith("/security-credentials/"):
            self._answer("a-role")
            return
        key, token = LENT
        lent = {"AccessKeyId": key, "SecretAccessKey": "lent-secret", "Token": token, "Code": "Success", "Type": "AWS-HMAC"}
        self._answer(json.dumps({**lent, "Expiration": "2099-01-01T00:00:00Z", "LastUpdated": "2024-01-01T00:00:00Z"}))


@contextmanager
def lender() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), _Lender) as running:
        running.daemon_threads = True
        thread = threading.Thread(target=running.serve_forever, args=(0.05,), daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{running.server_address[1]}"
        finally:
            running.shutdown()
            thread.join(10)


def ambient(kind: str, address: str, directory: Path) -> dict[str, str]:
    """What the environment of the service says."""
    if kind == "environment":
        return {"AWS_ACCESS_KEY_ID": LENT[0], "AWS_SECRET_ACCESS_KEY": "lent-secret", "AWS_SESSION_TOKEN": LENT[1]}
    if kind == "container":
        token = directory / "container-token"
        token.write_text("who I am")
        return {"AWS_CONTAINER_CREDENTIALS_FULL_URI": f"{address}/role", "AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE": str(token)}
    return {"AWS_METADATA_ENDPOINT": address}


@pytest.mark.parametrize("kind", ["environment", "container", "instance"])
def test_ambient_credentials_sign_every_request(kind: str, store: S3, tmp_path: Path, origin: OriginProcess) -> None:
    with front(store) as through, lender() as address:
        settings = {"storage": storage(through.store(), "access_key_id", "secret_access_key"), "ledger": {"collect_every": 0.5}}
        with Service(tmp_path / "service", settings, environment=ambient(kind, address, tmp_path)) as service:
            service.start()
            load = plain(origin.base_url, 1, 5)
            job_id = str(service.http.post_until_acknowledged(load.body, load.key)[0]["job_id"])
            assert service.http.await_job(job_id, 30, describe=service.dump)["status"] == "completed"
            # The collector's as well.
            wait_for("a look for uploads", lambda: any("uploads" in seen.query for seen in through.seen), 20, every=0.1)
            service.end()
        assert through.signers == {LENT}
        assert {seen.what for seen in through.seen} >= {"put", "get"}


def test_keys_of_the_configuration_never_go_with_a_session_token_of_the_environment(
    store: S3, tmp_path: Path, origin: OriginProcess
) -> None:
    with front(store) as through:
        own = storage(through.store(), access_key_id=OWN[0])
        with Service(tmp_path / "service", {"storage": own}, environment=ambient("environment", "", tmp_path)) as service:
            service.start()
            load = plain(origin.base_url, 1, 3)
            job_id = str(service.http.post_until_acknowledged(load.body, load.key)[0]["job_id"])
            assert service.http.await_job(job_id, 30, describe=service.dump)["status"] == "completed"
            service.end()
        assert through.signers == {OWN}


def test_job_types_have_buckets_and_prefixes_of_their_own(store: S3, tmp_path: Path, origin: OriginProcess) -> None:
    films = store.with_bucket(f"films-{next(BUCKETS)}")
    settings = {
        "storage": storage(store),
        "job_types": {
            "films": {"storage": {"bucket": films.bucket, "key_prefix": "by/hand", "metadata": {"kind": "film"}}},
            "notes": {"storage": {"key_prefix": "notes", "key_template": "{job_id}/{index}"}},
        },
    }
    with Service(tmp_path / "service", settings).start() as service:
        ids = {}
        for number, kind in enumerate(("default", "films", "notes")):
            load = plain(origin.base_url, number, 4)
            answer, _ = service.http.post_until_acknowledged(load.body, load.key, headers={"x-fetchbox-job-type": kind})
            ids[kind] = str(answer["job_id"])
        for job_id in ids.values():
            assert service.http.await_job(job_id, 30, describe=service.dump)["status"] == "completed"
            for outcome in service.http.resources(job_id):
                assert len(store.object(outcome["storage_url"]).content) == outcome["size"]
        manifests = {f"at/manifests/{kind}/{job_id}/manifest.json" for kind, job_id in ids.items()}
        resources = {f"at/resources/default/{ids['default']}/r{index}" for index in range(4)}
        notes = {f"at/notes/{ids['notes']}/{index}" for index in range(4)}
        assert set(store.listed()) == manifests | resources | notes
        assert set(films.listed()) == {f"by/hand/resources/films/{ids['films']}/r{index}" for index in range(4)}
        key = f"{films.bucket}/by/hand/resources/films/{ids['films']}/r0"
        assert films.object(f"s3://{key}").headers["x-amz-meta-kind"] == "film"
        service.end()


def reason(service: Service) -> str:
    """What readiness says of the store."""
    try:
        answer = service.http.http.get("/health/ready").json()
    except OSError:
        return ""
    return str(answer["components"]["storage"].get("reason", ""))


def test_readiness_is_red_without_a_bucket_and_green_as_soon_as_it_is_made(store: S3, tmp_path: Path, origin: OriginProcess) -> None:
    missing = replace(store, bucket=f"made-later-{next(BUCKETS)}")
    with Service(tmp_path / "service", {"storage": storage(missing)}) as service:
        service.launch()
        wait_for("readiness to be red", lambda: service.http.status("/health/ready") == 503, 30, every=0.05, describe=service.dump)
        wait_for("the reason", lambda: reason(service) == "there is no such bucket", 10, every=0.05, describe=lambda: reason(service))
        store.with_bucket(missing.bucket)
        # Nobody has posted anything.
        service.wait_ready(RED_WITHIN)
        load = plain(origin.base_url, 1, 2)
        job_id = str(service.http.post_until_acknowledged(load.body, load.key)[0]["job_id"])
        assert service.http.await_job(job_id, 30, describe=service.dump)["status"] == "completed"
        service.end()


def test_readiness_notices_a_store_that_begins_to_deny_and_one_that_lets_us_in_again(store: S3, tmp_path: Path) -> None:
    with front(store) as through, Service(tmp_path / "service", {"storage": storage(through.store())}).start() as service:
        for fault, said in (((403, "AccessDenied"), "the store denies access"), ((503, "SlowDown"), "the store cannot be used")):
            through.always = dict.fromkeys(("get", "head", "put"), fault)
            wait_for(said, lambda said=said: reason(service).startswith(said), RED_WITHIN, every=0.1, describe=service.dump)  # type: ignore[misc]
            assert service.http.status("/health/ready") == 503
            through.always = {}
            service.wait_ready(RED_WITHIN)
        service.end()
