"""Schedules made by hand and at random, for tests of what reads and runs them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from tracenet.engine.schedule import Plane, Schedule, Step

Choose = Callable[..., Any]


class Builder:
    """Adds planes and the steps that compute them; weights are drawn at random."""

    def __init__(self, seed: int) -> None:
        self.rng = np.random.default_rng(seed)
        self.planes: list[Plane] = []
        self.steps: list[Step] = []
        self.inputs: list[int] = []
        self.tensors: dict[str, np.ndarray] = {}

    def plane(self, channels: int, height: int, width: int, name: str = "") -> int:
        self.planes.append(Plane(name or f"plane{len(self.planes)}", channels, height, width))
        return len(self.planes) - 1

    def image(self, channels: int, height: int, width: int, name: str = "image") -> int:
        self.inputs.append(self.plane(channels, height, width, name))
        return self.inputs[-1]

    def tensor(self, *shape: int) -> str:
        name = f"tensor{len(self.tensors)}"
        values = self.rng.standard_normal(shape, dtype=np.float32)
        self.tensors[name] = values / np.float32(max(np.prod(shape[1:]), 1)) ** np.float32(0.5)
        return name

    def step(
        self,
        op: str,
        inputs: Sequence[int],
        channels: int,
        height: int,
        width: int,
        ints: dict[str, int] | None = None,
        floats: dict[str, float] | None = None,
        tensors: dict[str, str] | None = None,
        *,
        name: str = "",
        group: int = 0,
    ) -> int:
        output = self.plane(channels, height, width, name)
        called = self.planes[output].name
        self.steps.append(
            Step(op, called, tuple(inputs), output, ints or {}, floats or {}, tensors or {}, group, (called,))
        )
        return output

    def schedule(self, outputs: dict[str, int]) -> Schedule:
        return Schedule(tuple(self.planes), tuple(self.steps), tuple(self.inputs), outputs, self.tensors)

    def random_step(self, planes: Sequence[int], choose: Choose) -> int:
        """A step that reads some of ``planes``; those that do not fit become a convolution."""
        x = choose(*planes)
        like = [p for p in planes if self.shape(p) == self.shape(x)]
        kinds = "conv conv residual pool mean resize up aligned add sigmoid concat mul gate norm part curve"
        kind = choose(*kinds.split())
        channels, height, width = self.shape(x)
        if kind == "add":
            return self.step("add", [x, choose(*like)][: choose(1, 2)], *self.shape(x), {"activation": choose(0, 1)})
        if kind in ("mul", "gate"):
            b = choose(*like) if kind == "mul" else self.step("plane_mean", [x], channels, 1, 1)
            return self.step("mul", [x, b], *self.shape(x), {"activation": choose(0, 1)})
        if kind == "norm":
            groups = choose(*(g for g in range(1, channels + 1) if channels % g == 0))
            names = {name: self.tensor(channels) for name in ("bias", "scale") if choose(False, True)}
            ints = {"groups": groups, "activation": choose(0, 7)}
            return self.step("group_norm", [x], *self.shape(x), ints, {"epsilon": 0.1}, names)
        if kind == "part" and channels > 1:
            first = choose(0, 1)
            return self.step("take_channels", [x], channels - 1, height, width, {"first": first})
        if kind == "curve":
            floats = {"a": choose(-0.5, 0.1), "b": choose(0.5, 1.0)}
            return self.step("add", [x], *self.shape(x), {"activation": choose(*range(11))}, floats)
        if kind == "sigmoid":
            return self.step("sigmoid", [x], *self.shape(x))
        if kind == "concat" and channels < 12:
            others = [p for p in planes if self.shape(p)[1:] == self.shape(x)[1:]]
            parts = [x, choose(*others)]
            return self.step("concat", parts, sum(self.shape(p)[0] for p in parts), height, width)
        if kind == "aligned" and height * width <= 600:
            factor = choose(2, 3, 4)
            return self.step("resize", [x], channels, factor * height, factor * width, {"mode": 3, "factor": factor})
        if kind == "resize":
            return self._resize(x, choose)
        if kind in ("pool", "mean"):
            return self._pool(x, kind, choose)
        return self._conv(x, kind, planes, choose)

    def shape(self, plane: int) -> tuple[int, int, int]:
        p = self.planes[plane]
        return p.channels, p.height, p.width

    def _resize(self, x: int, choose: Choose) -> int:
        channels, height, width = self.shape(x)
        mode = choose(0, 1, 2)
        out_h, out_w = (max(choose(1, n // 2, n - 1, n, n + 1, 2 * n), 1) for n in (height, width))
        if mode == 2:
            ratios = [
                float(np.float32(n - 1) / np.float32(m - 1)) if m > 1 else 0.0
                for n, m in ((height, out_h), (width, out_w))
            ]
        else:
            ratios = [float(np.float32(n) / np.float32(m)) for n, m in ((height, out_h), (width, out_w))]
        floats = {"ratio_y": ratios[0], "ratio_x": ratios[1]}
        addends = [p for p in range(len(self.planes)) if self.shape(p) == (channels, out_h, out_w)]
        inputs = [x, choose(*addends)] if addends and choose(False, True) else [x]
        return self.step("resize", inputs, channels, out_h, out_w, {"mode": mode}, floats)

    def _pool(self, x: int, kind: str, choose: Choose) -> int:
        channels, height, width = self.shape(x)
        ints: dict[str, int] = {}
        sides: list[int] = []
        for axis, length in (("y", height), ("x", width)):
            kernel, stride = choose(1, 2, 3, 5), choose(1, 2, 3)
            pad = choose(0, kernel // 2)
            dilation = choose(1, 2) if kind == "pool" else 1
            reach = dilation * (kernel - 1) + 1
            if length + 2 * pad < reach:
                kernel, stride, pad, dilation, reach = 1, 1, 0, 1, 1
            ints |= {
                f"kernel_{axis}": kernel,
                f"stride_{axis}": stride,
                f"pad_{axis}": pad,
                f"dilation_{axis}": dilation,
            }
            out = (length + 2 * pad - reach) // stride + 1
            ceil = -(-(length + 2 * pad - reach) // stride) + 1
            sides.append(ceil if (ceil - 1) * stride < length + pad and choose(False, True) else out)
        if kind == "mean":
            del ints["dilation_y"], ints["dilation_x"]
            ints |= {"count_include_pad": choose(0, 1), "divisor": choose(0, 0, 3)}
        return self.step("max_pool2d" if kind == "pool" else "avg_pool2d", [x], channels, *sides, ints)

    def _conv(self, x: int, kind: str, planes: Sequence[int], choose: Choose) -> int:
        channels, height, width = self.shape(x)
        residual = choose(*planes) if kind == "residual" else None
        factor = 1
        ints: dict[str, int] = {}
        sides: list[int] = []
        for axis, length in (("y", height), ("x", width)):
            kernel, stride, dilation = choose(1, 2, 3, 5), choose(1, 1, 2, 3), choose(1, 1, 2)
            pad = choose(0, 1, dilation * (kernel - 1) // 2)
            if length + 2 * pad < dilation * (kernel - 1) + 1:
                kernel, stride, dilation, pad = 1, 1, 1, 0
            if residual is not None:
                kernel, stride, dilation = 2 * choose(0, 1) + 1, 1, 1
                pad = kernel // 2
            ints |= {
                f"kernel_{axis}": kernel,
                f"stride_{axis}": stride,
                f"pad_{axis}": pad,
                f"dilation_{axis}": dilation,
            }
            sides.append((length + 2 * pad - dilation * (kernel - 1) - 1) // stride + 1)
        out = choose(1, 2, 3, 8, 17)
        inputs = [x]
        if residual is not None:
            out, rows, columns = self.shape(residual)
            fits = [f for f in (1, 2, 3) if (rows * f, columns * f) == tuple(sides)]
            if fits:
                inputs, factor = [x, residual], fits[0]
        groups = choose(*(g for g in (1, 2, channels) if channels % g == 0 and out % g == 0))
        ints |= {"groups": groups, "activation": choose(0, 1, 3, 7, 8), "residual_factor": factor}
        tensors = {"weight": self.tensor(out, channels // groups, ints["kernel_y"], ints["kernel_x"])}
        tensors |= {name: self.tensor(out) for name in ("bias", "scale") if choose(False, True)}
        return self.step("conv2d", inputs, out, *sides, ints, {"a": 0.1}, tensors)


def every_op() -> Schedule:
    """Every operation but ``external`` and ``convert``: two convolutions in a group, mask heads."""
    b = Builder(0)
    image = b.image(3, 32, 48)
    theta, origin, size = b.image(169, 1, 1, "theta"), b.image(2, 1, 1, "origin"), b.image(1, 1, 1, "size")
    three = {"kernel_y": 3, "kernel_x": 3, "pad_y": 1, "pad_x": 1}
    two = {"kernel_y": 2, "kernel_x": 2, "stride_y": 2, "stride_x": 2}
    stem = {"kernel_y": 7, "kernel_x": 7, "stride_y": 2, "stride_x": 2, "pad_y": 3, "pad_x": 3, "activation": 1}
    stem |= {f"pool_{key}": value for key, value in (three | {"stride_y": 2, "stride_x": 2}).items()}
    stem |= {"conv_height": 16, "conv_width": 24}
    weight, bias, scale = b.tensor(8, 8, 3, 3), b.tensor(8), b.tensor(8)
    first = b.step("stem", [image], 8, 8, 12, stem, tensors={"weight": b.tensor(8, 3, 7, 7), "bias": bias})
    left = b.step("conv2d", [first], 8, 8, 12, three | {"activation": 1}, tensors={"weight": weight}, group=1)
    right = b.step(
        "conv2d", [first], 8, 8, 12, three, tensors={"weight": weight, "bias": bias, "scale": scale}, group=1
    )
    total = b.step("add", [left, right], 8, 8, 12, {"activation": 1}, name="total")
    largest = b.step("max_pool2d", [total], 8, 4, 6, two)
    mean = b.step("avg_pool2d", [total], 8, 4, 6, two)
    up = b.step("resize", [mean, total], 8, 8, 12, {"mode": 0}, {"ratio_y": 0.5, "ratio_x": 0.5}, name="up")
    gate = b.step("sigmoid", [up], 8, 8, 12, name="gate")
    both = b.step("concat", [gate, total], 16, 8, 12)
    mixed = b.step(
        "conv2d",
        [both, largest],
        8,
        8,
        12,
        {"residual_factor": 2, "groups": 2},
        tensors={"weight": b.tensor(8, 8, 1, 1)},
    )
    wide = b.step("resize", [mixed], 8, 16, 24, {"mode": 3, "factor": 2}, name="wide")
    smooth = b.step("resize", [wide], 8, 15, 20, {"mode": 1}, {"ratio_y": 16 / 15, "ratio_x": 1.2}, name="smooth")
    corners = b.step("resize", [smooth], 8, 8, 9, {"mode": 2}, {"ratio_y": 2.0, "ratio_x": 19 / 8}, name="corners")
    mask = b.step("mask_head", [mixed, theta, origin, size], 1, 16, 24, {"stride": 4, "factor": 2}, name="mask")
    logits = b.step("mask_head", [mixed, theta, origin, size], 1, 8, 12, {"stride": 4}, name="logits")
    outputs = {"total": total, "corners": corners, "mask": mask, "logits": logits, "up": up}
    return b.schedule(outputs)
