"""Training the whole network: both objectives, accumulation, and the gathering of clicks."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch

from tracenet.conventions import LEVELS
from tracenet.data import CocoDataset
from tracenet.data.mixture import Source
from tracenet.distributed import Ranks
from tracenet.inference import predictions_at
from tracenet.training.build import build_model
from tracenet.training.config import TrainConfig
from tracenet.training.engine import Engine
from tracenet.training.network_task import heads_at_clicks, network_task
from tracenet.training.optim import freeze
from tracenet_kernels.errors import InputError

Configured = Callable[..., TrainConfig]
ALONE = Ranks(0, 1, torch.device("cpu"))


def engine_of(config: TrainConfig) -> Engine:
    entry = config.data[0]
    source = Source("d", CocoDataset(entry.images, entry.annotations), entry.weight)
    detector = config.objective.detection == "fcos"
    model = build_model(config.model, config.run.seed, config.init.backbone, detector=detector)
    freeze(model, config.optimizer)
    return Engine(model, network_task(model, config, [source], ALONE), config, ALONE)


def test_the_detector_learns(configured: Configured) -> None:
    config = configured(
        "network",
        run={"steps": 10},
        model={"level_head": False, "num_classes": 2},
        objective={"detection": "fcos", "masks": "assigned", "dense": {"bce": 1.0}},
    )
    engine = engine_of(config)
    logs = [engine.advance() for _ in range(10)]
    assert set(logs[0]) >= {"loss", "score", "box", "centerness", "dice", "bce", "iou"}
    assert np.mean([log["loss"] for log in logs[-3:]]) < 0.95 * np.mean([log["loss"] for log in logs[:2]])


def test_clicks_are_learned_beside_the_detector(configured: Configured) -> None:
    config = configured("network", objective={"detection": "fcos", "masks": "clicks"}, clicks={"zoom_pairs": 1.0})
    log = engine_of(config).advance()
    assert set(log) >= {"score", "box", "centerness", "dice", "bce", "level", "choice", "iou"}


def test_every_trained_parameter_gets_a_gradient(configured: Configured) -> None:
    engine = engine_of(configured("network"))
    engine.task.gradients(0, 1.0)
    assert [n for n, p in engine.model.named_parameters() if p.requires_grad and p.grad is None] == []


def test_gradients_are_accumulated_in_pieces(configured: Configured) -> None:
    """One image at a time gives the mean of the images' gradients; norms frozen, so that images do not mix."""
    whole = engine_of(configured("network", norm={"kind": "frozen"}))
    pieces = engine_of(configured("network", norm={"kind": "frozen"}, run={"images_at_once": 1}))
    whole.task.gradients(0, 1.0)
    pieces.task.gradients(0, 1.0)
    for name in ("cls_tower.0.conv", "theta"):
        a, b = (e.model.heads.get_submodule(name).weight.grad for e in (whole, pieces))
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-5)


def test_the_scale_of_half_precision_multiplies_gradients(configured: Configured) -> None:
    one, scaled = engine_of(configured("network")), engine_of(configured("network"))
    one.task.gradients(0, 1.0)
    scaled.task.gradients(0, 8.0)
    a, b = (e.model.heads.reg.weight.grad for e in (one, scaled))
    torch.testing.assert_close(8 * a, b, rtol=1e-4, atol=1e-6)


def test_clicks_read_the_same_cells_as_inference(configured: Configured) -> None:
    model = build_model(configured("network").model, 0)
    with torch.no_grad():
        outputs = model(torch.randn(1, 3, 128, 160))
    clicks = torch.tensor([[3.0, 5.0], [150.0, 100.0], [64.0, 64.0]])
    wanted = torch.rand(3, 5) < 0.7
    found = heads_at_clicks(outputs, 0, clicks, wanted)
    planes = {name: plane.numpy() for name, plane in outputs.items()}
    reference = {name: torch.from_numpy(at) for name, at in predictions_at(planes, clicks.numpy()).items()}
    torch.testing.assert_close(found.logits, reference["logits"])
    torch.testing.assert_close(found.level, reference["level"])
    columns = found.level_of - LEVELS[0]
    torch.testing.assert_close(found.theta, reference["theta"][found.click_of, columns])
    torch.testing.assert_close(found.ctr, reference["ctr"][found.click_of, columns])
    assert len(found.click_of) == int(wanted.sum())


def test_a_wrong_number_of_classes_is_refused(configured: Configured) -> None:
    config = configured("network", model={"num_classes": 80}, objective={"detection": "fcos"})
    with pytest.raises(InputError, match="the annotations name 2 categories"):
        engine_of(config)
