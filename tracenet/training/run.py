"""``tracenet train``: from a configuration to a checkpoint."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tracenet.data import CocoDataset
from tracenet.data.mixture import Source
from tracenet.distributed import Ranks
from tracenet.files import save_json
from tracenet.models import TraceNet
from tracenet.models.weights import save_checkpoint
from tracenet.training.build import build_model
from tracenet.training.cached_task import cached_task
from tracenet.training.config import TeacherTable, TrainConfig, source_name
from tracenet.training.curves import draw_curves
from tracenet.training.engine import LOG, STATE, Engine, Task, fit
from tracenet.training.network_task import network_task
from tracenet.training.optim import freeze
from tracenet.training.selection import Selection, held_out
from tracenet.training.teacher import propose
from tracenet_kernels.errors import InputError

FINAL = "model.safetensors"
CONFIG = "config.json"
CURVES = "curves.png"


@dataclass(frozen=True)
class RunData:
    """Datasets of a run: ``train`` in the order of the configuration, ``held`` for the choice of the best weights."""

    train: list[Source]
    held: list[CocoDataset]


def open_data(config: TrainConfig, out: Path, ranks: Ranks) -> RunData:
    """Read the annotations, hold photos back, and let the teacher propose masks where it is asked to.

    Raises:
        InputError: annotations that cannot be used; nothing left to train on.
    """
    train, held = [], []
    for entry in config.data:
        on_error = "skip" if entry.skip_bad else "raise"
        everything = CocoDataset(entry.images, entry.annotations, on_error=on_error)
        ids = held_out([record.id for record in everything], entry.hold_out)
        dataset = everything.subset(without=ids)
        proposals: str | Path = entry.proposals if config.teacher.enabled else ""
        if config.teacher.enabled and config.teacher.encoder and not proposals:
            proposals = _propose(config.teacher, dataset, out / "teacher" / f"{source_name(entry)}.json", ranks)
        if proposals:
            dataset = CocoDataset(entry.images, entry.annotations, without=ids, on_error=on_error, proposals=proposals)
        train.append(Source(source_name(entry), dataset, entry.weight, entry.set_weights))
        if ids:
            held.append(everything.subset(only=ids))
    empty = [source.name for source in train if not len(source.dataset)]
    if empty:
        raise InputError(f"[[data]] {', '.join(empty)}: no photo with a usable object to train on; leave the entry out")
    return RunData(train, held)


def _propose(table: TeacherTable, dataset: CocoDataset, path: Path, ranks: Ranks) -> Path:
    from tracenet.sam_onnx import SamOnnxPredictor

    if ranks.first and not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        propose(dataset, SamOnnxPredictor(table.encoder, table.decoder), table.settings, path)
    ranks.gather(None)  # the others wait for the file
    return path


def train(config: TrainConfig, out: Path, ranks: Ranks) -> Path:
    """Run ``config`` in the folder ``out``, continuing what is there; returns the path of the checkpoint.

    Files: ``config.json``, ``state.pt`` (to continue from), ``log.jsonl`` and ``curves.png``, ``selection.jsonl`` and
    ``best.safetensors`` (best on held-back photos), ``model.safetensors`` (averaged weights of the last step).

    Raises:
        InputError, CheckpointError, ImageError: each says what came and what is allowed.
    """
    _check_folder(config, out, ranks)
    data = open_data(config, out, ranks)
    model = build_model(
        config.model,
        config.run.seed,
        config.init.backbone,
        config.init.checkpoint,
        detector=config.objective.detection == "fcos",
    )
    freeze(model, config.optimizer)
    task: Task
    if config.run.task == "cached":
        task = cached_task(model, config, data.train, out, ranks)
    else:
        task = network_task(model, config, data.train, ranks)
    engine = Engine(model, task, config, ranks)
    selection = None
    if data.held and ranks.first:
        selection = Selection(config.model, config.predictor, data.held, out, config.export.int8)

    def each_step(step: int) -> None:
        every = config.selection.every
        if selection is not None and step < config.run.steps and every and step % every == 0:
            selection.read(engine.averaged_state(), step)

    fit(engine, out, each_step)
    if not ranks.first:
        return out / FINAL
    state = engine.averaged_state()
    if selection is not None:
        selection.read(state, engine.step)
    final = TraceNet(config.model)
    final.load_state_dict(state)
    save_checkpoint(final.eval(), out / FINAL, predictor=config.predictor, quantize=config.export.int8)
    draw_curves(out / LOG, out / CURVES)
    return out / FINAL


def _check_folder(config: TrainConfig, out: Path, ranks: Ranks) -> None:
    if not ranks.first:
        return
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(
            f"the folder {out} cannot be made ({error.strerror or error}); choose another --out"
        ) from error
    if (out / CONFIG).exists() and (out / STATE).exists():
        before = json.loads((out / CONFIG).read_text())
        now = json.loads(json.dumps(config.to_dict()))
        changed = [name for name in now if now[name] != before.get(name) and name in ("model", "data")]
        if changed:
            raise InputError(f"{out} holds a run with other {' and '.join(changed)}; use a new --out folder")
    save_json(config.to_dict(), out / CONFIG)


def describe(sources: Sequence[Source]) -> str:
    """One line for each dataset: name, photos, objects, proposals, weight."""
    lines = []
    for source in sources:
        objects = [instance for record in source.dataset for instance in record.instances]
        proposed = sum(instance.proposal for instance in objects)
        lines.append(
            f"{source.name}: {len(source.dataset)} photos, {len(objects) - proposed} objects, {proposed} proposals, "
            f"weight {source.weight:g}"
        )
    return "\n".join(lines)
