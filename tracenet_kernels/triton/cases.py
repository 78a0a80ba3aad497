"""Launches to compile ahead of time, to tune and to model: what a ResNet-50 with FPN and heads runs at 1024 x 768.

Shapes and windows are those of the standard request: heads on P3-P5 at a click in the centre and 32 x 32 cells of the
mask. Layers that only differ by a few cells of their window stand here once, with their number. Tensors hold nothing
and lie on the CPU, or on the meta device where they need no values.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any

import torch

from tracenet_kernels.triton.configs import ConvKey, assume, bucket
from tracenet_kernels.triton.devices import PARTS, REPRESENTATIVES, Part, nearest_arch
from tracenet_kernels.triton.launch import Launch
from tracenet_kernels.triton.planes import DevicePlane, Windows, ahead_of_time
from tracenet_kernels.triton.weights import DeviceWeight, pack_weight
from tracenet_kernels.window import Window

Dtype = torch.dtype
HALF = (torch.float16, torch.bfloat16)
FP8_ARCH = 89
"""The first architecture with fp8."""
TMA_ARCH = 90
"""The first architecture with a tensor memory accelerator, and with programmatic dependent launch."""


@dataclass(frozen=True, slots=True)
class Layer:
    """A convolution on windows of planes.

    Attributes:
        name: of the layer, or of the first of several alike.
        plane: rows and columns of its output.
        window: rows and columns that are asked.
        inputs, outputs: channels.
        kernel, stride: of both axes; padding keeps the plane.
        residual: 0 without, 1: a plane of the output's size is added, 2: one of half its size.
        levels: windows of as many planes with one weight; 1: an ordinary layer.
        times: layers like it.
        relu: whether it ends in one.
    """

    name: str
    plane: tuple[int, int]
    window: tuple[int, int]
    inputs: int
    outputs: int
    kernel: int = 1
    stride: int = 1
    residual: int = 0
    levels: int = 1
    times: int = 1
    relu: bool = True

    @property
    def taps(self) -> int:
        return self.kernel * self.kernel

    def key(self, dtype: str, family: str = "") -> ConvKey:
        """What its configuration depends on."""
        family = family or ("conv2d" if self.levels == 1 else "conv2d_levels")
        cells = bucket(self.window[0] * self.window[1])
        return ConvKey(family, dtype, cells, self.inputs, self.outputs, self.taps, self.levels)


_C2, _C3, _C4, _C5 = (192, 256), (96, 128), (48, 64), (24, 32)

LAYERS: tuple[Layer, ...] = (
    Layer("layer1.0.conv1", _C2, (192, 225), 64, 64),
    Layer("layer1.0.conv2", _C2, (192, 223), 64, 64, 3, times=3),
    Layer("layer1.0.down", _C2, (192, 223), 64, 256, relu=False),
    Layer("layer1.0.conv3", _C2, (192, 223), 64, 256, residual=1, times=3),
    Layer("layer1.1.conv1", _C2, (192, 223), 256, 64, times=2),
    Layer("layer2.0.conv1", _C2, (192, 219), 256, 128),
    Layer("layer2.0.conv2", _C3, (96, 109), 128, 128, 3, 2),
    Layer("layer2.0.down", _C3, (96, 109), 256, 512, 1, 2, relu=False),
    Layer("layer2.0.conv3", _C3, (96, 109), 128, 512, residual=1, times=4),
    Layer("layer2.1.conv1", _C3, (96, 109), 512, 128, times=3),
    Layer("layer2.1.conv2", _C3, (96, 107), 128, 128, 3, times=3),
    Layer("layer3.0.conv1", _C3, (96, 103), 512, 256),
    Layer("layer3.0.conv2", _C4, (48, 51), 256, 256, 3, 2),
    Layer("layer3.0.down", _C4, (48, 51), 512, 1024, 1, 2, relu=False),
    Layer("layer3.0.conv3", _C4, (48, 51), 256, 1024, residual=1, times=4),
    Layer("layer3.1.conv1", _C4, (48, 51), 1024, 256, times=3),
    Layer("layer3.1.conv2", _C4, (48, 49), 256, 256, 3, times=3),
    Layer("layer3.4.conv1", _C4, (45, 45), 1024, 256, times=2),
    Layer("layer3.4.conv2", _C4, (43, 43), 256, 256, 3, times=2),
    Layer("layer3.4.conv3", _C4, (43, 43), 256, 1024, residual=1, times=2),
    Layer("layer4.0.conv1", _C4, (41, 41), 1024, 512),
    Layer("layer4.0.conv2", _C5, (20, 20), 512, 512, 3, 2),
    Layer("layer4.0.down", _C5, (20, 20), 1024, 2048, 1, 2, relu=False),
    Layer("layer4.0.conv3", _C5, (20, 20), 512, 2048, residual=1, times=2),
    Layer("layer4.1.conv1", _C5, (20, 20), 2048, 512, times=2),
    Layer("layer4.1.conv2", _C5, (18, 18), 512, 512, 3),
    Layer("layer4.2.conv2", _C5, (16, 16), 512, 512, 3),
    Layer("layer4.2.conv3", _C5, (16, 16), 512, 2048, residual=1),
    Layer("lateral5", _C5, (16, 16), 2048, 256, relu=False),
    Layer("lateral4", _C4, (25, 25), 1024, 256, residual=2, relu=False),
    Layer("lateral3", _C3, (44, 44), 512, 256, residual=2, relu=False),
    Layer("output3", _C3, (42, 42), 256, 256, 3, relu=False),
    Layer("output4", _C4, (23, 23), 256, 256, 3, relu=False),
    Layer("output5", _C5, (14, 14), 256, 256, 3, relu=False),
    Layer("p6", (12, 16), (12, 16), 256, 256, 3, 2, relu=False),
    Layer("p7", (6, 8), (6, 8), 256, 256, 3, 2, relu=False),
    *(
        Layer(f"tower.{i}", _C3, (side, side), 256, 256, 3, levels=levels, times=2)
        for levels in (3, 5)
        for i, side in enumerate((9, 7, 5, 3))
    ),
    *(
        Layer(name, _C3, (1, 1), 256, outputs, 3, levels=levels, relu=relu)
        for levels in (3, 5)
        for name, outputs, relu in (
            ("logits", 1, False),
            ("logits80", 80, False),
            ("reg", 4, True),
            ("ctr", 1, False),
            ("theta", 169, False),
        )
    ),
    Layer("refine3", _C3, (40, 40), 256, 128, 3),
    Layer("refine4", _C4, (21, 21), 256, 128, 3),
    Layer("refine5", _C5, (12, 12), 256, 128, 3),
    Layer("mask_branch.0", _C3, (38, 38), 128, 128, 3, times=4),
    Layer("mask_branch.out", _C3, (32, 32), 128, 8, relu=False),
)
"""Convolutions after the stem."""


def launches(arch: int, *, quick: bool = False) -> list[Launch]:
    """Every kernel of the network as it is launched on an architecture, in every dtype it has there.

    Args:
        arch: 90 for ``sm_90``; configurations are those of the part that stands for it.
        quick: in fp16 and int8 only.
    """
    part = part_of(arch)
    found: list[Launch] = []
    with assume(part), ahead_of_time(divmod(arch, 10)):
        for dtype in dtypes_on(arch, quick):
            for family in FAMILIES.values():
                found += family(dtype, arch >= TMA_ARCH)
    return found


def network_launches(part: Part, dtype: str) -> list[Launch]:
    """The convolutions of one request on a part, heads on P3-P5, each as often as it runs; names without the dtype."""
    found: list[Launch] = []
    with assume(part), ahead_of_time(divmod(part.arch, 10)):
        for layer in LAYERS:
            if layer.levels not in (1, 3) or layer.name in ("p6", "p7", "logits80"):
                continue
            for time in range(layer.times):
                (launch,) = layer_launches(layer, getattr(torch, dtype), pdl=part.arch >= TMA_ARCH)
                found.append(replace(launch, name=layer.name if time == 0 else f"{layer.name}#{time + 1}"))
    return found


def part_of(arch: int) -> Part:
    """The part that stands for an architecture, with that architecture's own limits."""
    listed = PARTS[REPRESENTATIVES[nearest_arch(arch, REPRESENTATIVES)]]
    return listed.resized(arch, listed.multiprocessors)


def dtypes_on(arch: int, quick: bool = False) -> tuple[Dtype, ...]:
    """What planes may hold on an architecture."""
    if quick:
        return (torch.float16, torch.int8)
    fp8 = (torch.float8_e4m3fn,) if arch >= FP8_ARCH else ()
    return (torch.float16, torch.bfloat16, torch.float32, torch.int8, *fp8)


def plane(rows: int, columns: int, channels: int, dtype: Dtype) -> DevicePlane:
    """A plane of no values in particular."""
    scale = 0.05 if dtype.itemsize == 1 else 1.0
    zero_point = -3 if dtype == torch.int8 else 0
    return DevicePlane(torch.empty(rows, columns, channels, dtype=dtype), (rows, columns), (0, 0), scale, zero_point)


def centre(plane: tuple[int, int], window: tuple[int, int]) -> Window:
    """A window of that size in the middle of a plane, or the whole of it where it is larger."""
    (y, height), (x, width) = ((max(0, (p - w) // 2), min(p, w)) for p, w in zip(plane, window, strict=True))
    return Window(y, y + height, x, x + width)


def weight(inputs: int, outputs: int, kernel: int, stride: int, dtype: Dtype) -> DeviceWeight:
    """A packed weight of no values in particular."""
    padded = -(-inputs // 16) * 16
    sides = ((kernel, kernel), (stride, stride), (kernel // 2, kernel // 2), (1, 1))
    scales = torch.ones(outputs) if dtype.itemsize == 1 else None
    sums = torch.zeros(outputs, dtype=torch.int32) if dtype == torch.int8 else None
    return DeviceWeight(torch.empty(outputs, kernel * kernel, padded, dtype=dtype), inputs, 1, *sides, scales, sums)


def layer_launches(layer: Layer, dtype: Dtype, family: str = "", *, pdl: bool, **options: Any) -> list[Launch]:
    """The launch of a layer by a kernel family: ``conv2d_tma``, or what the layer takes by itself."""
    from tracenet_kernels.triton.conv2d import conv2d_launches, conv2d_levels_launches
    from tracenet_kernels.triton.conv2d_tma import conv2d_tma_launches

    name = f"{layer.name}:{str(dtype).removeprefix('torch.')}"
    packed = weight(layer.inputs, layer.outputs, layer.kernel, layer.stride, dtype)
    bias = torch.zeros(layer.outputs)
    options = {"activation": "relu" if layer.relu else "none", "pdl": pdl, "name": name, **options}
    if dtype == torch.float32:
        options.setdefault("precision", "tf32x3")
    if layer.levels > 1:
        xs = level_planes(layer, layer.inputs, dtype)
        outs = level_planes(layer, layer.outputs, dtype)
        windows = [centre(out.plane, layer.window) for out in outs]
        return conv2d_levels_launches(xs, packed, outs, windows, biases=[bias] * layer.levels, **options)
    rows, columns = layer.plane
    out = plane(rows, columns, layer.outputs, dtype)
    if layer.residual:
        f = layer.residual
        options["residual"] = plane(rows // f, columns // f, layer.outputs, dtype)
        options["residual_factor"] = f
    x = plane(rows * layer.stride, columns * layer.stride, layer.inputs, dtype)
    of = conv2d_tma_launches if family == "conv2d_tma" else conv2d_launches
    return of(x, packed, out, Windows.of([centre(layer.plane, layer.window)], "cpu"), bias=bias, **options)


def level_planes(layer: Layer, channels: int, dtype: Dtype) -> list[DevicePlane]:
    """Planes of all levels, the finest first, in one allocation."""
    sides = [(-(-layer.plane[0] >> level) or 1, -(-layer.plane[1] >> level) or 1) for level in range(layer.levels)]
    memory = torch.empty(sum(rows * columns for rows, columns in sides) * channels, dtype=dtype)
    found, at = [], 0
    for rows, columns in sides:
        view = memory[at : at + rows * columns * channels].view(rows, columns, channels)
        like = plane(1, 1, 1, dtype)
        found.append(DevicePlane(view, (rows, columns), (0, 0), like.scale, like.zero_point))
        at += rows * columns * channels
    return found


def _conv2d(dtype: Dtype, pdl: bool) -> Iterator[Launch]:
    for layer in LAYERS:
        yield from layer_launches(layer, dtype, pdl=pdl)


def tma_takes(layer: Layer, dtype: Dtype, arch: int) -> bool:
    """Whether the kernel of tensor descriptors may run a layer on an architecture."""
    return arch >= TMA_ARCH and layer.levels == 1 and dtype.itemsize > 1


def _conv2d_tma(dtype: Dtype, pdl: bool) -> Iterator[Launch]:
    for layer in LAYERS:
        if tma_takes(layer, dtype, TMA_ARCH if pdl else 0):
            yield from layer_launches(layer, dtype, "conv2d_tma", pdl=pdl)


def _cellwise(dtype: Dtype, pdl: bool) -> Iterator[Launch]:
    """What is no convolution: pooling, resizes, sums, conversions, the mask head and its parts."""
    from tracenet_kernels.triton import elementwise, mask_head, pools, resize

    suffix = str(dtype).removeprefix("torch.")
    c3, whole = (96, 128), Windows.of([Window(0, 96, 0, 128)], "cpu")
    if dtype.itemsize == 1:
        yield from elementwise.convert_launches(
            plane(*c3, 256, torch.float16), plane(*c3, 256, dtype), whole, pdl=pdl, name=f"quantise:{suffix}"
        )
        yield from elementwise.convert_launches(
            plane(*c3, 256, dtype), plane(*c3, 256, torch.float16), whole, pdl=pdl, name=f"dequantise:{suffix}"
        )
        return
    half = plane(48, 64, 128, dtype)
    x, out = plane(*c3, 128, dtype), plane(*c3, 128, dtype)
    for f, source in ((2, half), (4, plane(24, 32, 128, dtype))):
        yield from resize.resize_launches(
            source, out, whole, mode="aligned_bilinear", factor=f, addend=x, pdl=pdl, name=f"aligned{f}:{suffix}"
        )
    yield from resize.resize_launches(
        half, out, whole, mode="nearest", ratio=(0.5, 0.5), pdl=pdl, name=f"nearest:{suffix}"
    )
    stem = plane(384, 512, 64, dtype)
    yield from pools.max_pool2d_launches(
        stem, plane(*_C2, 64, dtype), Windows.of([Window(0, 192, 12, 237)], "cpu"),
        kernel=3, stride=2, padding=1, pdl=pdl, name=f"max_pool:{suffix}",
    )  # fmt: skip
    yield from elementwise.add_launches(x, out, plane(*c3, 128, dtype), whole, pdl=pdl, name=f"add:{suffix}")
    yield from elementwise.sigmoid_launches(x, out, whole, pdl=pdl, name=f"sigmoid:{suffix}")
    photo = torch.empty(3, 768, 1024, dtype=torch.float32)
    pixels = Windows.of([Window(0, 768, 0, 1024)], "cpu")
    yield from elementwise.planar_launches(photo, plane(768, 1024, 3, dtype), pixels, pdl=pdl, name=f"planar:{suffix}")
    yield from elementwise.pixels_launches(
        torch.empty(768, 1024, 3, dtype=torch.uint8), plane(768, 1024, 3, dtype), pixels,
        mean=(123.0, 117.0, 104.0), std=(58.0, 57.0, 57.0), pdl=pdl, name=f"pixels:{suffix}",
    )  # fmt: skip
    yield from pools.avg_pool2d_launches(
        x, plane(48, 64, 128, dtype), Windows.of([Window(4, 40, 3, 50)], "cpu"),
        kernel=3, stride=2, padding=1, pdl=pdl, name=f"avg_pool:{suffix}",
    )  # fmt: skip
    for f in (0, 4):
        yield from mask_head.mask_head_launches(
            plane(*c3, 8, dtype), torch.zeros(169), torch.zeros(2), torch.ones(1),
            plane(96 * max(1, f), 128 * max(1, f), 1, dtype), Windows.of([Window(0, 32, 0, 32)], "cpu"),
            factor=f, pdl=pdl, name=f"mask_head{f}:{suffix}",
        )  # fmt: skip


def _stem(dtype: Dtype, pdl: bool) -> Iterator[Launch]:
    from tracenet_kernels.triton.stem import stem_launches

    if dtype.itemsize == 1:
        return
    normal = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
    images: tuple[tuple[str, torch.Tensor, dict[str, Any]], ...] = (
        ("photo", torch.empty(768, 1024, 3, dtype=torch.uint8), normal),
        ("image", torch.empty(3, 768, 1024, dtype=torch.float32), {}),
    )
    for kind, image, options in images:
        yield from stem_launches(
            image,
            weight(3, 64, 7, 2, dtype),
            plane(*_C2, 64, dtype),
            Windows.of([Window(0, 192, 12, 237)], "cpu"),
            conv_plane=(384, 512),
            bias=torch.zeros(64),
            pdl=pdl,
            name=f"stem_{kind}:{str(dtype).removeprefix('torch.')}",
            **options,
        )


def _bottleneck_tail(dtype: Dtype, pdl: bool) -> Iterator[Launch]:
    from tracenet_kernels.triton.bottleneck_tail import bottleneck_tail_launches, fits

    blocks = (
        ("layer1.0.tail", _C2, (192, 223), 64, 256, 64, 1),
        ("layer1.2.tail", _C2, (192, 219), 64, 256, 128, 1),
        ("layer2.0.tail", _C3, (96, 109), 128, 512, 128, 2),
        ("layer2.1.tail", _C3, (96, 107), 128, 512, 128, 1),
        ("layer2.3.tail", _C3, (96, 103), 128, 512, 256, 1),
        ("layer3.0.tail", _C4, (48, 51), 256, 1024, 256, 2),
        ("layer3.1.tail", _C4, (48, 49), 256, 1024, 256, 1),
        ("layer3.5.tail", _C4, (41, 41), 256, 1024, 0, 1),
    )
    for name, (rows, columns), window, mid, outputs, following, stride in blocks:
        if not fits(mid, outputs, dtype, following):
            continue
        yield from bottleneck_tail_launches(
            plane(rows * stride, columns * stride, mid, dtype),
            weight(mid, mid, 3, stride, dtype),
            weight(mid, outputs, 1, 1, dtype),
            weight(outputs, following, 1, 1, dtype) if following else None,
            residual=plane(rows, columns, outputs, dtype),
            block_out=plane(rows, columns, outputs, dtype),
            next_out=plane(rows, columns, following, dtype) if following else None,
            windows=Windows.of([centre((rows, columns), window)], "cpu"),
            mid_bias=torch.zeros(mid),
            expand_bias=torch.zeros(outputs),
            next_bias=torch.zeros(following) if following else None,
            pdl=pdl,
            name=f"{name}:{str(dtype).removeprefix('torch.')}",
        )


def _depthwise(dtype: Dtype, pdl: bool) -> Iterator[Launch]:
    from tracenet_kernels.triton.depthwise import depthwise_launches

    if dtype.itemsize == 1:
        return
    for kernel, stride, channels in ((3, 1, 256), (3, 2, 96), (5, 1, 120), (7, 1, 96)):
        packed = pack_weight(
            torch.empty(channels, 1, kernel, kernel),
            dtype=dtype,
            device="cpu",
            stride=stride,
            padding=kernel // 2,
            groups=channels,
        )
        yield from depthwise_launches(
            plane(96, 128, channels, dtype),
            packed,
            plane(96 // stride, 128 // stride, channels, dtype),
            Windows.of([Window(4, 40, 3, 50)], "cpu"),
            bias=torch.zeros(channels),
            activation="relu",
            pdl=pdl,
            name=f"depthwise{kernel}/{stride}:{str(dtype).removeprefix('torch.')}",
        )


def _plan_windows(dtype: Dtype, pdl: bool) -> Iterator[Launch]:
    from tracenet_kernels.triton.plan_windows import PIECES, plan_windows_launches

    if dtype != torch.float16:  # the planner knows integers only
        return
    planes = 143
    edges = torch.zeros(96, planes, dtype=torch.int16), torch.ones(96, planes, dtype=torch.int16)
    rows = torch.arange(planes, dtype=torch.int32)
    click, window = torch.zeros(2, dtype=torch.int32), torch.zeros(4, dtype=torch.int32)
    single, several = torch.zeros(planes, 4, dtype=torch.int32), torch.zeros(planes * PIECES, 4, dtype=torch.int32)
    yield from plan_windows_launches(click, edges, edges, rows, single, unit=8, pieces=1, pdl=pdl, name="plan_click")
    yield from plan_windows_launches(
        window,
        edges,
        edges,
        rows * PIECES,
        several,
        minus=torch.zeros_like(several),
        may_subtract=torch.ones_like(rows),
        pdl=pdl,
        name="plan_window",
    )


FAMILIES: Mapping[str, Callable[[Dtype, bool], Iterator[Launch]]] = MappingProxyType(
    {
        "conv2d": _conv2d,
        "conv2d_tma": _conv2d_tma,
        "bottleneck_tail": _bottleneck_tail,
        "stem": _stem,
        "cellwise": _cellwise,
        "depthwise": _depthwise,
        "plan_windows": _plan_windows,
    }
)
"""Kernel family -> its launches in a dtype, with programmatic dependent launch or without."""
