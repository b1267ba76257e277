"""`fetchbox get --reuse`: run again it transfers what has changed, and nothing else."""

from __future__ import annotations

import json
import signal
import subprocess
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from fetchbox.testing import Origin, running_origin, wait_until
from tests.process.test_cli_get import LOOPBACK, command, get, outcomes


@pytest.fixture
def origin() -> Iterator[Origin]:
    with running_origin() as server:
        yield server


def listed(origin: Origin, tmp_path: Path, count: int) -> str:
    path = tmp_path / "urls.txt"
    path.write_text("".join(origin.url(f"/bytes/10240?seed={seed % 251}&of={seed}") + "\n" for seed in range(count)))
    return str(path)


def states(done: subprocess.CompletedProcess[str]) -> Counter[str]:
    assert done.returncode == 0, done.stderr
    return Counter(record["state"] for record in map(json.loads, done.stdout.splitlines()))


def test_the_same_command_again_transfers_almost_nothing(origin: Origin, tmp_path: Path) -> None:
    arguments = [*LOOPBACK, "--reuse", "--json", "-i", listed(origin, tmp_path, 1000), "-o", str(tmp_path / "out")]
    assert states(get(*arguments)) == {"stored": 1000}
    sent = origin.bytes_sent
    assert states(get(*arguments)) == {"reused": 1000}
    assert origin.bytes_sent - sent < sent / 30
    assert origin.counts.total() == 2000
    done = get(*LOOPBACK, "--reuse-max-age", "1h", "-v", "-i", listed(origin, tmp_path, 1000), "-o", str(tmp_path / "out"))
    assert done.returncode == 0
    assert done.stderr.count("reused 10240 bytes: ") == 1000
    assert origin.counts.total() == 2000


def test_what_has_changed_or_is_gone_comes_anew(origin: Origin, tmp_path: Path) -> None:
    out = tmp_path / "out"
    url = origin.url("/bytes/1000?seed=1")
    [first] = outcomes(get(*LOOPBACK, "--reuse", "--json", "-o", str(out), url)).values()
    [path] = [path for path in out.rglob("*~*") if path.is_file()]
    path.write_bytes(b"somebody wrote into it")
    [second] = outcomes(get(*LOOPBACK, "--reuse", "--json", "-o", str(out), url)).values()
    assert (first["state"], second["state"], path.stat().st_size) == ("stored", "stored", 1000)
    # Without --reuse a name that is there is enough, as ever; with --overwrite nothing is.
    asked = origin.counts.total()
    [third] = outcomes(get(*LOOPBACK, "--json", "-o", str(out), url)).values()
    assert (third["state"], origin.counts.total()) == ("reused", asked)
    [fourth] = outcomes(get(*LOOPBACK, "--overwrite", "--json", "-o", str(out), url, FETCHBOX__FETCH__REUSE="true")).values()
    assert fourth["state"] == "stored"
    assert get(*LOOPBACK, "--overwrite", "--reuse", "-o", str(out), url).returncode == 2
    [fifth] = outcomes(get(*LOOPBACK, "--json", "-o", str(tmp_path / "other"), url, FETCHBOX__FETCH__REUSE="true")).values()
    assert (fifth["state"], (tmp_path / "other" / ".fetchbox-reuse.db").exists()) == ("stored", True)


def test_bad_usage_is_told(tmp_path: Path) -> None:
    bucket = get("--reuse", "-o", "s3://bucket/x", "http://127.0.0.1:1/")
    assert (bucket.returncode, "--reuse-file" in bucket.stderr) == (2, True), bucket.stderr
    age = get("--reuse-max-age", "soon", "-o", str(tmp_path), "http://127.0.0.1:1/")
    assert (age.returncode, "--reuse-max-age" in age.stderr) == (2, True), age.stderr


def test_a_killed_run_is_asked_about_again_and_nothing_is_wrong(tmp_path: Path) -> None:
    with running_origin(pace=200) as origin:
        arguments = [*LOOPBACK, "--reuse", "--json", "-i", listed(origin, tmp_path, 1200), "-o", str(tmp_path / "out")]
        process = subprocess.Popen(command(*arguments), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        # What was written down by then is known to the next run: more than two seconds' worth of it.
        wait_until(lambda: origin.counts.total() > 900, 30)
        process.send_signal(signal.SIGKILL)
        process.wait(10)
        done = states(get(*arguments))
        assert done.total() == 1200
        assert done["reused"] > 100
    with running_origin() as fast:
        # Another origin is another URL: nothing of the first one's is taken for it.
        assert states(get(*LOOPBACK, "--reuse", "--json", "-o", str(tmp_path / "out"), fast.url("/bytes/10240?seed=1"))) == {"stored": 1}
