"""How programs end that use the library: clean exit codes, nothing on stderr, no hang, whatever was under way.

FETCHBOX_EXIT_ROUNDS=10 runs each way to end ten times.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest

from fetchbox.testing import Origin, running_origin, wait_until

ROUNDS = int(os.environ.get("FETCHBOX_EXIT_ROUNDS", "1"))
LIMIT = 30.0
PROLOGUE = """
import asyncio, multiprocessing, os, sys, threading, warnings
import fetchbox
origin, out = sys.argv[1:]
quick = [f"{origin}/bytes/1000?seed={i}" for i in range(20)]
hang = [f"{origin}/hostile/no-headers"] * 3
def run(urls, **more):
    return fetchbox.fetch(urls, store=out, allow_networks=["127.0.0.0/8"], per_host_concurrency=64, **more)
def arun(urls):
    return fetchbox.afetch(urls, store=out, allow_networks=["127.0.0.0/8"], per_host_concurrency=64)
"""
WAYS = {
    "to the end": ("assert [o.state for o in run(quick)] == ['stored'] * 20", 0),
    "left early and kept": ("it = run(quick + hang); next(it)", 0),
    "break": ("for o in run(quick + hang): break", 0),
    "an error in the loop": ("for o in run(quick + hang): raise SystemExit(7)", 7),
    "a thread left behind": (
        """
        go = threading.Event()
        def work():
            for o in run(quick + hang): go.set()
        threading.Thread(target=work, daemon=True).start()
        assert go.wait(20)
        """,
        0,
    ),
    "a coroutine left early": ("async def main():\n    async for o in arun(quick + hang): break\nasyncio.run(main())", 0),
    "a time-out of a coroutine": (
        """
        async def main():
            try:
                async with asyncio.timeout(0.3):
                    async for o in arun(hang): pass
            except TimeoutError:
                return 5
        sys.exit(asyncio.run(main()))
        """,
        5,
    ),
    "an engine never closed": ("engine = fetchbox.Engine(out, allow_networks=['127.0.0.0/8']); list(engine.fetch(quick))", 0),
}


@pytest.fixture(scope="module")
def origin() -> Iterator[Origin]:
    with running_origin() as server:
        yield server


def start(script: str, origin: Origin, out: Path) -> subprocess.Popen[str]:
    code = PROLOGUE + textwrap.dedent(script)
    command = [sys.executable, "-X", "faulthandler", "-W", "error", "-c", code, origin.base_url, str(out)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def finish(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    try:
        said, complained = process.communicate(timeout=LIMIT)
    finally:
        process.kill()
        process.wait()
    return process.returncode, said, complained


@pytest.mark.parametrize("way", WAYS)
def test_a_program_ends_cleanly(way: str, origin: Origin, tmp_path: Path) -> None:
    script, code = WAYS[way]
    for number in range(ROUNDS):
        assert finish(start(script, origin, tmp_path / str(number))) == (code, "", "")


def test_ctrl_c_is_a_keyboard_interrupt(origin: Origin, tmp_path: Path) -> None:
    for script in (
        "try:\n    for o in run(hang): pass\nexcept KeyboardInterrupt: sys.exit(9)",
        "async def main():\n    async for o in arun(hang): pass\ntry:\n    asyncio.run(main())\nexcept KeyboardInterrupt: sys.exit(9)",
    ):
        before = origin.count("/hostile/no-headers")
        process = start(script, origin, tmp_path)
        wait_until(lambda: origin.count("/hostile/no-headers") > before, LIMIT, what="a request")  # noqa: B023
        process.send_signal(signal.SIGINT)
        assert finish(process) == (9, "", "")
    wait_until(lambda: origin.open_connections == 0, LIMIT, what="the end of all connections")


def test_spawned_children_work_beside_a_running_engine(origin: Origin, tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text(
        PROLOGUE
        + textwrap.dedent("""
        def child(number):
            return [o for o in fetchbox.fetch([f"{origin}/bytes/100?seed=c{number}-{i}" for i in range(5)],
                                              store=f"{out}/{number}", allow_networks=["127.0.0.0/8"])]
        if __name__ == "__main__":
            mine = run(quick + hang)
            next(mine)
            with multiprocessing.get_context("spawn").Pool(2) as pool:
                results = pool.map(child, range(4))
            # Outcomes came back by pickle.
            print(sum(o.state == "stored" for result in results for o in result))
            mine.close()
        """)
    )
    command = [sys.executable, str(program), origin.base_url, str(tmp_path / "out")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "20\n", "")


def test_after_fork_what_was_started_before_fails_loudly_and_new_things_work(origin: Origin, tmp_path: Path) -> None:
    script = """
        warnings.simplefilter("ignore", DeprecationWarning)  # Python warns of forks beside threads, rightly
        mine = run(quick + hang)
        next(mine)
        kept = fetchbox.Engine(out, allow_networks=["127.0.0.0/8"])
        next(kept.fetch(quick))
        child = os.fork()
        if child == 0:
            try:
                # What is there already may still be given out; then the engine is asked.
                for _ in mine: pass
            except fetchbox.UsageError as error:
                print("iterator:", error, flush=True)
            try:
                list(kept.fetch(quick))
            except fetchbox.UsageError as error:
                print("engine:", error, flush=True)
            kept.close()
            del mine, kept
            print("new:", sum(o.state == "stored" for o in run(quick)), flush=True)
            sys.exit(4)
        _, status = os.waitpid(child, 0)
        print("child:", os.waitstatus_to_exitcode(status), flush=True)
        print("parent:", next(mine).state, flush=True)
        mine.close()
    """
    code, said, complained = finish(start(script, origin, tmp_path))
    assert (code, complained) == (0, "")
    lines = said.splitlines()
    advice = "this engine was started before fork(); make it in the child, or start children by spawn"
    assert lines[:2] == [f"iterator: {advice}", f"engine: {advice}"]
    assert lines[2:] == ["new: 20", "child: 4", "parent: stored"]
