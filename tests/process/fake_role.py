"""A role for the supervisor's tests: `fake_role.py ROLE INDEX`, with its behaviour in the environment FAKE_<ROLE>, JSON.

Each life appends a line to FAKE_LOG, so that tests can wait for what happened instead of sleeping.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time

from fetchbox import _child
from fetchbox.config import Config
from fetchbox.control import Control


def note(control: Control, what: str, **more: object) -> None:
    """One line, written at once and whole."""
    line = json.dumps({"role": control.role, "index": control.index, "pid": os.getpid(), "what": what, "at": time.monotonic(), **more})
    descriptor = os.open(os.environ["FAKE_LOG"], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    try:
        os.write(descriptor, line.encode() + b"\n")
    finally:
        os.close(descriptor)


async def run(config: Config, control: Control) -> int:
    """Does what FAKE_<ROLE> says: `start` (exit code instead of readiness), `die` (exit code once ready), `drain` (seconds it takes)."""
    plan = json.loads(os.environ.get(f"FAKE_{control.role.upper()}", "{}"))
    note(control, "start", data_dir=config.data_dir, sid=os.getsid(0), listen_fd=control.listen_fd)
    if "start" in plan:
        print(f"{control.name} cannot start", file=sys.stderr)
        return int(plan["start"])
    control.add_metrics(lambda: f'# TYPE fake_lives gauge\nfake_lives{{kind="{control.role}"}} 1\n')
    control.on_reload(lambda fresh: note(control, "reload", rate=fresh.server.rate_limit))
    if "health" in plan:
        control.set_health(*plan["health"])
    control.ready()
    note(control, "ready")
    if "die" in plan:
        return int(plan["die"])
    await control.draining.wait()
    note(control, "drain")
    await asyncio.sleep(plan.get("drain", 0))
    note(control, "end")
    return 0


if __name__ == "__main__":
    _child.serve(sys.argv[1], int(sys.argv[2]), lambda: run)
