"""Who gets to an Iggy server: TLS and credentials from end to end, and clear errors, soon, for whoever trusts or names the wrong one."""

from __future__ import annotations

import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from fetchbox.origin.certificates import Certificates, TlsMode
from fetchbox.testing import to_toml
from tests.process.iggy import IggyServer, iggy_server, needs_iggy
from tests.process.load import plain
from tests.process.oracle import Oracle
from tests.process.origins import OriginProcess
from tests.process.service import Service, clean_environment, command
from tests.process.waiting import wait_for

pytestmark = [needs_iggy, pytest.mark.timeout(120)]

SAID_WITHIN = 15.0
"""Seconds until a command has said what is wrong."""


@pytest.fixture(scope="module")
def certificates() -> Iterator[Certificates]:
    made = Certificates.create()
    yield made
    made.remove()


def tls(certificates: Certificates, mode: TlsMode) -> dict[str, str]:
    """The server's environment: it shows the certificate of a mode."""
    pem = str(certificates.pem(mode))
    return {
        "IGGY_TCP_TLS_ENABLED": "true",
        "IGGY_TCP_TLS_SELF_SIGNED": "false",
        "IGGY_TCP_TLS_CERT_FILE": pem,
        "IGGY_TCP_TLS_KEY_FILE": pem,
    }


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, certificates: Certificates) -> Iterator[IggyServer]:
    with iggy_server(tmp_path_factory.mktemp("iggy"), more=tls(certificates, "ca")) as running:
        yield running


def complaint(directory: Path, url: str, **broker: object) -> str:
    """What `fetchbox streams provision` says of a server that it cannot use."""
    path = directory / "fetchbox.toml"
    path.write_text(to_toml({"data_dir": str(directory / "data"), "broker": {"url": url, **broker}}), encoding="utf-8")
    began = time.monotonic()
    done = subprocess.run(
        command("--config", str(path), "streams", "provision"),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env=clean_environment(),
    )
    assert done.returncode == 1, done
    assert time.monotonic() - began < SAID_WITHIN
    assert "Traceback" not in done.stderr
    assert "secret" not in done.stderr
    return done.stderr


def test_a_job_goes_over_tls_and_credentials_come_from_a_file(
    server: IggyServer, certificates: Certificates, tmp_path: Path, origin: OriginProcess
) -> None:
    secret = tmp_path / "url"
    secret.write_text(server.url + "\n")
    overrides = {"broker": {"url_file": str(secret), "tls_ca": str(certificates.ca_file)}, "tasks": {"partitions": 4}}
    with Service(tmp_path / "service", overrides).start() as service:
        oracle = Oracle(service.http, service.assets, origin.journal)
        for job in range(3):
            oracle.post(plain(origin.base_url, job, 30))
        oracle.await_settled(60)
        print(oracle.check(ratio=1.0))
        shown = subprocess.run(
            command("--config", str(service.config_path), "config", "show"), capture_output=True, text=True, timeout=60, check=True
        )
        assert f"iggy://********@127.0.0.1:{server.port}" in shown.stdout
        assert "secret@" not in shown.stdout + service.log_path.read_text()
        service.end()


def test_an_authority_that_did_not_sign_is_told(server: IggyServer, tmp_path: Path) -> None:
    strangers = Certificates.create()
    try:
        said = complaint(tmp_path, server.url, tls_ca=str(strangers.ca_file))
        assert "no authority in broker.tls_ca" in said
        # Without a file it is the authorities of the web, and none of those did either.
        assert "set broker.tls_ca" in complaint(tmp_path, server.url, tls=True)
    finally:
        strangers.remove()


def test_a_certificate_for_another_host_is_told(certificates: Certificates, tmp_path: Path) -> None:
    with iggy_server(tmp_path / "iggy", more=tls(certificates, "wrong-host"), partitions=None) as server:
        said = complaint(tmp_path, server.url, tls_ca=str(certificates.ca_file))
        assert "127.0.0.1" in said
        assert "made out to" in said
    with iggy_server(tmp_path / "iggy2", more=tls(certificates, "expired"), partitions=None) as server:
        assert "expired" in complaint(tmp_path, server.url, tls_ca=str(certificates.ca_file))


def test_tls_on_one_side_only_is_told(server: IggyServer, certificates: Certificates, tmp_path: Path) -> None:
    assert "broker.tls" in complaint(tmp_path, server.url)
    with iggy_server(tmp_path / "iggy", partitions=None) as plain_server:
        assert "speaks no TLS" in complaint(tmp_path, plain_server.url, tls_ca=str(certificates.ca_file))
        wrong = plain_server.url.replace(":secret@", ":another@")
        assert "does not know this user with this password: see broker.url" in complaint(tmp_path, wrong)


def broker_reason(service: Service) -> str:
    """What the health says of the broker, "" when nothing."""
    if not service.http.status("/operators/health"):
        return "nobody answers"
    return str(service.http.http.get("/operators/health").json()["components"]["broker"].get("reason", ""))


def test_a_service_says_in_its_health_why_the_broker_is_away(server: IggyServer, tmp_path: Path) -> None:
    strangers = Certificates.create()
    try:
        overrides = {"broker": {"url": server.url, "tls_ca": str(strangers.ca_file)}}
        with Service(tmp_path / "service", overrides) as service:
            service.launch()
            wait_for("the reason", lambda: "broker.tls_ca" in broker_reason(service), 30, every=0.2, describe=service.dump)
            service.end()
    finally:
        strangers.remove()


def test_a_password_is_taken_from_its_file_again(tmp_path: Path, origin: OriginProcess) -> None:
    secret = tmp_path / "url"
    with iggy_server(tmp_path / "iggy") as server:
        secret.write_text(server.url.replace(":secret@", ":yesterdays@"))
        overrides = {"broker": {"url_file": str(secret)}, "tasks": {"partitions": 4}}
        with Service(tmp_path / "service", overrides) as service:
            service.launch()
            wait_for("the reason", lambda: "password" in broker_reason(service), 30, every=0.2, describe=service.dump)
            # Jobs are taken meanwhile.
            load = plain(origin.base_url, 1, 5)
            job_id = str(service.http.post_until_acknowledged(load.body, load.key)[0]["job_id"])
            secret.write_text(server.url)
            service.process.send_signal(signal.SIGHUP)
            assert service.http.await_job(job_id, 30, describe=service.dump)["status"] == "completed"
            wait_for("the broker to be well", lambda: not broker_reason(service), 20, every=0.2, describe=service.dump)
            service.end()
