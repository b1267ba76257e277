"""Loops of file servers: who shares one with whom. Real loops and threads; nothing is fetched."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

pytest.importorskip("pycurl")

from fetchbox.curl.transport import FILE_SERVER_LOOPS, _FileServers


@pytest.fixture
def servers() -> Iterator[_FileServers]:
    loops = _FileServers(lambda number: None)
    yield loops
    loops.close()


def test_no_two_servers_share_a_loop_while_there_are_enough(servers: _FileServers) -> None:
    taken = [servers.take(f"host-{n}:21") for n in range(FILE_SERVER_LOOPS)]
    assert len(set(taken)) == FILE_SERVER_LOOPS
    assert servers.take("host-3:21") is taken[3]


def test_one_server_too_many_goes_to_the_loop_with_least_to_do(servers: _FileServers) -> None:
    taken = [servers.take(f"host-{n}") for n in range(FILE_SERVER_LOOPS) for _ in range(1 if n == 5 else 2)]
    assert servers.take("another") is taken[10]


def test_a_loop_that_has_nothing_to_do_is_taken_before_a_new_one(servers: _FileServers) -> None:
    first = servers.take("a")
    servers.take("a")
    servers.give_back("a")
    assert servers.take("b") is not first
    servers.give_back("a")
    assert servers.take("c") is first
    # The server comes back and may not go where another one now is.
    assert servers.take("a") is not first
