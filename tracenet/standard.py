"""The standard request and its costs: what ``tracenet trace``, ``tracenet costs`` and the oracle check share.

Everything here plans and nothing computes: networks are captured with weights on torch's meta device, which have shapes
but no values. All multiply-adds (MACs) are ints.
"""

from __future__ import annotations

import math
import re
from functools import lru_cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tracenet.config import TraceNetConfig
from tracenet.conventions import LEVELS, MASK_STRIDE, THETA, cell_of
from tracenet.graph import Graph
from tracenet.models.registry import create_model
from tracenet.models.tracenet import TraceNet
from tracenet.rft.trace import Plan
from tracenet.traced import TracedModel, trace
from tracenet_kernels.errors import ClickError, InputError
from tracenet_kernels.window import Window

Size = tuple[int, int]
"""Width and height in pixels."""

MAC_GROUPS = {
    "backbone": ("backbone",),
    "fpn": ("fpn",),
    "heads": ("heads",),
    "mask": ("mask_branch", "mask_head"),
}
"""Part of the network -> its modules; ``fpn`` holds P6 and P7, ``mask`` the branch and the three dynamic layers."""

PAPER_GFLOPS = {("FullNet", 50): 86.67, ("FullNet", 101): 118.28, ("TraceNet", 50): 34.47, ("TraceNet", 101): 66.67}
"""Table III of arXiv 2406.14874, as printed; each counts one multiply-add as one operation."""
NEAREST_SIZE = (800, 528)
"""The size at which FullNet (stride in the 1x1, 80 classes, no mask branch) comes nearest to the paper's figures."""

_NODE_NAMES = (
    (r"backbone\.(conv1|maxpool)", r"\1"),
    (r"backbone\.(layer\d\.\d+\.(?:conv\d|add))", r"\1"),
    (r"backbone\.(layer\d\.\d+)\.downsample\.0", r"\1.down"),
    (r"fpn\.lateral(\d)", r"lat\1"),
    (r"fpn\.upsample_nearest2d", "up4"),
    (r"fpn\.upsample_nearest2d_1", "up3"),
    (r"mask_branch\.refine(\d)\.conv", r"refine\1"),
    (r"mask_branch\.aligned_bilinear", "ref4up"),
    (r"mask_branch\.aligned_bilinear_1", "ref5up"),
    (r"mask_branch\.add_1", "refsum"),
    (r"mask_branch\.tower\.(\d)\.conv", r"mb.\1"),
    (r"mask_head\.conv2d", "dyn1"),
    (r"mask_head\.conv2d_1", "dyn2"),
)
_TOWER = re.compile(r"heads\.(cls|box)_tower\.(\d)\.conv(?:@(\d))?")
_LAST_ADD = re.compile(r"(backbone\.layer\d)\.(\d+)\.add")


def model_config(name: str, **overrides: Any) -> TraceNetConfig:
    """The config of a registered model, e.g. ``model_config("tracenet_r50_fpn", num_classes=80)``.

    Raises:
        InputError: the name or a config field is not known.
    """
    with torch.device("meta"):
        return create_model(name, **overrides).config


def trace_model(model: str | TraceNetConfig | TraceNet, size: Size, **overrides: Any) -> TracedModel:
    """Capture a network once per config and size, for planning; :func:`tracenet.trace` captures one that can run.

    Its inputs are ``image``, ``theta``, ``origin``, ``size_of_interest``; only ``image`` with ``mask_branch="none"``.

    Args:
        model: a registry name, a config, or a model, of which only the config is used.
        size: width and height, multiples of 32.
        overrides: config fields that go with a name.

    Raises:
        InputError: the name, a field or the size is not possible.
    """
    if isinstance(model, str):
        config = model_config(model, **overrides)
    elif overrides:
        raise InputError(f"config fields {sorted(overrides)} go with a model's name; put them into the config instead")
    else:
        config = model.config if isinstance(model, TraceNet) else model
    check_size(size)
    return _captured(config, (size[0], size[1]))


def check_size(size: Size) -> None:
    """Raises InputError for a size that is not of multiples of 32."""
    width, height = size
    if width < 32 or height < 32 or width % 32 or height % 32:
        near = tuple(max(1, math.ceil(side / 32)) * 32 for side in size)
        raise InputError(
            f"size {width}x{height}: both must be multiples of 32, images are padded; use {near[0]}x{near[1]}"
        )


@lru_cache(maxsize=8)
def _captured(config: TraceNetConfig, size: Size) -> TracedModel:
    with torch.device("meta"):
        inputs = example_inputs(config, size)
        model = TraceNet(config).eval()
    return trace(model, inputs)


def example_inputs(config: TraceNetConfig, size: Size) -> tuple[Tensor, ...]:
    """Inputs of a network, all zeros: the image and, with a mask branch, theta, origin and size of interest."""
    width, height = size
    image = torch.zeros(1, 3, height, width)
    if config.mask_branch == "none":
        return (image,)
    return (image, torch.zeros(1, THETA), torch.zeros(1, 2), torch.zeros(1))


def standard_request(
    config: TraceNetConfig,
    size: Size,
    click: tuple[float, float],
    levels: tuple[int, int] = (3, 7),
    mask_cells: int | str = "none",
) -> dict[int | str, Window]:
    """Windows of the outputs that one click needs.

    On every level ``l`` one cell, ``floor(click / stride_l)``, of ``logits{l}``, ``reg{l}``, ``ctr{l}`` and
    ``theta{l}``; from ``mask`` the square ``[c - N // 2, c - N // 2 + N)`` of P3 cells around the click's cell ``c``,
    clipped to the plane.

    Args:
        config: of the network.
        size: width and height of the padded image.
        click: x and y in pixels of that image.
        levels: first and last level, inclusive.
        mask_cells: N, ``"all"`` for the whole plane, or ``"none"``.

    Raises:
        ClickError: the click is not finite or outside the image.
        InputError: the levels or ``mask_cells`` are not possible.
    """
    (width, height), (x, y) = size, click
    if not (math.isfinite(x) and math.isfinite(y) and 0 <= x < width and 0 <= y < height):
        raise ClickError(f"click ({x}, {y}) lies outside the image: 0 <= x < {width} and 0 <= y < {height}")
    first, last = levels
    if not LEVELS[0] <= first <= last <= LEVELS[-1]:
        raise InputError(
            f"levels {first}-{last}: give first and last with {LEVELS[0]} <= first <= last <= {LEVELS[-1]}"
        )
    request: dict[int | str, Window] = {}
    heads = ("logits", "reg", "ctr", "theta") if config.filter_head else ("logits", "reg", "ctr")
    for level in range(first, last + 1):
        row, column = cell_of(x, y, level)
        request.update({f"{head}{level}": Window(row, row + 1, column, column + 1) for head in heads})
    if mask_cells != "none":
        if config.mask_branch == "none":
            raise InputError(f"mask_cells={mask_cells!r} needs a mask branch; this network has mask_branch='none'")
        request["mask"] = _mask_window(size, cell_of(x, y, LEVELS[0]), mask_cells)
    return request


def _mask_window(size: Size, cell: tuple[int, int], mask_cells: int | str) -> Window:
    height, width = (math.ceil(side / MASK_STRIDE) for side in (size[1], size[0]))
    if mask_cells == "all":
        return Window.full(height, width)
    if not isinstance(mask_cells, int) or isinstance(mask_cells, bool) or mask_cells < 1:
        raise InputError(f"mask_cells={mask_cells!r}: give a positive number of P3 cells, 'all' or 'none'")
    y, x = (c - mask_cells // 2 for c in cell)
    return Window(y, y + mask_cells, x, x + mask_cells).clip(height, width)


def standard_plan(
    model: str | TraceNetConfig | TraceNet,
    size: Size,
    click: tuple[float, float],
    levels: tuple[int, int] = (3, 7),
    mask_cells: int | str = "none",
    **overrides: Any,
) -> Plan:
    """Plan of :func:`standard_request` on :func:`trace_model`."""
    config = model_config(model, **overrides) if isinstance(model, str) else model
    config = config.config if isinstance(config, TraceNet) else config
    return trace_model(config, size).plan(standard_request(config, size, click, levels, mask_cells))


def summary(plan: Plan) -> dict[str, Any]:
    """Windows and multiply-adds of a plan as plain data.

    Returns:
        ``windows``: name -> ``[y0, y1, x0, x1]`` under short names (``image conv1 maxpool``,
        ``layerS.B.conv1|conv2|conv3|down|add``, ``C2..C5 lat3..5 up3..4 inner3..5 P3..P7``, ``cls{l}.{i} box{l}.{i}``,
        ``logits{l} reg{l} ctr{l} theta{l}``, ``refine3..5 ref4up ref5up refsum mb.{i} maskfeat dyn1 dyn2 mask``);
        ``macs`` of the plan and ``full_macs`` of the whole network, each with the keys of :data:`MAC_GROUPS` and
        ``total``.
    """
    windows = {name: [w.y0, w.y1, w.x0, w.x1] for name, w in _named_windows(plan).items()}
    macs = {group: plan.macs_of(*modules) for group, modules in MAC_GROUPS.items()}
    full = {group: plan.full_macs_of(*modules) for group, modules in MAC_GROUPS.items()}
    return {
        "windows": windows,
        "macs": {**macs, "total": plan.macs},
        "full_macs": {**full, "total": plan.full_macs},
    }


def _named_windows(plan: Plan) -> dict[str, Window]:
    named = {}
    for entry in plan.nodes:
        name = _short_name(plan.graph, entry.node.name)
        if name is not None:
            named[name] = entry.window
    for name, node in plan.graph.outputs.items():
        if node in plan.by_node:
            named[name] = plan.by_node[node].window
    return named


def _short_name(graph: Graph, name: str) -> str | None:
    if name == "image":
        return name
    if tower := _TOWER.fullmatch(name):
        kind, block, call = tower.groups()
        return f"{kind}{LEVELS[int(call or 0)]}.{block}"  # the towers run once per level, finest first
    if last := _LAST_ADD.fullmatch(name):
        stage, block = last.groups()
        if f"{stage}.{int(block) + 1}.conv1" not in graph.by_name:
            return None  # the stage's last sum is C2..C5 under its output's name
    for pattern, short in _NODE_NAMES:
        if match := re.fullmatch(pattern, name):
            return match.expand(short)
    return None


def costs_table(size: Size = (1024, 768), num_classes: int = 80, stride_in_1x1: bool = False) -> dict[str, Any]:
    """The paper's table III for our models, the click in the centre of the image.

    Args:
        size: width and height, multiples of 32.
        num_classes, stride_in_1x1: of the models; the mask branch is CondInst's.

    Returns:
        ``size``, ``click``, ``rows`` at that size, and ``nearest``: ``size``, ``click`` and ``rows`` of networks
        without mask branch at :data:`NEAREST_SIZE`, stride in the 1x1. A row holds ``network`` (``"FullNet"`` or
        ``"TraceNet"``), ``depth``, ``levels`` (None: all planes), ``mask_cells``, ``macs``, ``full_macs``, ``gmacs``,
        ``share`` of the full network, and ``paper_gflops``.
    """
    click = (size[0] // 2, size[1] // 2)
    rows = []
    for depth in (50, 101):
        config = TraceNetConfig(depth=depth, num_classes=num_classes, stride_in_1x1=stride_in_1x1)
        traced = trace_model(config, size)
        plans: list[tuple[tuple[int, int], int | str, Plan]] = []
        for mask_cells in ("none", 32):
            for levels in ((3, 7), (3, 5)):
                plan = traced.plan(standard_request(config, size, click, levels, mask_cells))
                plans.append((levels, mask_cells, plan))
        rows += _rows(depth, plans)
    return {"size": list(size), "click": list(click), "rows": rows, "nearest": _nearest_table(num_classes)}


def _nearest_table(num_classes: int) -> dict[str, Any]:
    width, height = NEAREST_SIZE
    click = (width // 2, height // 2)
    rows = []
    for depth in (50, 101):
        config = TraceNetConfig(depth=depth, num_classes=num_classes, stride_in_1x1=True, mask_branch="none")
        traced = _captured_any_size(config, NEAREST_SIZE)
        plans: list[tuple[tuple[int, int], int | str, Plan]] = [
            (levels, "none", traced.plan(standard_request(config, NEAREST_SIZE, click, levels)))
            for levels in ((3, 7), (3, 5))
        ]
        rows += _rows(depth, plans)
    return {"size": [width, height], "click": list(click), "rows": rows}


def _rows(depth: int, plans: list[tuple[tuple[int, int], int | str, Plan]]) -> list[dict[str, Any]]:
    full = plans[0][2].full_macs
    rows = [_row("FullNet", depth, None, "all" if "mask" in plans[0][2].graph.outputs else "none", full, full)]
    rows += [_row("TraceNet", depth, list(levels), cells, plan.macs, full) for levels, cells, plan in plans]
    return rows


def _row(
    network: str, depth: int, levels: list[int] | None, mask_cells: int | str, macs: int, full: int
) -> dict[str, Any]:
    return {
        "network": network,
        "depth": depth,
        "levels": levels,
        "mask_cells": mask_cells,
        "macs": macs,
        "full_macs": full,
        "gmacs": round(macs / 1e9, 2),
        "share": macs / full,
        "paper_gflops": PAPER_GFLOPS[network, depth],
    }


@lru_cache(maxsize=2)
def _captured_any_size(config: TraceNetConfig, size: Size) -> TracedModel:
    with torch.device("meta"):
        model, image = _AnySize(TraceNet(config)).eval(), torch.zeros(1, 3, size[1], size[0])
    return trace(model, image)


class _AnySize(nn.Module):
    """Backbone, FPN and heads at sizes that are not multiples of 32: upsampled planes are cropped to the lateral ones.

    Only for counting: the published sizes were not padded.
    """

    def __init__(self, model: TraceNet) -> None:
        super().__init__()
        self.backbone, self.fpn, self.heads = model.backbone, model.fpn, model.heads

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        _, c3, c4, c5 = self.backbone(image)
        inner = {n: getattr(self.fpn, f"lateral{n}")(plane) for n, plane in ((3, c3), (4, c4), (5, c5))}
        for level in (4, 3):
            above = F.interpolate(inner[level + 1], scale_factor=2.0, mode="nearest")
            inner[level] = inner[level] + above[..., : inner[level].shape[-2], : inner[level].shape[-1]]
        p = {level: getattr(self.fpn, f"output{level}")(inner[level]) for level in (3, 4, 5)}
        p[6] = self.fpn.p6(p[5])
        p[7] = self.fpn.p7(F.relu(p[6]))
        return {f"{name}{n}": x for n in LEVELS for name, x in self.heads(p[n], n).items()}
