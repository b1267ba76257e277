"""Every command of the documents is run as it stands there, against real services that the documents' own commands start.

What a command says of a machine (hosts, ports, ids, files of /etc) is replaced by what there is here; the rest is left alone. A command
that cannot be run in a test has to be named in `NOT_RUN`, with the reason, and is held against what it names: targets and variables of the
Makefile, packages and tests of the workspace, options, settings. One that is neither run nor named fails.
"""

from __future__ import annotations

import contextlib
import gzip
import itertools
import json
import os
import re
import select
import shlex
import shutil
import signal
import subprocess
import sys
import tomllib
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import httpx
import pytest

from fetchbox.config import load
from fetchbox.errors import ConfigError
from fetchbox.origin import Origin
from fetchbox.origin.certificates import Certificates
from fetchbox.testing import free_port, running_origin, to_toml, wait_until
from tests.process.documents import DOCUMENTS, FENCE, ROOT, Command, commands
from tests.process.file_servers import file_servers
from tests.process.object_stores import S3, moto

LIMIT: Final = 60
"""Seconds for one command."""
BUILDS = "builds for minutes; it is how the tests themselves were built"
TESTS = "runs these tests"
CONTAINERS = "wants a container engine; tests/process/test_image.py uses the image where there is one"
PACKAGES = "installs packages"
BENCH = "measures for minutes"
NOT_RUN: Final = {
    "git clone https://github.com/fetchbox/fetchbox && cd fetchbox && make run": BUILDS,
    "make install": BUILDS,
    "make run": BUILDS,
    "make test": TESTS,
    "make test-rust": TESTS,
    "make check": TESTS,
    "make fuzz": TESTS,
    "make fuzz FUZZ_RUNS=10000000": TESTS,
    'make test-python PYTEST_ARGS="-k supervisor -x"': TESTS,
    'make test-python PYTEST_ARGS="tests/process -k kill -s"': TESTS,
    'FETCHBOX_CRASH_SEED=1234567 make test-python PYTEST_ARGS="tests/process/test_crash_harness.py -s"': TESTS,
    "FETCHBOX_FLEET_TASKS=10000 FETCHBOX_FLEET_PACE=150 FETCHBOX_FLEET_STORE=s3s-fs "
    'make test-python PYTEST_ARGS="tests/process/test_fleet.py -s"': TESTS,
    "cargo test": TESTS,
    "cargo nextest run -p fetchbox-hub": TESTS,
    "cargo nextest run -p fetchbox-engine case_16": TESTS,
    "cargo test --release -p fetchbox-engine --test engine every_ipv4 -- --ignored --nocapture": TESTS,
    "FETCHBOX_DLQ_ENTRIES=100000 cargo test --release -p fetchbox-hub --test dlq_scale -- --nocapture": TESTS,
    ".venv-test/bin/python -m tests.process.soak --kills 1000 --tasks 1000000": "runs for an hour",
    ".venv/bin/python -m tests.process.endurance --seconds 3600 --memory-store --results benches/results": "runs for an hour",
    "make fmt": "changes the sources",
    "make proto": "changes the sources",
    "make docs": "changes the sources; tests/unit/test_config_reference.py says that they are as it would make them",
    "make constraints": "changes the sources",
    "make bench": BENCH,
    ".venv/bin/python benches/peers.py --quick": BENCH,
    "cargo run --release -p fetchbox-hub --example spine": BENCH,
    "fetchbox bench download | ingest | pipeline": BENCH,
    "make image": CONTAINERS,
    "make image EXTRAS=iggy,curl,otel,parquet": CONTAINERS,
    "make dev-up": CONTAINERS,
    "make dev-up DEV_ALSO=my.yaml": CONTAINERS,
    "make dev-down": CONTAINERS,
    "docker run -p 127.0.0.1:8080:8080 -v fetchbox-data:/data -e FETCHBOX__SERVER__ALLOW_ANONYMOUS=true fetchbox:dev": CONTAINERS,
    "docker run -d --name fetchbox --read-only --cap-drop ALL --security-opt no-new-privileges \\\n"
    "    -p 127.0.0.1:8080:8080 -v fetchbox-data:/data "
    '-e FETCHBOX__SERVER__API_TOKENS=\'{"a-long-secret": "crawler"}\' fetchbox:dev': CONTAINERS,
    "docker run … fetchbox:dev worker": CONTAINERS,
    "docker run to ready": CONTAINERS,
    "docker run": CONTAINERS,
    "docker stop": CONTAINERS,
    "docker kill -s HUP fetchbox": CONTAINERS,
    "docker exec fetchbox fetchbox ledger backup /data/backup": CONTAINERS,
    "docker compose": CONTAINERS,
    "docker compose -f docker/compose.yaml up -d": CONTAINERS,
    "pip install 'fetchbox[curl]'": PACKAGES,
    "pip install 'fetchbox[iggy]'": PACKAGES,
    "pip install 'fetchbox[otel]'": PACKAGES,
    "pip install --no-binary pycurl pycurl": PACKAGES,
    ".venv/bin/pip install redis hiredis": PACKAGES,
    ".venv-test/bin/pip install playwright": PACKAGES,
    "cargo install cargo-fuzz": PACKAGES,
    "cargo install s3s-fs --version 0.14.1 --features binary": PACKAGES,
    "apt-get install python3-venv make gcc": PACKAGES,
    "apt-get install nginx-light curl aria2 redis-server wrk": PACKAGES,
    "apt-get install chromium": PACKAGES,
    "apt-get install nginx-light": PACKAGES,
    "curl --parallel": "the name of another downloader",
    "python -m fetchbox._child ROLE INDEX": "only a supervisor can start one; every service here has some",
}
"""Commands that are not run here, and why."""
NOT_COMMANDS: Final = {"docs/architecture": re.compile(r"rust/|python/|[a-z/ ]+  "), "": re.compile(r"accepted = pending")}
"""What else stands in blocks without a language: a sum, a tree of directories."""
FRAGMENTS: Final = {
    "fetchbox get -x URL": "fetchbox get -x http://127.0.0.1:8090 -o proxied https://example.org/a.pdf",
    'curl -H "Authorization: Bearer $API_TOKEN" …': 'curl -f -H "Authorization: Bearer $API_TOKEN" http://127.0.0.1:8080/openapi.json',
    "fetchbox streams publish --job ID --no-total --close": "fetchbox streams publish --job NEW --no-total --close",
    "fetchbox COMMAND --help": "fetchbox jobs --help",
    "fetchbox origin": "fetchbox origin --port 0",
    "fetchbox origin --proxy-port 8090": "fetchbox origin --port 0 --proxy-port 0",
    "fetchbox dlq purge": "fetchbox dlq purge --dry-run",
    "fetchbox streams tail": "fetchbox streams tail jobs.tasks",
    "export FETCHBOX__HUB__TOKEN_FILE=/etc/fetchbox/hub-token": "FETCHBOX__HUB__TOKEN_FILE=/etc/fetchbox/hub-token fetchbox config check",
    "export FETCHBOX__FETCH__BACKOFF_BASE=0.1 FETCHBOX__FETCH__RETRY_AFTER_MAX=1": "FETCHBOX__FETCH__BACKOFF_BASE=0.1 "
    "FETCHBOX__FETCH__RETRY_AFTER_MAX=1 fetchbox config check",
}
"""What is half a command, as its sentence says, and what it is made whole with."""
BY_OTHERS: Final = re.compile(r"O=http|try\(\)")
"""tests/process/test_hostile_manual.py runs them, with the table for which they are there."""
GROUPS: Final = ("jobs", "streams", "ledger", "dlq", "config", "bench")
NAMES: Final = {f"fetchbox {name}" for name in (*GROUPS, "get", "submit")}
"""Names of commands, which cannot stand alone: their help is asked for."""
ROLE: Final = re.compile(r"fetchbox (up|api|worker|hub)\b")
LAST: Final = re.compile(r"fetchbox ledger rebuild")
NOT_HERE: Final = re.compile(r"cannot import|there is no file|cannot read", re.IGNORECASE)
"""Problems of a configuration that are this machine's."""
PRINTS: Final = {
    "fetchbox ledger check": r"all is as it must be$",
    "fetchbox submit manifest.json --wait": r"completed: 1 stored$",
    "fetchbox dlq list --group code": r"DOWNLOAD_HTTP_4XX",
    "fetchbox config check": r".",
    "make help": r"^dev-up ",
}
"""What some of them have to print."""
FAILS: Final = {"fetchbox get --allow-network 127.0.0.0/8 --json --retry 0 http://127.0.0.1:8089/hostile/two-lengths": 1}
"""Exit statuses that are not 0, as the text beside them says."""


def is_command(command: Command) -> bool:
    return not any(
        pattern.match(command.text)
        for document, pattern in NOT_COMMANDS.items()
        if document in ("", command.document) and not command.inline
    )


COMMANDS: Final = [command for command in commands() if is_command(command)]


@dataclass
class World:
    """A directory of somebody who reads the documents: what stands in the commands, and what it is here."""

    root: Path
    origin: Origin
    store: S3
    ftp: int
    names: dict[str, str] = field(default_factory=dict)
    ports: dict[str, str] = field(default_factory=dict)
    services: list[tuple[str, subprocess.Popen[bytes]]] = field(default_factory=list)
    numbers: Iterator[int] = field(default_factory=itertools.count)

    @property
    def here(self) -> Path:
        return self.root / "here"

    def environment(self, **more: str) -> dict[str, str]:
        storage = {name: value for name, value in self.store.storage().items() if name not in ("multipart_threshold", "part_size")}
        return {
            **{name: value for name, value in os.environ.items() if not name.startswith("FETCHBOX")},
            **{
                f"FETCHBOX__STORAGE__{name.upper()}": value if isinstance(value, str) else json.dumps(value)
                for name, value in storage.items()
            },
            "PATH": f"{self.root / 'bin'}:{os.environ['PATH']}",
            "FETCHBOX__FETCH__ALLOW_NETWORKS": '["127.0.0.0/8"]',
            "API_TOKEN": "none",
            **more,
        }

    def prepare(self) -> None:
        (self.root / "bin").mkdir()
        (self.here / ".venv/bin").mkdir(parents=True)
        (self.here / "config").mkdir()
        for script in (self.root / "bin/fetchbox", self.here / ".venv/bin/fetchbox"):
            self._script(script, f'exec {shlex.quote(sys.executable)} -m fetchbox.cli "$@"')
        self._script(self.root / "bin/generate", "cat manifest.json")
        ports = {name: str(free_port()) for name in ("8089", "8090", "8443", "8444", "8445", "8446", "8080")}
        settings: dict[str, Any] = {
            "server": {"bind_addr": f"127.0.0.1:{ports['8080']}"},
            "telemetry": {"metrics_addr": f"127.0.0.1:{free_port()}"},
            "fetch": {"max_attempts": 1},
            "job_types": {"gallery": {"handler_timeout": "10s"}},
            "proxy": {"pools": {"residential": {"endpoints": ["http://127.0.0.1:1"]}}},
        }
        self.ports = {**ports, "telemetry": settings["telemetry"]["metrics_addr"]}
        (self.here / "config/fetchbox.toml").write_text(to_toml(settings), encoding="utf-8")
        one, other = self.origin.url("/bytes/1000?seed=1"), self.origin.url("/bytes/2000?seed=2")
        manifest = {"manifest_version": "v1", "metadata": {}, "resources": [{"url": one}]}
        (self.here / "manifest.json").write_text(json.dumps(manifest))
        for name, url in (("dead", "/status/404"), ("slow", "/delay/120/bytes/5")):
            body = {**manifest, "resources": [{"url": self.origin.url(url)}]}
            (self.here / f"{name}.json").write_text(json.dumps(body))
        (self.here / "urls.txt").write_text(f"{one}\n{other}\n")
        (self.here / "catalogue.csv").write_text(f"sku,image_url\na,{one}\nb,{other}\n")
        (self.here / "urls.gz").write_bytes(gzip.compress((self.here / "urls.txt").read_bytes()))
        for name in ("etc", "points"):
            (self.here / name).mkdir()

    @staticmethod
    def _script(path: Path, line: str) -> None:
        path.write_text(f"#!/bin/sh\n{line}\n")
        path.chmod(0o755)

    def here_it_is(self, text: str) -> str:
        """The command with what is true here in place of what is an example."""
        text = FRAGMENTS.get(text, text)
        text = re.sub(r"https://archive\.example/[\w.]+", self.origin.url("/auth/digest/ann/secret/bytes/1000"), text)
        text = text.replace("ftp://ftp.example.org/", f"ftp://127.0.0.1:{self.ftp}/")
        text = re.sub(r"https://(?:www\.python\.org|example\.(?:com|org))/([\w./-]*)", self.origin.url(r"/bytes/1000?name=\1"), text)
        text = text.replace("s3://bucket/", f"s3://{self.store.bucket}/")
        text = re.sub(r"(?<=[ :])(80(?:80|89|90)|844[3-6])\b", lambda match: self.ports[match[1]], text)
        for name, place in (("/etc/fetchbox/", "etc/"), ("DIRECTORY", "points"), (" DIR", " backup"), ("--processes N", "--processes 2")):
            text = text.replace(name, place)
        text = text.replace("NEW", str(uuid.uuid4()))
        for name, value in self.names.items():
            text = re.sub(rf"(?<![\w-]){re.escape(name)}(?![\w-])", value, text)
        return text

    def run(self, text: str, **more: str) -> subprocess.CompletedProcess[str]:
        """Runs a command in a shell, to its end."""
        command = ["bash", "-c", f"set -o pipefail; {text}"]
        environment = self.environment(**more)
        return subprocess.run(command, cwd=self.here, env=environment, capture_output=True, text=True, timeout=LIMIT, check=False)

    # ---- services -------------------------------------------------------------------------------------------------------------------

    def start(self, text: str, ready: Callable[[str], bool], **more: str) -> subprocess.Popen[bytes]:
        """Starts what goes on until it is ended, and waits until it is ready, by what it has written or otherwise."""
        log = self.root / f"service-{next(self.numbers)}.log"
        command = ["bash", "-c", f"exec {text.removesuffix('&').strip()}"]
        with log.open("wb") as output:
            process = subprocess.Popen(
                command, cwd=self.here, env=self.environment(**more), stdin=subprocess.DEVNULL, stdout=output, stderr=output,
                start_new_session=True,
            )  # fmt: skip
        self.services.append((text, process))

        def is_ready() -> bool:
            assert process.poll() is None, f"{text} ended with {process.returncode}: {log.read_text(errors='replace')[-2000:]}"
            return ready(log.read_text(errors="replace"))

        try:
            wait_until(is_ready, LIMIT, what=f"`{text}` to be ready")
        except AssertionError as error:
            raise AssertionError(f"{error}\n{log.read_text(errors='replace')[-4000:]}") from None
        return process

    def end(self, process: subprocess.Popen[bytes]) -> int:
        self.services = [(text, service) for text, service in self.services if service is not process]
        process.terminate()
        return process.wait(LIMIT)

    def end_all(self) -> None:
        for _, process in self.services:
            if process.poll() is None:
                process.kill()
            process.wait(LIMIT)


def answers(address: str, path: str = "/health/ready") -> bool:
    try:
        return httpx.get(f"http://{address}{path}", timeout=5, trust_env=False).status_code == 200
    except httpx.TransportError:
        return False


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    root = tmp_path_factory.mktemp("documents")
    with contextlib.ExitStack() as stack:
        certificates = Certificates.create()
        stack.callback(certificates.remove)
        (root / "served/pub").mkdir(parents=True)
        (root / "served/pub/README").write_text("read me\n")
        servers = stack.enter_context(file_servers(root / "served", certificates.pem("ca")))
        made = World(root, stack.enter_context(running_origin()), stack.enter_context(moto(root)), servers["ftp"])
        stack.callback(made.end_all)
        made.prepare()
        yield made


class Reader:
    """Runs all commands, in the documents' order, and notes what went wrong."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.wrong: list[str] = []
        self.ran: list[str] = []
        self.missing: list[str] = []
        self.hub: subprocess.Popen[bytes] | None = None

    def read(self) -> None:
        main = self._main_service()
        self._jobs()
        wanted = [
            command
            for command in COMMANDS
            if command.text not in NOT_RUN
            and command.text not in self.ran
            and not BY_OTHERS.match(command.text)
            and not LAST.match(command.text)
        ]
        # Services of their own beside what is asked of the first one.
        with ThreadPoolExecutor(1) as beside:
            roles = [beside.submit(self._run, command) for command in wanted if ROLE.match(command.text)]
            for command in wanted:
                if not ROLE.match(command.text):
                    self._run(command)
            for role in roles:
                role.result()
        if self.hub is not None:
            assert self.world.end(self.hub) == 0
        self._rebuild(main)

    def _main_service(self) -> subprocess.Popen[bytes]:
        text = next(command.text for command in COMMANDS if command.text == ".venv/bin/fetchbox up")
        self.ran += [text, "fetchbox up"]
        return self.world.start(text, lambda _: answers(f"127.0.0.1:{self.world.ports['8080']}"))

    def _jobs(self) -> None:
        """What the examples' ids stand for."""
        world = self.world
        dead = world.run("fetchbox submit dead.json --wait --json")
        job = json.loads(dead.stdout)["job_id"]
        slow = world.run("fetchbox submit slow.json").stdout.strip()
        letter = json.loads(world.run("fetchbox dlq list --json").stdout.splitlines()[0])["id"]
        world.names = {"cancel ID": f"cancel {slow}", "ID": job, "01a0…": job, "0192f0c4-…-9a5b.3.0": letter}

    def _run(self, command: Command) -> None:
        words = shlex.split(re.sub(r"^(?:[A-Z_]+=\S+ )+", "", command.text))
        tool = Path(words[0]).name
        if tool in ("make", "cargo", "docker", "docker-compose", "pip", "apt-get", "git") and command.text != "make help":
            self.wrong.append(f"{command}: it is neither run nor named in NOT_RUN")
            return
        if tool != "fetchbox" and shutil.which(tool) is None and not (self.world.root / "bin" / tool).exists():
            self.missing.append(command.text)
            return
        self.ran.append(command.text)
        text = self.world.here_it_is(command.text)
        try:
            if tool == "fetchbox" and command.text in NAMES:
                self._expect(command, self.world.run(f"{text} --help"))
            elif tool == "fetchbox" and words[1] in ("up", "api", "worker", "hub"):
                self._serve(words[1], text)
            elif tool == "fetchbox" and words[1] == "origin":
                self._serve_origin(command, text)
            elif re.search(r" tail .*-f\b", text):
                self._follow(command, text)
            else:
                if tool == "make":
                    text = f"{text} -C {shlex.quote(str(ROOT))}"
                self._expect(command, self.world.run(text))
        except (AssertionError, subprocess.TimeoutExpired) as error:
            self.wrong.append(f"{command}: {error}")

    def _expect(self, command: Command, done: subprocess.CompletedProcess[str]) -> None:
        wanted = FAILS.get(command.text, 0)
        told = f"{done.args[-1]}\n{done.stdout[-1500:]}{done.stderr[-1500:]}"
        assert done.returncode == wanted, f"ended with {done.returncode}: {told}"
        assert not re.search(r'^{"error"', done.stdout, re.MULTILINE), f"was refused: {told}"
        pattern = PRINTS.get(command.text)
        assert pattern is None or re.search(pattern, done.stdout + done.stderr, re.MULTILINE), f"does not print {pattern}: {told}"

    def _serve(self, role: str, text: str) -> None:
        """`up` in a directory of its own; the roles one by one over another, where the hub goes on for those that come."""
        world = self.world
        api, telemetry = (f"127.0.0.1:{free_port()}" for _ in range(2))
        own = {"FETCHBOX__SERVER__BIND_ADDR": api, "FETCHBOX__TELEMETRY__METRICS_ADDR": telemetry}
        directory = str(world.root / ("roles" if role != "up" else f"up-{len(self.ran)}"))
        if role != "up" and self.hub is None:
            at = f"127.0.0.1:{free_port()}"
            self.hub = world.start(
                "fetchbox hub", lambda _: answers(at), FETCHBOX__DATA_DIR=directory, FETCHBOX__TELEMETRY__METRICS_ADDR=at
            )
        if role == "hub":
            return
        process = world.start(text, lambda _: answers(telemetry), FETCHBOX__DATA_DIR=directory, **own)
        if role == "up":
            done = world.run("fetchbox submit manifest.json --wait", FETCHBOX_URL=f"http://{api}")
            assert done.returncode == 0, done.stderr
        assert world.end(process) == 0, f"{text} did not end well"

    def _serve_origin(self, command: Command, text: str) -> None:
        """Ended at once, unless the commands that follow want it."""
        port = text.partition("--port ")[2].split(" ")[0]
        for known, other in list(self.world.services):
            if f"--port {port} " in known:
                self.world.end(other)
        process = self.world.start(text, lambda told: "http" in told)
        if not command.text.endswith("&"):
            self.world.end(process)

    def _follow(self, command: Command, text: str) -> None:
        with subprocess.Popen(
            ["bash", "-c", f"exec {text}"],
            cwd=self.world.here,
            env=self.world.environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        ) as process:
            try:
                assert process.stdout is not None
                out = process.stdout
                wait_until(lambda: select.select([out], [], [], 0)[0], LIMIT, what="a line")
                process.send_signal(signal.SIGINT)
                assert process.wait(LIMIT) == 130, f"{command} ended with {process.returncode}"
            finally:
                process.kill()

    def _rebuild(self, main: subprocess.Popen[bytes]) -> None:
        """The ledger is lost: the manual's own way back."""
        world = self.world
        assert world.end(main) == 0
        shutil.rmtree(world.here / "fetchbox-data/hub")
        hub = world.start("fetchbox hub", lambda _: answers(world.ports["telemetry"]))
        for command in (command for command in COMMANDS if LAST.match(command.text)):
            self.ran.append(command.text)
            self._expect(command, world.run(command.text))
        assert "all is as it must be" in world.run("fetchbox ledger check --against-store").stderr
        assert world.end(hub) == 0


@pytest.mark.timeout(300)
def test_every_command_of_the_documents_does_what_it_says(world: World) -> None:
    reader = Reader(world)
    reader.read()
    assert not reader.wrong, "\n\n".join(reader.wrong)
    assert len(reader.ran) > 60
    if reader.missing:
        print("not here:", *reader.missing, sep="\n  ")


def test_the_documents_were_all_read() -> None:
    assert sorted(DOCUMENTS) == sorted(["README", *(f"docs/{path.stem}" for path in (ROOT / "docs").glob("*.md"))])
    texts = {command.text for command in COMMANDS}
    assert NOT_RUN.keys() <= texts, f"no document has {NOT_RUN.keys() - texts}"
    assert FRAGMENTS.keys() <= texts, f"no document has {FRAGMENTS.keys() - texts}"
    assert PRINTS.keys() | FAILS.keys() | NAMES <= texts


# ---- what is not run ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", [text for text in NOT_RUN if re.search(r"(^|[ &])make ", text) and NOT_RUN[text] != PACKAGES])
def test_targets_and_variables_exist(text: str) -> None:
    words = shlex.split(text[re.search(r"\bmake ", text).start() :])[1:]  # type: ignore[union-attr]
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for word in words:
        if "=" not in word:
            assert re.search(rf"^{re.escape(word)}:", makefile, re.MULTILINE), word
            continue
        name, _, value = word.partition("=")
        assert re.search(rf"^{name} \?=", makefile, re.MULTILINE), f"{name} is no variable of the Makefile"
        for path in re.findall(r"tests/\S+", value):
            assert (ROOT / path).exists(), path
    done = subprocess.run(["make", "--dry-run", "-C", str(ROOT), *words], capture_output=True, text=True, timeout=LIMIT, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("text", [text for text in NOT_RUN if re.search(r"\bcargo (test|nextest|run)", text)])
def test_packages_and_their_tests_exist(text: str) -> None:
    words = shlex.split(text)
    manifests = {tomllib.loads(path.read_text())["package"]["name"]: path.parent for path in (ROOT / "rust").glob("*/Cargo.toml")}
    if "-p" not in words:
        return
    package = manifests[words[words.index("-p") + 1]]
    for option, folder in (("--test", "tests"), ("--example", "examples")):
        if option in words:
            name = words[words.index(option) + 1]
            assert (package / folder / f"{name}.rs").exists() or (package / folder / name / "main.rs").exists(), name
    sources = "".join(path.read_text() for path in package.rglob("*.rs"))
    wanted = re.findall(r"\b(every_ipv4|case_\d+)\b", text)
    assert all(name in sources for name in wanted), wanted


@pytest.mark.parametrize("text", [text for text in NOT_RUN if "[" in text and "pip " in text])
def test_extras_exist(text: str) -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert set(re.findall(r"fetchbox\[(\w+)\]", text)) <= extras.keys()


@pytest.mark.parametrize("text", [text for text in NOT_RUN if text.startswith("docker")])
def test_what_containers_are_started_with_is_known(text: str, tmp_path: Path) -> None:
    words = shlex.split(text.replace("\\\n", " "))
    given = dict(words[place + 1].split("=", 1) for place, word in enumerate(words) if word == "-e")
    load(env={"FETCHBOX__DATA_DIR": str(tmp_path), **given})
    files = [words[place + 1] for place, word in enumerate(words) if word == "-f"]
    assert all((ROOT / name).exists() for name in files)
    inside = words[words.index("fetchbox:dev") + 1 :] if "fetchbox:dev" in words else words[4:] if words[1] == "exec" else []
    if inside:
        from fetchbox.cli import run

        assert run([*(word for word in inside[:2] if word.isalpha()), "--help"]) == 0


def test_programs_know_their_options() -> None:
    programs = [shlex.split(text)[1:] for text in NOT_RUN if re.match(r"\.venv\S*/bin/python ", text)]
    assert len(programs) > 2
    for words in programs:
        program = words[:2] if words[0] == "-m" else words[:1]
        done = subprocess.run([sys.executable, *program, "--help"], cwd=ROOT, capture_output=True, text=True, timeout=LIMIT, check=False)
        assert done.returncode == 0, done.stderr
        assert all(word in done.stdout for word in words if word.startswith("--")), words
    from fetchbox.cli import run

    for name in ("download", "ingest", "pipeline"):
        assert run(["bench", name, "--help"]) == 0


def settings_of_documents() -> Iterator[tuple[str, str]]:
    for document in DOCUMENTS:
        for _, language, body in FENCE.findall((ROOT / f"{document}.md").read_text(encoding="utf-8")):
            if language == "toml" and "[project." not in body:
                yield document, body


def test_settings_of_the_documents_are_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Names and values; what files and modules hold that are named is not here."""
    (tmp_path / "secret").write_text("iggy://user:secret@host:8090")
    given = tmp_path / "given.toml"
    monkeypatch.syspath_prepend(str(ROOT / "examples/gallery_handler"))
    # What those documents put into the environment.
    beside = {"FETCHBOX__HUB__TOKEN": "secret", "AWS_ACCESS_KEY_ID": "id", "AWS_SECRET_ACCESS_KEY": "key"}
    examples = list(settings_of_documents())
    assert len(examples) >= 8
    for document, body in examples:
        given.write_text(re.sub(r'(_file = )"/[^"]*"', rf'\1"{tmp_path}/secret"', body))
        try:
            load(given, env=beside)
        except ConfigError as error:
            wrong = [str(problem) for problem in error.problems if not NOT_HERE.search(str(problem))]
            assert not wrong, (document, wrong)
