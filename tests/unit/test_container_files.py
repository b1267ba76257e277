"""What stands in docker/: that its files agree with one another, with the settings there are, and with what the documents promise."""

from __future__ import annotations

import importlib.util
import json
import re
import shutil
import subprocess
from pathlib import Path
from types import ModuleType
from typing import Any, Final

import pytest
import yaml

from fetchbox.config import Config, load, parse_hub_url
from fetchbox.errors import ConfigError

ROOT: Final = Path(__file__).parents[2]
DOCKER: Final = ROOT / "docker"
ROLES: Final = ("up", "api", "worker", "hub")
ENGINE_PATIENCE: Final = 10.0
"""Seconds that `docker stop` waits by default."""


def load_dev() -> ModuleType:
    """docker/dev.py, which is a script and no package."""
    spec = importlib.util.spec_from_file_location("fetchbox_docker_dev", DOCKER / "dev.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


DEV = load_dev()
EXAMPLE: Final = (DOCKER / ".env.example").read_text(encoding="utf-8")
CHOSEN: Final[dict[str, str]] = DEV.settings(DEV.new_secrets(EXAMPLE))
COMPOSE_TEXT: Final = (DOCKER / "compose.yaml").read_text(encoding="utf-8")


def instructions() -> list[tuple[str, str]]:
    """Of the Dockerfile: name and arguments, with continued lines joined."""
    text = (DOCKER / "Dockerfile").read_text(encoding="utf-8")
    lines = re.sub(r"\\\n", " ", "\n".join(line for line in text.splitlines() if not line.lstrip().startswith("#")))
    return [(name, " ".join(rest.split())) for name, _, rest in (line.partition(" ") for line in lines.splitlines() if line)]


def of_last_stage(name: str) -> str:
    """The arguments of the one instruction of that name in the stage that becomes the image."""
    everything = instructions()
    start = max(index for index, (instruction, _) in enumerate(everything) if instruction == "FROM")
    found = [arguments for instruction, arguments in everything[start:] if instruction == name]
    assert len(found) == 1, f"{name}: {found}"
    return found[0]


def image_environment() -> dict[str, str]:
    """What the image sets of FetchBox."""
    return {k: v for k, v in (pair.split("=", 1) for pair in of_last_stage("ENV").split()) if k.startswith("FETCHBOX")}


def compose() -> dict[str, Any]:
    """compose.yaml, with an .env file as `make dev-up` makes it."""

    def fill(match: re.Match[str]) -> str:
        name, _, default = match.group(1).partition(":")
        value = CHOSEN.get(name) or (default[1:] if default.startswith("-") else None)
        assert value is not None, f"{name} is in .env.example with a value or a blank to be filled"
        return value

    def walk(node: Any) -> Any:
        if isinstance(node, dict):
            return {key: walk(value) for key, value in node.items()}
        if isinstance(node, list):
            return [walk(value) for value in node]
        return re.sub(r"\$\{([^}]*)\}", fill, node) if isinstance(node, str) else node

    filled: dict[str, Any] = walk(yaml.safe_load(COMPOSE_TEXT))
    return filled


def services() -> dict[str, dict[str, Any]]:
    """Those of compose.yaml that run FetchBox, for good or once."""
    return {name: service for name, service in compose()["services"].items() if service["image"].startswith("fetchbox")}


def role(service: dict[str, Any]) -> str | None:
    """Which role a service has; None for what is done once."""
    command = service["command"]
    return command[0] if command and command[0] in ROLES else None


def configuration(name: str, tmp_path: Path) -> Config:
    """What a service's processes would be configured with; what is mounted from volumes is there."""
    service = services()[name]
    environment = {**image_environment(), **service.get("environment", {})}
    for variable, value in environment.items():
        if value.startswith("/tls/"):
            assert any(volume.split(":")[1] == "/tls" for volume in service["volumes"]), variable
            (tmp_path / Path(value).name).touch()
            environment[variable] = str(tmp_path / Path(value).name)
    return load(env=environment, listens=role(service) in ("up", "api"))


# ---- the image ----------------------------------------------------------------------------------------------------------------


def test_what_the_image_sets_is_known_and_is_what_the_documents_say() -> None:
    environment = image_environment()
    config = load(env={**environment, "FETCHBOX__SERVER__ALLOW_ANONYMOUS": "true"})
    assert (config.data_dir, config.server.bind_addr, config.telemetry.metrics_addr) == ("/data", "0.0.0.0:8080", "0.0.0.0:9464")
    assert config.storage.url == "file:///data/assets"
    assert config.drain_timeout + 1 < ENGINE_PATIENCE, "a stop with the engine's own patience is a drain to the end"
    with pytest.raises(ConfigError, match="can be reached from other machines"):
        load(env=environment)
    # Whoever does not bind that address needs no token for it.
    load(env=environment, listens=False)


def test_the_image_runs_as_a_number_on_one_volume() -> None:
    uid = next(arguments for name, arguments in instructions() if arguments.startswith("UID=")).removeprefix("UID=")
    assert int(uid) >= 1000
    assert of_last_stage("USER") == "${UID}:${UID}"
    assert of_last_stage("VOLUME") == of_last_stage("WORKDIR") == "/data"
    assert json.loads(of_last_stage("ENTRYPOINT")) == ["fetchbox"]
    assert json.loads(of_last_stage("CMD")) == ["up"]
    assert of_last_stage("EXPOSE").split() == ["8080", "9464"]
    for label in ("title", "description", "source", "licenses", "version", "revision", "created"):
        assert f"org.opencontainers.image.{label}=" in of_last_stage("LABEL")


def test_all_that_is_copied_reaches_the_engine_and_secrets_do_not() -> None:
    copied = {
        source
        for name, arguments in instructions()
        if name == "COPY" and "--from" not in arguments
        for source in [part for part in arguments.split() if not part.startswith("--")][:-1]
    }
    assert len(copied) >= 10
    lines = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    assert next(line for line in lines if line and not line.startswith("#")) == "*"
    assert copied == {line[1:] for line in lines if line.startswith("!")}
    assert all((ROOT / source).exists() for source in copied)
    assert "/docker/.env" in (ROOT / ".gitignore").read_text(encoding="utf-8").splitlines()


def test_nothing_of_a_build_machine_is_in_the_files() -> None:
    for path in [DOCKER / "Dockerfile", DOCKER / "compose.yaml", *DOCKER.glob("*.sh")]:
        text = path.read_text(encoding="utf-8")
        assert not re.search(r"index-url|PIP_CERT|SSL_CERT|CAINFO|_proxy|_PROXY|sources\.list|/root/(?!\.cargo/registry)", text), path


# ---- the stack ----------------------------------------------------------------------------------------------------------------


def test_every_role_is_there() -> None:
    roles = [role(service) for service in services().values()]
    assert sorted(filter(None, roles)) == ["api", "hub", "worker", "worker"]


@pytest.mark.parametrize("name", sorted(services()))
def test_a_service_has_settings_that_there_are(name: str, tmp_path: Path) -> None:
    """A variable that is no setting is an error of the loader."""
    service = services()[name]
    if "environment" not in service:
        assert role(service) is None
        return
    config = configuration(name, tmp_path)
    assert config.broker.url.startswith("iggy://fetchbox:")
    assert config.storage.url.startswith("s3://")
    patience = float(service["stop_grace_period"].removesuffix("s"))
    assert config.drain_timeout + 1 < patience


def test_services_find_one_another(tmp_path: Path) -> None:
    everything = compose()["services"]
    configs = {name: configuration(name, tmp_path) for name, service in services().items() if role(service)}
    listen = configs["hub"].hub.listen
    assert listen is not None
    hub_port = parse_hub_url(listen)[1].rpartition(":")[2]
    for name, config in configs.items():
        assert config.hub.token is not None
        assert config.hub.token == configs["hub"].hub.token
        assert config.hub.url == (None if name == "hub" else f"tcp://hub:{hub_port}")
        assert config.broker.url.rpartition("@")[2] == f"iggy:{everything['iggy']['environment']['IGGY_TCP_ADDRESS'].rpartition(':')[2]}"
        assert config.storage == configs["hub"].storage
    iggy, garage = everything["iggy"]["environment"], everything["garage"]["environment"]
    user = f"{iggy['IGGY_ROOT_USERNAME']}:{iggy['IGGY_ROOT_PASSWORD']}"
    assert configs["api"].broker.url == f"iggy://{user}@{iggy['IGGY_NODE_ADVERTISED_ADDRESS']}:8090"
    storage = configs["api"].storage
    assert storage.access_key_id is not None
    assert storage.secret_access_key is not None
    assert storage.access_key_id.get_secret_value() == garage["GARAGE_DEFAULT_ACCESS_KEY"]
    assert storage.secret_access_key.get_secret_value() == garage["GARAGE_DEFAULT_SECRET_KEY"]
    assert storage.url == f"s3://{garage['GARAGE_DEFAULT_BUCKET']}"
    garage_toml = (DOCKER / "garage.toml").read_text(encoding="utf-8")
    assert f'api_bind_addr = "[::]:{str(storage.endpoint).rpartition(":")[2]}"' in garage_toml
    assert f's3_region = "{storage.region}"' in garage_toml
    assert configs["api"].server.api_tokens
    assert configs["api"].server.operator_token is not None
    assert "DNS:hub" in (DOCKER / "hub-certificate.sh").read_text(encoding="utf-8")


def test_prometheus_scrapes_every_service_where_it_listens() -> None:
    port = image_environment()["FETCHBOX__TELEMETRY__METRICS_ADDR"].rpartition(":")[2]
    scraped = yaml.safe_load((DOCKER / "prometheus" / "compose.yml").read_text(encoding="utf-8"))
    plain = yaml.safe_load((DOCKER / "prometheus" / "prometheus.yml").read_text(encoding="utf-8"))
    targets = scraped["scrape_configs"][0]["static_configs"][0].pop("targets")
    assert targets == [f"{name}:{port}" for name, service in services().items() if role(service)]
    plain["scrape_configs"][0]["static_configs"][0].pop("targets")
    assert scraped == plain, "but for the targets it is the configuration that is tested elsewhere"
    source = yaml.safe_load((DOCKER / "grafana" / "provisioning" / "datasources" / "prometheus.yml").read_text(encoding="utf-8"))
    assert source["datasources"][0]["url"] == "http://prometheus:9090"


def test_ports_and_mounts_are_there() -> None:
    everything = compose()
    volumes = set(everything["volumes"])
    used: set[str] = set()
    for name, service in everything["services"].items():
        assert re.search(r":[\w.]*\d", service["image"]) or service["image"] == "fetchbox:dev", f"{name}: an image has a version"
        for port in service.get("ports", []):
            assert port.startswith("127.0.0.1:"), f"{name}: open to this machine only, unless somebody decides otherwise"
        for mount in service.get("volumes", []):
            source, _, target = mount.partition(":")
            if source.startswith("."):
                assert (DOCKER / source).exists(), mount
                assert target.endswith(":ro"), mount
            else:
                used.add(source)
    assert used == volumes
    assert everything["services"]["api"]["ports"] == ["127.0.0.1:8080:8080"]
    data = [mount for service in services().values() if role(service) for mount in service["volumes"] if mount.endswith(":/data")]
    assert len(data) == len(set(data)) == 4, "every process tree has a data_dir of its own"


def test_containers_of_ours_have_no_rights() -> None:
    for name, service in services().items():
        assert service["read_only"] is True, name
        assert service["cap_drop"] == ["ALL"], name
        assert service["security_opt"] == ["no-new-privileges:true"], name
        assert not {"privileged", "user", "cap_add", "network_mode", "pid"} & set(service), name
    iggy = compose()["services"]["iggy"]
    assert (iggy["cap_add"], iggy["security_opt"], iggy["ulimits"]["memlock"]) == (
        ["SYS_NICE"],
        ["seccomp:unconfined"],
        {"soft": -1, "hard": -1},
    )


def test_the_order_of_the_start() -> None:
    """Topics before whoever reads them, a certificate before the hub, the hub before those that need it."""
    everything = compose()["services"]
    assert everything["hub"]["depends_on"] == {
        "certificate": {"condition": "service_completed_successfully"},
        "topics": {"condition": "service_completed_successfully"},
        "garage": {"condition": "service_healthy"},
    }
    for name in ("api", "worker-1", "worker-2"):
        assert everything[name]["depends_on"] == {"hub": {"condition": "service_healthy"}}
    for name in ("iggy", "garage"):
        assert everything[name]["healthcheck"]["test"][0] == "CMD"


def test_the_example_names_what_the_stack_takes() -> None:
    taken = {name.partition(":")[0] for name in re.findall(r"\$\{([^}]*)\}", COMPOSE_TEXT)}
    named = set(re.findall(r"^#?([A-Z][A-Z0-9_]*)=", EXAMPLE, re.MULTILINE))
    assert named - {"COMPOSE_PROJECT_NAME"} == taken
    # What is secret has no value in the example, and no default anywhere.
    for name in re.findall(r"^([A-Z0-9_]*(?:TOKEN|PASSWORD|SECRET|KEY_ID|SECRET_ACCESS_KEY))=(.*)$", EXAMPLE, re.MULTILINE):
        assert name[1] == "", name
        assert f"${{{name[0]}:-" not in COMPOSE_TEXT


@pytest.mark.skipif(shutil.which("docker-compose") is None, reason="no docker-compose: apt-get install docker-compose")
def test_compose_takes_it(tmp_path: Path) -> None:
    (tmp_path / "env").write_text(DEV.new_secrets(EXAMPLE), encoding="utf-8")
    command = ["docker-compose", "--env-file", str(tmp_path / "env"), "-f", str(DOCKER / "compose.yaml"), "config"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    resolved = yaml.safe_load(done.stdout)
    assert resolved["services"]["worker-2"]["environment"]["FETCHBOX__HUB__URL"] == "tcp://hub:8091"


@pytest.mark.skipif(shutil.which("docker-compose") is None, reason="no docker-compose: apt-get install docker-compose")
def test_without_secrets_compose_says_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "env").write_text(EXAMPLE, encoding="utf-8")
    command = ["docker-compose", "--env-file", str(tmp_path / "env"), "-f", str(DOCKER / "compose.yaml"), "config"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode != 0
    assert ".env.example" in done.stderr


# ---- make dev-up ---------------------------------------------------------------------------------------------------------------


def test_new_secrets_fill_what_is_empty_and_nothing_else() -> None:
    first, second = DEV.settings(DEV.new_secrets(EXAMPLE)), DEV.settings(DEV.new_secrets(EXAMPLE))
    given = DEV.settings(EXAMPLE)
    assert first.keys() == given.keys()
    for name, value in given.items():
        if value:
            assert first[name] == value
        else:
            assert first[name] != second[name]
            assert re.fullmatch(r"GK[0-9a-f]{24}" if name == "S3_ACCESS_KEY_ID" else r"[0-9a-f]{64}", first[name]), name
    assert DEV.new_secrets(DEV.new_secrets("A=\n# B=\n#C=\n")).count("=") == 3


@pytest.mark.parametrize(
    ("port", "expected"),
    [
        ("8080", "127.0.0.1:8080"),
        ("127.0.0.1:8080", "127.0.0.1:8080"),
        ("0.0.0.0:80", "127.0.0.1:80"),
        ("10.1.2.3:80", "10.1.2.3:80"),
    ],
)
def test_where_a_port_is_reached(port: str, expected: str) -> None:
    assert DEV.reachable(port) == expected
