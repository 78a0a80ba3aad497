"""Global vectors of one image: computed exactly or from a smaller image, checked, and what approximating them costs.

See :mod:`tracenet.rft.context` for what a global vector is and for the modes of a plan.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from tracenet.crop_pad import Patch, crop_patch
from tracenet.graph.graph import Graph, Node
from tracenet.rft.context import growth
from tracenet.rft.rules.pointwise import crop_output
from tracenet.rft.trace import Plan
from tracenet_kernels.errors import InputError

WHOLE_IMAGE = "the whole image"
CALLER = "the caller"


@dataclass(frozen=True)
class GlobalVectors:
    """Values of global vectors by node name, for plans with ``global_context="cached"``.

    Attributes:
        graph: the captured network that they belong to.
        values: node name -> value.
        source: what they were computed of, in words.
        exact: whether they are those of the full network on ``images``.
        images: copies of the network's inputs that they belong to; empty if the caller gave the values himself.
    """

    graph: Graph
    values: Mapping[str, Tensor]
    source: str
    exact: bool
    images: tuple[Tensor, ...] = ()

    def __contains__(self, name: str) -> bool:
        return name in self.values

    def __getitem__(self, name: str) -> Tensor:
        return self.values[name]

    def __len__(self) -> int:
        return len(self.values)

    def check_inputs(self, plan: Plan, inputs: Sequence[Tensor | Patch]) -> None:
        """Refuse inputs that are not those that the vectors belong to, as far as the plan reads them.

        Raises:
            InputError: they differ.
        """
        if not self.images:
            return
        for node, given, image in zip(plan.graph.inputs, inputs, self.images, strict=True):
            entry = plan.by_node.get(node)
            if entry is not None:
                window = entry.window
            else:
                window = given.window if isinstance(given, Patch) else node.full_window
            part = crop_patch(node, given, window) if isinstance(given, Patch) else crop_output(node, given, window)
            if not _equal(part, crop_output(node, image, window).to(part.device)):
                raise InputError(
                    f"the plan's vectors were computed of another image: input {node.name!r} differs inside {window}; "
                    "call traced.global_vectors and plan again for this image"
                )


def _equal(a: Tensor, b: Tensor) -> bool:
    """The same values; NaN equals itself."""
    return torch.equal(a, b) or (a.is_floating_point() and bool(((a == b) | (a.isnan() & b.isnan())).all()))


@dataclass(frozen=True)
class ApproximationError:
    """Difference between an approximation and the exact run inside one requested window.

    Attributes:
        max: largest absolute difference.
        relative: ``max`` over the largest exact magnitude inside the window.
    """

    max: float
    relative: float


def difference(approximate: Tensor | list[Tensor], exact: Tensor | list[Tensor]) -> ApproximationError:
    """Largest difference, absolute and relative to the largest exact value; of a list the worst tensor counts."""
    if isinstance(exact, list):
        errors = [difference(a, b) for a, b in zip(approximate, exact, strict=True)]
        return ApproximationError(max(e.max for e in errors), max(e.relative for e in errors))
    assert isinstance(approximate, Tensor)
    if not exact.numel():
        return ApproximationError(0.0, 0.0)
    error = float((approximate.double() - exact.double()).abs().max())
    scale = float(exact.double().abs().max())
    return ApproximationError(error, error / scale if scale else (float("inf") if error else 0.0))


def checked_vectors(graph: Graph, vectors: GlobalVectors | Mapping[str, Tensor] | None) -> GlobalVectors | None:
    """Vectors as a plan takes them; a plain mapping holds values of the caller's own, which count as approximate.

    Raises:
        InputError: they belong to another network or image size, or a value has another shape or dtype.
    """
    if vectors is None:
        return None
    if not isinstance(vectors, GlobalVectors):
        if not isinstance(vectors, Mapping):
            raise InputError(
                f"the vectors are a {type(vectors).__name__}; pass what traced.global_vectors(inputs) gives, or a "
                "mapping from node names to tensors"
            )
        vectors = GlobalVectors(graph, dict(vectors), CALLER, exact=False)
    for node, image in zip(graph.inputs, vectors.images, strict=False):
        if tuple(image.shape) != node.shape:
            raise InputError(
                f"the vectors are of an image {tuple(image.shape)}, but input {node.name!r} was captured at "
                f"{node.shape}; compute them with global_vectors of this traced model"
            )
    if vectors.graph is not graph:
        raise InputError("the vectors were computed by another traced model; call global_vectors on this one")
    for name, value in vectors.values.items():
        node_ = graph.by_name.get(name)
        if node_ is None:
            raise InputError(f"{name!r} is among the vectors but is not a node; use the names in plan.barriers")
        _check_value(node_, value)
    return vectors


def _check_value(node: Node, value: object) -> None:
    if not isinstance(value, Tensor):
        raise InputError(f"the vector {node.name!r} is a {type(value).__name__}; pass a tensor")
    if tuple(value.shape) != node.shape or value.dtype != node.dtype:
        raise InputError(
            f"the vector {node.name!r} is {tuple(value.shape)} {value.dtype}, but the network's is {node.shape} "
            f"{node.dtype}"
        )


def low_size(graph: Graph, scale: float) -> tuple[int, int]:
    """Rows and columns of the network's images at a scale; multiples of 32 where the captured sizes are.

    Raises:
        InputError: the scale is not in (0, 1], or the images differ in size.
    """
    if isinstance(scale, bool) or not isinstance(scale, (int, float)) or not 0 < scale <= 1:
        raise InputError(f"scale is {scale!r}; pass a number above 0 and at most 1, such as 0.5")
    planes = {node.plane for node in graph.inputs if node.layout is not None}
    if len(planes) != 1:
        raise InputError(f"the inputs' planes are {sorted(planes)}; scale is for networks of one image size")
    height, width = (_scaled(length, scale) for length in planes.pop())
    return height, width


def _scaled(length: int, scale: float) -> int:
    unit = 32 if length % 32 == 0 else 1
    return max(round(length * scale / unit), 1) * unit


def resized(node: Node, image: Tensor, height: int, width: int) -> Tensor:
    """An input at another size: bilinear, smoothed against aliasing. Inputs without a plane stay as they are."""
    if node.layout is None or node.plane == (height, width):
        return image
    planes = image.reshape(1, -1, *image.shape[-2:])
    values = planes if image.is_floating_point() else planes.float()
    values = F.interpolate(values, size=(height, width), mode="bilinear", antialias=True)
    values = values if image.is_floating_point() else values.round()
    return values.to(image.dtype).reshape(*image.shape[:-2], height, width)


def vectors_from_low(graph: Graph, names: Sequence[str], low: Graph, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Vectors of a smaller image as those of the full one: sums and norms grow with the plane, the rest stays.

    Raises:
        InputError: the smaller capture lacks a vector, or has it in another shape.
    """
    vectors: dict[str, Tensor] = {}
    for name in names:
        node, twin = graph.by_name[name], low.by_name[name]
        if twin.shape != node.shape:
            raise InputError(
                f"the vector {name!r} is {node.shape} here and {twin.shape} at the smaller size; the two captures are "
                "not of one network"
            )
        factor = growth(node, node.args[0].full_window.area / twin.args[0].full_window.area)
        vectors[name] = values[name] if factor == 1.0 else values[name] * factor
    return vectors
