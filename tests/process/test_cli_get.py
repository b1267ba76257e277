"""`fetchbox get` as a process, against the bundled origin."""

from __future__ import annotations

import gzip
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest

from fetchbox.testing import Origin, content, content_sha256, running_origin

LOOPBACK = ("--allow-network", "127.0.0.0/8")
OUTCOME_KEYS = {
    *("id", "index", "url", "final_url", "state", "code", "message", "http_status", "size", "sha256", "content_type", "sniffed_type"),
    *("storage_url", "etag", "last_modified", "attempts", "proxy", "timings", "generation"),
}


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "fetchbox.cli", "get", *arguments]


def get(*arguments: str, stdin: bytes = b"", **environment: str) -> subprocess.CompletedProcess[str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("FETCHBOX")}
    done = subprocess.run(command(*arguments), capture_output=True, input=stdin, timeout=60, env={**kept, **environment}, check=False)
    return subprocess.CompletedProcess(done.args, done.returncode, done.stdout.decode(), done.stderr.decode())


def outcomes(done: subprocess.CompletedProcess[str]) -> dict[str, dict[str, Any]]:
    return {record["url"]: record for record in map(json.loads, done.stdout.splitlines())}


def stored(record: dict[str, Any]) -> bytes:
    return Path(unquote(urlsplit(record["storage_url"]).path)).read_bytes()


@pytest.fixture
def origin() -> Iterator[Origin]:
    with running_origin() as server:
        yield server


def test_every_byte_is_stored_and_told(origin: Origin, tmp_path: Path) -> None:
    sizes = {origin.url(f"/bytes/{n}?seed={n}"): n for n in (0, 1, 10_240, 3_000_000)}
    done = get(*LOOPBACK, "--json", "-o", str(tmp_path / "out"), *sizes)
    assert done.returncode == 0, done.stderr
    records = outcomes(done)
    assert set(records) == set(sizes)
    for url, n in sizes.items():
        record = records[url]
        assert set(record) >= OUTCOME_KEYS
        assert (record["state"], record["size"], record["sha256"]) == ("stored", n, content_sha256(n, n))
        assert stored(record) == content(n, n)
        assert Path(unquote(urlsplit(record["storage_url"]).path)).is_relative_to(tmp_path / "out")


def test_the_same_command_again_downloads_only_what_is_missing(origin: Origin, tmp_path: Path) -> None:
    urls = [origin.url(f"/bytes/1000?seed={i}") for i in range(20)]
    listed = tmp_path / "urls.txt"
    listed.write_text("\n".join(urls[:15]))
    assert get(*LOOPBACK, "-q", "-i", str(listed), "-o", str(tmp_path / "out")).returncode == 0
    assert origin.count("/bytes/1000") == 15
    listed.write_text("\n".join(urls))
    done = get(*LOOPBACK, "--json", "-i", str(listed), "-o", str(tmp_path / "out"))
    assert done.returncode == 0, done.stderr
    records = outcomes(done)
    assert [records[url]["state"] for url in urls] == ["reused"] * 15 + ["stored"] * 5
    assert [records[url]["index"] for url in urls] == list(range(20))
    assert all(set(record) >= OUTCOME_KEYS for record in records.values())
    assert all(stored(records[url]) == content(i, 1000) for i, url in enumerate(urls))
    assert origin.count("/bytes/1000") == 20
    assert get(*LOOPBACK, "-q", "--overwrite", "-i", str(listed), "-o", str(tmp_path / "out")).returncode == 0
    assert origin.count("/bytes/1000") == 40


def test_failures_are_told_and_end_with_1(origin: Origin, tmp_path: Path) -> None:
    good, missing = origin.url("/bytes/10"), origin.url("/status/404")
    done = get(*LOOPBACK, "-o", str(tmp_path), good, missing)
    assert done.returncode == 1
    assert done.stdout == ""
    assert "DOWNLOAD_HTTP_4XX" in done.stderr
    assert missing in done.stderr
    assert "1 stored, 1 failed" in done.stderr
    quiet = get(*LOOPBACK, "-q", "-o", str(tmp_path), good, missing)
    assert (quiet.returncode, quiet.stdout, quiet.stderr) == (1, "", "")


def test_loopback_is_refused_unless_allowed(origin: Origin, tmp_path: Path) -> None:
    url = origin.url("/bytes/10")
    refused = get("--json", "-o", str(tmp_path), url)
    assert refused.returncode == 1
    assert outcomes(refused)[url]["code"] == "DOWNLOAD_BLOCKED_ADDRESS"
    assert not origin.requests
    allowed = get("--json", "-o", str(tmp_path), url, FETCHBOX__FETCH__ALLOW_NETWORKS='["127.0.0.0/8"]')
    assert allowed.returncode == 0, allowed.stderr


def test_curls_options_do_what_they_do_in_curl(origin: Origin, tmp_path: Path) -> None:
    out = ("-o", str(tmp_path), "--json", *LOOPBACK)
    url = origin.url("/echo")
    seen = json.loads(stored(outcomes(get(*out, "-H", "X-One: 1", "-H", "Accept: text/x", "-A", "my agent", url))[url]))["headers"]
    assert (seen["x-one"], seen["accept"], seen["user-agent"]) == ("1", "text/x", "my agent")
    flaky = origin.url("/flaky/1/bytes/10?id=r")
    assert outcomes(get(*out, "--retry", "0", flaky))[flaky]["state"] == "failed"
    large = origin.url("/bytes/20000")
    assert outcomes(get(*out, "--max-filesize", "10k", large))[large]["code"] == "DOWNLOAD_TOO_LARGE"
    slow = origin.url("/delay/30/bytes/10")
    assert outcomes(get(*out, "--max-time", "0.3", "--retry", "0", slow))[slow]["code"] == "DOWNLOAD_TIMEOUT"


def test_certificates_are_checked_unless_told_otherwise(tmp_path: Path) -> None:
    with running_origin(tls="ca") as origin:
        assert origin.certificates is not None
        url = origin.url("/bytes/10")
        out = ("-o", str(tmp_path), "--json", "--retry", "0", "--overwrite", *LOOPBACK)
        assert outcomes(get(*out, url))[url]["code"] == "DOWNLOAD_TLS"
        assert outcomes(get(*out, "--cacert", str(origin.certificates.ca_file), url))[url]["state"] == "stored"
        assert outcomes(get(*out, "-k", url))[url]["state"] == "stored"


@pytest.mark.parametrize("name", ["list.jsonl", "list.csv", "list.jsonl.gz", "-"])
def test_inputs_with_ids(origin: Origin, tmp_path: Path, name: str) -> None:
    rows = [(origin.url(f"/bytes/100?seed={i}"), f"item/{i}") for i in range(3)]
    if name.endswith(".csv"):
        data = "photo,sku\n" + "".join(f"{url},{sku}\n" for url, sku in rows)
    else:
        data = "".join(json.dumps({"photo": url, "sku": sku}) + "\n" for url, sku in rows)
    packed = gzip.compress(data.encode()) if name.endswith(".gz") else data.encode()
    if name != "-":
        (tmp_path / name).write_bytes(packed)
        name = str(tmp_path / name)
    done = get(*LOOPBACK, "--json", "-i", name, "--url-col", "photo", "--id-col", "sku", "-o", str(tmp_path / "out"), stdin=packed)
    assert done.returncode == 0, done.stderr
    assert {url: record["id"] for url, record in outcomes(done).items()} == dict(rows)
    assert len([path for path in (tmp_path / "out").rglob("*") if path.is_file()]) == 3


def test_ctrl_c_is_130_and_the_next_run_goes_on(origin: Origin, tmp_path: Path) -> None:
    quick = [origin.url(f"/bytes/1000?seed={i}") for i in range(10)]
    arguments = (*LOOPBACK, "-j", "20", "-o", str(tmp_path / "out"), *quick)
    running = subprocess.Popen(
        command("-v", *arguments, origin.url("/hostile/no-headers")), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        assert running.stderr is not None
        for _ in range(10):
            assert running.stderr.readline().startswith("stored 1000 bytes: ")
        running.send_signal(signal.SIGINT)
        _, told = running.communicate(timeout=15)
    finally:
        running.kill()
        running.wait()
    assert running.returncode == 130
    assert "10 stored" in told
    assert "goes on from here" in told
    assert "Traceback" not in told
    assert get(*arguments).returncode == 0
    assert origin.count("/bytes/1000") == 10


def test_a_store_that_cannot_be_written_is_one_line(origin: Origin, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    done = get(*LOOPBACK, "-o", str(tmp_path / "file" / "below"), origin.url("/bytes/1"))
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert done.stderr.startswith("fetchbox get: ")


def test_a_flag_that_makes_no_sense_is_told_before_anything_is_opened(tmp_path: Path) -> None:
    done = get("--max-filesize", "lots", "-o", str(tmp_path / "out"), "http://x.example/")
    assert done.returncode == 2
    assert done.stderr.startswith("fetchbox get: --max-filesize: a size is ")
    assert not (tmp_path / "out").exists()


def test_the_rate_limit_holds_for_all_downloads_together(origin: Origin, tmp_path: Path) -> None:
    sizes = {origin.url(f"/bytes/50000?seed={i}"): 50_000 for i in range(5)} | {origin.url("/chunked/50000"): 50_000}
    started = time.monotonic()
    done = get(*LOOPBACK, "--json", "--limit-rate", "200k", "-j", "6", "-o", str(tmp_path), *sizes)
    seconds = time.monotonic() - started
    records = outcomes(done)
    assert {url: record["size"] for url, record in records.items()} == sizes
    # A twentieth of a second may be made up for at once.
    assert seconds > 300_000 / (200 * 1024) - 0.05
    # What a limit holds up is the body's time; the origin is not blamed for it.
    assert sum(record["timings"]["body"] for record in records.values()) > 1e6
    slow = origin.url("/bytes/100000?seed=slow")
    done = get(*LOOPBACK, "--json", "--limit-rate", "10k", "--max-time", "1", "--retry", "0", "-o", str(tmp_path), slow)
    assert outcomes(done)[slow]["code"] == "DOWNLOAD_TIMEOUT"


def test_outcomes_are_told_while_a_pipe_is_waited_for(origin: Origin, tmp_path: Path) -> None:
    arguments = command(*LOOPBACK, "--json", "-i", "-", "-o", str(tmp_path))
    running = subprocess.Popen(arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, bufsize=1)
    try:
        assert running.stdin is not None
        assert running.stdout is not None
        for number in range(3):
            running.stdin.write(origin.url(f"/bytes/10?seed={number}") + "\n")
            assert json.loads(running.stdout.readline())["state"] == "stored"
        running.send_signal(signal.SIGINT)
        _, told = running.communicate(timeout=15)
    finally:
        running.kill()
        running.wait()
    assert running.returncode == 130
    assert "3 stored" in told
    assert "Traceback" not in told


def test_a_low_limit_on_descriptors_is_raised(origin: Origin, tmp_path: Path) -> None:
    urls = [origin.url(f"/delay/0.2/bytes/10?seed={i}") for i in range(150)]
    limits = {"FETCHBOX__FETCH__PER_HOST_CONCURRENCY": "150"}
    low = ["sh", "-c", 'ulimit -S -n 100 && exec "$@"', "sh", *command(*LOOPBACK, "-j", "150", "-q", "-o", str(tmp_path), *urls)]
    done = subprocess.run(low, capture_output=True, text=True, timeout=60, env={**os.environ, **limits}, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_records_without_urls_are_failures_like_others(origin: Origin, tmp_path: Path) -> None:
    listed = tmp_path / "list.csv"
    listed.write_text(f"id,url\na,{origin.url('/bytes/10')}\nb,\nc,example.org/x\n")
    done = get(*LOOPBACK, "--json", "-i", str(listed), "-o", str(tmp_path / "out"))
    assert done.returncode == 1
    records = {record["id"]: record for record in map(json.loads, done.stdout.splitlines())}
    assert {name: record["code"] for name, record in records.items()} == {"a": None, "b": "VALIDATION_MISSING", "c": "DOWNLOAD_BAD_URL"}
    assert all(set(record) >= OUTCOME_KEYS for record in records.values())
    assert "no scheme" in records["c"]["message"]


def test_what_came_before_a_broken_line_is_finished(origin: Origin, tmp_path: Path) -> None:
    listed = tmp_path / "list.jsonl"
    listed.write_text("".join(json.dumps({"url": origin.url(f"/delay/0.2/bytes/10?seed={i}")}) + "\n" for i in range(5)) + "{nonsense\n")
    done = get(*LOOPBACK, "-i", str(listed), "-o", str(tmp_path / "out"))
    assert done.returncode == 2
    *_, summary, error = done.stderr.splitlines()
    assert summary.startswith("5 stored")
    assert error.startswith(f"fetchbox get: {listed}:6: not JSON")


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("--nonsense",), "No such option: --nonsense"),
        (("-o", "ftp://host/x"), "there is no store ftp://"),
        (("-i", "/no/such/file"), "-i: there is no file /no/such/file"),
        (("-i", "/"), "-i / cannot be read: Is a directory"),
        (("-x", "ftp://proxy"), "-x: "),
        (("--cacert", "/no/such/file"), "--cacert: cannot read /no/such/file"),
        (("--allow-network", "1.2.3"), "--allow-network: "),
        (("--limit-rate", "fast"), "--limit-rate: a size is"),
        (("-H", "nonsense"), "-H takes 'Name: value'"),
        (("-H", "a: b\x01"), "-H: the value of a"),
        (("-j", "0"), "Invalid value for '--concurrency'"),
        (("--retry", "-1"), "Invalid value for '--retry'"),
    ],
)
def test_bad_usage_is_one_line_and_2(arguments: tuple[str, ...], told: str, tmp_path: Path) -> None:
    place = () if "-o" in arguments else ("-o", str(tmp_path / "out"))
    done = get(*place, *arguments, "http://x.example/")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(f"fetchbox get: {told}")
    assert done.stderr.count("\n") == 1
    assert not (tmp_path / "out").exists()
