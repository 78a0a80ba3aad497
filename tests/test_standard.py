"""The standard request against windows and multiply-adds computed by interval arithmetic on another implementation."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest

from tracenet import Window
from tracenet.models import TraceNetConfig, create_model
from tracenet.standard import (
    PAPER_GFLOPS,
    costs_table,
    model_config,
    standard_plan,
    standard_request,
    summary,
    trace_model,
)
from tracenet_kernels.errors import ClickError, InputError, WindowError

R50_1024 = {"depth": 50, "num_classes": 80}
NONE = {**R50_1024, "mask_branch": "none"}
R50_640_MSRA = {**R50_1024, "stride_in_1x1": True}

CASES: dict[str, dict[str, Any]] = {
    "heads, one level, corner": {
        "config": NONE,
        "ask": ((1024, 768), (0, 0), (3, 3), "none"),
        "macs": {"backbone": 3015609088, "fpn": 33947648, "heads": 64286208, "mask": 0, "total": 3113842944},
        "full_macs": {
            "backbone": 64059604992,
            "fpn": 12472811520,
            "heads": 86812729344,
            "mask": 0,
            "total": 163345145856,
        },
        "count": 92,
        "windows": {
            "P3": [0, 6, 0, 6],
            "inner3": [0, 7, 0, 7],
            "inner5": [0, 2, 0, 2],
            "C5": [0, 2, 0, 2],
            "C3": [0, 26, 0, 26],
            "layer3.0.down": [0, 13, 0, 13],
            "layer1.0.add": [0, 60, 0, 60],
            "maxpool": [0, 61, 0, 61],
            "conv1": [0, 122, 0, 122],
            "image": [0, 246, 0, 246],
        },
    },
    "heads, all levels, centre": {
        "config": NONE,
        "ask": ((1024, 768), (512, 384), (3, 7), "none"),
        "macs": {
            "backbone": 64059604992,
            "fpn": 1206386688,
            "heads": 923051520,
            "mask": 0,
            "total": 66189043200,
        },
        "full_macs": {"total": 163345145856},
        "count": 144,
        "windows": {
            "box7.1": [0, 6, 1, 8],
            "cls6.0": [2, 11, 4, 13],
            "P6": [0, 12, 0, 16],
            "P3": [43, 54, 59, 70],
            "inner4": [18, 31, 26, 39],
            "up3": [42, 55, 58, 71],
            "layer4.0.conv1": [0, 48, 0, 64],
            "image": [0, 768, 0, 1024],
        },
    },
    "mask on the whole plane": {
        "config": R50_1024,
        "ask": ((640, 480), (320, 240), (3, 7), "all"),
        "macs": {
            "backbone": 25023283200,
            "fpn": 4875878400,
            "heads": 847554048,
            "mask": 4694745600,
            "total": 35441461248,
        },
        "full_macs": {"heads": 33944371200, "mask": 4694745600, "total": 68538278400},
        "count": 158,
        "windows": {"mask": [0, 60, 0, 80], "refine5": [0, 15, 0, 20]},
    },
    "stride in the 1x1, right edge": {
        "config": R50_640_MSRA,
        "ask": ((640, 480), (639, 470), (3, 5), 32),
        "macs": {
            "backbone": 13384104960,
            "fpn": 572981248,
            "heads": 209373696,
            "mask": 399670704,
            "total": 14566130608,
        },
        "full_macs": {
            "backbone": 23607705600,
            "fpn": 4875878400,
            "heads": 33944371200,
            "mask": 4694745600,
            "total": 67122700800,
        },
        "count": 132,
        "windows": {
            "logits3": [58, 59, 79, 80],
            "theta5": [14, 15, 19, 20],
            "mask": [42, 60, 63, 80],
            "dyn1": [42, 60, 63, 80],
            "mb.0": [39, 60, 60, 80],
            "refsum": [38, 60, 59, 80],
            "refine4": [18, 30, 29, 40],
            "refine5": [9, 15, 14, 20],
            "ref5up": [38, 60, 59, 80],
            "P4": [17, 30, 28, 40],
            "layer4.0.conv1": [4, 15, 9, 20],
            "layer4.0.conv2": [5, 15, 10, 20],
            "layer2.0.down": [1, 60, 21, 80],
            "C2": [0, 119, 40, 159],
            "conv1": [0, 240, 73, 320],
            "image": [0, 480, 143, 640],
        },
    },
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_windows_and_macs(case: dict[str, Any]) -> None:
    result = summary(standard_plan(TraceNetConfig(**case["config"]), *case["ask"]))
    assert {name: result["windows"].get(name) for name in case["windows"]} == case["windows"]
    assert len(result["windows"]) == case["count"]
    assert result["macs"] == case["macs"]
    assert case["full_macs"].items() <= result["full_macs"].items()
    assert all(type(n) is int for group in ("macs", "full_macs") for n in result[group].values())


def test_required_names_are_there() -> None:
    windows = summary(standard_plan(TraceNetConfig(**NONE), (1024, 768), (512, 384)))["windows"]
    assert {"image", "conv1", "maxpool", "C2", "C3", "C4", "C5", "inner3", "inner4", "inner5"} <= set(windows)
    assert {"P3", "P4", "P5", "P6", "P7", "logits7", "lat5", "up4", "layer1.0.down", "layer4.1.add"} <= set(windows)
    assert not {"layer1.2.add", "mask", "maskfeat"} & set(windows)


def test_one_capture_per_config_and_size() -> None:
    traced = trace_model("tracenet_r50_fpn", (640, 480), num_classes=80)
    assert trace_model(TraceNetConfig(num_classes=80), (640, 480)) is traced
    assert trace_model(create_model("tracenet_r50_fpn", num_classes=80), (640, 480)) is traced
    assert trace_model("tracenet_r50_fpn", (640, 480), num_classes=80, stride_in_1x1=True) is not traced


def test_request() -> None:
    request = standard_request(TraceNetConfig(), (640, 480), (639.5, 1), (3, 4), 5)
    assert list(request) == [f"{head}{level}" for level in (3, 4) for head in ("logits", "reg", "ctr", "theta")] + [
        "mask"
    ]
    assert request["ctr4"] == Window(0, 1, 39, 40)
    assert request["mask"] == Window(0, 3, 77, 80)  # [-2, 3) x [77, 82), clipped
    plain = TraceNetConfig(mask_branch="none", filter_head=False)
    assert list(standard_request(plain, (64, 64), (0, 0), (5, 5))) == ["logits5", "reg5", "ctr5"]
    assert standard_request(TraceNetConfig(), (96, 64), (5, 5), (3, 3), "all")["mask"] == Window(0, 8, 0, 12)


@pytest.mark.parametrize(
    "click", [(-1, 5), (640, 5), (5, 480), (5, -0.1), (math.nan, 5), (5, math.inf), (1e300, 5)], ids=str
)
def test_clicks_outside(click: tuple[float, float]) -> None:
    with pytest.raises(ClickError, match="outside the image: 0 <= x < 640 and 0 <= y < 480"):
        standard_request(TraceNetConfig(), (640, 480), click)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: standard_request(TraceNetConfig(), (64, 64), (0, 0), (2, 5)), "levels 2-5"),
        (lambda: standard_request(TraceNetConfig(), (64, 64), (0, 0), (5, 4)), "levels 5-4"),
        (lambda: standard_request(TraceNetConfig(), (64, 64), (0, 0), (3, 8)), "levels 3-8"),
        (lambda: standard_request(TraceNetConfig(), (64, 64), (0, 0), mask_cells=0), "mask_cells=0"),
        (lambda: standard_request(TraceNetConfig(), (64, 64), (0, 0), mask_cells="some"), "mask_cells='some'"),
        (lambda: standard_plan(TraceNetConfig(**NONE), (1024, 768), (0, 0), mask_cells=8), "needs a mask branch"),
        (lambda: trace_model("tracenet_r50_fpn", (1000, 600)), "multiples of 32, images are padded; use 1024x608"),
        (lambda: trace_model("tracenet_r50_fpn", (0, 32)), "use 32x32"),
        (lambda: trace_model("tracenet_r18_fpn", (64, 64)), "no model is named 'tracenet_r18_fpn'"),
        (lambda: trace_model(TraceNetConfig(), (64, 64), depth=101), "put them into the config"),
        (lambda: model_config("tracenet_r50_fpn", heads=3), "unknown fields"),
    ],
)
def test_bad_requests(call: Callable[[], Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        call()


def test_windows_outside_the_plane_are_refused() -> None:
    traced = trace_model("tracenet_r50_fpn", (640, 480), num_classes=80)
    with pytest.raises(WindowError, match="60 x 80"):
        traced.plan({"mask": Window(0, 61, 0, 80)})


def test_costs_table() -> None:
    table = costs_table((640, 480))
    assert (table["size"], table["click"]) == ([640, 480], [320, 240])
    assert [(r["network"], r["depth"], r["levels"], r["mask_cells"]) for r in table["rows"][:5]] == [
        ("FullNet", 50, None, "all"),
        ("TraceNet", 50, [3, 7], "none"),
        ("TraceNet", 50, [3, 5], "none"),
        ("TraceNet", 50, [3, 7], 32),
        ("TraceNet", 50, [3, 5], 32),
    ]
    assert table["rows"][0]["macs"] == 68538278400
    for row in table["rows"] + table["nearest"]["rows"]:
        assert row["paper_gflops"] == PAPER_GFLOPS[row["network"], row["depth"]]
        assert row["share"] == row["macs"] / row["full_macs"]
        assert (row["share"] == 1) == (row["network"] == "FullNet")


def test_nearest_size_to_the_paper() -> None:
    nearest = costs_table((640, 480))["nearest"]
    assert nearest["size"] == [800, 528]
    full = {row["depth"]: row["gmacs"] for row in nearest["rows"] if row["network"] == "FullNet"}
    assert full == {50: 86.19, 101: 117.44}
