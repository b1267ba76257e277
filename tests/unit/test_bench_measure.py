"""The measuring code against commands whose cost is known."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
import time

import pytest

from fetchbox.bench.cgroup import Cgroup
from fetchbox.bench.measure import MeasureError, measure, short_title
from fetchbox.bench.processes import ProcessState, read_process, read_tree, tree_usage

BUSY = "import time\nend = time.process_time() + {seconds}\nwhile time.process_time() < end: pass\n"
PYTHON = [sys.executable, "-I", "-S"]
HAVE_CGROUP = Cgroup.create()
if HAVE_CGROUP is not None:
    HAVE_CGROUP.path.rmdir()


def busy(seconds: float) -> list[str]:
    return [*PYTHON, "-c", BUSY.format(seconds=seconds)]


@pytest.mark.parametrize(
    "allow_cgroup", [False, pytest.param(True, marks=pytest.mark.skipif(HAVE_CGROUP is None, reason="no cgroup to write"))]
)
def test_a_busy_loop_costs_what_it_burns(allow_cgroup: bool) -> None:
    usage = measure(busy(0.3), allow_cgroup=allow_cgroup)
    assert usage.method == ("cgroup" if allow_cgroup else "rusage")
    assert 0.29 <= usage.cpu <= 0.6
    assert usage.wall >= 0.29


@pytest.mark.parametrize(
    "allow_cgroup", [False, pytest.param(True, marks=pytest.mark.skipif(HAVE_CGROUP is None, reason="no cgroup to write"))]
)
def test_children_count(allow_cgroup: bool) -> None:
    code = f"import subprocess, sys\nfor _ in range(2): subprocess.run([*{PYTHON!r}, '-c', {BUSY.format(seconds=0.2)!r}], check=True)"
    usage = measure([*PYTHON, "-c", code], allow_cgroup=allow_cgroup)
    assert 0.39 <= usage.cpu <= 1.0


def test_waiting_costs_nothing() -> None:
    usage = measure([*PYTHON, "-c", "import time; time.sleep(0.3)"])
    assert usage.wall >= 0.3
    assert usage.cpu < 0.2


def test_peak_memory_is_that_of_the_largest_moment() -> None:
    usage = measure([*PYTHON, "-c", "import time; block = bytearray(b'x') * (200 << 20); time.sleep(0.2); del block; time.sleep(0.2)"])
    assert 200 << 20 <= usage.peak_rss_max <= 260 << 20
    assert usage.peak_rss_sum >= 200 << 20


def test_output_is_kept_and_the_environment_added_to() -> None:
    usage = measure([*PYTHON, "-c", "import os; print(os.environ['BENCH_WORD'], 'PATH' in os.environ)"], env={"BENCH_WORD": "seen"})
    assert usage.stdout == b"seen True\n"


def test_failure_names_the_last_line() -> None:
    with pytest.raises(MeasureError, match=r"^ended with 3: the reason$"):
        measure([*PYTHON, "-c", "import sys; print('noise\\nthe reason\\n', file=sys.stderr); sys.exit(3)"])
    assert measure([*PYTHON, "-c", "import sys; sys.exit(3)"], ok=(3,)).cpu > 0


def test_too_slow_is_ended_with_everything_it_started() -> None:
    start = time.monotonic()
    with pytest.raises(MeasureError, match="did not end within"):
        measure(["/bin/sh", "-c", "sleep 61 & sleep 61"], timeout=0.3)
    assert time.monotonic() - start < 10
    assert not [state for state in _everything() if state.title == "sleep 61"]


def test_a_missing_program_is_an_oserror_or_a_failure() -> None:
    with pytest.raises((OSError, MeasureError)):
        measure(["/nonexistent/program"])


def test_what_a_command_leaves_running_is_ended() -> None:
    measure(["/bin/sh", "-c", "sleep 62 >/dev/null 2>&1 &"])
    deadline = time.monotonic() + 5
    while any(state.title == "sleep 62" for state in _everything()):
        assert time.monotonic() < deadline


def test_a_callable_is_measured_in_this_process() -> None:
    def work() -> None:
        end = time.process_time() + 0.2
        while time.process_time() < end:
            pass

    usage = measure(work)
    assert usage.method == "self"
    assert 0.19 <= usage.cpu <= 0.6


def test_a_process_reads_itself() -> None:
    state = read_process(os.getpid())
    assert state is not None
    used = resource.getrusage(resource.RUSAGE_SELF)
    assert state.parent == os.getppid()
    assert abs(state.cpu - used.ru_utime - used.ru_stime) < 0.5
    assert 0 < state.rss <= state.peak_rss


def test_a_gone_process_is_none() -> None:
    child = subprocess.Popen([*PYTHON, "-c", ""])
    child.wait(10)
    assert read_process(child.pid) is None


def test_a_tree_has_root_children_and_grandchildren() -> None:
    code = "import subprocess, sys; subprocess.run(['/bin/sh', '-c', 'echo ready; sleep 63; true'])"
    root = subprocess.Popen([*PYTHON, "-c", code], stdout=subprocess.PIPE, text=True, start_new_session=True)
    try:
        assert root.stdout is not None
        assert root.stdout.readline() == "ready\n"
        deadline = time.monotonic() + 10
        while "sleep 63" not in {state.title for state in read_tree(root.pid).values()}:
            assert time.monotonic() < deadline
        assert len(read_tree(root.pid)) == 3
        assert os.getpid() not in read_tree(root.pid)
    finally:
        os.killpg(root.pid, 9)
        root.communicate(timeout=10)


def state(pid: int, cpu: float, *, reaped: float = 0.0, started: int = 1, title: str = "p", peak: int = 1) -> ProcessState:
    return ProcessState(pid, 1, 1, started, title, cpu, 0.0, reaped, 0.0, peak, peak)


def test_usage_of_a_tree_is_the_difference() -> None:
    before = {1: state(1, 10.0, title="a"), 2: state(2, 5.0, title="b", peak=7)}
    after = {1: state(1, 11.0, title="a"), 2: state(2, 7.5, title="b", peak=9), 3: state(3, 0.25, title="b", peak=3)}
    usage = tree_usage(before, after)
    assert usage.cpu == pytest.approx(3.75)
    assert usage.per_process == pytest.approx({"a": 1.0, "b": 2.75})
    assert usage.peak_rss == {"a": 1, "b": 9}


def test_a_child_that_ended_counts_once() -> None:
    # It had used 5 before; its parent waited for it when it had used 6.
    before = {1: state(1, 1.0), 2: state(2, 5.0)}
    after = {1: state(1, 1.5, reaped=6.0)}
    assert tree_usage(before, after).cpu == pytest.approx(1.5)


def test_a_pid_used_again_is_another_process() -> None:
    before = {1: state(1, 1.0), 2: state(2, 5.0, started=1)}
    after = {1: state(1, 1.0, reaped=5.0), 2: state(2, 0.5, started=9)}
    assert tree_usage(before, after).cpu == pytest.approx(0.5)


@pytest.mark.parametrize(
    ("title", "short"),
    [
        ("fetchbox: worker 0", "fetchbox: worker 0"),
        ("/usr/sbin/nginx -p /x", "nginx"),
        ("/opt/bin/python3 -I /a/b/client.py urls", "python3 client.py"),
        ("redis-server 127.0.0.1:0", "redis-server"),
    ],
)
def test_titles_are_short(title: str, short: str) -> None:
    assert short_title(title) == short


def _everything() -> list[ProcessState]:
    return [found for pid in map(int, filter(str.isdigit, os.listdir("/proc"))) if (found := read_process(pid)) is not None]
