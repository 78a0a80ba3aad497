"""A whole evaluation: images shared out over processes, resumed where a killed run stopped, reported as plain data."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import track

import tracenet
from tracenet.data import CocoDataset
from tracenet.distributed import Ranks
from tracenet.evaluation.full_network import segment_clicks
from tracenet.evaluation.partial import PartialResults, remove_partial
from tracenet.evaluation.protocol import ClickProtocol, Segment, evaluate_images
from tracenet.evaluation.report import summarise
from tracenet.evaluation.results import ImageResult, ObjectResult
from tracenet.evaluation.tracing import check_tracing, spread
from tracenet.files import save_json
from tracenet.inference import PredictorSettings
from tracenet.models import TraceNet
from tracenet.models.weights import load_checkpoint
from tracenet.predictor import Predictor
from tracenet_kernels.errors import InputError


@dataclass(frozen=True)
class Evaluation:
    """A finished evaluation: its report as plain data, the results of every object, and the model they are of."""

    report: dict[str, Any]
    objects: list[ObjectResult]
    segment: Segment


def file_hash(path: Path) -> str:
    """SHA-256 of a file. Raises InputError where it cannot be read."""
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror or error})") from error


def full_network_segment(model: TraceNet, settings: PredictorSettings) -> Segment:
    """The model as :class:`tracenet.evaluation.protocol.Segment`."""
    return lambda photo, points: segment_clicks(model, settings, photo, points)


def evaluate_dataset(
    segment: Segment,
    dataset: CocoDataset,
    protocol: ClickProtocol,
    model: dict[str, Any],
    output: Path | None = None,
    limit: int | None = None,
    ranks: Ranks | None = None,
) -> Evaluation:
    """Click every object of ``dataset`` by ``protocol``.

    Args:
        segment: the model.
        model: plain data that identifies it and what it depends on; part of the report.
        output: the file that the report will go to, see :func:`finish`. Until then each image's result is kept beside
            it, and what an earlier run left there is taken up.
        limit: only the first so many images.
        ranks: processes that share the images out; each returns the whole evaluation.

    Returns:
        The report of :func:`tracenet.evaluation.report.summarise`, with ``model``'s entries; ``protocol``,
        ``annotations`` (file name and SHA-256), ``seed``, ``skipped`` (what was left out and why), ``device``,
        ``threads``, ``processes``; ``seconds`` (of all images, added up over processes and resumed runs) and
        ``timing_ms``: the model's mean time per image to its first mask, and per further mask.

    Raises:
        InputError: what is left of an earlier run is of another evaluation; ``limit`` is below 1.
        ImageError: see :func:`tracenet.evaluation.protocol.evaluate_images`.
    """
    if limit is not None and limit < 1:
        raise InputError(f"a limit of {limit} images; give at least 1")
    ranks = ranks or Ranks()
    records = dataset.records[:limit]
    annotations = {"file": dataset.annotations.name, "sha256": file_hash(dataset.annotations)}
    fingerprint = {
        "model": model,
        "annotations": annotations,
        "protocol": asdict(protocol),
        "limit": limit,
        "on_error": dataset.on_error,
        "tracenet": tracenet.__version__,
        "torch": torch.__version__,
    }
    kept = None if output is None else PartialResults(output, fingerprint, ranks.rank)
    # Other processes' files are read once, before any process appends to its own.
    done = ranks.gather(kept.load() if kept is not None and ranks.first else [])[0]
    finished = {result.image for result in done}
    todo = [record for record in records if record.id not in finished]
    mine = ranks.share(todo)
    found: list[ImageResult] = []
    skipped = [str(problem) for problem in dataset.problems]
    images = evaluate_images(segment, dataset, mine, protocol, protocol.full_mta_sample(records))
    for result in track(images, "clicks", total=len(mine), disable=not ranks.first, console=Console(stderr=True)):
        found.append(result)
        if kept is not None:
            kept.append(result)
    everything = sorted([*done, *chain(*ranks.gather(found))], key=lambda one: one.image)
    objects = [one for image in everything for one in image.objects]
    report = {
        **summarise(objects, dataset.categories, protocol.seed),
        **model,
        "annotations": annotations,
        "protocol": asdict(protocol),
        "seed": protocol.seed,
        "skipped": [*skipped, *(problem for image in everything for problem in image.problems)],
        "device": "cpu",
        "threads": torch.get_num_threads(),
        "processes": ranks.world,
        **_times(everything),
    }
    return Evaluation(report, objects, segment)


def _times(images: Sequence[ImageResult]) -> dict[str, Any]:
    asked = [image for image in images if image.masks]
    further = sum(image.masks - 1 for image in asked)
    first = sum(image.first_mask_seconds for image in asked) / len(asked) * 1e3 if asked else None
    others = sum(image.masks_seconds for image in asked) / further * 1e3 if further else None
    return {
        "seconds": sum(image.seconds for image in images),
        "timing_ms": {"first_mask": first, "further_mask": others},
    }


def evaluate_checkpoint(
    checkpoint: Path,
    dataset: CocoDataset,
    protocol: ClickProtocol,
    output: Path | None = None,
    limit: int | None = None,
    rft: int = 0,
    ranks: Ranks | None = None,
    changes: Mapping[str, Any] | None = None,
) -> Evaluation:
    """:func:`evaluate_dataset` of a checkpoint as its predictor settings say, with ``rft`` clicks traced.

    Args:
        changes: of its :class:`tracenet.inference.PredictorSettings`, by name.

    Returns:
        The report holds besides ``checkpoint`` (file name, SHA-256, model, quantisation), ``settings``, ``rft_checked``
        and ``rft_max_error``, see :func:`tracenet.evaluation.tracing.check_tracing`.

    Raises:
        CheckpointError: the file is missing, truncated, foreign or does not fit its model.
        InputError, ImageError: as :func:`evaluate_dataset`; ``rft`` is negative.
    """
    if rft < 0:
        raise InputError(f"{rft} clicks to trace; give 0 or more")
    ranks = ranks or Ranks()
    model, info = load_checkpoint(checkpoint)
    # NHWC is the faster layout for convolutions on a CPU; torch leaves this overload untyped.
    model = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    named = {"file": checkpoint.name, "sha256": file_hash(checkpoint), "quantisation": info.quantisation}
    settings = replace(info.predictor, **(changes or {}))
    identity = {"checkpoint": named, "settings": settings.to_dict()}
    segment = full_network_segment(model, settings)
    done = evaluate_dataset(segment, dataset, protocol, identity, output, limit, ranks)
    usable = {one.image for one in done.objects}
    sample = spread([record for record in dataset.records if record.id in usable], rft)
    checked = check_tracing(Predictor(model, settings), dataset, ranks.share(sample), protocol)
    counts, errors = zip(*ranks.gather(checked), strict=True)
    return replace(done, report={**done.report, "rft_checked": sum(counts), "rft_max_error": max(errors)})


def finish(evaluation: Evaluation, output: Path) -> None:
    """Write the report, whole or not at all, and remove what was kept beside it while it was made."""
    save_json(evaluation.report, output)
    remove_partial(output)
