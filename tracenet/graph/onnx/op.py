"""What a translation is given: one ONNX node with its attributes, and those of its inputs whose values are known."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from tracenet.graph.onnx.model import OnnxNode
from tracenet_kernels.errors import CaptureError

Function = Callable[..., Tensor | tuple[Tensor, ...]]
"""``function(op, *inputs)``: the node's outputs by PyTorch operations; absent inputs are None."""


class Translation(NamedTuple):
    """How one kind of node is computed, and which of its attributes are understood."""

    function: Function
    attributes: frozenset[str] = frozenset()


def translation(function: Function, attributes: str = "") -> Translation:
    return Translation(function, frozenset(attributes.split()))


@dataclass(eq=False)
class Op:
    """One node while it is translated.

    Attributes:
        opset: version of the standard operators.
        known: values of the inputs that depend on no input of the model; None for the others.
        device: where a translation makes new tensors.
    """

    node: OnnxNode
    opset: int
    known: tuple[np.ndarray | None, ...]
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    @property
    def kind(self) -> str:
        return self.node.kind

    def refusal(self, what: str) -> CaptureError:
        """An error that names the node and its kind."""
        return CaptureError(f"node {self.node.name!r} ({self.kind}): {what}")

    def attr(self, name: str, default: Any) -> Any:
        return self.node.attributes.get(name, default)

    def required(self, name: str) -> Any:
        if name not in self.node.attributes:
            raise self.refusal(f"has no attribute {name!r}")
        return self.node.attributes[name]

    def given(self, position: int) -> bool:
        """Whether an optional input is there."""
        return position < len(self.node.inputs) and self.node.inputs[position] != ""

    def value(self, position: int, what: str) -> np.ndarray:
        """Values of an input that must not depend on the model's inputs."""
        known = self.known[position] if position < len(self.known) else None
        if known is None:
            raise self.refusal(f"{what} is computed from the model's input; only fixed values can be traced")
        return known

    def ints(self, name: str, position: int | None = None) -> list[int] | None:
        """A list of integers that newer operator sets take as an input and older ones as an attribute."""
        if position is not None and self.given(position):
            return [int(v) for v in self.value(position, name).reshape(-1)]
        found = self.node.attributes.get(name)
        return None if found is None else [int(v) for v in found]

    def number(self, name: str, position: int, default: Any = None) -> Any:
        """A single number, an input or an attribute alike."""
        if not self.given(position):
            return self.node.attributes.get(name, default)
        value = self.value(position, name)
        if value.size != 1:
            raise self.refusal(f"{name} has {value.size} values; it must be one")
        return value.reshape(-1)[0].item()

    def pair(self, name: str, default: int) -> tuple[int, int]:
        """An attribute for rows and columns."""
        values = self.node.attributes.get(name, [default, default])
        if len(values) != 2:
            raise self.refusal(f"{name} is {list(values)}; two-dimensional planes take two numbers")
        return int(values[0]), int(values[1])

    def plane(self, x: Tensor) -> tuple[int, int]:
        """Rows and columns of ``[N, C, H, W]``."""
        if x.ndim != 4:
            raise self.refusal(f"its input has shape {list(x.shape)}; only planes [N, C, H, W] can be traced")
        return x.shape[2], x.shape[3]

    def axis(self, value: int, rank: int) -> int:
        """A possibly negative axis as a position."""
        if not -rank <= value < rank:
            raise self.refusal(f"axis {value} does not exist in a tensor of {rank} axes")
        return int(value) % rank
