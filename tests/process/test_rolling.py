"""A rolling upgrade: an earlier build and this one beside each other, in either order of hosts, under load.

Needs an interpreter with an earlier build, which only people have: `FETCHBOX_OLD_PYTHON=/opt/old/bin/python`. docs/deployment.md says how
to roll.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.process.background import sampling
from tests.process.hosts import Fleet, Host, fleet
from tests.process.iggy import SERVER, SKIPPED, iggy_server
from tests.process.oracle import Oracle, difference
from tests.process.origins import OriginProcess
from tests.process.test_hosts import JOBS, TASKS, asked, post_everywhere

# Read when this is imported: a test's own environment has none of our variables.
OLD = os.environ.get("FETCHBOX_OLD_PYTHON")

pytestmark = [
    pytest.mark.timeout(240),
    pytest.mark.skipif(OLD is None, reason="no earlier build: FETCHBOX_OLD_PYTHON names the interpreter of none"),
]


def upgrade(host: Host) -> None:
    """What an operator does to a host: stop, install, start."""
    host.end()
    host.run_by(sys.executable)
    host.start()


def in_order(hosts: Fleet, order: Sequence[str]) -> list[Host]:
    """The hosts as they are upgraded."""
    groups = {"hub": [hosts.hub], "workers": hosts.workers, "apis": hosts.apis}
    return [host for name in order for host in groups[name]]


@pytest.mark.parametrize("broker", ["embedded", "iggy"])
@pytest.mark.parametrize("order", [("hub", "workers", "apis"), ("workers", "apis", "hub")], ids=["hub first", "hub last"])
def test_hosts_are_upgraded_one_by_one_under_load(order: Sequence[str], broker: str, tmp_path: Path) -> None:
    assert OLD is not None
    if broker == "embedded":
        roll(tmp_path, order, OLD, {})
        return
    if SERVER is None:
        pytest.skip(SKIPPED)
    with iggy_server(tmp_path / "iggy") as server:
        roll(tmp_path, order, OLD, {"broker": {"url": server.url}, "tasks": {"partitions": 4}})


def roll(tmp_path: Path, order: Sequence[str], old: str, overrides: dict[str, object]) -> None:
    """Starts everything with the earlier build and ends with this one."""
    with OriginProcess(tmp_path, pace=60.0) as origin, fleet(tmp_path, apis=2, overrides=overrides, interpreter=old) as hosts:
        oracle = Oracle(hosts.apis[1].http, hosts.store, origin.journal)
        steps = in_order(hosts, order)
        with sampling(oracle), post_everywhere(hosts, origin, oracle, range(JOBS)) as posting:
            for number, host in enumerate(steps):
                asked(origin, oracle, (number + 1) * TASKS // (len(steps) + 2), hosts)
                upgrade(host)
            posting.join(60)
        oracle.await_settled(60)
        print(oracle.check())
        before = oracle.snapshots()
        hosts.stop()
        hosts.hub.start()
        hosts.apis[0].start()
        assert difference(before, Oracle(hosts.apis[0].http, hosts.store, origin.journal).snapshots()) == ""
