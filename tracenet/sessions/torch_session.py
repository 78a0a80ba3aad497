"""The reference backend: the crop-and-pad path in PyTorch, with a store of kept patches per session."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from tracenet import inference
from tracenet.conventions import THETA
from tracenet.crop_pad import Patch
from tracenet.inference import Canvas
from tracenet.kept import FeatureStore, kept_names
from tracenet.models import TraceNet
from tracenet.resize import ResizedPhoto
from tracenet.rft import costs
from tracenet.rft.trace import Plan
from tracenet.sessions.base import Parameters
from tracenet.traced import TracedModel, trace
from tracenet_kernels.window import EMPTY, Window

MAX_SIZES = 2 * inference.MAX_FACTORS
"""Captured graphs kept, one per padded image size, least recently used dropped first; they share their weights."""
_NO_MASK = (torch.zeros(1, THETA), torch.zeros(1, 2), torch.ones(1))


class TorchNetwork:
    """A model captured once per padded image size."""

    backend = "torch"

    def __init__(self, model: TraceNet) -> None:
        self.model = model
        self.captured: OrderedDict[tuple[int, int], TracedModel] = OrderedDict()

    def prepare(self, canvas: Canvas) -> None:
        self.traced(canvas)

    def session(self, photo: ResizedPhoto, canvas: Canvas, max_kept_bytes: int) -> TorchSession:
        return TorchSession(self, photo, canvas, max_kept_bytes)

    def full_macs(self, canvas: Canvas) -> int:
        return costs.full_macs(self.traced(canvas).graph)

    def traced(self, canvas: Canvas) -> TracedModel:
        """The capture at a canvas' padded size."""
        size = (canvas.padded_height, canvas.padded_width)
        if size not in self.captured:
            # Only shapes and types are looked at: memory that is never touched costs nothing, however large the scale.
            traced = trace(self.model, (torch.empty(1, 3, *size), *_NO_MASK))
            if self.captured:
                traced.share_weights(next(iter(self.captured.values())))
            self.captured[size] = traced
            while len(self.captured) > MAX_SIZES:
                self.captured.popitem(last=False)
        self.captured.move_to_end(size)
        return self.captured[size]


class TorchSession:
    """One photo at one scale; see :class:`tracenet.sessions.Session`."""

    def __init__(self, network: TorchNetwork, photo: ResizedPhoto, canvas: Canvas, max_kept_bytes: int) -> None:
        self._network, self._photo, self._canvas = network, photo, canvas
        self._store = FeatureStore(max_kept_bytes)

    @property
    def kept_bytes(self) -> int:
        return self._store.bytes

    def run(
        self, request: Mapping[str, Window], parameters: Parameters | None = None
    ) -> tuple[Plan, dict[str, NDArray[np.float32]]]:
        traced = self._network.traced(self._canvas)
        asked: dict[int | str, Window | Sequence[int] | None] = dict(request.items())
        plan = traced.plan(asked, self._store.windows())
        entry = plan.by_node.get(plan.graph.inputs[0])
        window = EMPTY if entry is None else entry.window  # kept features may be all it needs
        pixels = inference.prepare_window(self._photo, self._canvas, self._network.model.config, window)
        given = _NO_MASK
        if parameters is not None:
            names = ("theta", "origin", "size_of_interest")
            given = tuple(torch.from_numpy(np.ascontiguousarray(parameters[n])) for n in names)  # type: ignore[assignment]
        inputs = (Patch(window, torch.from_numpy(pixels)), *given)
        outputs, patches = traced.run_keeping(inputs, plan, self._store.patches, kept_names(traced.graph))
        self._store.add(patches)
        return plan, {str(name): value.numpy() for name, value in outputs.items()}

    def forget(self) -> None:
        self._store.clear()
