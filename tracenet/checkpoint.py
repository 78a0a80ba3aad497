"""What a checkpoint file says about itself, read without loading its weights."""

from __future__ import annotations

import json
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING

from tracenet.config import TraceNetConfig
from tracenet.inference import PredictorSettings
from tracenet_kernels.errors import CheckpointError

if TYPE_CHECKING:
    from tracenet.models import TraceNet

FORMAT = "tracenet"
VERSION = "1"
QUANTISATIONS = ("none", "int8_per_channel")
BUNDLED = "tracenet_r50_fpn.safetensors"
TORCH_SUFFIXES = (".pt", ".pth")


@dataclass(frozen=True)
class CheckpointInfo:
    """What a checkpoint says about itself."""

    path: Path
    version: str
    model: str
    config: TraceNetConfig
    predictor: PredictorSettings
    quantisation: str


def bundled_checkpoint() -> Path:
    """The checkpoint that ships with the package.

    Raises:
        CheckpointError: this installation was built without it.
    """
    path = Path(str(files("tracenet") / "assets" / BUNDLED))
    if not path.is_file():
        raise CheckpointError(f"this installation ships no checkpoint ({path} is absent); pass a checkpoint file")
    return path


def check_file(path: Path) -> None:
    """Raise CheckpointError where there is no file at ``path``."""
    if not path.is_file():
        raise CheckpointError(f"{path} is not a file; pass a checkpoint, or no name for the bundled one")


def unreadable(path: Path, error: BaseException) -> CheckpointError:
    """What is raised of a safetensors file that cannot be read."""
    return CheckpointError(
        f"{path} ({path.stat().st_size} bytes) cannot be read as safetensors: {first_line(error)}; "
        "it is truncated or of another kind, copy or download it again"
    )


def read_info(path: str | Path) -> CheckpointInfo:
    """What a ``.safetensors`` checkpoint says about itself; its header is read, its weights are not.

    Raises:
        CheckpointError: the file is absent, truncated, not one of ours or of another version.
    """
    from safetensors import SafetensorError, safe_open

    path = Path(path)
    check_file(path)
    try:
        with safe_open(path, "np") as opened:
            metadata = opened.metadata() or {}
    except (OSError, SafetensorError) as error:
        raise unreadable(path, error) from error
    return parse_info(path, metadata)


def parse_info(path: Path, metadata: dict[str, str]) -> CheckpointInfo:
    """The metadata of a checkpoint, checked.

    Raises:
        CheckpointError: it is not one of ours, of another version, or its metadata cannot be read.
    """
    if metadata.get("format") != FORMAT:
        raise CheckpointError(
            f"{path} is not a TraceNet checkpoint (format {metadata.get('format')!r}, expected {FORMAT!r}); "
            "weights of other projects go through the importers in tracenet.models"
        )
    if metadata.get("version") != VERSION:
        raise CheckpointError(
            f"{path} has format version {metadata.get('version')!r}, this release reads {VERSION!r}; "
            "save it again with a matching release"
        )
    absent = [key for key in ("model", "config", "predictor", "quantisation") if key not in metadata]
    if absent:
        raise CheckpointError(f"{path} lacks the metadata {listed(absent)}; save it with save_checkpoint")
    if metadata["quantisation"] not in QUANTISATIONS:
        raise CheckpointError(f"{path} is quantised as {metadata['quantisation']!r}; known are {QUANTISATIONS}")
    try:
        config = TraceNetConfig.from_dict(json.loads(metadata["config"]))
        predictor = PredictorSettings.from_dict(json.loads(metadata["predictor"]))
    except (ValueError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{path} has metadata that cannot be read: {error}") from error
    return CheckpointInfo(path, VERSION, metadata["model"], config, predictor, metadata["quantisation"])


def listed(names: list[str], limit: int = 12) -> str:
    """Names with commas between them, the first ``limit`` of many."""
    shown = ", ".join(names[:limit])
    return shown if len(names) <= limit else f"{shown} and {len(names) - limit} more"


def first_line(error: BaseException) -> str:
    """The first line of an error's message, or its type where it has none."""
    return (str(error).splitlines() or [type(error).__name__])[0]


class Checkpoint:
    """A checkpoint whose weights are loaded when they are asked for.

    Attributes:
        info: what the file says about itself.

    Raises:
        CheckpointError: as :func:`read_info` and, when the weights are read,
            :func:`tracenet.models.weights.load_checkpoint` raise it.
    """

    def __init__(self, path: str | Path) -> None:
        self._model: TraceNet | None = None
        if Path(path).suffix in TORCH_SUFFIXES:  # a pickle cannot be read in part
            self.info = self._load(Path(path))
        else:
            self.info = read_info(path)

    @property
    def config(self) -> TraceNetConfig:
        return self.info.config

    @property
    def model(self) -> TraceNet:
        """The model, in evaluation mode."""
        if self._model is None:
            self._load(self.info.path)
            assert self._model is not None
        return self._model

    def _load(self, path: Path) -> CheckpointInfo:
        from tracenet.models.weights import load_checkpoint

        self._model, info = load_checkpoint(path)
        return info
