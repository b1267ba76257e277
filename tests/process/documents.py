"""The commands that stand in README.md and docs/*.md: where, and as what."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).parents[2]
DOCUMENTS: Final = (
    "README",
    *(f"docs/{name}" for name in ("cli", "transports", "http-api", "hostile-origin", "messaging", "proxies", "reuse", "storage")),
    *(f"docs/{name}" for name in ("failures", "observability", "security", "runbook", "ledger", "deployment", "benchmarks")),
    *(f"docs/{name}" for name in ("testing", "development", "library", "handlers", "configuration", "architecture", "politeness")),
    *(f"docs/{name}" for name in ("states", "hostile-cases")),
)
"""In the order in which their commands are run: each finds what those before it have left."""
TOOLS: Final = (
    "fetchbox",
    "make",
    "curl",
    "python",
    "python3",
    "promtool",
    "pip",
    "cargo",
    "docker",
    "docker-compose",
    "openssl",
    "apt-get",
)
"""A code span that begins with one of them is a command."""
FENCE: Final = re.compile(r"^( *)```(\w*)\n(.*?)^\1```$", re.MULTILINE | re.DOTALL)
INDENTED: Final = re.compile(r"(?<=\n\n)((?: {4}.*\n)(?:(?: {4}.*)?\n)*)")
SPAN: Final = re.compile(r"(?<!`)`([^`\n]+)`")
SHELL: Final = ("console", "sh", "bash", "shell")


@dataclass(frozen=True, slots=True)
class Command:
    """One command of a document. `inline`: a code span in a sentence or a table."""

    document: str
    text: str
    inline: bool

    def __str__(self) -> str:
        return f"{self.document}: {self.text}"


def commands() -> list[Command]:
    """All commands of all documents, each once, at its first place; those of blocks before those of sentences within a document."""
    found: dict[str, Command] = {}
    for document in DOCUMENTS:
        text = (ROOT / f"{document}.md").read_text(encoding="utf-8")
        for command in [*_of_blocks(text), *_of_spans(text)]:
            known = found.get(command[0])
            if known is None:
                found[command[0]] = Command(document, *command)
    return list(found.values())


def _of_blocks(text: str) -> Iterator[tuple[str, bool]]:
    for _, language, body in FENCE.findall(text):
        if language in SHELL:
            prompted = any(line.startswith("$ ") for line in body.splitlines())
            yield from ((command, False) for command in _commands(body, prompted))
    without = FENCE.sub("", text)
    for body in INDENTED.findall(without):
        lines = [line[4:] for line in body.splitlines()]
        yield from ((command, False) for command in _commands("\n".join(lines) + "\n", prompted=False))


def _commands(body: str, prompted: bool) -> Iterator[str]:
    """Whole commands: lines joined while a quotation is open or a backslash ends them. With prompts, only what follows one."""
    whole = ""
    for line in body.splitlines():
        if not whole:
            if prompted and not line.startswith("$ "):
                continue
            line = line.removeprefix("$ ")
            if not line.strip() or line.lstrip().startswith("#"):
                continue
        whole = _without_comment(whole + line).rstrip()
        if whole.endswith("\\") or _is_open(whole):
            whole += "\n"
            continue
        yield whole.strip()
        whole = ""
    assert not whole, f"a command that does not end: {whole}"


def _is_open(text: str) -> bool:
    """Whether a quotation is open at the end of the text."""
    quote = ""
    for sign in text:
        if quote:
            quote = "" if sign == quote else quote
        elif sign in "'\"":
            quote = sign
    return bool(quote)


def _without_comment(text: str) -> str:
    """Without what follows a `#` between blanks, outside of quotations."""
    quote = ""
    for place, sign in enumerate(text):
        if quote:
            quote = "" if sign == quote else quote
        elif sign in "'\"":
            quote = sign
        elif sign == "#" and place and text[place - 1] in " \t":
            return text[:place]
    return text


def _of_spans(text: str) -> Iterator[tuple[str, bool]]:
    for span in SPAN.findall(INDENTED.sub("", FENCE.sub("", text))):
        bare = re.sub(r"^(?:[A-Z_]+=\S+ )+", "", span)
        if bare.split(" ")[0].rpartition("/")[2] in TOOLS and " " in bare:
            yield span.replace("\\|", "|"), True
