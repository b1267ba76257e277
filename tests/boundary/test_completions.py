"""Calls on a hub that is not there: they end with an error, at once or within their limit, and leave nothing behind."""

import asyncio
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from fetchbox import _core
from fetchbox._completions import Completions


def client(path: Path) -> _core.HubClient:
    return _core.HubClient(json.dumps({"url": f"unix://{path}/no.sock", "name": "test", "role": "operator"}).encode())


async def test_a_call_without_a_hub_is_unavailable(tmp_path: Path) -> None:
    native = client(tmp_path)
    completions = Completions(native)
    with pytest.raises(_core.CoreError) as caught:
        await completions.wait(native.query("jobs", b"{}"), 5)
    assert caught.value.kind == "unavailable"
    completions.close()
    native.close()


async def test_closing_ends_what_waits(tmp_path: Path) -> None:
    native = client(tmp_path)
    completions = Completions(native)
    waiting = asyncio.ensure_future(completions.wait(10**9, 30))
    await asyncio.sleep(0)
    completions.close()
    with pytest.raises(_core.CoreError) as caught:
        await waiting
    assert caught.value.kind == "closed"
    native.close()
    with pytest.raises(_core.CoreError):
        native.query("jobs", b"{}")


async def test_a_token_that_never_finishes_times_out(tmp_path: Path) -> None:
    native = client(tmp_path)
    completions = Completions(native)
    with pytest.raises(TimeoutError):
        await completions.wait(10**9, 0.01)
    completions.close()
    native.close()


def test_a_native_object_refuses_to_work_after_fork(tmp_path: Path) -> None:
    script = f"""
import json, os, sys
from fetchbox import _core
native = _core.HubClient(json.dumps({{"url": "unix://{tmp_path}/no.sock", "name": "t", "role": "operator"}}).encode())
pid = os.fork()
if pid == 0:
    try:
        native.query("jobs", b"{{}}")
    except _core.CoreError as error:
        os._exit(0 if "fork" in str(error) else 3)
    os._exit(4)
sys.exit(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
"""
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", script], timeout=30, check=False, env=dict(os.environ))
    assert done.returncode == 0


def test_an_unclosed_client_does_not_spoil_the_exit(tmp_path: Path) -> None:
    script = f"""
import json
from fetchbox import _core
native = _core.HubClient(json.dumps({{"url": "unix://{tmp_path}/no.sock", "name": "t", "role": "operator"}}).encode())
native.query("jobs", b"{{}}")
"""
    for _ in range(10):
        done = subprocess.run([sys.executable, "-c", script], timeout=30, check=False, capture_output=True)
        assert (done.returncode, done.stderr) == (0, b"")
