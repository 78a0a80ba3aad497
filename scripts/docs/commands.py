"""The options of every command of ``tracenet`` as Markdown, from the command line's own declarations."""

from __future__ import annotations

import inspect
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple, get_args, get_type_hints

from typer.models import ArgumentInfo

from tracenet.cli import app

VALUES = {Path: "PATH", int: "N", float: "NUMBER", str: "TEXT"}
"""How a value is shown, by type, where the command line gives it no name of its own."""


class Option(NamedTuple):
    """One option or argument of a command.

    Attributes:
        names: as written on the command line, ``--help`` style; an argument's name in capitals.
        value: what follows it, or nothing for a switch.
        default: None where there is none.
    """

    names: tuple[str, ...]
    value: str
    help: str
    default: Any
    is_required: bool

    @property
    def is_argument(self) -> bool:
        """Whether it goes without a name."""
        return not self.names[0].startswith("-")


def commands() -> dict[str, Callable[..., Any]]:
    """Command -> its function, in the order of the help."""
    return {
        entry.name or entry.callback.__name__.replace("_", "-"): entry.callback
        for entry in app.registered_commands
        if entry.callback is not None
    }


def options_of(name: str) -> Iterator[Option]:
    """Arguments and options of a command, in order.

    Raises:
        KeyError: there is no such command.
    """
    function = commands()[name]
    hints = get_type_hints(function, include_extras=True)
    for parameter in inspect.signature(function).parameters.values():
        kind, info = get_args(hints[parameter.name])[:2]
        required = parameter.default is inspect.Parameter.empty
        default = None if required or parameter.default is False else parameter.default
        if isinstance(info, ArgumentInfo):
            yield Option((parameter.name.upper(),), "", info.help or "", default, required)
            continue
        first = (info.default,) if isinstance(info.default, str) else ()  # typer's first name stands in its place
        names = (*first, *(info.param_decls or ())) or (f"--{parameter.name.replace('_', '-')}",)
        value = "" if kind is bool else info.metavar or VALUES[_plain(kind)]
        yield Option(names, value, info.help or "", default, required)


def _plain(kind: Any) -> Any:
    """``int`` of ``int | None`` and of ``list[int] | None``."""
    if isinstance(kind, types.UnionType):
        kind = next(part for part in get_args(kind) if part is not type(None))
    return get_args(kind)[0] if get_args(kind) else kind


def options(name: str) -> str:
    """What a command is for and a table of its options, as Markdown."""
    rows = [inspect.getdoc(commands()[name]) or "", "", "| option | what | default |", "| --- | --- | --- |"]
    for option in options_of(name):
        written = ", ".join(option.names) + (f" {option.value}" if option.value else "")
        default = "required" if option.is_required else "" if option.default is None else f"`{option.default}`"
        rows.append(f"| `{written}` | {_cell(option.help)} | {default} |")
    return "\n".join(rows)


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("<", "&lt;")
