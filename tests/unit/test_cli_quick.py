"""Plain arguments of `fetchbox get` mean the same with typer and without."""

from __future__ import annotations

import inspect
from typing import Any

import pytest
from typer.main import get_command

from fetchbox.cli import quick
from fetchbox.cli.download import download
from fetchbox.cli.get import app

COMMAND = get_command(app)
OWN = {name: parameter.default for name, parameter in inspect.signature(download).parameters.items() if name != "config"}
URL = "http://a.example/1"


def by_typer(argv: list[str]) -> dict[str, Any]:
    """What typer makes of it, without what was not given."""
    parsed = COMMAND.make_context("get", list(argv)).params
    return {name: value for name, value in parsed.items() if name != "config" and value not in (OWN[name], [], ())}


@pytest.mark.parametrize(
    "argv",
    [
        [URL],
        [URL, "http://b.example/2", "-o", "out"],
        ["-i", "list.txt", "-o", "out", "-j", "64", "-q", "--allow-network", "127.0.0.0/8"],
        ["-i", "-", "--input", "b.csv", "--url-col", "u", "--id-col=i", URL],
        ["--input=a.txt", "--out=s3://bucket/a=b", "--concurrency=100000", "--json", "--overwrite"],
        ["-H", "A: b", "--header", "C: d", "-A", "me", "-x", "http://proxy:1", "-k", "-v", URL],
        ["--limit-rate", "10M", "--max-filesize", "5GiB", "--retry", "0", "--user-agent=", URL],
        ["--retry", "007", "--insecure", "--quiet", "--verbose", "-q", URL],
        [URL, "--proxy", "p:1", "--allow-network=10.0.0.0/8", "--allow-network", "::1/128"],
        [],
    ],
)
def test_what_is_taken_means_what_typer_says(argv: list[str]) -> None:
    taken = quick.arguments(argv)
    if "--user-agent=" in argv:
        assert taken is None
    else:
        assert taken == by_typer(argv)


@pytest.mark.parametrize(
    "argv",
    [
        ["--help"],
        ["-h"],
        ["--no-such"],
        ["--out"],
        ["-o", "-q", URL],
        ["-o", "a", "-o", "b", URL],
        ["-j", "0", URL],
        ["-j", "many", URL],
        ["-j", "1.5", URL],
        ["-j", "100001", URL],
        ["-j", "٣", URL],
        ["-j64", URL],
        ["-qv", URL],
        ["--", URL],
        ["-", URL],
        ["--json=true", URL],
        ["--reuse", URL],
        ["--config", "x.toml", URL],
        ["--max-time", "1", URL],
        ["-u", "a:b", URL],
        ["--transport", "curl", URL],
    ],
)
def test_everything_else_is_left_to_typer(argv: list[str]) -> None:
    assert quick.arguments(argv) is None


def test_every_option_taken_is_one_of_typers_of_that_kind() -> None:
    parameters: list[Any] = list(COMMAND.params)
    options = {option: parameter for parameter in parameters for option in parameter.opts}
    assert all(options[option].name == name and options[option].is_flag for option, name in quick.FLAGS.items())
    for taken, many in ((quick.TEXTS, False), (quick.LISTS, True)):
        for option, name in taken.items():
            parameter = options[option]
            assert (parameter.name, parameter.is_flag, parameter.multiple) == (name, False, many)
    assert {name for name, _, _ in quick.COUNTS.values()} == {"concurrency", "retry"}
    assert all(options[option].name == name for option, (name, _, _) in quick.COUNTS.items())


def test_defaults_are_the_same_both_ways() -> None:
    parsed = COMMAND.make_context("get", [URL]).params
    assert parsed.keys() == OWN.keys() | {"config"}
    assert by_typer([URL]) == {"urls": [URL]}
