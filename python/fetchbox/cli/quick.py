"""The arguments of a plain `fetchbox get`, without typer: to load that takes as long as a thousand small downloads.

Taken is what can mean one thing only. Everything else (help, a mistake, a number, an option that is rare) is left to typer, which knows all
and says what is wrong. Tests hold both to the same.
"""

from __future__ import annotations

from collections.abc import Sequence

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

FLAGS = {
    "--json": "as_json",
    "--overwrite": "overwrite",
    "--insecure": "insecure",
    "-k": "insecure",
    "--quiet": "quiet",
    "-q": "quiet",
    "--verbose": "verbose",
    "-v": "verbose",
}
TEXTS = {
    "--url-col": "url_col",
    "--id-col": "id_col",
    "--out": "out",
    "-o": "out",
    "--user-agent": "user_agent",
    "-A": "user_agent",
    "--proxy": "proxy",
    "-x": "proxy",
    "--limit-rate": "limit_rate",
    "--max-filesize": "max_filesize",
}
LISTS = {"--input": "inputs", "-i": "inputs", "--allow-network": "allow_network", "--header": "header", "-H": "header"}
COUNTS = {"--concurrency": ("concurrency", 1, 100_000), "-j": ("concurrency", 1, 100_000), "--retry": ("retry", 0, 10**8)}
"""With the least and the most that is taken here."""


def arguments(argv: Sequence[str]) -> dict[str, Any] | None:
    """What `download` is to be called with; None when that is for typer to say."""
    found: dict[str, Any] = {}
    left = iter(argv)
    for argument in left:
        if not argument.startswith("-"):
            found.setdefault("urls", []).append(argument)
            continue
        name, equals, value = argument.partition("=") if argument.startswith("--") else (argument, "", "")
        if name in FLAGS:
            if equals:
                return None
            found[FLAGS[name]] = True
            continue
        if name not in TEXTS and name not in LISTS and name not in COUNTS:
            return None
        if not equals:
            value = next(left, "")
        # An option in the place of a value was hardly meant as one; a lone "-" is standard input.
        if not value or (value.startswith("-") and value != "-"):
            return None
        if name in LISTS:
            found.setdefault(LISTS[name], []).append(value)
            continue
        if name in TEXTS:
            key: str = TEXTS[name]
            taken: str | int = value
        else:
            key, least, most = COUNTS[name]
            if len(value) > 9 or not value.isascii() or not value.isdigit() or not least <= int(value) <= most:
                return None
            taken = int(value)
        if key in found:
            return None
        found[key] = taken
    return found
