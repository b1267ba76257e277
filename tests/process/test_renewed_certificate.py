"""The certificate of the api is renewed on SIGHUP, under load, and no request is refused; not even on connections that stay open."""

from __future__ import annotations

import contextlib
import shutil
import signal
import socket
import ssl
import threading
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from fetchbox.origin.certificates import Certificates
from tests.process.service import Service
from tests.process.waiting import wait_for

CLIENTS = 4


class Secure(Service):
    """Its processes say that they are ready; what the api shows is the test's business."""

    def ready(self) -> bool:
        return self.all_ready()


class Load:
    """Clients that ask without a pause, half of them on connections that they keep."""

    def __init__(self, url: str, trust: ssl.SSLContext) -> None:
        self.answers = [0] * CLIENTS
        self.wrong: list[str] = []
        self._url = url
        self._trust = trust
        self._done = threading.Event()
        self._threads = [threading.Thread(target=self._ask, args=(number,)) for number in range(CLIENTS)]

    def _client(self) -> httpx.Client:
        return httpx.Client(verify=self._trust, trust_env=False, timeout=20)

    def _ask(self, number: int) -> None:
        keeps = number % 2 == 0
        client = self._client()
        try:
            while not self._done.is_set():
                if not keeps:
                    client.close()
                    client = self._client()
                status = client.get(f"{self._url}/health/live").status_code
                if status != 200:
                    self.wrong.append(str(status))
                self.answers[number] += 1
        except Exception as error:
            self.wrong.append(f"client {number} after {self.answers[number]} answers: {error!r}")
        finally:
            client.close()

    def more(self, count: int) -> None:
        """Waits until every client has so many further answers."""
        wanted = [answers + count for answers in self.answers]

        def came() -> bool:
            assert not self.wrong, self.wrong
            return all(answers >= least for answers, least in zip(self.answers, wanted, strict=True))

        wait_for("answers to all clients", came, 30)

    def __enter__(self) -> Load:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        for thread in self._threads:
            thread.join(30)


@pytest.fixture
def authorities() -> Iterator[list[Certificates]]:
    pytest.importorskip("cryptography")
    with contextlib.ExitStack() as stack:
        made = [Certificates.create() for _ in range(2)]
        for one in made:
            stack.callback(one.remove)
        yield made


def test_a_renewed_certificate_is_shown_after_sighup_and_no_request_is_refused(authorities: list[Certificates], tmp_path: Path) -> None:
    pem = tmp_path / "api.pem"
    shutil.copy(authorities[0].pem("ca"), pem)
    trust = ssl.create_default_context(cadata="".join(one.ca_file.read_text() for one in authorities))
    settings = {"server": {"tls_cert": str(pem), "tls_key": str(pem), "processes": 2}}
    with Secure(tmp_path / "service", settings).start() as service:
        address = ("127.0.0.1", service.port)
        url = f"https://127.0.0.1:{service.port}"

        def shows() -> bytes:
            with socket.create_connection(address, 10) as plain, trust.wrap_socket(plain, server_hostname="127.0.0.1") as secure:
                return secure.getpeercert(binary_form=True) or b""

        def new(old: bytes) -> bool:
            """Several processes: each has to show it."""
            shown = {shows() for _ in range(12)}
            return len(shown) == 1 and old not in shown

        def renew(source: Certificates) -> None:
            fresh = tmp_path / "fresh.pem"
            shutil.copy(source.pem("ca"), fresh)
            fresh.rename(pem)
            service.process.send_signal(signal.SIGHUP)

        first = shows()
        job = httpx.post(
            f"{url}/jobs",
            json={"manifest_version": "v1", "metadata": {}, "resources": [{"url": "http://127.0.0.1:1/"}]},
            verify=trust,
            trust_env=False,
        ).json()["job_id"]
        seen = [first]
        with (
            httpx.Client(verify=trust, trust_env=False, timeout=30) as reader,
            reader.stream("GET", f"{url}/jobs/{job}/logs", params={"follow": "true"}) as stream,
            Load(url, trust) as load,
        ):
            lines = stream.iter_lines()
            assert next(lines)
            for lap in (1, 0, 1):
                load.more(20)
                renew(authorities[lap])
                wait_for("the new certificate", lambda old=seen[-1]: new(old), 20, describe=service.dump)  # type: ignore[misc]
                seen.append(shows())
            load.more(20)
            # A reader of a log is not cut off.
            httpx.post(f"{url}/jobs/{job}/cancel", verify=trust, trust_env=False)
            assert any("settled" in line for line in lines)
            # One that cannot be used: the old one stays, and the log says why.
            pem.write_text("no certificate")
            service.process.send_signal(signal.SIGHUP)
            wait_for(
                "a word on it", lambda: "certificate" in service.log_path.read_text().rpartition("renewed")[2], 20, describe=service.dump
            )
            assert shows() == seen[-1]
        assert load.wrong == []
        assert seen[0] != seen[1]
        assert seen[0] == seen[2]
        service.end()
