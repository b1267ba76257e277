"""The engine's way to an object store, against real servers: moto always, s3s-fs where it is installed."""

from __future__ import annotations

import itertools
import json
import os
import subprocess
from collections.abc import Iterator
from typing import Any
from urllib.parse import quote

import pytest

import fetchbox
from fetchbox import DownloadTask, Outcome
from fetchbox.testing import Origin, content, content_sha256, running_origin, wait_until
from tests.process.object_stores import KEY, MIB, PART, S3, SECRET, SERVERS, Front, front
from tests.process.service import command

FETCH = {"allow_networks": ["127.0.0.0/8"], "backoff_base": 0.01, "backoff_max": 0.05, "max_attempts": 4}
BUCKETS = itertools.count()


@pytest.fixture(scope="module", params=list(SERVERS))
def server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3]:
    with SERVERS[request.param](tmp_path_factory.mktemp("s3")) as running:
        yield running


@pytest.fixture(scope="module")
def origin() -> Iterator[Origin]:
    with running_origin() as running:
        yield running


@pytest.fixture
def store(server: S3) -> Iterator[S3]:
    """The server with a bucket for this test, which is held to leave no upload behind."""
    fresh = server.with_bucket(f"bucket-{next(BUCKETS)}")
    # s3s-fs has one place for the uploads of all buckets, and one test leaves some there on purpose.
    before = set(fresh.uploads())
    yield fresh
    assert set(fresh.uploads()) <= before


@pytest.fixture
def through(store: S3) -> Iterator[Front]:
    """A front before the server."""
    with front(store) as running:
        yield running


def prefix(server: S3) -> str:
    """Where tests store."""
    return f"s3://{server.bucket}/some%20prefix"


def run(server: S3, *tasks: Any, url: str = "", fetch: dict[str, Any] | None = None, **storage: Any) -> list[Outcome]:
    """The outcomes of some tasks, in the order of their input."""
    config = {"fetch": {**FETCH, **(fetch or {})}, "storage": server.storage(**storage), "worker": {"concurrency": 16}}
    return sorted(fetchbox.fetch(tasks, store=url or prefix(server), config=config), key=lambda outcome: outcome.index)


def stored(outcomes: list[Outcome]) -> list[Outcome]:
    """Outcomes that all are stored."""
    assert [(outcome.url, outcome.code, outcome.message) for outcome in outcomes if outcome.state != "stored"] == []
    return outcomes


def test_bodies_of_every_size_arrive_whole_by_one_put_or_by_parts(store: S3, through: Front, origin: Origin) -> None:
    sizes = [0, 1, 1000, 64 * 1024 + 1, PART - 1, PART, PART + 1, 2 * PART, 3 * PART + 12345]
    for outcome, size in zip(stored(run(through.store(), *(origin.url(f"/bytes/{n}?seed={n}") for n in sizes))), sizes, strict=True):
        got = store.object(outcome.storage_url)
        assert got.content == content(size, size)
        assert (outcome.size, outcome.sha256) == (size, content_sha256(size, size))
        assert str(outcome.storage_url).startswith(f"{prefix(store)}/")
    small = sum(size < PART for size in sizes)
    assert (through.count("put"), through.count("create"), through.count("complete")) == (small, len(sizes) - small, len(sizes) - small)
    # 1, 2, 2 and 4 parts: the threshold itself is a whole part.
    assert through.count("part") == 9
    assert through.count("abort") == 0
    assert len(store.listed()) == len(sizes)


def test_a_length_that_nobody_states_makes_no_difference(store: S3, origin: Origin) -> None:
    paths = [f"/{kind}/{n}?seed={n}" for kind in ("chunked", "close-delimited") for n in (0, 5000, 2 * PART + 7)]
    for outcome, path in zip(stored(run(store, *map(origin.url, paths))), paths, strict=True):
        size = int(path.split("/")[2].split("?")[0])
        assert store.object(outcome.storage_url).content == content(size, size)


def test_case_19_and_13_a_transfer_that_fails_leaves_neither_object_nor_upload(store: S3, through: Front, origin: Origin) -> None:
    digest = "sha256:" + "0" * 64
    urls = [
        origin.url(f"/hostile/truncated?n={3 * PART}"),
        origin.url("/hostile/endless"),
        DownloadTask(origin.url(f"/bytes/{3 * PART}"), tags={"checksum_hint": digest}),
        DownloadTask(origin.url(f"/bytes/{3 * PART}?x"), tags={"expected_size": "7"}),
        origin.url(f"/hostile/reset-body?n={3 * PART}"),
    ]
    outcomes = run(through.store(), *urls, fetch={"max_bytes": "18MB", "max_attempts": 2})
    codes = ["DOWNLOAD_TRUNCATED", "DOWNLOAD_TOO_LARGE", "DOWNLOAD_CHECKSUM_MISMATCH", "DOWNLOAD_SIZE_MISMATCH", "DOWNLOAD_RESET"]
    assert [outcome.code for outcome in outcomes] == codes
    assert store.listed() == []
    # The engine is closed by now, and an engine ends its clean-ups before it ends itself.
    assert through.count("create") == through.count("abort") >= 5
    assert through.count("complete") == 0


def test_a_broken_transfer_goes_on_into_the_same_upload(store: S3, through: Front, origin: Origin) -> None:
    size = 5 * PART + 4321
    (outcome,) = stored(run(through.store(), origin.url(f"/cut/{2 * PART + 999}/bytes/{size}?seed=3")))
    assert outcome.attempts == 3
    assert store.object(outcome.storage_url).content == content(3, size)
    assert outcome.sha256 == content_sha256(3, size)
    assert (through.count("create"), through.count("complete"), through.count("abort")) == (1, 1, 0)
    assert through.count("part") == 6
    ranges = [request.headers.get("range") for request in origin.requests if request.path.startswith(f"/cut/{2 * PART + 999}/")]
    assert ranges[-3:] == [None, f"bytes={2 * PART + 999}-", f"bytes={4 * PART + 1998}-"]


def test_a_changed_origin_starts_another_upload(store: S3, through: Front, origin: Origin) -> None:
    size = 4 * PART
    (outcome,) = stored(run(through.store(), origin.url(f"/hostile/resume/etag-changes/{size}?id={store.name}")))
    assert len(store.object(outcome.storage_url).content) == size
    assert (through.count("create"), through.count("complete"), through.count("abort")) == (2, 1, 1)


def test_leaving_the_loop_aborts_what_was_under_way(store: S3, through: Front, origin: Origin) -> None:
    config = {"fetch": FETCH, "storage": through.store().storage()}
    slow = [origin.url(f"/hostile/stall?n={8 * PART}&id={n}") for n in range(4)]
    for outcome in fetchbox.fetch([*slow, origin.url("/delay/1/bytes/10")], store=prefix(store), config=config):
        assert outcome.size == 10
        wait_until(lambda: through.count("part") >= 4, 20, what="parts of the stalled ones")
        break
    assert through.count("create") == through.count("abort") == 4
    assert len(store.listed()) == 1


def test_case_27_what_comes_from_outside_is_cleaned_on_its_way_to_metadata(store: S3, origin: Origin) -> None:
    hints = {"Owner": "crawler", "na me\r\n": "a\r\nx-amz-acl: public-read\r\n", "big": "v" * 5000, "ümlaut": "grün \0 \u202e", "empty": ""}
    tasks = [
        DownloadTask(origin.url("/hostile/oversize-metadata"), id="a", metadata=hints),
        DownloadTask(origin.url("/hostile/crlf-headers"), id="b", metadata=hints),
        DownloadTask(origin.url(f"/bytes/{2 * PART}?type=text/x-odd"), id="c", metadata=hints),
        DownloadTask(origin.url("/gzip/2000"), id="d", metadata=hints),
    ]
    outcomes = run(store, *tasks, metadata={"Project": "all"})
    for outcome in outcomes:
        if outcome.code == "DOWNLOAD_BAD_RESPONSE":
            continue
        assert outcome.state == "stored", outcome
        fields = store.object(outcome.storage_url).headers
        kept = {name: value for name, value in fields.items() if name.startswith("x-amz-meta-")}
        assert kept["x-amz-meta-project"] == "all"
        assert kept["x-amz-meta-owner"] == "crawler"
        assert "x-amz-acl" not in fields
        assert all(len(value) <= 512 and value.isascii() and value.isprintable() for value in kept.values()), kept
        assert sum(len(name) - len("x-amz-meta-") + len(value) for name, value in kept.items()) <= 2048
        assert len(fields["content-type"]) <= 512
    fields = store.object(outcomes[2].storage_url).headers
    assert fields["content-type"] == "text/x-odd"
    fields = store.object(outcomes[3].storage_url).headers
    assert fields["content-encoding"] == "gzip"


IDS = [
    *(".", "..", "../../x", "a/b", "/", "//", "a\\b", "%2e%2e", "a%2Fb", " ", "a b", "a+b", "?", "#", "a&b=c", "é", "é" * 128, "x" * 128),
    *("nul", "a:b", "~", "*", "'", '"', "<x>", "👩", "resources/default/other/1", "\u202e", "..%00"),
]


@pytest.mark.parametrize("template", ["resources/{job_type}/{job_id}/{resource_id}", "t/{shard}/{host}/{resource_id}.{ext}"])
def test_case_26_no_id_escapes_and_each_has_an_object_of_its_own(store: S3, origin: Origin, template: str) -> None:
    # s3s-fs writes a file beside each object that has the whole key, in base64, in its name, and names end at 255 bytes.
    ids = [name for name in IDS if store.root is None or len(quote(name)) < 60]
    tasks = [DownloadTask(origin.url(f"/bytes/{100 + n}?seed={n}"), id=name) for n, name in enumerate(ids)]
    outcomes = stored(run(store, *tasks, key_template=template))
    for n, outcome in enumerate(outcomes):
        assert outcome.id == ids[n]
        assert store.object(outcome.storage_url).content == content(n, 100 + n), outcome.storage_url
    keys = store.listed()
    assert len(keys) == len(ids)
    first = template.split("/")[0]
    assert all(key.startswith(f"some prefix/{first}/") and ".." not in key.split("/") and len(key.encode()) <= 1024 for key in keys), keys
    depth = 1 + template.count("/")
    assert all(key.count("/") == depth for key in keys), keys


def test_case_41_denied_is_permanent(store: S3, through: Front, origin: Origin) -> None:
    through.always = {"put": (403, "AccessDenied"), "create": (403, "AccessDenied")}
    outcomes = run(through.store(), origin.url("/bytes/10"), origin.url(f"/bytes/{2 * PART}"))
    assert [(outcome.code, outcome.attempts) for outcome in outcomes] == [("UPLOAD_ACCESS_DENIED", 1)] * 2
    through.always = {"part": (403, "AccessDenied")}
    outcomes = run(through.store(), origin.url(f"/bytes/{2 * PART}"))
    assert [(outcome.code, outcome.attempts) for outcome in outcomes] == [("UPLOAD_ACCESS_DENIED", 1)]
    assert store.listed() == []


def test_a_bucket_that_is_missing_is_permanent(store: S3, origin: Origin) -> None:
    if store.root is not None:
        pytest.skip("s3s-fs makes buckets as they are written to")
    outcomes = run(store, origin.url("/bytes/10"), origin.url(f"/bytes/{2 * PART}"), url="s3://nowhere")
    assert [(outcome.code, outcome.attempts) for outcome in outcomes] == [("UPLOAD_NO_BUCKET", 1)] * 2


def test_a_store_that_is_away_is_retried(origin: Origin) -> None:
    nobody = S3("http://127.0.0.1:1", "nobody", "bucket")
    (outcome,) = run(nobody, origin.url("/bytes/10"), fetch={"max_attempts": 2})
    assert (outcome.code, outcome.attempts) == ("STORAGE_UNAVAILABLE", 2)


BUSY = (503, "SlowDown")
BROKEN = (500, "InternalError")
LATE_ERROR = (200, "InternalError")


@pytest.mark.parametrize(("operation", "fault", "code"), [
    ("put", BUSY, "UPLOAD_THROTTLED"), ("put", BROKEN, "UPLOAD_FAILED"), ("put", "lose", "UPLOAD_FAILED"),
    ("create", BUSY, "UPLOAD_THROTTLED"), ("create", BROKEN, "UPLOAD_FAILED"),
    ("part", BUSY, "UPLOAD_THROTTLED"), ("part", BROKEN, "UPLOAD_FAILED"), ("part", "lose", "UPLOAD_FAILED"),
    ("complete", BUSY, "UPLOAD_THROTTLED"), ("complete", BROKEN, "UPLOAD_FAILED"), ("complete", LATE_ERROR, "UPLOAD_FAILED"),
    ("complete", "lose", "UPLOAD_FAILED"),
], ids=lambda value: value if isinstance(value, str) else str(value[0]))  # fmt: skip
def test_case_40_a_failing_store_is_retried_and_has_the_object_once(
    store: S3, through: Front, origin: Origin, operation: str, fault: Any, code: str
) -> None:
    size = 1000 if operation == "put" else 2 * PART + 5
    url = origin.url(f"/bytes/{size}?seed=9&{operation}={fault}")
    # Within one attempt object_store tries again itself; between attempts the engine does.
    for attempts_of_store in (1, 4):
        through.faults = {operation: [fault, fault]}
        (outcome,) = stored(run(through.store(), url, max_attempts=attempts_of_store))
        assert store.object(outcome.storage_url).content == content(9, size)
        assert len(store.listed()) == 1
        assert store.uploads() == []
        if attempts_of_store == 1:
            assert outcome.attempts > 1
    through.always = {operation: fault}
    (outcome,) = run(through.store(), url, fetch={"max_attempts": 2})
    assert (outcome.state, outcome.code, outcome.attempts) == ("failed", code, 2)


def test_case_40_an_upload_whose_creation_was_not_heard_of_does_no_harm(server: S3, origin: Origin) -> None:
    """Nobody knows its id: only a collector, or the bucket's own rule, can abort it."""
    store = server.with_bucket("lost-creations")
    with front(store) as through:
        through.faults = {"create": ["lose"]}
        (outcome,) = stored(run(through.store(), origin.url(f"/bytes/{2 * PART}?seed=1")))
        assert store.object(outcome.storage_url).content == content(1, 2 * PART)
        assert len(store.listed()) == 1


def test_a_store_of_obstore_is_taken_as_it_is(store: S3, origin: Origin) -> None:
    from obstore.store import S3Store

    given = S3Store(
        store.bucket, prefix="given", endpoint=store.endpoint, access_key_id=KEY, secret_access_key=SECRET, region="us-east-1",
        client_options={"allow_http": True},
    )  # fmt: skip
    urls = [origin.url(f"/bytes/{n}?seed={n}") for n in (0, 10, 9 * MIB)]
    outcomes = stored(list(fetchbox.fetch(urls, store=given, allow_networks=["127.0.0.0/8"])))
    assert len(outcomes) == 3
    keys = store.listed()
    assert len(keys) == 3
    assert all(key.startswith("given/") for key in keys)
    bodies = {len(body): body for body in (store.request("GET", f"{store.bucket}/{quote(key)}").content for key in keys)}
    assert bodies == {n: content(n, n) for n in (0, 10, 9 * MIB)}


def test_get_downloads_into_a_bucket(store: S3, origin: Origin) -> None:
    urls = {origin.url(f"/bytes/{n}?seed={n}"): n for n in (0, 10, 2 * PART + 1)}
    storage = {name.upper(): value for name, value in store.storage().items()}
    environment = {f"FETCHBOX__STORAGE__{name}": value if isinstance(value, str) else json.dumps(value) for name, value in storage.items()}
    arguments = command("get", "--json", "-q", "--allow-network", "127.0.0.0/8", "-o", f"s3://{store.bucket}/got", *urls)
    for state in ("stored", "reused"):
        done = subprocess.run(arguments, capture_output=True, text=True, timeout=60, env={**os.environ, **environment}, check=False)
        assert done.returncode == 0, done.stderr + done.stdout
        records = [json.loads(line) for line in done.stdout.splitlines()]
        assert {record["url"]: record["size"] for record in records} == urls
        if state == "stored":
            for record in records:
                assert record["state"] == "stored"
                size = record["size"]
                assert store.object(record["storage_url"]).content == content(size, size)
    assert len(store.listed()) == 3
