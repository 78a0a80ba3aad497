"""How far a traced click is from the full network."""

from __future__ import annotations

import numpy as np

from tracenet import inference
from tracenet.conventions import LEVELS
from tracenet.predictor import Predictor
from tracenet.untraced import half_logits, planes_of


def full_network_error(predictor: Predictor, click: tuple[float, float]) -> tuple[float, float]:
    """Largest absolute difference of a click's mask logits from the untraced network's, and ``max|full|``.

    Predicts ``click`` (x, y in photo pixels) on the predictor's current image and runs the full network on it too. Both
    are compared inside the mask window, the only place where a traced run promises anything.
    """
    model = predictor.model
    _, _, logits = predictor.predict([list(click)], [1])
    plan = predictor.last_plan
    assert plan is not None
    assert predictor.last_levels is not None
    level = int(predictor.last_levels[0])
    rows, columns = plan.masks[0].request["mask_half"].slices
    scale = predictor.last_scale
    working = inference.to_working(np.array([click], np.float64), scale.canvas).astype(np.float32)
    full = planes_of(model, predictor.input_at(scale))
    found = inference.predictions_at(full, working, model.config.anchor_offset)
    theta = found["theta"][:, level - LEVELS[0]]
    plane = half_logits(model, full["maskfeat"], theta, working, level)[0][rows, columns]
    difference = logits[0][rows, columns] - plane
    return float(np.abs(difference).max()), float(np.abs(plane).max())
