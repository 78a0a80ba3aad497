"""The peers that compute the full network: ONNX Runtime and PyTorch, each in the best of its settings.

Settings are tried in turns and the fastest kept, so that a peer never loses for want of an option.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from copy import deepcopy
from itertools import pairwise
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from bench.end_to_end.network import OUTPUTS, Click, FullNetwork, SizedNetwork
from tracenet.models import TraceNet

Run = Callable[[], Mapping[str, Tensor]]
"""One run of a full network; gives every output by name."""

ORT_SETTINGS: dict[str, dict[str, bool]] = {
    "arena, spinning": {"arena": True, "spinning": True},
    "arena, no spinning": {"arena": True, "spinning": False},
    "no arena, spinning": {"arena": False, "spinning": True},
    "no arena, no spinning": {"arena": False, "spinning": False},
}
TORCH_SETTINGS = ("eager", "folded BatchNorm", "folded BatchNorm, channels_last")


def onnx_session(model: bytes, threads: int, arena: bool, spinning: bool) -> Any:
    """A session with every graph optimisation. Its threads stop spinning when a run ends, so that no other run pays."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.enable_cpu_mem_arena = arena
    options.add_session_config_entry("session.intra_op.allow_spinning", "1" if spinning else "0")
    options.add_session_config_entry("session.force_spinning_stop", "1")
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


class OnnxFull:
    """The full network in ONNX Runtime.

    Attributes:
        setting: key of :data:`ORT_SETTINGS`.
    """

    def __init__(self, network: SizedNetwork, threads: int, setting: str) -> None:
        self.setting = setting
        self._session = onnx_session(network.onnx, threads, **ORT_SETTINGS[setting])
        self._names = [port.name for port in self._session.get_inputs()]

    def runner(self, network: SizedNetwork, click: Click) -> Run:
        given = dict(zip((n.name for n in network.traced.graph.inputs), network.inputs(click), strict=True))
        feeds = {name: given[name].numpy() for name in self._names}

        def run() -> dict[str, Tensor]:
            found = self._session.run(list(OUTPUTS), feeds)
            return {name: torch.from_numpy(array) for name, array in zip(OUTPUTS, found, strict=True)}

        return run


class TorchFull:
    """The full network in PyTorch.

    Attributes:
        setting: one of :data:`TORCH_SETTINGS`.
    """

    def __init__(self, model: TraceNet, setting: str) -> None:
        self.setting = setting
        if setting != "eager":
            model = deepcopy(model)
            fold_batch_norms(model)
        self._channels_last = "channels_last" in setting
        if self._channels_last:
            model = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.network = FullNetwork(model)

    def runner(self, network: SizedNetwork, click: Click) -> Run:
        image, *rest = network.inputs(click)
        if self._channels_last:
            image = image.contiguous(memory_format=torch.channels_last)

        def run() -> dict[str, Tensor]:
            with torch.inference_mode():
                return self.network(image, *rest)

        return run


def fold_batch_norms(model: nn.Module) -> None:
    """Fold every BatchNorm into the convolution before it, in place; towers with one norm per level keep theirs."""
    for module in model.modules():
        children = list(module.named_children())
        for (conv_name, conv), (norm_name, norm) in pairwise(children):
            if isinstance(conv, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d):
                setattr(module, conv_name, fuse_conv_bn_eval(conv, norm))
                setattr(module, norm_name, nn.Identity())


def fastest(candidates: Mapping[str, Run], rounds: int = 3) -> tuple[str, dict[str, float]]:
    """Run candidates in turns, after one round of warm-up.

    Returns:
        the name of the fastest, and the median milliseconds of each.
    """
    times: dict[str, list[float]] = {name: [] for name in candidates}
    for number in range(rounds + 1):
        for name, run in candidates.items():
            start = time.perf_counter()
            run()
            if number:
                times[name].append((time.perf_counter() - start) * 1e3)
    medians = {name: median(values) for name, values in times.items()}
    return min(medians, key=medians.__getitem__), medians
