"""Tables of the benchmarks page, made from bench/results when the site is built; no figure is typed by hand."""

from __future__ import annotations


def table(name: str) -> str:
    """The table called ``name``."""
    raise KeyError(name)
