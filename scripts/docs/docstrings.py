"""Docstrings as Markdown: references such as ``:func:`trace``` become links, ``::`` before an example becomes ``:``.

An extension of griffe, which reads the package's sources for the API reference.
"""

from __future__ import annotations

import re
from typing import Any

import griffe

ROLE = re.compile(r":(?:func|meth|class|mod|data|attr|exc|obj):`([^`]+)`")
LITERAL = re.compile(r"::[ \t]*$", re.MULTILINE)


def as_markdown(text: str, owner: str = "") -> str:
    """A docstring with its references as links, where the site has what they name, and as code elsewhere.

    Args:
        text: the docstring.
        owner: dotted path of the class that relative references (``:meth:`run```) belong to, or of the module.
    """

    def link(match: re.Match[str]) -> str:
        target = match[1]
        shown = target.removeprefix("~").split(".")[-1]
        path = target.removeprefix("~")
        if "." not in path and owner:
            path = f"{owner}.{path}"
        return f'<autoref identifier="{path}" optional><code>{shown}</code></autoref>'

    return LITERAL.sub(":", ROLE.sub(link, text))


class Markdown(griffe.Extension):
    """Applies :func:`as_markdown` to every docstring that griffe reads."""

    def on_instance(self, *, obj: griffe.Object, **_: Any) -> None:
        """Called for every module, class, function and attribute."""
        if obj.docstring is not None:
            owner = obj if obj.is_class or obj.is_module else obj.parent
            obj.docstring.value = as_markdown(obj.docstring.value, owner.path if owner is not None else "")
