"""A SAM-style ONNX pair beside TraceNet: the same clicks on the same masks, the same metrics, times in turns.

    python -m bench.peers --images DIR --annotations F --encoder F --decoder F --interleave --json out.json

Both models go through the evaluation's own loop, one after the other; a killed run goes on where it stopped. Of a
decoder's several masks the one of the highest predicted IoU is taken (of four, the first is its single-mask answer and
left out); ``--single-mask`` takes that one instead. With ``--interleave`` both predictors are then timed in turns on a
sample of the photos, from pixels to mask, and their multiply-adds are counted.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from bench.peers.onnx_macs import count_macs
from bench.peers.segment import SamSegment
from bench.peers.times import OurClicks, PeerClicks, interleave, medians, photo_of, sgemm_rate
from bench.report import environment
from tracenet.data import CocoDataset
from tracenet.evaluation.partial import remove_partial
from tracenet.evaluation.protocol import ClickProtocol
from tracenet.evaluation.report import SHOWN, shown
from tracenet.evaluation.run import evaluate_checkpoint, evaluate_dataset, file_hash
from tracenet.files import check_target, save_json
from tracenet.models.weights import bundled_checkpoint
from tracenet.predictor import Predictor
from tracenet.sam_onnx import SamOnnxPredictor, SamOptions
from tracenet_kernels.errors import TraceNetError

TOLERANCE = 1e-4
"""Largest error of traced mask logits over ``max|full|`` at which our times are printed."""
TRACED = 6
"""Clicks that are checked against the full network."""


def compare(options: argparse.Namespace) -> dict[str, Any]:
    """Evaluate both, time both if asked; the whole report as plain data."""
    torch.set_num_threads(options.threads)
    checkpoint = options.checkpoint or bundled_checkpoint()
    dataset = CocoDataset(options.images, options.annotations, on_error="skip" if options.skip_bad else "raise")
    protocol = ClickProtocol(clicks=options.clicks, seed=options.seed)
    pair = SamOnnxPredictor(options.encoder, options.decoder, SamOptions(threads=options.threads))
    segment = SamSegment(pair, options.single_mask)
    parts = {name: options.json.with_name(f"{options.json.name}.{name}") for name in ("ours", "peer")}
    ours = evaluate_checkpoint(checkpoint, dataset, protocol, parts["ours"], options.limit, rft=TRACED)
    identity = {
        "encoder": {"file": options.encoder.name, "sha256": file_hash(options.encoder)},
        "decoder": {"file": options.decoder.name, "sha256": file_hash(options.decoder)},
        "mask": "single" if options.single_mask else "highest predicted IoU",
    }
    peer = evaluate_dataset(segment, dataset, protocol, identity, parts["peer"], options.limit)
    report: dict[str, Any] = {**environment(), "ours": ours.report, "peer": peer.report}
    if options.interleave:
        usable = {one.image for one in peer.objects}
        records = [record for record in dataset.records if record.id in usable]
        predictor = Predictor.from_pretrained(checkpoint)
        rows = interleave(OurClicks(predictor), PeerClicks(segment), dataset, records, options.interleave, protocol)
        report["times"] = {
            **medians(rows),
            "exact": ours.report["rft_max_error"] <= TOLERANCE,
            "sgemm_macs_per_second": sgemm_rate(),
            "macs": {"ours_full": _full_macs(predictor), **_peer_macs(pair, options, rows)},
            "photos": rows,
        }
    save_json(report, options.json)
    for part in parts.values():
        remove_partial(part)
    return report


def _full_macs(predictor: Predictor) -> int:
    assert predictor.last_plan is not None
    return predictor.last_plan.full_macs


def _peer_macs(pair: SamOnnxPredictor, options: argparse.Namespace, rows: list[dict[str, Any]]) -> dict[str, int]:
    photo = photo_of(rows)
    pair.set_image(photo)
    return {
        "peer_encoder": count_macs(options.encoder, pair.encoder_inputs(photo)),
        "peer_decoder": count_macs(options.decoder, pair.decoder_inputs([[0, 0]])),
    }


def show(report: dict[str, Any], console: Console) -> None:
    """Both models side by side."""
    ours, peer = report["ours"], report["peer"]
    title = f"{ours['instances']} objects on {ours['images']} photos, {ours['clicks']} simulated clicks"
    table = Table(title=title, title_justify="left")
    for name in ("", "TraceNet", "peer"):
        table.add_column(name, justify="left" if not name else "right")
    for key, name in SHOWN.items():
        table.add_row(name, shown(ours[key]), shown(peer[key]))
    for size in ours["by_size"]:
        key = "one_click_miou"
        table.add_row(f"1-click IoU, {size}", *(shown(one["by_size"][size][key]) for one in (ours, peer)))
    for band, (a, b) in enumerate(zip(ours["by_band"], peer["by_band"], strict=True), 1):
        table.add_row(f"mIoU-T, band {band}", shown(a["miou_t"]), shown(b["miou_t"]))
    console.print(table)
    console.print(f"Of the peer's masks: {peer['mask']}.")
    if "times" in report:
        console.print(_times_table(report))


def _times_table(report: dict[str, Any]) -> Table:
    times = report["times"]
    macs, rate = times["macs"], times["sgemm_macs_per_second"]
    title = f"{report['device']}, {report['threads']} threads, medians of {len(times['photos'])} photos in turns"
    table = Table(title=title, title_justify="left")
    for name in ("click", "model", "ms", "phases, ms", "GMACs", "of SGEMM rate"):
        table.add_column(name, justify="left" if name in ("click", "model", "phases, ms") else "right")
    peer_macs = {"first": macs["peer_encoder"] + macs["peer_decoder"], "second": macs["peer_decoder"]}
    for key in ("first", "second"):
        for name in ("ours", "peer"):
            row = times[name][key]
            counted = row["macs"] if name == "ours" else peer_macs[key]
            exact = name == "peer" or times["exact"]
            table.add_row(
                key,
                "TraceNet" if name == "ours" else "peer",
                f"{row['ms']:.0f}" if exact else "wrong",
                ", ".join(f"{phase} {ms:.0f}" for phase, ms in row["phases"].items()) if exact else "",
                f"{counted / 1e9:.1f}",
                f"{counted / row['ms'] * 1e3 / rate:.0%}" if exact else "",
                end_section=name == "peer",
            )
    table.caption = (
        f"TraceNet: capture {times['ours']['capture_ms']:.0f} ms once per image size, not in the above; "
        f"the full network has {macs['ours_full'] / 1e9:.1f} GMACs; traced logits within "
        f"{report['ours']['rft_max_error']:.0e} of the full network's largest."
    )
    return table


def main(arguments: list[str] | None = None) -> None:
    """Parse arguments, compare, print."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.peers", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", type=Path, required=True, help="folder of the photos")
    parser.add_argument("--annotations", type=Path, required=True, help="COCO or LVIS json")
    parser.add_argument("--encoder", type=Path, required=True, help="ONNX file of the peer's image encoder")
    parser.add_argument("--decoder", type=Path, required=True, help="ONNX file of its prompt decoder")
    parser.add_argument("--checkpoint", type=Path, help="ours; the bundled one by default")
    parser.add_argument("--clicks", type=int, default=25, help="simulated clicks per object, a multiple of five")
    parser.add_argument("--seed", type=int, default=0, help="of the simulated clicks")
    parser.add_argument("--limit", type=int, help="only the first so many photos")
    parser.add_argument("--skip-bad", action="store_true", help="leave out bad annotations and photos, and say so")
    parser.add_argument("--single-mask", action="store_true", help="take the decoder's single-mask answer")
    parser.add_argument(
        "--interleave",
        type=int,
        nargs="?",
        const=12,
        default=0,
        metavar="N",
        help="time both in turns on N photos (12)",
    )
    parser.add_argument("--threads", type=int, default=2, help="of each model")
    parser.add_argument("--json", type=Path, required=True, help="file to write")
    options = parser.parse_args(arguments)
    try:
        check_target(options.json)
        show(compare(options), Console(width=130, highlight=False))
    except TraceNetError as error:
        parser.error(" ".join(str(error).splitlines()))


if __name__ == "__main__":
    main()
