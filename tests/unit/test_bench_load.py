"""The load generator against a real server, the static origin, and a comparison of downloaders that are stand-ins."""

from __future__ import annotations

import http.server
import json
import sys
import threading
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from fetchbox.bench import download, nginx
from fetchbox.bench.load import Report, Spec, response_end, run_load
from fetchbox.bench.peers import Job, Peer, Stored, count_files, needs_modules, needs_program, run_peer
from fetchbox.bench.service import disk_bytes, manifest
from fetchbox.origin import free_port


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    seen: list[tuple[str, str | None, bytes]] = []  # noqa: RUF012 - shared on purpose

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.seen.append((self.path, self.headers.get("Idempotency-Key"), body))
        answer = json.dumps({"job_id": f"job-{len(self.seen)}"}).encode()
        self.send_response(202 if body == b"good" else 400)
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[str]:
    Handler.seen = []
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as httpd:
        httpd.daemon_threads = True
        thread = threading.Thread(target=httpd.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{httpd.server_port}"
        httpd.shutdown()
        thread.join(10)


def test_exactly_so_many_requests_are_sent(server: str) -> None:
    report = run_load(Spec(server, body="good", connections=5, seconds=60, count=103, keys=True, collect=True), processes=2)
    assert report.statuses == {"202": 103}
    assert report.answered == 103
    assert report.refused == 0
    assert len(report.latencies) == len(set(report.job_ids)) == 103
    assert len({key for _, key, _ in Handler.seen}) == 103
    assert {(path, body) for path, _, body in Handler.seen} == {("/jobs", b"good")}
    assert 0 < report.latency(0.5) <= report.latency(0.99) <= report.wall
    assert report.cpu > 0


def test_the_load_ends_by_time_and_counts_refusals(server: str) -> None:
    report = run_load(Spec(server, body="bad", connections=2, seconds=0.3))
    assert set(report.statuses) == {"400"}
    assert report.refused == report.statuses["400"] > 0
    assert report.answered == 0
    assert report.wall < 10


def test_nobody_listening_is_counted(server: str) -> None:
    report = run_load(Spec(f"http://127.0.0.1:{free_port()}", connections=3, seconds=5))
    assert report.errors == 3
    assert report.latency(0.99) == 0


@pytest.mark.parametrize(
    ("head", "body"),
    [
        (b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\n", b"abc"),
        (b"HTTP/1.1 202 Accepted\r\nlocation: /x\r\ncontent-length: 0\r\n\r\n", b""),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", b"3\r\nabc\r\n0\r\n\r\n"),
        (b"HTTP/1.1 204 No Content\r\n\r\n", b""),
    ],
)
def test_a_response_ends_where_it_ends(head: bytes, body: bytes) -> None:
    whole = head + body
    assert response_end(whole + b"HTTP/1.1 200") == len(whole)
    assert all(response_end(whole[:cut]) is None for cut in range(len(head)))
    if body:
        assert response_end(whole[:-1]) is None


def test_reports_add_up() -> None:
    assert Report(1.0, {"202": 2, "429": 3}, [], errors=1).refused == 4


def test_a_manifest_holds_the_urls() -> None:
    assert json.loads(manifest(["http://a/", "http://b/"], page="p"))["resources"] == [{"url": "http://a/"}, {"url": "http://b/"}]


def test_files_on_disk_are_counted(tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "file").write_bytes(b"x" * 10_000)
    assert 0 < disk_bytes(tmp_path) < 100_000


@pytest.mark.skipif(nginx.find_nginx() is None, reason="nginx is not installed")
def test_the_static_origin_serves_distinct_files() -> None:
    files = nginx.Files(300, 1000)
    with nginx.static_origin(files) as origin:
        urls = origin.urls()
        assert len(set(urls)) == 300
        bodies = [urllib.request.urlopen(url, timeout=10).read() for url in urls]
    assert {len(body) for body in bodies} == {1000}
    assert len(set(bodies)) == 300
    assert origin.process.returncode is not None


@pytest.mark.parametrize("size", [0, 1, 8, nginx.BLOCK - 1, nginx.BLOCK, 2 * nginx.BLOCK + 5])
def test_files_have_their_size(tmp_path: Path, size: int) -> None:
    nginx.write_files(tmp_path, nginx.Files(2, size))
    assert count_files(tmp_path) == Stored(2, 2 * size)


def test_sizes_have_labels() -> None:
    assert nginx.Files(20_000, 10 << 10).label() == "20,000 x 10 KiB"
    assert nginx.size_label(256 << 20) == "256 MiB"
    assert nginx.size_label(1500) == "1500 B"


def stand_in(name: str, code: str, missing: str | None = None) -> Peer:
    def command(job: Job) -> list[str]:
        return [sys.executable, "-I", "-S", "-c", code, str(job.url_list), str(job.out)]

    return Peer(name, command, lambda: missing)


COPY = "import sys\nfor n, line in enumerate(open(sys.argv[1])): open(f'{sys.argv[2]}/{n}', 'w').write('x' * 10)"


def test_downloaders_take_turns_and_the_absent_are_named(tmp_path: Path) -> None:
    peers = [
        stand_in("good", COPY),
        stand_in("short", COPY.replace("* 10", "* 9")),
        stand_in("broken", "import sys; sys.exit('no luck')"),
        stand_in("absent", COPY, missing="absent is not installed"),
    ]
    task = download.Task("3 files", ["a", "b", "c"], Stored(3, 30), 4, 2)
    found = download.compare(task, peers, "good", directory=str(tmp_path))
    assert [(row["client"], row["rounds"], row["wall x"], row["CPU x"]) for row in found.rows] == [("good", 2, 1.0, 1.0)]
    assert [entry["client"] for entry in found.rounds] == ["good", "good"]
    assert any("absent is not installed" in note for note in found.notes)
    assert any("short left 3 files of 27 bytes, not 3 of 30" in note for note in found.notes)
    assert any("ended with 1: no luck" in note for note in found.notes)
    assert list(tmp_path.iterdir()) == []


def test_a_slow_peer_runs_once(tmp_path: Path) -> None:
    slow = Peer("slow", stand_in("", COPY).command, lambda: None, slow=True)
    found = download.compare(download.Task("1 file", ["a"], None, 1, 3), [slow], "slow", directory=str(tmp_path))
    assert found.rows[0]["rounds"] == 1
    assert run_peer(slow, ["a"], 1, directory=str(tmp_path)).cpu > 0


def test_what_is_missing_is_said() -> None:
    assert needs_program("no-such-program")() == "no-such-program is not installed"
    assert needs_program("sh")() is None
    assert needs_modules(["json"], sys.executable)() is None
    assert needs_modules(["json", "no_such_module"], sys.executable)() == "not installed: no_such_module"
