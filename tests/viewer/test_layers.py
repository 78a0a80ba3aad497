"""The layers' windows: both backends say the same of a click, and they are the windows of the plan."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tests.networks import randomised
from tests.viewer.conftest import SETTINGS
from tests.viewer.servers import a_photo
from tracenet import Predictor, Window
from tracenet.inference import Canvas, fit_canvas
from tracenet.viewer.layers import LAYERS, STAGES, NetworkViews, graph_nodes, layer_of, report, stage_of
from tracenet_kernels import native


@pytest.fixture(scope="module")
def predictors() -> list[Predictor]:
    """The same network on every backend that is here, torch first."""
    model = randomised(level_head=True)
    return [Predictor(model, SETTINGS, backend) for backend in ("torch", "native")[: 1 + native.available()]]


def reports(predictors: list[Predictor], *clicks: list[list[float]], **options: Any) -> list[list[dict[str, Any]]]:
    """Per predictor, a report per click on one photo."""
    found = []
    for predictor in predictors:
        views = NetworkViews(predictor.network)
        predictor.set_image(a_photo())
        mine = []
        for click in clicks:
            predictor.predict(click, **options)
            plan, scale = predictor.last_plan, predictor.last_scale
            assert plan is not None
            mine.append(report(views, scale.canvas, scale.factor, plan.at(scale.factor)))
        found.append(mine)
    return found


@pytest.mark.parametrize(
    "options", [{}, {"levels": (3, 4), "mask_window": 20}, {"zoom": (0.5, 1, 2), "multimask_output": True}]
)
def test_both_backends_report_the_same(predictors: list[Predictor], options: dict[str, Any]) -> None:
    torch, *others = reports(predictors, [[75, 48]], [[20, 90], [100, 20]], **options)
    for other in others:
        for mine, theirs in zip(torch, other, strict=True):
            assert mine["canvas"] == theirs["canvas"]
            assert mine["stages"] == theirs["stages"]
            for a, b in zip(mine["layers"], theirs["layers"], strict=True):
                assert {k: v for k, v in a.items() if "computed" not in k} == {
                    k: v for k, v in b.items() if "computed" not in k
                }
                np.testing.assert_array_equal(painted(a), painted(b), a["name"])


def painted(layer: dict[str, Any]) -> Any:
    cells = np.zeros(layer["plane"], np.bool_)
    for y0, y1, x0, x1 in layer["computed"]:
        assert not cells[y0:y1, x0:x1].any()
        cells[y0:y1, x0:x1] = True
    return cells


def test_demands_are_those_of_a_plan_without_kept_features(predictors: list[Predictor]) -> None:
    predictor = predictors[0]
    first, second = reports(predictors[:1], [[75, 48]], [[20, 90]])[0]
    alone = reports(predictors[:1], [[20, 90]])[0][0]
    assert [layer["demand"] for layer in second["layers"]] == [layer["demand"] for layer in alone["layers"]]
    assert sum(stage["macs"] for stage in second["stages"]) < sum(stage["macs"] for stage in alone["stages"])
    assert predictor.last_plan is not None
    windows = predictor.last_plan.windows
    for layer in alone["layers"]:
        if layer["name"] in ("image", "backbone.conv1", "C2", "C5", "mask_half"):
            assert Window(*layer["demand"]) == windows[layer["name"]]
    assert [layer["name"] for layer in first["layers"]] == list(LAYERS)
    assert [stage["stage"] for stage in first["stages"]] == list(STAGES)


def test_boxes_on_the_photo_are_its_pixels(predictors: list[Predictor]) -> None:
    found = reports(predictors[:1], [[75, 48]], mask_window=10)[0][0]
    canvas = found["canvas"]
    assert (canvas["width"], canvas["height"], canvas["padded_width"], canvas["padded_height"]) == (128, 83, 128, 96)
    mask = next(layer for layer in found["layers"] if layer["name"] == "mask_half")
    x0, y0, x1, y1 = mask["photo_box"]
    assert x0 <= 65 <= 86 <= x1
    assert y0 <= 38 <= 59 <= y1
    assert x1 - x0 < 26  # a radius of 10 pixels and the click, in steps of two working pixels
    whole = found["layers"][0]
    assert whole["name"] == "image"
    assert whole["photo_box"][2] <= 150
    assert whole["photo_box"][3] <= 97


def test_every_step_that_costs_something_is_in_a_stage_and_a_layer(predictors: list[Predictor]) -> None:
    canvas: Canvas = fit_canvas(150, 97, 128)
    for predictor in predictors:
        view = NetworkViews(predictor.network).at(canvas)
        for node in view.nodes:
            assert node.stage in (*STAGES, "")
            assert node.stage or not node.full_macs
            assert node.layer in LAYERS or not node.full_macs
        assert sum(node.full_macs for node in view.nodes) == predictor.network.full_macs(canvas)
        assert [one["name"] for one in graph_nodes(view)] == [node.name for node in view.nodes]


@pytest.mark.parametrize(
    ("name", "layer", "stage"),
    [
        ("backbone.bn1", "backbone.conv1", "stem"),
        ("backbone.layer3.5.relu_2", "C4", "C4"),
        ("fpn.lateral4", "P4", "FPN"),
        ("fpn.p6", "P6", "FPN"),
        ("fpn.add_1", "", "FPN"),
        ("heads.cls_tower.0@2.relu", "heads5", "heads"),
        ("heads@4.mul_1", "heads7", "heads"),
        ("mask_branch.refine3.conv", "maskfeat", "mask branch"),
        ("aligned_bilinear", "mask_half", "mask head"),
        ("theta", "", ""),
    ],
)
def test_nodes_belong_to_layers_and_stages(name: str, layer: str, stage: str) -> None:
    assert (layer_of(name), stage_of(name)) == (layer, stage)
