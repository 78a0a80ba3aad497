"""A kernel launch as data: it can be run, captured in a graph, compiled ahead of time, or costed."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class Cost:
    """What a launch does at most, where every window is as large as its bound.

    Attributes:
        macs: multiply-adds.
        read, written: bytes of windows, weights and partial sums, each counted once.
    """

    macs: int = 0
    read: int = 0
    written: int = 0


@dataclass(frozen=True, slots=True)
class Launch:
    """One kernel with all its arguments.

    Attributes:
        name: of the step it belongs to, or of the kernel family.
        kernel: what ``triton.jit`` returned.
        grid: programs per axis; bounds, surplus programs exit at once.
        args: run-time arguments by name: tensors, integers, floats, tensor descriptors.
        meta: ``tl.constexpr`` arguments by name.
        options: ``num_warps``, ``num_stages``, ``launch_pdl``.
        tensor_cores: whether its machine code must hold tensor-core instructions.
        cost: upper bounds, for roofline models.
    """

    name: str
    kernel: Any
    grid: tuple[int, int, int]
    args: dict[str, Any]
    meta: dict[str, Any]
    options: dict[str, Any] = field(default_factory=dict)
    tensor_cores: bool = False
    cost: Cost = Cost()

    def __call__(self) -> None:
        """Run on the current stream of the current device."""
        self.kernel[self.grid](**self.args, **self.meta, **self.options)
