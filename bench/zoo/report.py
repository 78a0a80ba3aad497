"""The table of a run, its summary, and the page ``docs/zoo.md``."""

from __future__ import annotations

import json
import statistics
import textwrap
from collections import Counter
from pathlib import Path
from typing import Any

from rich.table import Table

from bench.zoo.models import MODELS
from bench.zoo.picture import REQUESTS, points
from tracenet_kernels.errors import InputError

STATUSES = ("exact", "barriers", "refused", "wrong", "failed")
Model = dict[str, Any]


def in_order(models: list[Model]) -> list[Model]:
    """Rows as in the list, whenever they were measured."""
    position = {entry.name: i for i, entry in enumerate(MODELS)}
    return sorted(models, key=lambda model: position.get(model["name"], len(position)))


def milliseconds(value: float | None) -> str:
    """A time as the tables show it."""
    return "" if value is None else f"{value:.0f}" if value >= 10 else f"{value:.1f}"


def share(value: float | None) -> str:
    """A share in percent."""
    if value is None:
        return ""
    return f"{100 * value:.0f} %" if value >= 0.095 or not value else f"{100 * value:.1g} %"


def error(value: float | None) -> str:
    """A relative error."""
    return "" if value is None else f"{value:.0e}"


def summary(models: list[Model]) -> dict[str, Any]:
    """How many models ended how, and over how many the operations that are barriers or refused are spread."""
    counts = Counter(model["status"] for model in models)
    barriers: Counter[str] = Counter()
    for model in models:
        if model["status"] == "barriers":
            barriers.update(model["barrier_ops"].keys())
    failures = {m["name"]: m["reason"] for m in models if m["status"] in ("refused", "wrong", "failed")}
    good = counts["exact"] + counts["barriers"]
    return {
        "models": len(models),
        **{status: counts[status] for status in STATUSES},
        "share_exact_or_barriers": round(good / len(models), 4) if models else 0.0,
        "largest_error": max((e for m in models if not _amplifies(m) for e in _errors(m)), default=None),
        "judged_in_float64": {
            m["name"]: {"rounding": m["rounding"], "error": m["max_rel_error_double"]} for m in models if _amplifies(m)
        },
        "faster_than_full": {
            f"{backend}{kind}": _faster(models, backend, share, kind)
            for _, share, kind in REQUESTS
            for backend in ("native", "crop_pad")
        },
        "barriers_in_models_by_op": dict(barriers.most_common()),
        "barriers_not_confirmed": [
            m["name"] for m in models if m["status"] == "barriers" and m["far_pixels_matter"] is False
        ],
        "failures": failures,
    }


def _faster(models: list[Model], backend: str, share: str, kind: str) -> dict[str, float]:
    """How many models are faster than their full network at a request, of how many, and the median speed-up."""
    speeds = [speed for _, speed in points(models, backend, share, kind)]
    return {
        "faster": sum(speed > 1 for speed in speeds),
        "of": len(speeds),
        "median": round(statistics.median(speeds or [0.0]), 2),
    }


def _errors(model: Model) -> list[float]:
    return [e for e in (model["max_rel_error"], model["native_max_rel_error"]) if e is not None]


def _amplifies(model: Model) -> bool:
    """Whether a model's own rounding is so large that it was judged in float64."""
    return model["max_rel_error_double"] is not None and model["status"] in ("exact", "barriers")


COLUMNS = ("model", "status", "nodes", "barriers", "error", "GMACs", "full", "share", "patch", "crop-pad", "native",
           "shallow", "crop-pad", "native")  # fmt: skip


def cells(model: Model) -> list[str]:
    """One line of the table."""
    gmacs = model["full_gmacs"]
    return [
        model["name"],
        model["status"],
        "" if model["nodes"] is None else str(model["nodes"]),
        "" if model["barriers"] is None else str(model["barriers"]),
        error(model["max_rel_error"]),
        "" if gmacs is None else f"{gmacs:.1f}" if gmacs >= 1 else f"{gmacs:.2f}",
        milliseconds(model["full_ms"]),
        share(model["mac_share"]),
        share(model["mac_share_patch"]),
        milliseconds(model["crop_pad_ms"]),
        milliseconds(model["native_ms"]),
        share(model.get("mac_share_shallow")),
        milliseconds(model.get("crop_pad_shallow_ms")),
        milliseconds(model.get("native_shallow_ms")),
    ]


def table(report: dict[str, Any]) -> Table:
    """For the terminal."""
    shown = Table(title=f"{report['device']}, {_threads(report)}")
    for name in COLUMNS:
        shown.add_column(name, justify="left" if name in ("model", "status") else "right", no_wrap=True)
    for model in in_order(report["models"]):
        shown.add_row(*cells(model))
    return shown


def load(path: Path) -> dict[str, Any]:
    """Results that a run has written.

    Raises:
        InputError: the file is not there or holds something else.
    """
    try:
        report = json.loads(path.read_text())
        report["models"], report["settings"]["size"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path} holds no results of this benchmark; run it with --json {path} first") from error
    return dict(report)


def page(report: dict[str, Any], large: dict[str, Any] | None = None, picture: str | None = None) -> str:
    """The page ``docs/zoo.md``; ``large`` are results on larger images, ``picture`` stands beside the page."""
    models, counts = in_order(report["models"]), summary(report["models"])
    height, width = report["settings"]["size"]
    good = counts["exact"] + counts["barriers"]
    versions = ", ".join(f"{name} {version}" for name, version in report["versions"].items())
    paragraphs = (
        "# The model zoo",
        f"Made by `python -m bench.zoo --json bench/results/zoo.json --page docs/zoo.md{_more(large, picture)}"
        f"{_options(report)}`; do not edit by hand. The list is "
        "`bench/zoo/models.py`: the models were chosen before it was run and none was taken out; "
        "`bat_resnext26ts` then got an image size of its own, since it refuses planes that are no multiple of "
        "its blocks.",
        f"{report['device']}, {_threads(report)}, float32, PyTorch {report['torch']}, {versions}, "
        f"{_commits(models)}; image {width}x{height} unless a model takes one size only. Random weights and "
        "statistics; outputs are feature maps of all strides, or the dense outputs of a detector or segmenter.",
        f"**{counts['models']} models: {counts['exact']} exact without barriers, {counts['barriers']} exact with "
        f"barriers reported, {counts['refused']} refused, {counts['wrong']} wrong, {counts['failed']} failed.** "
        f"{good - len(counts['judged_in_float64'])} of them are within 1e-4 in float32 (largest error "
        f"{error(counts['largest_error'])}); {len(counts['judged_in_float64'])}, marked \\*, are not and were judged "
        "in float64, see below the table.",
        "Each model is asked for a corner cell, an edge cell, the centre cell and a patch of its deepest map, the "
        "centre of every other map, an odd patch at the lower edge of its largest map, and all maps at once. *Error* "
        "is the largest `max|traced - full| / max|full|` over all of them and both backends. *Share* is the share of "
        "the full network's multiply-adds that the centre cell of the deepest map needs, *patch* the same for a patch "
        "of about a ninth of that map, *shallow* for the centre cell of the map of the largest stride up to 8.",
        "Times are medians in ms of interleaved runs: *full* in eager PyTorch, in the memory format that is faster for "
        "it; *crop-pad* and *native* through the tracer, the latter with PyTorch between kernels where there is none. "
        "The times after *patch* are at the centre cell of the deepest map, those after *shallow* at that of the "
        "shallow map. Deep maps of a small image see nearly all of it: what is saved there is little. "
        f"{_load(report)}",
        _told(counts["faster_than_full"]),
    )
    lines = [line for paragraph in paragraphs for line in (*textwrap.wrap(paragraph, 118), "")]
    if picture is not None:
        lines += [f"![Speed-up over the full network against the share of its multiply-adds]({picture})", ""]
    lines += _rows(models)
    if large is not None:
        height, width = large["settings"]["size"]
        text = (
            f"Made by `python -m bench.zoo --json bench/results/zoo_large.json --large --size {width}x{height} "
            f"--seconds {large['settings']['seconds']:.0f}{_options(large)}` on {large['device']}, {_threads(large)}, "
            f"PyTorch {large['torch']}, {_commits(large['models'])}. Columns as above. {_load(large)} "
            + _told(summary(large["models"])["faster_than_full"])
        )
        lines += ["", f"## On images of {width}x{height}", "", *textwrap.wrap(text, 118), ""]
        lines += _rows(in_order(large["models"]))
        lines += ["", *(f"- `{name}`: {reason}" for name, reason in summary(large["models"])["failures"].items())]
    lines += ["", "## Barriers by operation", "", "| operation | models |", "| --- | ---: |"]
    lines += [f"| {what} | {count} |" for what, count in counts["barriers_in_models_by_op"].items()]
    if counts["barriers_not_confirmed"]:
        lines += [
            "",
            "The far corner of the image does not change the requested cell, so a finer rule could save more: "
            + ", ".join(counts["barriers_not_confirmed"])
            + ".",
        ]
    if doubled := counts["judged_in_float64"]:
        told = (f"{n} (rounding {error(v['rounding'])}, error {error(v['error'])})" for n, v in doubled.items())
        text = (
            "\\* Above 1e-4 in float32. With these random weights the full network in float32 is itself about as far "
            "from float64 (*rounding*, which does not depend on this library), so crop-and-pad was compared in float64 "
            "(*error*; the limit is 1e-8). The native backend has no float64: for it this shows only that its error is "
            f"at most 4 times that rounding. {', '.join(told)}."
        )
        lines += ["", *textwrap.wrap(text, 118)]
    lines += ["", "## Failures", ""]
    lines += [f"- `{name}`: {reason}" for name, reason in counts["failures"].items()] or ["None."]
    return "\n".join(lines) + "\n"


def _rows(models: list[Model]) -> list[str]:
    header = ("model", "family", *COLUMNS[1:])
    lines = ["| " + " | ".join(header) + " |", "| --- | --- | --- |" + " ---: |" * (len(header) - 3)]
    for model in models:
        name, status, nodes, barriers, _, *rest = cells(model)
        worst = error(max(_errors(model), default=None)) + ("*" if _amplifies(model) else "")
        lines.append("| " + " | ".join((name, model["family"], status, nodes, barriers, worst, *rest)) + " |")
    return lines


def _told(faster: dict[str, dict[str, float]]) -> str:
    """How often the windows are faster, in words."""
    parts = []
    for title, _, kind in REQUESTS:
        native, crop_pad = faster[f"native{kind}"], faster[f"crop_pad{kind}"]
        if native["of"] and crop_pad["of"]:
            parts.append(
                f"At the {title}, native is faster than the full network in {native['faster']} of {native['of']} "
                f"models (median {native['median']} times), crop-and-pad in {crop_pad['faster']} of {crop_pad['of']} "
                f"({crop_pad['median']} times)."
            )
    return " ".join(parts) or "No times were taken."


def _more(large: dict[str, Any] | None, picture: str | None) -> str:
    options = "" if large is None else " --with-large bench/results/zoo_large.json"
    return options + ("" if picture is None else f" --picture docs/{picture}")


def _options(report: dict[str, Any]) -> str:
    settings = report["settings"]
    return "".join(f" --{name} {settings[name]}" for name in ("repeats", "threads", "jobs"))


def _threads(report: dict[str, Any]) -> str:
    return f"{report['threads']} thread{'s' if report['threads'] != 1 else ''}"


def _load(report: dict[str, Any]) -> str:
    """How much else the machine did."""
    loads = [model["load"] for model in report["models"]]
    jobs = report["settings"]["jobs"]
    return (
        f"{jobs} {'model was' if jobs == 1 else 'models were'} measured at a time; the median load average was "
        f"{statistics.median(loads or [0]):.1f}. Above the number of cores, compare times of one line only."
    )


def _commits(models: list[Model]) -> str:
    counts = Counter(model["commit"] for model in models)
    names = ", ".join(f"`{commit}` ({count})" if len(counts) > 1 else f"`{commit}`" for commit, count in counts.items())
    return f"commit {names}" if len(counts) == 1 else f"commits {names}"
