"""Reading foreign state dicts, and checking them key by key before anything is changed."""

from __future__ import annotations

import os
import pickle
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from tracenet.config import TraceNetConfig
from tracenet.models.tracenet import TraceNet
from tracenet_kernels.errors import CheckpointError

Source = Mapping[str, Any] | str | os.PathLike[str]
"""A state dict (possibly wrapped, see :func:`read_state`), or the file that holds one."""

WRAPPERS = ("state_dict", "model", "model_state_dict")
COUNTER = "num_batches_tracked"
"""BatchNorm's training counter: frozen forms lack it, inference never reads it."""


def read_state(source: Source) -> dict[str, Tensor]:
    """A flat state dict: unwrapped from ``{"model": ...}`` and the like, without DataParallel's ``module.`` prefix.

    Args:
        source: a mapping, a ``.safetensors`` file, or a file of ``torch.save`` that holds tensors only.

    Raises:
        CheckpointError: the file is absent, unreadable, a pickle that could run code, or holds no tensors by name.
    """
    where = "the state dict" if isinstance(source, Mapping) else str(source)
    state: Any = source if isinstance(source, Mapping) else _read_file(Path(source))
    for wrapper in WRAPPERS:
        if isinstance(state, Mapping) and isinstance(state.get(wrapper), Mapping):
            state = state[wrapper]
    if not isinstance(state, Mapping) or not state:
        raise CheckpointError(f"{where} holds no tensors by name; pass a model's state_dict()")
    foreign = [str(key) for key, value in state.items() if not (isinstance(key, str) and isinstance(value, Tensor))]
    if foreign:
        raise CheckpointError(f"{where} holds entries that are not named tensors: {', '.join(foreign)}")
    if all(key.startswith("module.") for key in state):
        return {key.removeprefix("module."): value for key, value in state.items()}
    return dict(state)


def _read_file(path: Path) -> Any:
    if path.suffix == ".pkl":
        raise CheckpointError(
            f"{path} is an unrestricted pickle (detectron2's format), which may run code when it is read; "
            "where you trust it, load it yourself and save its tensors with torch.save or safetensors"
        )
    if not path.is_file():
        raise CheckpointError(f"{path} is not a file; pass a state dict or the path of one")
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        return torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, EOFError, RuntimeError, ValueError, KeyError, pickle.UnpicklingError, SafetensorError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise CheckpointError(
            f"{path} ({path.stat().st_size} bytes) cannot be read as plain tensors: {reason}; it is truncated, "
            "of another kind, or holds more than tensors (save its state_dict alone)"
        ) from error


def check_state(
    state: Mapping[str, Tensor],
    expected: Mapping[str, tuple[int, ...]],
    *,
    what: str,
    optional: Iterable[str] = (),
    ignored: str = r"(?!)",
) -> list[str]:
    """Compare keys and shapes; ``num_batches_tracked`` may be there or not.

    Args:
        state: as read.
        expected: key -> shape.
        what: what the checkpoint should be, for the message.
        optional: keys of ``expected`` that may be absent.
        ignored: pattern of keys (from their start) that are known and not used.

    Returns:
        the ignored keys.

    Raises:
        CheckpointError: anything is missing, unexpected, mis-shaped or not floating-point; all of it is listed.
    """
    if not set(expected) & set(state):
        raise CheckpointError(
            f"this is not {what}: none of that one's {len(expected)} keys is there; "
            f"the keys are {', '.join(sorted(state))}"
        )
    skipped = [key for key in state if key not in expected and re.match(ignored, key)]
    known = {*expected, *skipped}
    groups = {
        "missing": sorted(set(expected) - set(state) - set(optional)),
        "unexpected": sorted(key for key in state if key not in known and not key.endswith(COUNTER)),
        "mis-shaped": [
            f"{key} {tuple(state[key].shape)} instead of {tuple(shape)}"
            for key, shape in sorted(expected.items())
            if key in state and tuple(state[key].shape) != tuple(shape)
        ],
        "not floating-point": [
            f"{key} {state[key].dtype}"
            for key in sorted(expected)
            if key in state and not state[key].is_floating_point()
        ],
    }
    problems = [f"{len(keys)} {group}: {', '.join(keys)}" for group, keys in groups.items() if keys]
    if problems:
        raise CheckpointError(f"this is not {what}. " + "; ".join(problems))
    return skipped


def shapes_of(module: nn.Module) -> dict[str, tuple[int, ...]]:
    """Own key -> shape, without BatchNorm's counters."""
    return {key: tuple(value.shape) for key, value in module.state_dict().items() if not key.endswith(COUNTER)}


def depth_of(state: Mapping[str, Tensor], third_stage: str) -> int:
    """50 or 101: a ResNet-101 has a seventh block under the prefix ``third_stage`` (``"...layer3."``)."""
    return 101 if any(key.startswith(f"{third_stage}6.") for key in state) else 50


def rows_of(state: Mapping[str, Tensor], key: str) -> int:
    """Output channels of the weight under ``key``; 1 if it is absent, which :func:`check_state` will report."""
    return state[key].shape[0] if key in state and state[key].ndim else 1


def empty_model(config: TraceNetConfig) -> TraceNet:
    """A model whose weights have shapes but no values yet; :func:`filled` gives them."""
    with torch.device("meta"):
        return TraceNet(config)


def filled(model: TraceNet, values: Mapping[str, Tensor]) -> TraceNet:
    """Give every weight of :func:`empty_model` a copy (fp32, CPU) of its value; evaluation mode."""
    state = {key: value.detach().to("cpu", torch.float32, copy=True) for key, value in values.items()}
    counters = {key: torch.zeros((), dtype=torch.long) for key in model.state_dict() if key.endswith(COUNTER)}
    model.load_state_dict({**counters, **state}, assign=True)
    return model.eval()
