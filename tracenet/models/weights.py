"""Checkpoint files: weights with everything a predictor must know, in one safetensors file.

Metadata (all strings): ``format`` = ``tracenet``, ``version``, ``model`` (registry name), ``config``
(:meth:`TraceNetConfig.to_dict` as JSON), ``predictor`` (:meth:`PredictorSettings.to_dict` as JSON) and
``quantisation``. With ``int8_per_channel`` every tensor of two or more axes is stored as ``round(w / scale)`` in int8
with ``<name>.scale`` = ``max|w| / 127`` per output channel (first axis), and restored to fp32 on load.
"""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any, BinaryIO

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from tracenet.checkpoint import (
    BUNDLED,
    FORMAT,
    QUANTISATIONS,
    TORCH_SUFFIXES,
    VERSION,
    CheckpointInfo,
    bundled_checkpoint,
    check_file,
    first_line,
    listed,
    parse_info,
    unreadable,
)
from tracenet.files import write_whole
from tracenet.inference import PredictorSettings
from tracenet.models.registry import create_model, list_models
from tracenet.models.tracenet import TraceNet
from tracenet_kernels.errors import CheckpointError

__all__ = [
    "BUNDLED",
    "FORMAT",
    "VERSION",
    "CheckpointInfo",
    "bundled_checkpoint",
    "load_checkpoint",
    "quantise",
    "restore",
    "save_checkpoint",
]

SCALE = ".scale"


def quantise(weight: Tensor) -> tuple[Tensor, Tensor]:
    """``w [out, ...]`` -> int8 of the same shape and fp32 scale ``[out]`` with ``w ~ q * scale``.

    ``scale = max|w| / 127`` per output channel, so the error is at most half a step; a channel of zeros gets scale 1.
    """
    peak = weight.flatten(1).abs().amax(1).float()
    scale = torch.where(peak > 0, peak / 127, torch.ones_like(peak))
    q = torch.round(weight.float() / scale.view(-1, *[1] * (weight.ndim - 1)))
    return q.clamp(-127, 127).to(torch.int8), scale


def restore(q: Tensor, scale: Tensor) -> Tensor:
    """int8 ``[out, ...]`` and scale ``[out]`` -> fp32."""
    return q.float() * scale.view(-1, *[1] * (q.ndim - 1))


def save_checkpoint(
    model: TraceNet,
    path: str | Path,
    *,
    predictor: PredictorSettings | dict[str, Any],
    quantize: bool = False,
    name: str | None = None,
) -> None:
    """Write ``model`` to ``path`` (``.safetensors``, or ``.pt``/``.pth`` for a plain torch file).

    The file appears whole or not at all: it is written beside its target and renamed.

    Args:
        predictor: how to use the model on a photo.
        quantize: store weights as int8 per output channel (a quarter of the size); safetensors only.
        name: registry name of the architecture; by default ``tracenet_r{depth}_fpn``.

    Raises:
        CheckpointError: the suffix is not known, ``quantize`` does not go with it, or a weight is not finite.
        InputError: the folder does not exist or cannot be written to, or the disk is full.
    """
    path = Path(path)
    settings = predictor if isinstance(predictor, PredictorSettings) else PredictorSettings.from_dict(predictor)
    metadata = {
        "format": FORMAT,
        "version": VERSION,
        "model": name or f"tracenet_r{model.config.depth}_fpn",
        "config": json.dumps(model.config.to_dict()),
        "predictor": json.dumps(settings.to_dict()),
        "quantisation": QUANTISATIONS[quantize],
    }
    state = {k: v.detach().cpu().contiguous() for k, v in model.state_dict().items()}
    broken = [k for k, v in state.items() if v.is_floating_point() and not bool(torch.isfinite(v).all())]
    if broken:
        raise CheckpointError(f"not saving {path}: weights that are not finite: {listed(broken)}")
    if path.suffix in TORCH_SUFFIXES:
        if quantize:
            raise CheckpointError(f"{path}: int8 weights are stored in .safetensors files only; change the suffix")
    elif path.suffix != ".safetensors":
        raise CheckpointError(f"{path}: a checkpoint ends in .safetensors, .pt or .pth")
    if quantize:
        for key in [k for k, v in state.items() if v.is_floating_point() and v.ndim >= 2]:
            state[key], state[key + SCALE] = quantise(state[key])

    def write(file: BinaryIO) -> None:
        if path.suffix in TORCH_SUFFIXES:
            torch.save({**metadata, "state_dict": state}, file)
        else:
            file.write(save(state, metadata))

    write_whole(path, write)


def load_checkpoint(path: str | Path) -> tuple[TraceNet, CheckpointInfo]:
    """Read a file of :func:`save_checkpoint`: the model in evaluation mode (fp32, CPU) and what the file says.

    Raises:
        CheckpointError: the file is absent, truncated, not one of ours, of another version, or its keys or shapes do
            not fit the model it names; the message lists them.
    """
    path = Path(path)
    metadata, state = _read(path)
    info = parse_info(path, metadata)
    if info.model not in list_models():
        raise CheckpointError(f"{path} holds a {info.model!r}; models known here are {list_models()}")
    try:
        model = create_model(info.model, **info.config.to_dict())
    except (ValueError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{path} has metadata that cannot be read: {error}") from error
    _fill(model, _dequantised(state, path) if info.quantisation != "none" else state, path)
    return model, info


def _read(path: Path) -> tuple[dict[str, str], dict[str, Tensor]]:
    check_file(path)
    if path.suffix in TORCH_SUFFIXES:
        try:
            data = torch.load(path, map_location="cpu", weights_only=True)
        except (OSError, EOFError, RuntimeError, ValueError, KeyError, pickle.UnpicklingError) as error:
            raise CheckpointError(f"{path} cannot be read as a torch checkpoint: {first_line(error)}") from error
        if not isinstance(data, dict) or not isinstance(data.get("state_dict"), dict):
            raise CheckpointError(f"{path} holds no 'state_dict'; save it with save_checkpoint")
        return {k: v for k, v in data.items() if isinstance(v, str)}, data["state_dict"]
    try:
        with safe_open(path, "pt") as opened:
            return opened.metadata() or {}, {key: opened.get_tensor(key) for key in opened.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise unreadable(path, error) from error


def _dequantised(state: dict[str, Tensor], path: Path) -> dict[str, Tensor]:
    out = {}
    for key, tensor in state.items():
        scale = state.get(key + SCALE)
        if tensor.dtype == torch.int8:
            if scale is None or tuple(scale.shape) != tuple(tensor.shape[:1]):
                raise CheckpointError(f"{path}: {key} is int8 and needs {key + SCALE} of shape [{tensor.shape[0]}]")
            out[key] = restore(tensor, scale)
        elif not (key.endswith(SCALE) and key.removesuffix(SCALE) in state):
            out[key] = tensor
    return out


def _fill(model: TraceNet, state: dict[str, Tensor], path: Path) -> None:
    own = model.state_dict()
    problems = []
    if missing := sorted(set(own) - set(state)):
        problems.append(f"missing {listed(missing)}")
    if extra := sorted(set(state) - set(own)):
        problems.append(f"unexpected {listed(extra)}")
    shapes = [
        f"{key} {tuple(state[key].shape)} instead of {tuple(own[key].shape)}"
        for key in sorted(set(own) & set(state))
        if state[key].shape != own[key].shape
    ]
    if shapes:
        problems.append(f"wrong shape {listed(shapes)}")
    if problems:
        raise CheckpointError(f"{path} does not fit its own config: {'; '.join(problems)}")
    model.load_state_dict(state)
