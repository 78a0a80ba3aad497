"""Frozen dataclasses from plain data, as checkpoints store it."""

from __future__ import annotations

from dataclasses import fields
from typing import Any, TypeVar

from tracenet_kernels.errors import InputError

T = TypeVar("T")


def from_plain(cls: type[T], data: dict[str, Any], what: str) -> T:
    """An instance of the dataclass ``cls`` from a dict of its fields; ``what`` names it in the error.

    Raises:
        InputError: a field is not known.
    """
    known = {f.name for f in fields(cls)}  # type: ignore[arg-type]
    unknown = sorted(set(data) - known)
    if unknown:
        raise InputError(f"{what} unknown fields {unknown}; known are {sorted(known)}")
    return cls(**data)
