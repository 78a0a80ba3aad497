"""Docstrings as Markdown: references such as ``:func:`trace``` become links, ``::`` before an example becomes ``:``.

An extension of griffe, which reads the package's sources for the API reference.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import griffe

ROLE = re.compile(r":(func|meth|class|mod|data|attr|exc|obj):`~?([\w.]+)`")
LITERAL = re.compile(r"^[ \t]*::[ \t]*\n|:(?=:[ \t]*$)", re.MULTILINE)


def as_markdown(text: str, where: Callable[[str, str], str]) -> str:
    """A docstring with its references as links, where the site has what they name, and as code elsewhere.

    Args:
        text: the docstring.
        where: role and name of a reference without dots -> its dotted path.
    """

    def link(match: re.Match[str]) -> str:
        role, target = match.groups()
        path = target if "." in target else where(role, target)
        shown = target.split(".")[-1]
        return f'<autoref identifier="{path}" optional><code>{shown}</code></autoref>'

    return LITERAL.sub("", ROLE.sub(link, text))


class Markdown(griffe.Extension):
    """Applies :func:`as_markdown` to every docstring that griffe reads."""

    def on_instance(self, *, obj: griffe.Object, **_: Any) -> None:
        """Called for every module, class, function and attribute."""
        if obj.docstring is not None:
            obj.docstring.value = as_markdown(obj.docstring.value, lambda role, name: _path(obj, role, name))


def _path(obj: griffe.Object, role: str, name: str) -> str:
    """What a bare name means inside a docstring: a member of the class, an import, or something of the module."""
    owner = obj if obj.is_class or obj.is_module else obj.parent
    if owner is None:
        return name
    if role in ("meth", "attr") and owner.is_class:
        return f"{owner.path}.{name}"
    module = owner if owner.is_module else owner.module
    member = module.members.get(name)
    return member.target_path if member is not None and member.is_alias else f"{module.path}.{name}"
