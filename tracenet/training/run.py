"""``tracenet train``: from a configuration to a checkpoint."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from tracenet.data import CocoDataset
from tracenet.data.mixture import Source
from tracenet.distributed import Ranks
from tracenet.files import save_json, save_text
from tracenet.models import TraceNet
from tracenet.models.weights import save_checkpoint
from tracenet.training.build import build_model
from tracenet.training.cached_task import cached_task
from tracenet.training.config import DataTable, TeacherTable, TrainConfig, source_name
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
PROBLEMS = "problems.txt"
FIXED = {"model": None, "data": None, "init": None, "teacher": None, "run": ("task", "seed"), "optimizer": ("name",)}
"""Tables, or keys of them, that a run cannot change when it is continued."""


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
    opened = []
    for entry in config.data:
        dataset = CocoDataset(entry.images, entry.annotations, on_error="skip" if entry.skip_bad else "raise")
        opened.append((entry, dataset, held_out([record.id for record in dataset], entry.hold_out)))
    # A photo that one entry holds back must not come in through another.
    held_files = {r.path.resolve() for _, dataset, ids in opened for r in dataset if r.id in ids}
    train, held = [], []
    for entry, dataset, ids in opened:
        if ids:
            held.append(dataset.subset(only=ids))
        without = {r.id for r in dataset if r.path.resolve() in held_files} if held_files else set()
        shown = dataset.subset(without=without)
        if config.teacher.enabled and (proposals := _proposals(config.teacher, entry, shown, out, ranks)):
            shown = CocoDataset(
                entry.images, entry.annotations, without=without, on_error=dataset.on_error, proposals=proposals
            )
        train.append(Source(source_name(entry), shown, entry.weight, entry.set_weights))
    empty = [source.name for source in train if not len(source.dataset)]
    if empty:
        raise InputError(f"[[data]] {', '.join(empty)}: no photo with a usable object to train on; leave the entry out")
    return RunData(train, held)


def _proposals(
    table: TeacherTable, entry: DataTable, dataset: CocoDataset, out: Path, ranks: Ranks
) -> str | Path | None:
    """The json of an entry's proposals: the one it names, or one made now; None without either."""
    if entry.proposals or not table.encoder:
        return entry.proposals or None
    from tracenet.sam_onnx import SamOnnxPredictor

    path = out / "teacher" / f"{source_name(entry)}.json"
    if ranks.first:
        path.parent.mkdir(parents=True, exist_ok=True)
        propose(dataset, SamOnnxPredictor(table.encoder, table.decoder), table.settings, path)
    ranks.gather(None)  # the others wait for the file
    return path


def train(config: TrainConfig, out: Path, ranks: Ranks) -> Path:
    """Run ``config`` in the folder ``out``, continuing what is there; returns the path of the checkpoint.

    Files: ``config.json``, ``problems.txt`` (what could not be used, if anything), ``state.pt`` (to continue from),
    ``log.jsonl`` and ``curves.png``, ``selection.jsonl`` and ``best.safetensors`` (best on held-back photos),
    ``model.safetensors`` (averaged weights of the last step). Processes on several machines need a shared folder.

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
    if data.held:
        selection = Selection(config.model, config.predictor, data.held, out, config.export.int8, ranks)

    def each_step(step: int) -> None:
        every = config.selection.every
        if selection is not None and step < config.run.steps and every and step % every == 0:
            selection.read(engine.averaged_state(), step)

    if ranks.first:
        Console(stderr=True).print(describe(data.train), highlight=False)
    fit(engine, out, each_step)
    state = engine.averaged_state()
    if selection is not None:
        selection.read(state, engine.step)
    _save_problems(data, out, ranks)
    if not ranks.first:
        return out / FINAL
    final = TraceNet(config.model)
    final.load_state_dict(state)
    save_checkpoint(final.eval(), out / FINAL, predictor=config.predictor, quantize=config.export.int8)
    draw_curves(out / LOG, out / CURVES)
    return out / FINAL


def _save_problems(data: RunData, out: Path, ranks: Ranks) -> None:
    """List what was left out because it could not be used, where anything was."""
    found = [str(p) for dataset in [*(s.dataset for s in data.train), *data.held] for p in dataset.problems]
    problems = sorted({problem for part in ranks.gather(found) for problem in part})
    if problems and ranks.first:
        save_text("".join(f"{problem}\n" for problem in problems), out / PROBLEMS)
        Console(stderr=True).print(f"{len(problems)} problems with the data, listed in {out / PROBLEMS}")


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
        before, now = json.loads((out / CONFIG).read_text()), json.loads(json.dumps(config.to_dict()))
        changed = []
        for table, keys in FIXED.items():
            if keys is None:
                changed += [f"[{table}]"] if now[table] != before.get(table) else []
            else:
                changed += [f"[{table}] {key}" for key in keys if now[table][key] != before.get(table, {}).get(key)]
        if changed:
            raise InputError(f"{out} holds a run with other {', '.join(changed)}; use a new --out folder")
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
