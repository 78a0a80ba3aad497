"""A training run as a TOML file: tables of plain values, checked when read.

``${NAME}`` in a string is taken from the environment; ``--set table.key=value`` replaces single values. A key that is
not known, or a value of the wrong type, is an error that names the file, the key and what is allowed.
"""

from __future__ import annotations

import os
import re
import sys
import types
import typing
from collections.abc import Sequence
from dataclasses import MISSING, asdict, dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any, TypeVar

from tracenet.data.augment import Augmentation
from tracenet.inference import PredictorSettings
from tracenet.models import TraceNetConfig
from tracenet.training.click_objective import ClickObjective
from tracenet.training.dense_objective import DenseObjective
from tracenet.training.teacher import TeacherSettings
from tracenet_kernels.errors import InputError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

T = TypeVar("T")

TASKS = ("network", "cached")
OPTIMIZERS = ("sgd", "adamw")
SHAPES = ("cosine", "step")
PRECISIONS = ("fp32", "bf16", "fp16")
NORMS = ("batch", "sync", "renorm", "frozen")
PLACES = ("mixed", "inside", "centre")
DETECTIONS = ("clicks", "fcos")
MASKS = ("clicks", "assigned")


def _choose(table: str, key: str, value: str, allowed: Sequence[str]) -> None:
    if value not in allowed:
        raise InputError(f"[{table}] {key} = {value!r} is not known; choose one of {tuple(allowed)}")


def _at_least(table: str, key: str, value: float, least: float) -> None:
    if not value >= least:
        raise InputError(f"[{table}] {key} = {value}; it must be at least {least}")


@dataclass(frozen=True)
class RunTable:
    """``[run]``: how much, where, how exactly.

    Attributes:
        task: ``network`` trains whole images through the whole network; ``cached`` computes the frozen part of the
            backbone once a view and the towers at clicks only, for machines without a GPU.
        steps: optimiser steps. May be changed when a run is continued.
        images_per_step: of all processes together.
        images_at_once: of one process; its share of ``images_per_step`` is accumulated in pieces of this size. 0: all.
        workers: processes that decode and augment (``network``) or threads that compute (``cached``).
        precision: of the forward and backward pass; weights and losses are float32.
        save_minutes: between two checkpoints of the run.
        log_every: steps.
        device: ``auto``, ``cpu``, ``cuda``.
        seed: of everything that is drawn.
        cache: folder of the planes that ``cached`` keeps, which runs may share; ``OUT/cache`` by default.
    """

    task: str = "network"
    steps: int = 90_000
    images_per_step: int = 16
    images_at_once: int = 0
    workers: int = 2
    precision: str = "fp32"
    save_minutes: float = 4.0
    log_every: int = 20
    device: str = "auto"
    seed: int = 0
    cache: str = ""

    def __post_init__(self) -> None:
        _choose("run", "task", self.task, TASKS)
        _choose("run", "precision", self.precision, PRECISIONS)
        for key in ("steps", "images_per_step", "log_every"):
            _at_least("run", key, getattr(self, key), 1)
        for key in ("images_at_once", "workers", "save_minutes"):
            _at_least("run", key, getattr(self, key), 0)


@dataclass(frozen=True)
class InitTable:
    """``[init]``: where weights come from; what neither file holds is drawn.

    Attributes:
        backbone: safetensors of an ImageNet ResNet under torchvision's names (a classifier's ``fc.*`` is left out).
        checkpoint: a TraceNet checkpoint of the same architecture.
    """

    backbone: str = ""
    checkpoint: str = ""


@dataclass(frozen=True)
class DataTable:
    """One ``[[data]]`` entry: a dataset in the mix.

    Attributes:
        images: folder of the photos.
        annotations: COCO or LVIS json.
        name: of its own in logs and caches; the annotation file's stem by default.
        weight: how often it is drawn, relative to the others.
        proposals: json of a teacher's masks on the same photos (``tracenet teach``); unused without ``[teacher]``.
        hold_out: photos, evenly spread over ids, that are never trained on but used to select the best weights.
        views: number of different views of each photo that are cached (``cached`` only).
        skip_bad: leave out photos and annotations that cannot be used instead of stopping; they are listed.
        set_weights: how often photos are drawn whose json ``dataset`` is the key, relative to the others here.
    """

    images: str
    annotations: str
    name: str = ""
    weight: float = 1.0
    proposals: str = ""
    hold_out: int = 0
    views: int = 4
    skip_bad: bool = False
    set_weights: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.weight > 0:
            raise InputError(f"[[data]] weight = {self.weight} of {self.annotations}; it must be positive")
        _at_least("data", "hold_out", self.hold_out, 0)
        _at_least("data", "views", self.views, 1)


@dataclass(frozen=True)
class ClicksTable:
    """``[clicks]``: which clicks are drawn on a view.

    Attributes:
        per_image: clicks with all losses.
        level_only: further clicks that only learn the choice of the level.
        per_instance: at most this many of the first kind on one object.
        where: ``inside`` anywhere in the mask, ``centre`` in its inner part, ``mixed`` half of each.
        zoom_pairs: share of the samples that come as a pair of views, the second at ``zoom_factor`` times the scale,
            whose levels are chosen among together.
        zoom_factor: of the second view.
    """

    per_image: int = 12
    level_only: int = 16
    per_instance: int = 3
    where: str = "mixed"
    zoom_pairs: float = 0.0
    zoom_factor: float = 0.5

    def __post_init__(self) -> None:
        _choose("clicks", "where", self.where, PLACES)
        for key in ("per_image", "per_instance"):
            _at_least("clicks", key, getattr(self, key), 1)
        _at_least("clicks", "level_only", self.level_only, 0)
        if not 0 <= self.zoom_pairs <= 1:
            raise InputError(f"[clicks] zoom_pairs = {self.zoom_pairs}; it is a share between 0 and 1")
        if not 0.1 <= self.zoom_factor <= 4 or self.zoom_factor == 1:
            raise InputError(f"[clicks] zoom_factor = {self.zoom_factor}; between 0.1 and 4, and not 1")


@dataclass(frozen=True)
class ObjectiveTable:
    """``[objective]``: what is learned.

    Attributes:
        detection: ``fcos`` learns score, box and centerness at every cell by FCOS's assignment; ``clicks`` at clicks
            only, the score as the IoU of the cell's mask.
        masks: ``assigned`` learns masks at FCOS's positive cells (CondInst); ``clicks`` at any cell that holds a click
            inside the object.
        clicks: ``[objective.clicks]``, weights of the losses at clicks.
        dense: ``[objective.dense]``, weights and limits of the losses at every cell.
    """

    detection: str = "clicks"
    masks: str = "clicks"
    clicks: ClickObjective = field(default_factory=ClickObjective)
    dense: DenseObjective = field(default_factory=DenseObjective)

    def __post_init__(self) -> None:
        _choose("objective", "detection", self.detection, DETECTIONS)
        _choose("objective", "masks", self.masks, MASKS)
        if self.masks == "assigned" and self.detection != "fcos":
            raise InputError("[objective] masks = 'assigned' needs detection = 'fcos', which assigns the cells")


@dataclass(frozen=True)
class OptimizerTable:
    """``[optimizer]``.

    Attributes:
        name: ``sgd`` with momentum, or ``adamw``.
        lr: peak learning rate for ``images_per_step`` images.
        momentum: of ``sgd``.
        weight_decay: of weights with two or more axes; biases and norms have ``norm_decay``.
        backbone_factor: learning rate of the backbone relative to ``lr``; 0 freezes it.
        frozen_stages: the stem (1) and this many stages of the backbone are not trained: 0 none, 2 stem and layer1.
        clip: limit of the gradient's norm, 0 for none.
    """

    name: str = "sgd"
    lr: float = 0.01
    momentum: float = 0.9
    weight_decay: float = 1e-4
    norm_decay: float = 0.0
    backbone_factor: float = 1.0
    frozen_stages: int = 2
    clip: float = 0.0

    def __post_init__(self) -> None:
        _choose("optimizer", "name", self.name, OPTIMIZERS)
        if not self.lr > 0:
            raise InputError(f"[optimizer] lr = {self.lr}; it must be positive")
        if not 0 <= self.frozen_stages <= 5:
            raise InputError(f"[optimizer] frozen_stages = {self.frozen_stages}; 0 (none) to 5 (the whole backbone)")
        for key in ("momentum", "weight_decay", "norm_decay", "backbone_factor", "clip"):
            _at_least("optimizer", key, getattr(self, key), 0)


@dataclass(frozen=True)
class ScheduleTable:
    """``[schedule]``: linear warm-up over ``warmup`` steps from ``warmup_start`` of the rate, then ``cosine`` down to
    ``final`` of it, or ``step``: times ``gamma`` at each of ``milestones`` (shares of the run)."""

    shape: str = "step"
    warmup: int = 1000
    warmup_start: float = 0.001
    milestones: tuple[float, ...] = (2 / 3, 8 / 9)
    gamma: float = 0.1
    final: float = 0.01

    def __post_init__(self) -> None:
        _choose("schedule", "shape", self.shape, SHAPES)
        _at_least("schedule", "warmup", self.warmup, 0)
        object.__setattr__(self, "milestones", tuple(float(m) for m in self.milestones))
        if list(self.milestones) != sorted(self.milestones) or any(not 0 < m <= 1 for m in self.milestones):
            raise InputError(f"[schedule] milestones = {self.milestones}; growing shares of the run between 0 and 1")


@dataclass(frozen=True)
class NormTable:
    """``[norm]``: BatchNorm while training. In the backbone it is always frozen at its stored statistics.

    Attributes:
        kind: ``batch`` uses each process's statistics, ``sync`` those of all processes, ``renorm`` computes the stored
            statistics' function with BatchNorm's gradients (for one or two images at a time), ``frozen`` the stored
            ones. Per-level statistics are the model's ``tower_norm = "bn_per_level"``.
        momentum: of the stored statistics.
        frozen_from: share of the run after which the statistics are final.
    """

    kind: str = "batch"
    momentum: float = 0.1
    frozen_from: float = 1.0

    def __post_init__(self) -> None:
        _choose("norm", "kind", self.kind, NORMS)
        if not 0 < self.momentum <= 1:
            raise InputError(f"[norm] momentum = {self.momentum}; a share of 1")


@dataclass(frozen=True)
class SelectionTable:
    """``[selection]``: one click on every held-back object, every ``every`` steps and at the end; the averaged weights
    with the best mean IoU are kept in ``best.safetensors``. 0: only at the end."""

    every: int = 0


@dataclass(frozen=True)
class ExportTable:
    """``[export]``: the checkpoint written at the end. ``int8`` stores weights as int8 per output channel."""

    int8: bool = False


@dataclass(frozen=True)
class TeacherTable:
    """``[teacher]``, off by default: learn also from masks that a SAM-style ONNX pair proposes on the photos.

    Attributes:
        enabled: use the ``proposals`` of ``[[data]]`` entries; entries without get them from ``encoder`` and
            ``decoder`` first, where these are given.
        encoder, decoder: ONNX files.
        weight: of a proposal's losses relative to an annotated mask's, times its score.
        settings: ``[teacher.settings]``, which proposals are kept.
    """

    enabled: bool = False
    encoder: str = ""
    decoder: str = ""
    weight: float = 0.5
    settings: TeacherSettings = field(default_factory=TeacherSettings)

    def __post_init__(self) -> None:
        if not self.weight > 0:
            raise InputError(f"[teacher] weight = {self.weight}; it must be positive, enabled = false turns it off")
        if bool(self.encoder) != bool(self.decoder):
            raise InputError("[teacher] encoder and decoder are the two halves of one model; give both or neither")


@dataclass(frozen=True)
class TrainConfig:
    """All tables of one run."""

    data: tuple[DataTable, ...]
    run: RunTable = field(default_factory=RunTable)
    model: TraceNetConfig = field(default_factory=TraceNetConfig)
    init: InitTable = field(default_factory=InitTable)
    augmentation: Augmentation = field(default_factory=Augmentation)
    clicks: ClicksTable = field(default_factory=ClicksTable)
    objective: ObjectiveTable = field(default_factory=ObjectiveTable)
    optimizer: OptimizerTable = field(default_factory=OptimizerTable)
    schedule: ScheduleTable = field(default_factory=ScheduleTable)
    norm: NormTable = field(default_factory=NormTable)
    ema: float = 0.998
    selection: SelectionTable = field(default_factory=SelectionTable)
    teacher: TeacherTable = field(default_factory=TeacherTable)
    predictor: PredictorSettings = field(default_factory=PredictorSettings)
    export: ExportTable = field(default_factory=ExportTable)

    def __post_init__(self) -> None:
        if not self.data:
            raise InputError("no [[data]] is given; name at least one folder of images with its annotations")
        names = [source_name(entry) for entry in self.data]
        if len(set(names)) < len(names):
            raise InputError(f"[[data]] names {names} must differ; give each entry a name of its own")
        if self.teacher.enabled and not self.teacher.encoder and not any(entry.proposals for entry in self.data):
            raise InputError("[teacher] enabled = true needs encoder and decoder, or proposals in an entry of [[data]]")
        if not 0 <= self.ema < 1:
            raise InputError(f"ema = {self.ema}; a share below 1, 0 for no average")
        if self.objective.detection == "clicks" and self.model.num_classes > 1:
            raise InputError(
                f"[model] num_classes = {self.model.num_classes} needs [objective] detection = 'fcos'; "
                "scores learned at clicks know no classes"
            )
        if self.model.anchor_offset == "zero" and self.objective.detection == "fcos":
            raise InputError("[model] anchor_offset = 'zero' cannot be trained with detection = 'fcos'; use 'half'")
        if self.model.mask_order != "upsample_logits":
            raise InputError(
                f"[model] mask_order = {self.model.mask_order!r}: masks are trained as upsampled logits; use "
                "'upsample_logits'"
            )
        if self.model.mask_branch == "none":
            raise InputError("[model] mask_branch = 'none' predicts no masks; train 'condinst' or 'p3'")
        uses_clicks = "clicks" in (self.objective.detection, self.objective.masks) or self.model.level_head
        if self.clicks.zoom_pairs > 0 and not (uses_clicks and self.model.level_head):
            raise InputError(
                "[clicks] zoom_pairs needs [model] level_head = true, which chooses among the pair's levels"
            )

    def to_dict(self) -> dict[str, Any]:
        """Plain data, for the run's own checkpoints."""
        return asdict(self)


def source_name(entry: DataTable) -> str:
    """Name of a dataset in logs and caches."""
    return entry.name or Path(entry.annotations).stem


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> TrainConfig:
    """Read a TOML file.

    Args:
        path: of the file.
        overrides: ``"table.key=value"``, the value in TOML; entries of ``[[data]]`` by number: ``data.0.images="x"``.
            A value that is not TOML is taken as a string.

    Raises:
        InputError: the file cannot be read, is not TOML, or holds something unknown or impossible.
    """
    try:
        data = tomllib.loads(Path(path).read_text())
    except OSError as error:
        raise InputError(f"cannot read the configuration {path}: {error.strerror or error}") from error
    except ValueError as error:
        raise InputError(f"{path} is not TOML: {error}") from error
    for text in overrides:
        _override(data, text)
    entries = data.get("data", [])
    if not isinstance(entries, list):
        raise InputError(f"{path}: write [[data]] with double brackets, once for each dataset")
    try:
        return build(TrainConfig, _expanded(data), "")
    except InputError as error:
        raise InputError(f"{path}: {error}") from error


def _override(data: dict[str, Any], text: str) -> None:
    key, sign, value = text.partition("=")
    if not sign or not key.strip():
        raise InputError(f"--set {text!r}: write table.key=value, for example --set run.steps=100")
    try:
        parsed = tomllib.loads(f"value = {value}")["value"]
    except ValueError:
        parsed = value
    *path, last = (part.strip() for part in key.split("."))
    at: Any = data
    for part in path:
        if isinstance(at, list):
            if not part.isdecimal() or int(part) >= len(at):
                raise InputError(f"--set {text!r}: there are {len(at)} entries, numbered from 0")
            at = at[int(part)]
        else:
            at = at.setdefault(part, {})
        if not isinstance(at, (dict, list)):
            raise InputError(f"--set {text!r}: {part} is a value, not a table")
    if isinstance(at, list):
        raise InputError(f"--set {text!r}: name a key of entry {last}, for example {key}.images")
    at[last] = parsed


def _expanded(value: Any) -> Any:
    """The same data with ``${NAME}`` in strings replaced from the environment."""
    if isinstance(value, dict):
        return {key: _expanded(part) for key, part in value.items()}
    if isinstance(value, list):
        return [_expanded(part) for part in value]
    if not isinstance(value, str):
        return value

    def look_up(match: re.Match[str]) -> str:
        name = match.group(1)
        if name not in os.environ:
            raise InputError(f"{value!r} needs the environment variable {name}; set it, or use --set")
        return os.environ[name]

    return re.sub(r"\$\{(\w+)\}", look_up, value)


def build(cls: type[T], table: Any, where: str) -> T:
    """An instance of the dataclass ``cls`` from nested plain data, with every type checked.

    Args:
        cls: frozen dataclass of scalars, tuples and further dataclasses.
        table: dict of its fields.
        where: name of the table in errors.

    Raises:
        InputError: an unknown or missing key, a value of another type; what ``cls`` itself refuses.
    """
    label = f"[{where}]" if where else "the file"
    if not isinstance(table, dict):
        raise InputError(f"{label} must be a table, not {table!r}")
    hints = typing.get_type_hints(cls)
    known = {f.name: f for f in fields(cls)}  # type: ignore[arg-type]
    unknown = sorted(set(table) - set(known))
    if unknown:
        raise InputError(f"{label} has no {', '.join(unknown)}; known are {', '.join(known)}")
    missing = [n for n, f in known.items() if f.default is MISSING and f.default_factory is MISSING and n not in table]
    if missing:
        raise InputError(f"{label} lacks {', '.join(missing)}")
    values = {}
    for name, value in table.items():
        key = f"{where}.{name}" if where else name
        values[name] = _converted(hints[name], value, key)
    return cls(**values)


def _converted(hint: Any, value: Any, key: str) -> Any:
    origin = typing.get_origin(hint)
    if origin in (typing.Union, types.UnionType):
        options = [option for option in typing.get_args(hint) if option is not type(None)]
        for option in options:
            try:
                return _converted(option, value, key)
            except InputError:  # noqa: PERF203
                continue
        raise InputError(f"{key} = {value!r} must be one of {', '.join(map(str, options))}")
    if is_dataclass(hint):
        return build(typing.cast("type[Any]", hint), value, key)
    if origin is tuple:
        parts = typing.get_args(hint)
        if not isinstance(value, (list, tuple)):
            raise InputError(f"{key} = {value!r} must be a list")
        if parts[-1] is Ellipsis:
            return tuple(_converted(parts[0], v, f"{key}.{i}") for i, v in enumerate(value))
        if len(value) != len(parts):
            raise InputError(f"{key} = {value!r} must be a list of {len(parts)} values")
        return tuple(_converted(p, v, f"{key}.{i}") for i, (p, v) in enumerate(zip(parts, value, strict=True)))
    if origin is dict:
        if not isinstance(value, dict):
            raise InputError(f"{key} = {value!r} must be a table")
        return {name: _converted(typing.get_args(hint)[1], v, f"{key}.{name}") for name, v in value.items()}
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if type(value) is not hint:
        raise InputError(f"{key} = {value!r} must be {_NAMES.get(hint, hint)}")
    return value


_NAMES = {int: "an integer", float: "a number", str: "a string", bool: "true or false"}
