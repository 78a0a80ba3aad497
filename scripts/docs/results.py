"""Tables for the pages, made from bench/results when the site is built; no figure is typed by hand."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from statistics import median
from typing import Any

RESULTS = Path(__file__).parents[2] / "bench/results"
_TABLES: dict[str, Callable[[], str]] = {}
Row = dict[str, Any]


def table(name: str) -> str:
    """The table called ``name``, as Markdown, under a line that says where it was measured.

    Raises:
        KeyError: there is no such table.
    """
    return _TABLES[name]()


def names() -> list[str]:
    """Every table there is."""
    return list(_TABLES)


def _table(function: Callable[[], str]) -> Callable[[], str]:
    _TABLES[function.__name__.strip("_").replace("_", "-")] = function
    return function


def load(file: str) -> Row:
    """A file of bench/results."""
    data: Row = json.loads((RESULTS / file).read_text(encoding="utf-8"))
    return data


def markdown(head: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """A table; columns after the first are right-aligned where they hold figures in every row."""
    cells = [[str(cell).replace("|", "\\|") for cell in row] for row in rows]
    right = [i > 0 and all(_is_figure(row[i]) for row in cells) for i in range(len(head))]
    marks = ["---:" if is_right else "---" for is_right in right]
    return "\n".join("| " + " | ".join(row) + " |" for row in [list(head), marks, *cells])


def _is_figure(cell: str) -> bool:
    return not cell or (cell[0].isdigit() and len(cell) < 24)


def measured(data: Row, file: str, more: str = "") -> str:
    """The line above a table: device, threads, types, commit, and the file."""
    parts = [data.get("device", ""), _threads(data)]
    parts += [data.get("isa", ""), data.get("dtype", "float32"), f"PyTorch {data['torch']}" if "torch" in data else ""]
    parts += [f"ONNX Runtime {data['onnxruntime']}" if "onnxruntime" in data else "", more]
    parts += [f"commit `{data['commit']}`" if "commit" in data else ""]
    return f"{', '.join(part for part in parts if part)} ([raw](../bench/results/{file})).\n\n"


def _threads(data: Row) -> str:
    count = data.get("threads")
    return "" if count is None else "1 thread" if count == 1 else f"{count} threads"


def _ms(value: float | None) -> str:
    if value is None:
        return ""
    return f"{value:.0f} ms" if value >= 10 else f"{value:.2g} ms"


def _share(value: float | None) -> str:
    if value is None:
        return ""
    return f"{value:.1%}" if value < 0.1 else f"{value:.0%}"


def _size(size: Sequence[int]) -> str:
    return "x".join(map(str, size))


def _levels(levels: Sequence[int]) -> str:
    return f"P{levels[0]}-P{levels[1]}"


@_table
def _end_to_end() -> str:
    data = load("end_to_end.json")
    rows = [
        (
            _size(case["size"]),
            _levels(case["levels"]),
            f"{case['macs'] / 1e9:.1f} of {case['full_macs'] / 1e9:.1f} G",
            _ms(case["ms_median"]),
            _ms(case["peers"].get("onnxruntime_full_ms")),
            _ms(case["peers"].get("torch_full_ms")),
            _ms(case["peers"].get("crop_pad_ms")),
            f"{case['speed_up']:.2f}x",
            f"{case['realised_saving']:.2f}",
            f"{case['max_rel_error']:.0e}",
        )
        for case in data["cases"]
        if case["kind"] == "centre" and case["status"] == "ok"
    ]
    head = ("image", "levels", "multiply-adds", "TraceNet", "full, ONNX Runtime", "full, PyTorch")
    head += ("crop-and-pad, PyTorch", "speed-up", "realised", "max error / max")
    return measured(data, "end_to_end.json") + markdown(head, rows)


@_table
def _clicks_anywhere() -> str:
    data = load("end_to_end.json")
    rows = []
    for size, levels in dict.fromkeys((tuple(c["size"]), tuple(c["levels"])) for c in data["cases"]):
        cases = [c for c in data["cases"] if (tuple(c["size"]), tuple(c["levels"])) == (size, levels)]
        cases = [c for c in cases if c["status"] == "ok"]
        speeds, realised = [c["speed_up"] for c in cases], [c["realised_saving"] for c in cases]
        rows.append(
            (
                _size(size),
                _levels(levels),
                len(cases),
                f"{min(speeds):.2f}x",
                f"{median(speeds):.2f}x",
                f"{max(speeds):.2f}x",
                f"{min(realised):.2f} to {max(realised):.2f}",
            )
        )
    head = ("image", "levels", "clicks", "least speed-up", "median", "most", "realised")
    return measured(data, "end_to_end.json") + markdown(head, rows)


@_table
def _second_click() -> str:
    data = load("end_to_end.json")
    second, cold, overhead, memory = (data[key] for key in ("second_click", "cold_start", "overhead", "memory"))
    rows = [
        ("first click", _ms(second["first_ms_median"])),
        (f"second click, {second['distance']:.0f} px away", _ms(second["second_ms_median"])),
        ("share of the first, median", _share(second["share_median"])),
        ("share of the first, worst", _share(second["share_worst"])),
        ("kept, median", f"{second['kept_bytes_median'] / 2**20:.0f} MiB"),
        ("`tracenet segment`, process start to mask", _ms(cold["ms_median"])),
        ("planning a click", f"{overhead['planning_us']:.0f} µs"),
        ("launches", overhead["launches"]),
        ("activations, full network in PyTorch", f"{memory['torch_full_bytes'] / 2**20:.0f} MiB"),
        ("activations, crop-and-pad", f"{memory['crop_pad_bytes'] / 2**20:.0f} MiB"),
        ("activations, TraceNet", f"{memory['ours_bytes'] / 2**20:.0f} MiB"),
    ]
    where = f"{_size(second['size'])}, {_levels(second['levels'])}, {len(second['pairs'])} pairs of clicks"
    return measured(data, "end_to_end.json", where) + markdown(("what", "measured"), rows)


@_table
def _kernels() -> str:
    data = load("kernels.json")
    rows = [
        (
            f"`{layer['name']}`",
            "x".join(map(str, layer["weight"])),
            "x".join(map(str, layer["stride"])),
            layer["pixels"],
            f"{layer['us_median'] / 1e3:.2f} ms",
            f"{layer['gflops']:.0f}",
            _share(layer["share"]),
            _share(layer["roof_share"]),
        )
        for layer in data["layers"]
        if layer["macs"] > 1e8
    ]
    head = ("layer", "weight", "stride", "cells", "time", "GFLOP/s", "of SGEMM", "of its roof")
    what = f"{_size(data['size'])}, matrix product {data['sgemm_gflops']:.0f} GFLOP/s"
    text = f"Weighted by work: {_share(data['weighted_share'])} of the matrix product's rate.\n\n"
    return measured(data, "kernels.json", what) + text + markdown(head, rows)


@_table
def _break_even() -> str:
    data = load("break_even.json")
    peers = {"onnxruntime": "ONNX Runtime", "torch": "PyTorch"}
    rows = []
    for layer in data["layers"]:
        by_share = {round(w["share"], 3): w for w in layer["windows"]}
        near = min(by_share, key=lambda share: abs(share - 0.25))
        whole = max(by_share)
        for peer, title in peers.items():
            rows.append(
                (
                    layer["kind"],
                    title,
                    f"{by_share[near]['speed_up'][peer]:.1f}x at {_share(near)}",
                    f"{by_share[whole]['speed_up'][peer]:.2f}x",
                    _share(layer["break_even_share"][peer]),
                )
            )
    head = ("layer", "against", "a window", "the whole plane", "pays up to")
    return measured(data, "break_even.json") + markdown(head, rows)


@_table
def _crop_pad() -> str:
    data = load("crop_pad.json")
    rows = [
        (
            _size(case["size"]),
            _levels(case["levels"]),
            f"{case['macs'] / 1e9:.1f} of {case['full_macs'] / 1e9:.1f} G",
            _ms(case["ms_median"]),
            _ms(case["peers"]["torch_full_ms"]),
            f"{case['speed_up']:.2f}x",
            f"{case['realised_saving']:.2f}",
        )
        for case in data["cases"]
    ]
    head = ("image", "levels", "multiply-adds", "crop-and-pad", "full, PyTorch", "speed-up", "realised")
    return measured(data, "crop_pad.json") + markdown(head, rows)


@_table
def _global_context() -> str:
    data = load("global_context.json")
    rows = [
        (
            row["network"],
            row["mode"],
            "yes" if row["exact"] else "no",
            _share(row["mac_share"]),
            _share(row["mac_share_once"]) if row["mac_share_once"] else "",
            f"{row['max_rel_error']:.0e}",
        )
        for row in data["rows"]
    ]
    head = ("network", "mode", "exact", "multiply-adds per click", "once per image", "max error / max")
    return measured(data, "global_context.json", _size(data["size"])) + markdown(head, rows)


@_table
def _int8() -> str:
    layers, network = load("int8_layers.json"), load("int8_network.json")
    rows = [
        (row["layer"], f"{row['fp32']['gops']:.0f}", f"{row['int8']['gops']:.0f}", f"{row['speed_up_median']:.2f}x")
        for row in layers["layers"]
    ]
    cases = [
        (
            case["request"],
            _ms(case["fp32"]["ms_median"]),
            _ms(case["int8"]["ms_median"]),
            f"{case['speed_up_median']:.2f}x",
            f"{case['fp32']['peak_mib']:.0f} MiB",
            f"{case['int8']['peak_mib']:.0f} MiB",
        )
        for case in network["cases"]
    ]
    first = markdown(("layer", "fp32 Gop/s", "int8 Gop/s", "speed-up"), rows)
    second = markdown(("request", "fp32", "int8", "speed-up", "fp32 memory", "int8 memory"), cases)
    kernel = layers["int8_kernel"]
    return (
        f"{measured(layers, 'int8_layers.json', kernel)}{first}\n\n"
        f"{measured(network, 'int8_network.json', _size(network['size']))}{second}"
    )


MASKS = (("one_click_miou", "mean IoU"), ("one_click_pooled", "pooled IoU"), ("hit_rate_70", "IoU >= 0.7"))
MASKS += (("miou_t", "mIoU-T"), ("mta", "mTA"))


def _masks(title: str, data: Row) -> tuple[str, ...]:
    def cell(key: str) -> str:
        spread = data.get("confidence_95", {}).get(key)
        around = f" ({spread[0]:.3f} to {spread[1]:.3f})" if spread else ""
        return f"{data[key]:.3f}{around}"

    return title, str(data["clicks"]), *(cell(key) for key, _ in MASKS)


PROTOCOLS = {
    "protocol_val106_one_scale.json": "P3-P7 at one scale",
    "protocol_val106_two_scales.json": "P3-P5 at scales 0.5 and 1",
    "protocol_val106_three_scales.json": "P3-P5 at scales 0.5, 1 and 2",
}


@_table
def _masks_by_protocol() -> str:
    rows = [_masks(title, load(file)) for file, title in PROTOCOLS.items()]
    data = load(next(iter(PROTOCOLS)))
    more = f"{data['instances']} objects of {data['images']} COCO val2017 photos; 95 % confidence intervals in brackets"
    raw = ", ".join(f"[{title}](../bench/results/{file})" for file, title in PROTOCOLS.items())
    return f"{more} (raw: {raw}).\n\n" + markdown(("asked", "clicks", *(title for _, title in MASKS)), rows)


@_table
def _int8_masks() -> str:
    data = load("int8_masks.json")
    rows = [_masks(name, data[name]) for name in ("fp32", "int8")]
    return measured(data, "int8_masks.json") + markdown(("weights", "clicks", *(title for _, title in MASKS)), rows)


@_table
def _peers() -> str:
    data = load("peers_val106.json")
    models = (("ours", "TraceNet, one scale, PyTorch backend"), ("peer", "MobileSAM-class pair, ONNX Runtime"))
    rows = [_masks(title, data[name]) for name, title in models]
    times = [
        (title, _ms(data["times"][name]["first"]["ms"]), _ms(data["times"][name]["second"]["ms"]))
        for name, title in models
    ]
    first = markdown(("model", "clicks", *(title for _, title in MASKS)), rows)
    second = markdown(("model", "first click", "second click"), times)
    return f"{measured(data, 'peers_val106.json')}{first}\n\n{second}"


@_table
def _ablation() -> str:
    data = load("ablation_cpu.json")
    rows = [
        (name, f"{row['mean']:.3f}", f"{row['pooled']:.3f}", f"{row['hit_rate_70']:.1%}", f"{row['minutes']:.0f} min")
        for name, row in data["rows"].items()
    ]
    raw = "Short runs, each with one thing changed ([raw](../bench/results/ablation_cpu.json)).\n\n"
    return raw + markdown(("run", "mean IoU", "pooled IoU", "IoU >= 0.7", "time"), rows)


@_table
def _viewer_load() -> str:
    data = load("viewer_load.json")
    rows = [
        (
            row["users"],
            row["kind"],
            row["requests"],
            f"{row['per_second']:.2g}",
            _ms(row["median_ms"]),
            _ms(row["p95_ms"]),
            f"{row['rss_mib']:.0f} MiB",
        )
        for row in data["load"]
    ]
    head = ("users at once", "requests", "number", "per second", "median", "95 % below", "memory after")
    memory = data["memory"]
    text = (
        f"Over {memory['clicks']} clicks, memory was {memory['first_half_mean_mib']:.0f} MiB on average in the first "
        f"half and {memory['second_half_mean_mib']:.0f} MiB in the second, {memory['max_mib']:.0f} MiB at most.\n\n"
    )
    return measured(data, "viewer_load.json", "clients on the same cores") + text + markdown(head, rows)


@_table
def _viewer_abuse() -> str:
    rows = [
        (
            name,
            ", ".join(f"{count} x {outcome}" for outcome, count in case["outcomes"].items()),
            f"{case['seconds']:.1f} s",
            "yes" if case["answers_after"] else "no",
        )
        for name, case in load("viewer_load.json")["abuse"].items()
    ]
    return markdown(("what came", "answers", "took", "answers afterwards"), rows)


def _zoo() -> list[Row]:
    models: list[Row] = load("zoo.json")["models"]
    return models


def _shallow(model: Row) -> float | None:
    """Share of multiply-adds of the centre cell of the map of the largest stride up to 8."""
    if "mac_share_shallow" in model:
        return model["mac_share_shallow"]
    strides = {name: model["size"][0] // shape[2] for name, shape in model["outputs"].items() if len(shape) == 4}
    fitting = [name for name, stride in strides.items() if stride <= 8 and name in model["mac_share_by_output"]]
    return model["mac_share_by_output"][max(fitting, key=strides.__getitem__)] if fitting else None


@_table
def _zoo_summary() -> str:
    data = load("zoo.json")
    status = Counter(model["status"] for model in data["models"])
    what = {"exact": "exact, no barriers", "barriers": "exact, barriers reported"}
    rows = [(what.get(name, name), count) for name, count in status.most_common()]
    return measured(data, "zoo.json", f"{len(data['models'])} models") + markdown(("result", "models"), rows)


@_table
def _zoo_barriers() -> str:
    reasons: Counter[str] = Counter()
    for model in _zoo():
        reasons.update(set(model["barrier_ops"]))
    rows = [(name, count) for name, count in reasons.most_common() if count > 1]
    rows.append((f"{sum(count == 1 for count in reasons.values())} others", "1 each"))
    return markdown(("operation", "models with it"), rows)


@_table
def _zoo_traceable() -> str:
    """Median shares of models with and without barriers: what an architecture costs."""
    rows = []
    groups: dict[str, list[Row]] = {}
    for model in _zoo():
        ops = " ".join(model["barrier_ops"])
        kind = "no barrier"
        if any(word in ops for word in ("attention", "matmul", "softmax")):
            kind = "attention"
        elif "norm" in ops:
            kind = "GroupNorm, response normalisation"
        elif model["barriers"]:
            kind = "squeeze-and-excitation, global pooling, other"
        groups.setdefault(kind, []).append(model)
    for kind, models in sorted(groups.items(), key=lambda pair: -len(pair[1])):
        shares = [[m[key] for m in models if m.get(key) is not None] for key in ("mac_share",)]
        shares.append([share for model in models if (share := _shallow(model)) is not None])
        speeds = [
            [m["full_ms"] / m[key] for m in models if m.get(key) and m.get("full_ms")]
            for key in ("native_ms", "native_shallow_ms")
        ]
        medians = [_share(median(values)) if values else "" for values in shares]
        medians += [f"{median(values):.2f}x" if values else "" for values in speeds]
        rows.append((kind, len(models), medians[0], medians[2], medians[1], medians[3]))
    head = ("barriers", "models", "deepest map: share", "native speed-up", "stride 8: share", "native speed-up ")
    if not any(row[5] for row in rows):  # results from before the shallow map was timed
        head, rows = head[:5], [row[:5] for row in rows]
    return measured(load("zoo.json"), "zoo.json", "medians over models") + markdown(head, rows)


SHARES = (0.02, 0.1, 0.3, 0.6, 0.9, 1.0)
"""Upper ends of the bins of :func:`_zoo_break_even`."""


@_table
def _zoo_break_even() -> str:
    """How much faster requests are, by the share of multiply-adds that they need."""
    found: list[tuple[float, float, float | None]] = []
    for model in _zoo():
        for share, kind in ((model.get("mac_share"), ""), (model.get("mac_share_shallow"), "_shallow")):
            native, crop_pad = model.get(f"native{kind}_ms"), model.get(f"crop_pad{kind}_ms")
            if share is not None and native and model.get("full_ms"):
                full = model["full_ms"]
                found.append((share, full / native, full / crop_pad if crop_pad else None))
    rows, low = [], 0.0
    for high in SHARES:
        inside = [row for row in found if low < row[0] <= high or (low == 0.0 and row[0] == 0.0)]
        native, cropped = [row[1] for row in inside], [row[2] for row in inside if row[2] is not None]
        if inside:
            rows.append(
                (
                    f"{low:.0%} to {high:.0%}",
                    len(inside),
                    f"{median(native):.2f}x",
                    f"{sum(speed > 1 for speed in native) / len(native):.0%}",
                    f"{median(cropped):.2f}x",
                    f"{sum(speed > 1 for speed in cropped) / len(cropped):.0%}",
                )
            )
        low = high
    head = ("share of multiply-adds", "requests", "native, median", "faster", "crop-and-pad, median", "faster ")
    return measured(load("zoo.json"), "zoo.json", "against the full network in PyTorch") + markdown(head, rows)


@_table
def _zoo_pairs() -> str:
    """Models that differ in one thing, side by side."""
    by_name = {model["name"]: model for model in _zoo()}
    pairs = (
        ("regnetx_002", "regnety_002", "squeeze-and-excitation"),
        ("resnet26t", "ecaresnet26t", "channel attention"),
        ("efficientnet_lite0", "efficientnet_b0", "squeeze-and-excitation"),
        ("convnext_atto", "convnextv2_atto", "response normalisation"),
        ("resnet18", "skresnet18", "selective kernels"),
        ("vgg11_bn", "densenet121", "small and large receptive fields"),
    )
    rows = []
    for plain, other, what in pairs:
        if plain in by_name and other in by_name:
            a, b = by_name[plain], by_name[other]
            rows.append(
                (
                    what,
                    f"`{plain}`",
                    f"{_share(_shallow(a))}, {_share(a['mac_share'])}",
                    f"`{other}`",
                    f"{_share(_shallow(b))}, {_share(b['mac_share'])}",
                )
            )
    head = ("what differs", "model", "stride 8, deepest", "with it", "stride 8, deepest ")
    return markdown(head, rows)


@_table
def _files() -> str:
    rows = []
    for path in sorted(RESULTS.glob("*.json*")):
        data = load(path.name) if path.suffix == ".json" else {}
        commit = data.get("commit", "") if isinstance(data, dict) else ""
        device = data.get("device", "") if isinstance(data, dict) else ""
        rows.append((f"[{path.name}](../bench/results/{path.name})", device, f"`{commit}`" if commit else ""))
    return markdown(("file", "device", "commit"), rows)


@_table
def _unions() -> str:
    """Windows apart against their hull."""
    file = "unions.json"
    data = load(file)
    timed = [backend for backend in data["backends"] if data["repeats"]]
    head = ["network", "request", "windows per layer", "hull", "apart", "error"]
    head += [f"{backend}, {kind}" for backend in timed for kind in ("hull", "apart")]
    rows = []
    for row in data["rows"]:
        shares = [_share(row[macs] / row["full_macs"]) for macs in ("hull_macs", "macs")]
        times = [_ms(row[f"{backend}_{kind}_ms"]) for backend in timed for kind in ("hull", "pieces")]
        most = f"up to {row['most_pieces']}"
        rows.append([row["network"], row["request"], most, *shares, f"{row['max_rel_error']:.0e}", *times])
    return measured(data, file, _size(data["size"])) + markdown(head, rows)
