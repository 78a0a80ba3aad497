"""The network on a device, the standard request on it, and what every answer is compared with.

The reference is the full network in float64. An output's error is judged as tests judge it: in float32 by
``max|difference| / max|plane|``, in half precision and tf32 by the relative Frobenius norm. A window of a few cells has
a norm near 0 by chance, so the norm of its reference counts as at least that of an average window of the plane.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bench.end_to_end.full import fold_batch_norms
from bench.end_to_end.network import HEADS, MASK_CELLS, OUTPUTS, Click, FullNetwork, Levels, SizedNetwork, build_model
from tracenet.conventions import MASK_STRIDE
from tracenet.engine.click_class import RequestForm
from tracenet.engine.lower import lower
from tracenet.engine.schedule import Schedule
from tracenet.models import TraceNet
from tracenet.models.fpn import FPN
from tracenet.models.resnet import Bottleneck
from tracenet.standard import Size
from tracenet_kernels.testing import TOLERANCES, Tolerance
from tracenet_kernels.window import Window

Windows = Mapping[Any, Window]


@dataclass(frozen=True)
class Precision:
    """How a network computes.

    Attributes:
        name: as the command line takes it.
        dtype: of planes and weights.
        products: how products of float32 are formed, as the executor calls it; by default on tensor cores, from three
            products each.
    """

    name: str
    dtype: torch.dtype
    products: str = "tf32x3"

    @property
    def dtype_name(self) -> str:
        return str(self.dtype).removeprefix("torch.")

    @property
    def tolerance(self) -> Tolerance:
        return TOLERANCES[torch.float16 if self.products == "tf32" else self.dtype]

    def set_peers(self) -> None:
        """Let PyTorch form products the same way, by the algorithms that it finds fastest."""
        torch.backends.cudnn.benchmark = True
        torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = self.products == "tf32"


PRECISIONS = {
    one.name: one
    for one in (
        Precision("float16", torch.float16),
        Precision("bfloat16", torch.bfloat16),
        Precision("float32", torch.float32),
        Precision("tf32", torch.float32, "tf32"),
        Precision("ieee", torch.float32, "ieee"),
    )
}


@dataclass(frozen=True)
class Errors:
    """Of several outputs, the worst of each kind; infinite where one is missing or not finite."""

    max_relative: float = 0.0
    frobenius: float = 0.0

    def within(self, tolerance: Tolerance) -> bool:
        limits = ((self.max_relative, tolerance.max_relative), (self.frobenius, tolerance.frobenius))
        return all(limit is None or error <= limit for error, limit in limits)

    def __or__(self, other: Errors) -> Errors:
        return Errors(max(self.max_relative, other.max_relative), max(self.frobenius, other.frobenius))


WRONG = Errors(math.inf, math.inf)


def compare(actual: Tensor, expected: Tensor, plane: Tensor) -> Errors:
    """Errors of a window.

    Args:
        expected: what it should be.
        plane: all of the plane that ``expected`` is a window of.
    """
    if actual.shape != expected.shape or not bool(torch.isfinite(actual).all()):
        return WRONG
    difference = (actual.to(expected.device, expected.dtype) - expected).abs()
    if not difference.numel():
        return Errors()
    largest = float(plane.abs().max())
    usual = float(plane.norm()) * math.sqrt(expected.numel() / plane.numel())
    norm = max(float(expected.norm()), usual)
    return Errors(_share(float(difference.max()), largest), _share(float(difference.norm()), norm))


def _share(error: float, scale: float) -> float:
    return error / scale if scale else math.inf if error else 0.0


class DeviceNetwork:
    """The network at one image size on one device.

    Attributes:
        sized: captured in float32 on the CPU, where plans, requests and the schedule come from.
        image: float32 [1, 3, H, W] on the device.
    """

    def __init__(self, model: TraceNet, size: Size, device: torch.device) -> None:
        self.model = model
        self.size = size
        self.device = device
        self.sized = SizedNetwork(model, size)
        self.image = self.sized.image.to(device)

    @cached_property
    def schedule(self) -> Schedule:
        return lower(self.sized.traced.graph)

    @property
    def centre(self) -> Click:
        return self.size[0] / 2, self.size[1] / 2

    def request(self, click: Click, levels: Levels) -> dict[int | str, Window]:
        return self.sized.request(click, levels)

    def form(self, levels: Levels) -> RequestForm:
        """The family of all standard requests on these levels: one class, one captured graph."""
        heads = RequestForm.locate(self.schedule, HEADS, levels)
        return heads.with_square(self.schedule, "mask", MASK_STRIDE, MASK_CELLS)

    def parameters(self, click: Click) -> dict[int, Any]:
        """The flat inputs by position, for the executor."""
        return {position: value.numpy() for position, value in enumerate(self.sized.inputs(click)) if position}

    def inputs(self, click: Click, precision: Precision) -> tuple[Tensor, ...]:
        """All inputs for PyTorch: on the device, the image channels_last."""
        image, *rest = (value.to(self.device) for value in self.sized.inputs(click))
        image = image.to(precision.dtype)
        if precision.dtype != torch.bfloat16:  # it has too few digits for the pixel that a coordinate is relative to
            rest = [value.to(precision.dtype) for value in rest]
        return image.contiguous(memory_format=torch.channels_last), *rest

    def converted(self, precision: Precision) -> TraceNet:
        """The model on the device, channels_last, its BatchNorms folded."""
        model = deepcopy(self.model)
        fold_batch_norms(model)
        model.eval()  # what the BatchNorms were replaced by
        return model.to(self.device, precision.dtype).to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def full(self, precision: Precision) -> nn.Module:
        """The full network for PyTorch: what :class:`bench.end_to_end.network.FullNetwork` computes."""
        return FullNetwork(self.converted(precision)).eval()

    def errors(self, click: Click, outputs: Mapping[Any, Tensor], windows: Windows | None = None) -> Errors:
        """Of all outputs against the full network in float64.

        Args:
            outputs: name -> whole planes or, with ``windows``, those windows of them.
        """
        if set(outputs) != set(OUTPUTS if windows is None else windows):
            return WRONG
        worst = Errors()
        for name, value in outputs.items():
            plane = self._plane(str(name), click)
            expected = plane if windows is None else plane[(..., *windows[name].slices)]
            worst |= compare(value, expected, plane)
        return worst

    def _plane(self, name: str, click: Click) -> Tensor:
        if name != "mask":
            return self._planes[name]
        assert self.model.mask_head is not None
        rest = (value.to(self.device, torch.float64) for value in self.sized.inputs(click)[1:])
        with torch.inference_mode():
            return self.model.mask_head(self._planes["maskfeat"], *rest)

    @cached_property
    def _planes(self) -> dict[str, Tensor]:
        model = deepcopy(self.model).to(self.device, torch.float64)
        inputs = (value.to(self.device, torch.float64) for value in self.sized.inputs(self.centre))
        with torch.inference_mode():
            out = model(*inputs)
        return {name: out[name] for name in (*OUTPUTS[:-1], "maskfeat")}


class TinyBackbone(nn.Module):
    """A stem and one bottleneck per stage, in place of a ResNet: for dry runs and for tools that slow kernels down."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, width, 3, stride=2, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1)
        self.layer1 = nn.Sequential(Bottleneck(width, width, 1, False), Bottleneck(4 * width, width, 1, False))
        for stage in (2, 3, 4):
            self.add_module(f"layer{stage}", Bottleneck(4 * width, width, 2, False))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        c2 = self.layer1(self.maxpool(F.relu(self.bn1(self.conv1(x)))))
        c3 = self.layer2(c2)
        c4 = self.layer3(c3)
        return c2, c3, c4, self.layer4(c4)


def tiny_model(width: int = 8) -> TraceNet:
    """A TraceNet with few layers and few channels, random weights and statistics, the same on every run."""
    model = build_model(channels=16, num_classes=3, mask_branch="p3")
    torch.manual_seed(0)
    model.backbone = TinyBackbone(width)  # type: ignore[assignment]
    model.fpn = FPN((4 * width,) * 3, channels=16)
    for module in (model.backbone, model.fpn):
        for one in module.modules():
            if isinstance(one, nn.BatchNorm2d):
                one.running_mean.normal_(0, 0.1)  # type: ignore[union-attr]
                one.running_var.uniform_(0.5, 1.5)  # type: ignore[union-attr]
    return model.eval()
