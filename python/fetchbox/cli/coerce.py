"""Typer turns every argument into its type with pydantic, whose import takes longer than everything else before a command's first line.
Most arguments are text, or not given at all: those need none."""

from __future__ import annotations

from typing import Any


def without_pydantic(command: Any) -> None:
    """Lets the parameters of a typer command and its subcommands take what is plain as it is; the rest goes typer's own way. Does nothing
    should a later typer keep its parameters in another way."""
    for parameter in command.params:
        _take_plain(parameter)
    make_help = command.get_help_option

    def get_help_option(context: Any) -> Any:
        option = make_help(context)
        _take_plain(option)
        return option

    command.get_help_option = get_help_option
    for subcommand in getattr(command, "commands", {}).values():
        without_pydantic(subcommand)


def _take_plain(parameter: Any) -> None:
    if getattr(parameter, "_runtime_param", "") is None and hasattr(parameter, "type_descriptor"):
        parameter._runtime_param = _Plain()


class _Plain:
    """In the place of typer's `RuntimeParam`."""

    def coerce(self, value: Any, param: Any, ctx: Any) -> Any:
        many = param.multiple or param.nargs == -1
        if value is None:
            return () if many else None
        kind = param.type_descriptor.annotation
        if kind in (str, bool) and not many and type(value) is kind:
            return value
        if kind == list[str] and type(value) in (list, tuple) and all(type(item) is str for item in value):
            return list(value)
        if kind is int and type(value) is str and len(value) < 10 and value.isascii() and value.isdigit():
            info = param.type_descriptor.parameter_info
            if (info.min is None or int(value) >= info.min) and (info.max is None or int(value) <= info.max):
                return int(value)
        param._runtime_param = None
        return param.get_runtime_param().coerce(value, param=param, ctx=ctx)
