"""One hub, and apis and workers that reach it over TCP with TLS and a token, as on other hosts."""

from __future__ import annotations

import itertools
import re
import socket
import subprocess
import time
from pathlib import Path

from fetchbox.origin.certificates import Certificates
from tests.process.background import Background, sampling
from tests.process.hosts import TOKEN, Fleet, Host, fleet
from tests.process.load import Load, plain
from tests.process.netns import in_own_network, linked_namespace, switch
from tests.process.oracle import Oracle, difference
from tests.process.origins import OriginProcess
from tests.process.service import clean_environment, command
from tests.process.waiting import wait_for

JOBS = 60
PER_JOB = 25
TASKS = JOBS * PER_JOB
BACK_WITHIN = 10.0
"""Seconds from the start of a hub that was killed to the next job that is taken."""
CUT_SECONDS = 12.0
"""Longer than a worker believes in a hub that it does not hear."""


def post_everywhere(fleet: Fleet, origin: OriginProcess, oracle: Oracle, jobs: range) -> Background:
    """Posts jobs to the apis in turn; each acknowledgement is the oracle's."""

    def work(stopped: object) -> None:
        for job, api in zip(jobs, itertools.cycle(fleet.apis)):
            load: Load = plain(origin.base_url, job, PER_JOB)
            answer, status = api.http.post_until_acknowledged(load.body, load.key, headers=load.headers)
            oracle.acknowledge(load, answer, status)

    return Background("posting", work)


def asked(origin: OriginProcess, oracle: Oracle, count: int, fleet: Fleet) -> None:
    """Waits for so many requests at the origin."""
    wait_for(f"{count} requests", lambda: origin.journal.asked >= count, 60, every=0.02, describe=fleet.dump)


def test_apis_and_workers_of_other_hosts_live_through_the_death_of_the_hub_and_of_a_worker_host(tmp_path: Path) -> None:
    with OriginProcess(tmp_path, pace=250.0) as origin, fleet(tmp_path, apis=2) as hosts:
        assert [[p.role for p in host_processes(host)] for host in hosts.hosts] == [["hub"], ["api"], ["api"], ["worker"], ["worker"]]
        oracle = Oracle(hosts.apis[1].http, hosts.store, origin.journal)
        with sampling(oracle), post_everywhere(hosts, origin, oracle, range(JOBS)) as posting:
            asked(origin, oracle, TASKS // 5, hosts)
            # The hub's host goes down with everything on it; nobody else does.
            hosts.hub.kill_tree()
            before = origin.journal.total
            refused = hosts.apis[0].http.post(plain(origin.base_url, JOBS, 1).body, key="while it is away")
            assert refused.status_code == 503
            assert refused.json()["error"]["code"] == "HUB_UNAVAILABLE"
            assert "retry-after" in refused.headers
            wait_for("the workers to go on without it", lambda: origin.journal.total > before, 10, describe=hosts.dump)
            began = time.monotonic()
            hosts.hub.launch()
            late = plain(origin.base_url, JOBS + 1, 1)
            answer, status = hosts.apis[0].http.post_until_acknowledged(late.body, late.key, headers=late.headers)
            back = time.monotonic() - began
            oracle.acknowledge(late, answer, status)
            print(f"the hub was back {back:.2f} s after its start")
            assert back < BACK_WITHIN
            asked(origin, oracle, 3 * TASKS // 5, hosts)
            hosts.workers[0].kill_tree()
            posting.join(60)
        oracle.await_settled(60)
        print(oracle.check())
        snapshots = oracle.snapshots()
        for host in hosts.apis + hosts.workers[1:]:
            assert "no connection to the hub: " in host.log()
        hosts.stop()
        hosts.hub.start()
        hosts.apis[0].start()
        restarted = Oracle(hosts.apis[0].http, hosts.store, origin.journal)
        assert difference(snapshots, restarted.snapshots()) == ""
        listed = cli(hosts.apis[0], "ledger", "check", "--json")
        assert '"ok":true' in listed.stdout.replace(" ", ""), listed


def host_processes(host: Host) -> list:  # type: ignore[type-arg]
    """The processes below a host's supervisor that play a role."""
    return [process for role in ("hub", "api", "worker") for process in host.processes(role)]


def cli(host: Host, *arguments: str, token: str = TOKEN) -> subprocess.CompletedProcess[str]:
    """A command with the configuration of a host."""
    return subprocess.run(
        command("--config", str(host.config_path), *arguments),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env=clean_environment() | {"FETCHBOX__HUB__TOKEN": token},
    )


def test_a_worker_without_the_right_token_or_authority_says_why_and_gets_nothing(tmp_path: Path) -> None:
    strangers = Certificates.create()
    try:
        with fleet(tmp_path, workers=()) as hosts:
            calling = {"hub": hosts.apis[0].config["hub"]}
            wrong_ca = {"hub": {**calling["hub"], "tls_ca": str(strangers.ca_file)}}
            with Host(tmp_path / "no-token", "worker", calling) as no_token, Host(tmp_path / "wrong-ca", "worker", wrong_ca) as distrustful:
                (no_token.directory / "token").write_text("another token\n", encoding="utf-8")
                for host, said in (
                    (
                        no_token,
                        "no connection to the hub: the hub refused the connection: UNAUTHORIZED: the hub's token is missing or wrong",
                    ),
                    (distrustful, "nothing in hub.tls_ca has signed its certificate"),
                ):
                    host.launch()
                    wait_for(said, lambda host=host, said=said: said in host.log(), 20, every=0.1, describe=host.dump)  # type: ignore[misc]
                    assert not host.ready()
                    assert TOKEN not in host.log()
                    host.end()
            done = cli(hosts.apis[0], "ledger", "check", token="wrong")
            assert (done.returncode, "UNAUTHORIZED" in done.stderr) == (1, True), done
            metrics = hosts.hub.http.http.get(f"{hosts.hub.metrics_url}/metrics").text
            assert re.search(r'fetchbox_hub_connections_refused_total\{[^}]*reason="token"[^}]*\} [1-9]', metrics), metrics
            hosts.stop()
    finally:
        strangers.remove()


def test_a_port_that_is_taken_is_one_clear_error(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        listening = {"hub": {"listen": f"tcp://127.0.0.1:{taken.getsockname()[1]}"}}
        with Host(tmp_path / "hub", "hub", listening) as hub:
            hub.launch()
            assert hub.await_exit(limit=30) == 1
            assert "(hub.listen): Address already in use" in hub.log()


def test_a_worker_whose_link_is_cut_for_a_while_goes_on_afterwards(tmp_path: Path) -> None:
    def body() -> None:
        here, there = "10.77.0.1", "10.77.0.2"
        with switch(here), linked_namespace("worker", there) as link, OriginProcess(tmp_path, host=here, pace=150.0) as origin:
            quick = {
                "allow_networks": ["10.77.0.0/24"],
                "per_host_concurrency": 16,
                "backoff_base": 0.05,
                "backoff_max": 0.5,
                "read_timeout": 5,
            }
            with fleet(tmp_path, hub_at=here, workers=(link.prefix, ()), worker_at=(there,), overrides={"fetch": quick}) as hosts:
                oracle = Oracle(hosts.apis[0].http, hosts.store, origin.journal)
                far = hosts.workers[0]
                with post_everywhere(hosts, origin, oracle, range(JOBS)) as posting:
                    asked(origin, oracle, TASKS // 5, hosts)
                    link.cut()
                    posting.join(60)
                    wait_for(
                        "the worker to notice",
                        lambda: "no sign of life for 10 s" in far.log(),
                        CUT_SECONDS,
                        every=0.1,
                        describe=hosts.dump,
                    )
                    assert far.a_process("worker").alive
                    link.mend()
                oracle.await_settled(60)
                print(oracle.check())
                # Both are at work again.
                wait_for("the worker to be back", lambda: far.ready(), 15, every=0.1, describe=hosts.dump)
                hosts.stop()

    in_own_network(body)
