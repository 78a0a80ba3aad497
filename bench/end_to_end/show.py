"""The report as tables."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.table import Table


def show(report: dict[str, Any], console: Console) -> None:
    """Print everything that was measured."""
    for number, size in enumerate(report["sizes"]):
        cases = [case for case in report["cases"] if case["size"] == size["size"]]
        console.print(_cases_table(report, size, cases, verbose=number == 0))
        console.print(_peers_line(report, size))
    _show_second_click(report["second_click"], console)
    _show_photo(report["photo"], console)
    _show_rest(report, console)


def _cases_table(report: dict[str, Any], size: dict[str, Any], cases: list[dict[str, Any]], verbose: bool) -> Table:
    title = (
        f"{'x'.join(map(str, size['size']))}, {report['device']}, {report['threads']} threads, "
        f"commit {report['commit']}, medians of {size['repeats']}"
    )
    table = Table(title=title, title_justify="left")
    names = ("click", "levels", "GMACs", "ms", "ORT ms", "torch ms", "crop+pad ms", "x ORT", "saving", "SGEMM", "error")
    for name in names:
        table.add_column(name, justify="right")
    for case in cases:
        if case["kind"] == "grid" and not verbose:
            continue
        peers = case["peers"]
        table.add_row(
            ",".join(f"{value:g}" for value in case["click"]),
            "-".join(map(str, case["levels"])),
            f"{case['macs'] / 1e9:.1f}",
            _ms(case["ms_median"], case["status"]),
            _ms(peers["onnxruntime_full_ms"]),
            _ms(peers["torch_full_ms"]),
            _ms(peers["crop_pad_ms"], "" if case["crop_pad_status"].startswith("not") else "wrong"),
            _number(case["speed_up"], ".2f"),
            _number(case["realised_saving"], ".2f"),
            _number(case["sgemm_share"], ".0%"),
            _number(case["max_rel_error"], ".0e"),
        )
    return table


def _peers_line(report: dict[str, Any], size: dict[str, Any]) -> str:
    peers = size["peers"]
    shares = ", ".join(f"{name} {_number(peer['sgemm_share'], '.0%') or 'wrong'}" for name, peer in peers.items())
    flag = " (ONNX Runtime is slow here: ratios against it flatter)" if size["slow_peer"] else ""
    if not size["idle"]:
        flag += f" (the machine was busy: {size['cpu_share']:.0%} of its processors were free)"
    settings = report["settings"]
    rate = 2 * size["sgemm_macs_per_second"] / 1e9
    return (
        f"Full network, {size['full_macs'] / 1e9:.1f} GMACs: {shares} of the SGEMM rate "
        f"{rate:.0f} GFLOP/s{flag}; settings: onnxruntime {settings['onnxruntime']}, "
        f"torch {settings['torch']}."
    )


def _show_second_click(found: dict[str, Any] | None, console: Console) -> None:
    if found is None:
        return
    if "pairs" not in found:
        console.print(f"Second click: {found['status']}.")
        return
    console.print(
        f"Second click {found['distance']:g} px away, {len(found['pairs'])} pairs: "
        f"{_number(found['share_median'], '.0%') or 'wrong'} of the first click's time in the median, "
        f"{_number(found['share_worst'], '.0%')} at worst "
        f"({_ms(found['second_ms_median'])} of {_ms(found['first_ms_median'])} ms); "
        f"{found['kept_bytes_median'] / 2**20:.0f} MiB kept."
    )


def _show_photo(found: dict[str, Any] | None, console: Console) -> None:
    if found is None:
        return
    table = Table(title=f"From photo to mask, {found['photo']}", title_justify="left")
    for name in ("backend", "first click ms", "second click ms", "GMACs", "kept MiB", "overlap"):
        table.add_column(name, justify="right")
    for name, row in found["backends"].items():
        if "min_iou" not in row:
            table.add_row(name, row["status"])
            continue
        table.add_row(
            name,
            _ms(row["first_click_ms"], row["status"]),
            _ms(row["second_click_ms"], row["status"]),
            ", ".join(_number(macs / 1e9, ".1f") for macs in row["macs"]),
            f"{row['kept_bytes'] / 2**20:.0f}",
            f"{row['min_iou']:.4f}",
        )
    console.print(table)


def _show_rest(report: dict[str, Any], console: Console) -> None:
    overhead, memory, cold = report["overhead"], report["memory"], report["cold_start"]
    if overhead["status"] == "ok":
        parts = {name.removesuffix("_us"): us for name, us in overhead.items() if name.endswith("_us")}
        console.print("Per click: " + ", ".join(f"{name} {_number(us, '.0f') or '?'} us" for name, us in parts.items()))
    mib = {name: memory[f"{name}_bytes"] for name in ("torch_full", "crop_pad", "ours")}
    console.print(
        "Peak activations, MiB: "
        + ", ".join(f"{name} {_number(None if n is None else n / 2**20, '.0f') or '?'}" for name, n in mib.items())
    )
    if cold is not None:
        imported = {True: "torch imported", False: "torch not imported"}.get(cold.get("torch_imported"), "")
        console.print(f"Cold start to mask: {_ms(cold['ms_median'], cold['status'])} ms {imported}".rstrip())
    kernels = report["kernels"]
    if kernels is not None and kernels["status"] == "ok":
        console.print(
            f"Convolution kernels: {_number(kernels['weighted_share'], '.1%')} of the SGEMM rate weighted by work, "
            f"worst layer {_number(kernels['worst_share'], '.1%')}."
        )


def _ms(value: float | None, status: str = "wrong") -> str:
    return status.split(":")[0] if value is None else f"{value:.0f}"


def _number(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)
