"""Model names: ``create_model("tracenet_r50_fpn")`` and a decorator to add more."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tracenet.config import TraceNetConfig
from tracenet.models.tracenet import TraceNet
from tracenet_kernels.errors import InputError

_MODELS: dict[str, Callable[..., TraceNet]] = {}


def register_model(factory: Callable[..., TraceNet]) -> Callable[..., TraceNet]:
    """Make a factory available to :func:`create_model` under its function name."""
    if factory.__name__ in _MODELS:
        raise InputError(f"a model named {factory.__name__!r} is already registered; choose another name")
    _MODELS[factory.__name__] = factory
    return factory


def list_models() -> list[str]:
    """Names that :func:`create_model` accepts."""
    return sorted(_MODELS)


def create_model(name: str, **config: Any) -> TraceNet:
    """Build a model in evaluation mode with random weights.

    Args:
        name: one of :func:`list_models`, e.g. ``"tracenet_r50_fpn"``.
        config: fields of :class:`tracenet.models.TraceNetConfig`, e.g. ``num_classes=80``.

    Raises:
        InputError: the name or a config field is not known.
    """
    if name not in _MODELS:
        raise InputError(f"no model is named {name!r}; choose one of {list_models()}")
    return _MODELS[name](**config).eval()


@register_model
def tracenet_r50_fpn(**config: Any) -> TraceNet:
    """TraceNet on ResNet-50: 256 channels, 4 + 4 tower convolutions."""
    return TraceNet(TraceNetConfig.from_dict({"depth": 50, **config}))


@register_model
def tracenet_r101_fpn(**config: Any) -> TraceNet:
    """TraceNet on ResNet-101: 256 channels, 4 + 4 tower convolutions."""
    return TraceNet(TraceNetConfig.from_dict({"depth": 101, **config}))
