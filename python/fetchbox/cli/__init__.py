"""The command line. One file a command, imported only when that command is asked for: `fetchbox --help` costs one bare interpreter.

Exit status: 0 done, 1 the operation failed, 2 bad usage, 130 Ctrl-C, 143 SIGTERM, 141 the reader of our output went away.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from importlib import import_module
from io import BufferedWriter, RawIOBase, TextIOWrapper
from typing import NoReturn, TextIO

COMMANDS: dict[str, tuple[str, str]] = {
    "up": ("up", "Run everything on this machine: api, workers and hub."),
    "api": ("api", "Run the HTTP side only."),
    "worker": ("worker", "Run download workers only."),
    "hub": ("hub", "Run the hub only: ledger and streams."),
    "get": ("get", "Download many URLs, without a service."),
    "submit": ("submit", "Post a manifest; --wait shows its progress."),
    "jobs": ("jobs", "List, show, follow and cancel jobs."),
    "ledger": ("ledger", "Check, mend, tidy, export and back up the ledger."),
    "streams": ("streams", "Make the topics, see their lag, look into them, publish a task."),
    "dlq": ("dlq", "List, show, replay and purge dead letters."),
    "config": ("config", "Check the configuration, or show where each value comes from."),
    "bench": ("bench", "Measure this machine: downloads, ingest, the pipeline."),
    "origin": ("origin", "Run the bundled web server: good pages and every hostile behaviour."),
}
"""Name → module of this package and one line of help."""

SHOWN_FAULTS = 5
"""Faults of a refused manifest that are named in its one line."""

FAILED = 1
BAD_USAGE = 2
INTERRUPTED = 130
CLOSED_PIPE = 141


def main(argv: Sequence[str] | None = None) -> None:
    """The entry point `fetchbox`: runs a command and ends the process with its status."""
    sys.stdout = whole(sys.stdout)
    try:
        status = run(list(sys.argv[1:] if argv is None else argv))
        sys.stdout.flush()
    except KeyboardInterrupt as error:
        status = getattr(error, "status", INTERRUPTED)
    except BrokenPipeError:
        status = CLOSED_PIPE
    if status == CLOSED_PIPE:
        from fetchbox.cli.output import forget

        forget(1)
    _end(status)


def whole(stream: TextIO) -> TextIO:
    """The stream, with a buffer if it has none, as under PYTHONUNBUFFERED: a pipe may take a part only of a long text, and Python would
    drop the rest without a word."""
    raw = getattr(stream, "buffer", None)
    if not isinstance(raw, RawIOBase):
        return stream
    return TextIOWrapper(BufferedWriter(raw), encoding=stream.encoding, errors=stream.errors, line_buffering=True)


def _end(status: int) -> NoReturn:
    if "apache_iggy" in sys.modules:
        # Its threads outlive a connection. One of them that wants the interpreter while that is being taken down aborts the process.
        sys.stderr.flush()
        os._exit(status)
    sys.exit(status)


def run(argv: list[str]) -> int:
    """Runs a command line and returns its exit status; what goes wrong is told on stderr, in one line where one says it."""
    argv = list(argv)
    config: str | None = None
    while argv and argv[0].startswith("-"):
        option, equals, value = argv.pop(0).partition("=")
        if option in ("-h", "--help"):
            print(_help())
            return 0
        if option == "--version":
            from fetchbox import __version__

            print(f"fetchbox {__version__}")
            return 0
        if option != "--config":
            return _bad_usage(f"no such option: {option} (fetchbox --help lists what there is)")
        if not equals:
            if not argv:
                return _bad_usage("--config needs a file")
            value = argv.pop(0)
        config = value
    if not argv:
        print(_help(), file=sys.stderr)
        return BAD_USAGE
    name = argv.pop(0)
    if name == "help":
        return run([*argv[:1], "--help"])
    if name not in COMMANDS:
        from difflib import get_close_matches

        near = get_close_matches(name, COMMANDS, 1)
        return _bad_usage(f"no such command: {name}" + (f"; did you mean {near[0]}?" if near else " (fetchbox --help lists them)"))
    return _run_command(name, argv, config)


def _run_command(name: str, argv: list[str], config: str | None) -> int:
    # Modules are no garbage: nothing is looked for in them, now or later.
    import gc

    gc.disable()
    from fetchbox.errors import ConfigError, FetchboxError, Refused, UsageError

    prog = f"fetchbox {name}"
    try:
        if name == "get" and config is None:
            from fetchbox.cli import quick

            if (plain := quick.arguments(argv)) is not None:
                from fetchbox.cli.download import download

                gc.freeze()
                gc.enable()
                return download(**plain)
        return _by_typer(name, argv, config)
    except UsageError as error:
        return _tell(prog, str(error), BAD_USAGE)
    except ConfigError as error:
        for problem in error.problems:
            print(f"{prog}: configuration: {problem}", file=sys.stderr)
        return FAILED
    except Refused as error:
        faults = [f"{fault.get('pointer') or '/'}: {fault.get('message')}" for fault in error.details or ()]
        more = [f"and {len(faults) - SHOWN_FAULTS} more"] if len(faults) > SHOWN_FAULTS else []
        return _tell(prog, "; ".join([str(error), *faults[:SHOWN_FAULTS], *more]), FAILED)
    except FetchboxError as error:
        return _tell(prog, str(error), FAILED)
    except BrokenPipeError:
        return CLOSED_PIPE
    except OSError as error:
        return _tell(prog, f"{error.strerror or error}{f': {error.filename}' if error.filename else ''}", FAILED)


def _by_typer(name: str, argv: list[str], config: str | None) -> int:
    import gc

    # Set before typer is imported: plain help is twice as fast, and what it shows pastes well.
    os.environ.setdefault("TYPER_USE_RICH", "0")
    import typer
    from typer.main import get_command

    from fetchbox.cli.coerce import without_pydantic

    prog = f"fetchbox {name}"
    try:
        command = get_command(import_module(f"fetchbox.cli.{COMMANDS[name][0]}").app)
        without_pydantic(command)
        gc.freeze()
        gc.enable()
        result = command.main(argv, prog_name=prog, standalone_mode=False, obj={"config": config})
        return result if isinstance(result, int) else 0
    except typer.TyperException as error:
        if type(error).__name__ == "NoArgsIsHelpError":
            print(error.format_message(), file=sys.stderr)
            return BAD_USAGE
        return _tell(prog, error.format_message(), error.exit_code)
    except typer.Abort:
        return _tell(prog, "given up", FAILED)


def _tell(prog: str, message: str, status: int) -> int:
    print(f"{prog}: {' '.join(message.split())}", file=sys.stderr)
    return status


def _bad_usage(message: str) -> int:
    return _tell("fetchbox", message, BAD_USAGE)


def _help() -> str:
    width = max(len(name) for name in COMMANDS)
    lines = [f"  {name:<{width}}  {summary}" for name, (_, summary) in COMMANDS.items()]
    return "\n".join(
        [
            "Usage: fetchbox [--config FILE] COMMAND …",
            "",
            "Post a manifest of URLs; get verified objects in your store and an account of every single one.",
            "",
            "Commands:",
            *lines,
            "",
            "Options:",
            "  --config FILE  the TOML configuration (also after the command, or FETCHBOX_CONFIG)",
            "  --version      the version",
            "  -h, --help     this; `fetchbox COMMAND --help` for one command",
        ]
    )
