"""`make dev-up` and `make dev-down`: starts the stack of compose.yaml and waits until it is ready, or stops it. Standard library only."""

from __future__ import annotations

import argparse
import http.client
import json
import os
import secrets
import shlex
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
ENV = HERE / ".env"
READY_LIMIT = 300.0
"""Seconds from `up` to ready; images are there by then."""
LOOK_INTERVAL = 1.0
ANSWER_LIMIT = 10.0


def new_secrets(example: str) -> str:
    """The text of an .env file, with a random secret behind every `=` that has nothing."""
    lines = []
    for line in example.splitlines():
        name, equals, value = line.partition("=")
        if equals and not value and not name.startswith("#"):
            # Garage takes ids of this form only.
            secret = f"GK{secrets.token_hex(12)}" if name == "S3_ACCESS_KEY_ID" else secrets.token_hex(32)
            lines.append(f"{line}{secret}")
        else:
            lines.append(line)
    return "\n".join(lines) + "\n"


def settings(text: str) -> dict[str, str]:
    """Names and values of an .env file."""
    pairs = (line.partition("=") for line in text.splitlines() if line.strip() and not line.startswith("#"))
    return {name.strip(): value.strip() for name, _, value in pairs}


def reachable(port: str) -> str:
    """Where a published port is reached from this machine: `8080`, `127.0.0.1:8080` and `0.0.0.0:8080` alike."""
    host, _, number = port.rpartition(":")
    return f"{'127.0.0.1' if host in ('', '0.0.0.0') else host}:{number}"  # noqa: S104  (compared, not bound)


def health(address: str, token: str) -> tuple[bool, str]:
    """Whether every component is well, and what is not."""
    connection = http.client.HTTPConnection(address, timeout=ANSWER_LIMIT)
    try:
        connection.request("GET", "/operators/health", headers={"Authorization": f"Bearer {token}"})
        answer = connection.getresponse()
        text = answer.read().decode(errors="replace")
    except (OSError, http.client.HTTPException) as error:
        return False, f"the api does not answer: {error}"
    finally:
        connection.close()
    if answer.status == http.HTTPStatus.OK:
        return True, ""
    try:
        components: dict[str, Any] = json.loads(text)["components"]
        unwell = [f"{name}: {state.get('reason') or state['status']}" for name, state in components.items() if state["status"] != "ok"]
    except (ValueError, KeyError, TypeError, AttributeError):
        return False, f"{answer.status} {text[:500]}"
    return False, "; ".join(unwell)


def up(compose: list[str], chosen: dict[str, str]) -> int:
    """Starts everything and waits for it; the exit status."""
    if subprocess.run([*compose, "up", "--detach", "--remove-orphans"], check=False).returncode != 0:
        print(f"not everything started; {shlex.join([*compose, 'logs'])} says why", file=sys.stderr)
        return 1
    api = reachable(chosen.get("API_PORT", "127.0.0.1:8080"))
    until = time.monotonic() + READY_LIMIT
    told = ""
    while True:
        well, reason = health(api, chosen.get("OPERATOR_TOKEN", ""))
        if well:
            break
        if time.monotonic() >= until:
            print(f"not ready after {READY_LIMIT:g} s: {reason}\n{shlex.join([*compose, 'logs'])} says more", file=sys.stderr)
            return 1
        if reason != told:
            told = reason
            print(f"waiting: {reason}", file=sys.stderr)
        time.sleep(LOOK_INTERVAL)  # noqa: TID251  (a look with a limit)
    print(
        f"ready; tokens and passwords are in {ENV}\n"
        f"  api         http://{api}  (Authorization: Bearer API_TOKEN; operators: OPERATOR_TOKEN)\n"
        f"  Grafana     http://{reachable(chosen.get('GRAFANA_PORT', '127.0.0.1:3000'))}  (admin, GRAFANA_PASSWORD)\n"
        f"  Prometheus  http://{reachable(chosen.get('PROMETHEUS_PORT', '127.0.0.1:9090'))}\n"
        f"  S3          http://{reachable(chosen.get('S3_PORT', '127.0.0.1:3900'))}  (bucket {chosen.get('S3_BUCKET', 'assets')})\n"
        f"  shell       {shlex.join([*compose, 'exec', 'api', 'fetchbox', 'jobs', 'list'])}"
    )
    return 0


def down(compose: list[str]) -> int:
    """Stops everything and keeps what was stored; the exit status."""
    status = subprocess.run([*compose, "down", "--remove-orphans"], check=False).returncode
    if status == 0:
        print(f"stopped. What was stored is kept in volumes; {shlex.join([*compose, 'down', '--volumes'])} deletes it")
    return status


def main() -> int:
    """The exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("do", choices=("up", "down"))
    parser.add_argument("--compose", default="docker compose", help="the command of compose")
    parser.add_argument("--also", action="append", default=[], metavar="FILE", help="a compose file that changes something")
    arguments = parser.parse_args()
    if not ENV.exists():
        if arguments.do == "down":
            print("there is no docker/.env: nothing was started from here")
            return 0
        with os.fdopen(os.open(ENV, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            file.write(new_secrets((HERE / ".env.example").read_text()))
        print(f"{ENV} was made, with new secrets; volumes of an earlier stack, if any, know only the old ones")
    files = [str(HERE / "compose.yaml"), *arguments.also]
    compose = [*shlex.split(arguments.compose), "--env-file", str(ENV), *(part for name in files for part in ("-f", name))]
    try:
        return down(compose) if arguments.do == "down" else up(compose, settings(ENV.read_text()))
    except FileNotFoundError as error:
        print(f"{error.filename} is not there: install Docker with compose", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main())
