"""Builds a model of the list: random weights, random stored statistics, evaluation mode, feature maps as outputs."""

from __future__ import annotations

import importlib
import re
from importlib import metadata, util
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from bench.zoo.models import Entry
from tracenet_kernels.errors import InputError

PACKAGES = {"timm": "timm", "smp": "segmentation_models_pytorch"}
_libraries: list[torch.library.Library] = []  # a schema lives as long as the library that defined it


def missing_packages(entries: list[Entry]) -> list[str]:
    """Packages that the entries need and that are not installed."""
    needed = {PACKAGES[entry.source] for entry in entries if entry.source in PACKAGES}
    return sorted(name for name in needed if util.find_spec(name) is None)


def versions() -> dict[str, str]:
    """Versions of the packages that build models."""
    names = (*PACKAGES.values(), "torchvision")
    return {name: metadata.version(name) for name in names if util.find_spec(name) is not None}


def build(entry: Entry, size: tuple[int, int]) -> nn.Module:
    """The model in evaluation mode, with values in it that make errors show.

    Raises:
        InputError: the package that builds it is not installed.
    """
    torch.manual_seed(0)
    if entry.source == "own":
        model = _own(entry.name)
    else:
        if missing := missing_packages([entry]):
            raise InputError(f"{entry.name} needs {missing[0]}, which is not installed; pip install 'tracenet[bench]'")
        declare_torchvision_operators()
        model = _timm(entry.name) if entry.source == "timm" else _smp(entry.name.removeprefix("smp_"))
    randomise(model, size)
    return model.eval()


def declare_torchvision_operators() -> None:
    """Declare torchvision's operators where its compiled part does not load, as beside a CPU build of PyTorch.

    torchvision registers shape functions for them when imported and fails if they do not exist; timm imports it. The
    schemas are stand-ins: no model of the list calls one.
    """
    spec = util.find_spec("torchvision")
    if _libraries or spec is None or spec.origin is None:
        return
    try:
        importlib.import_module("torchvision")
        return
    except RuntimeError:  # an operator does not exist
        pass
    source = (Path(spec.origin).parent / "_meta_registrations.py").read_text()
    names = set(re.findall(r'register_(?:meta|fake)\("(?:torchvision::)?(\w+)"', source))
    library = torch.library.Library("torchvision", "FRAGMENT")
    for name in sorted(names):
        library.define(f"{name}(Tensor x) -> Tensor")
    _libraries.append(library)


class _FeatureMaps(nn.Module):
    """The last feature map of a classifier that cannot give all of them."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        return self.model.forward_features(x)


def _timm(name: str) -> nn.Module:
    timm = importlib.import_module("timm")
    try:
        return timm.create_model(name, pretrained=False, features_only=True)
    except (RuntimeError, AttributeError, TypeError):  # the ways in which timm says that a family has no such mode
        return _FeatureMaps(timm.create_model(name, pretrained=False))


def _smp(name: str) -> nn.Module:
    smp = importlib.import_module("segmentation_models_pytorch")
    return getattr(smp, name)("resnet18", encoder_weights=None, classes=4)


def _own(name: str) -> nn.Module:
    from bench.zoo import detectors, networks

    return {**networks.NETWORKS, **detectors.DETECTORS}[name]()


def randomise(model: nn.Module, size: tuple[int, int]) -> None:
    """Give every parameter and stored statistic a value of its own, in place.

    Freshly made, whole branches are multiplied by zero or by 1e-6, and nothing computed in them could be seen to be
    wrong. BatchNorm's statistics are those of noise, moved, layer by layer: so deep networks neither explode nor fade,
    and rounding does not grow.
    """
    model.eval()
    with torch.no_grad():
        for parameter in model.parameters():
            low, high = float(parameter.min()), float(parameter.max())
            if low != high:
                continue
            if low == 0:
                parameter.normal_(0, 0.1)
            elif abs(low) < 0.1:  # scales of a branch
                parameter.uniform_(0.2, 0.6)
            else:
                parameter.mul_(torch.empty_like(parameter).uniform_(0.6, 1.4))
        norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d) and m.track_running_stats]
        hooks = [norm.register_forward_pre_hook(_measure_statistics) for norm in norms]
        if hooks:
            model(images(2, size))  # two, since a pooled plane has one cell
        for hook in hooks:
            hook.remove()


def images(count: int, size: tuple[int, int], generator: torch.Generator | None = None) -> Tensor:
    """Noise of all scales, as in photos: of pixels alone, nothing but its mean would arrive in deep layers."""
    total = torch.zeros(count, 3, *size)
    for scale in (1, 4, 16, 64):
        coarse = [-(-length // scale) for length in size]
        noise = torch.randn(count, 3, *coarse, generator=generator)
        total += nn.functional.interpolate(noise, size=size, mode="bilinear", align_corners=False)
    return total / 2


def _measure_statistics(norm: nn.Module, given: tuple[Tensor, ...]) -> None:
    assert isinstance(norm, nn.BatchNorm2d) and norm.running_mean is not None and norm.running_var is not None
    variance, mean = torch.var_mean(given[0], (0, 2, 3))
    variance.clamp_(min=max(1e-2 * float(variance.mean()), 1e-6))
    norm.running_mean.copy_(mean + 0.2 * variance.sqrt() * torch.randn_like(mean))
    norm.running_var.copy_(variance * torch.empty_like(variance).uniform_(0.6, 1.6))
