"""The command line: ``tracenet segment``, ``viewer``, ``trace``, ``export-onnx``, ``evaluate``, ``teach``, ..."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn, cast

import typer

from tracenet_kernels.errors import InputError, TraceNetError

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.table import Table

app = typer.Typer(
    name="tracenet",
    add_completion=False,
    pretty_exceptions_enable=False,
    help="One click on a photo, one instance mask, computing only what the click needs.",
)
# Click's classes; typer keeps them in a module of its own or in click's, depending on its version.
_UsageError, _ClickError = cast("tuple[type[Any], type[Any]]", typer.BadParameter.__mro__[1:3])

Levels = Annotated[str, typer.Option(help="Pyramid levels asked at the click, first-last within 3-7.", metavar="A-B")]
Click = Annotated[str, typer.Option(help="Clicked pixel.", metavar="X,Y")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of text.")]


def parse_click(text: str) -> tuple[float, float]:
    """``"X,Y"`` -> two numbers. Raises InputError for anything else."""
    try:
        x, y = (float(part) for part in text.split(","))
    except ValueError as error:
        raise InputError(f"--click is {text!r}; write X,Y in pixels, for example --click 320,240") from error
    return x, y


def parse_levels(text: str) -> tuple[int, int]:
    """``"3-7"`` or ``"4"`` -> first and last level. Raises InputError for anything else."""
    parts = text.split("-")
    if len(parts) in (1, 2) and all(_is_count(part) for part in parts):
        return int(parts[0]), int(parts[-1])
    raise InputError(f"--levels is {text!r}; write first-last within 3-7, for example --levels 3-5")


def parse_size(text: str) -> tuple[int, int]:
    """``"WxH"`` -> width and height. Raises InputError for anything else."""
    parts = text.lower().split("x")
    if len(parts) == 2 and all(_is_count(part) for part in parts):
        return int(parts[0]), int(parts[1])
    raise InputError(f"--size is {text!r}; write WIDTHxHEIGHT, for example --size 1024x768")


def _is_count(text: str) -> bool:
    return text.strip().isdecimal() and len(text) <= 9


def parse_mask_cells(text: str) -> int | str:
    """``all``, ``none`` or N. Raises InputError for anything else."""
    if text in ("all", "none"):
        return text
    if _is_count(text):
        return int(text)
    raise InputError(f"--mask-cells is {text!r}; pass a number of P3 cells, all or none")


def parse_mask_window(text: str | None) -> str | float | None:
    """``box``, ``full`` or a radius in photo pixels; None keeps the checkpoint's default."""
    if text is None or text in ("box", "full"):
        return text
    try:
        return float(text)
    except ValueError as error:
        raise InputError(f"--mask-window is {text!r}; pass box, full, or a radius in photo pixels") from error


def parse_zoom(text: str | None) -> str | tuple[str | float, ...] | None:
    """``auto``, ``off``, or factors with commas between them; None keeps the checkpoint's default."""
    if text is None or text in ("auto", "off"):
        return text
    parts = [part.strip() for part in text.split(",")]
    try:
        return tuple(part if part == "native" else float(part) for part in parts)
    except ValueError as error:
        raise InputError(f"zoom is {text!r}; pass auto, off, or factors such as 0.5,1,2 or 0.5,native") from error


@app.command()
def segment(
    image: Annotated[Path, typer.Argument(help="Photo: JPEG, PNG, WebP, TIFF, ...", show_default=False)],
    click: Click,
    output: Annotated[
        Path, typer.Option("-o", "--output", help="Mask to write: a PNG, 255 on the object, 0 elsewhere.")
    ],
    levels: Annotated[
        str | None, typer.Option(help="Pyramid levels asked, first-last within 3-7 (default: the checkpoint's).")
    ] = None,
    mask_window: Annotated[
        str | None, typer.Option(help="box, full, or a radius in photo pixels (default: the checkpoint's).")
    ] = None,
    zoom: Annotated[
        str | None,
        typer.Option(
            help="Scales to look at: off, auto, or factors of the working size such as 0.5,1,native (default: the "
            "checkpoint's)."
        ),
    ] = None,
    checkpoint: Annotated[Path | None, typer.Option(help="Checkpoint file (default: the bundled one).")] = None,
    backend: Annotated[str, typer.Option(help="auto, native or torch.")] = "auto",
    overlay: Annotated[Path | None, typer.Option(help="Also write the photo with the mask over it.")] = None,
    windows: Annotated[Path | None, typer.Option(help="Also write the traced windows of each layer.")] = None,
    as_json: Json = False,
) -> None:
    """Segment the thing under a click."""
    at, mask_rule = parse_click(click), parse_mask_window(mask_window)
    level_range = None if levels is None else parse_levels(levels)
    scales = parse_zoom(zoom)

    from tracenet.segment import segment_photo

    result = segment_photo(
        image,
        at,
        output,
        levels=level_range,
        mask_window=mask_rule,
        checkpoint=checkpoint,
        backend=backend,
        zoom=scales,
        overlay_path=overlay,
        windows_path=windows,
    )
    if as_json:
        print(json.dumps(result))
        return
    print(
        f"{result['output']}: {result['mask_pixels']} pixels, score {result['score']:.2f}, "
        f"level P{result['level']} at {result['zoom']:g}x, "
        f"{result['predict_ms']:.0f} ms, {result['macs'] / 1e9:.1f} of {result['full_macs'] / 1e9:.1f} GMACs"
    )


@app.command()
def trace(
    model: Annotated[str, typer.Option(help="Model name.")] = "tracenet_r50_fpn",
    size: Annotated[str, typer.Option(help="Image size, multiples of 32.", metavar="WxH")] = "1024x768",
    click: Click = "512,384",
    levels: Levels = "3-7",
    mask_cells: Annotated[
        str, typer.Option(help="Square of N x N P3 cells around the click asked of the mask, or all, or none.")
    ] = "none",
    mask_branch: Annotated[str, typer.Option(help="condinst, p3 or none.")] = "condinst",
    stride_in_1x1: Annotated[bool, typer.Option("--stride-in-1x1", help="MSRA stride placement.")] = False,
    classes: Annotated[int, typer.Option(help="Classes of the score head.")] = 80,
    picture: Annotated[Path | None, typer.Option(help="Also write the windows of each layer over an image.")] = None,
    image: Annotated[Path | None, typer.Option(help="Photo behind that picture, stretched to the size.")] = None,
    as_json: Json = False,
) -> None:
    """Trace one click: the window of every layer and what it costs."""
    plane, at = parse_size(size), parse_click(click)
    level_range, cells = parse_levels(levels), parse_mask_cells(mask_cells)

    from tracenet.standard import standard_plan, summary

    plan = standard_plan(
        model,
        plane,
        at,
        level_range,
        cells,
        mask_branch=mask_branch,
        stride_in_1x1=stride_in_1x1,
        num_classes=classes,
    )
    if picture is not None:
        from tracenet.files import save_picture
        from tracenet.pictures import backdrop, plan_picture

        save_picture(plan_picture(plan, backdrop(plane, image), at), picture)
    if as_json:
        print(json.dumps(summary(plan)))
    else:
        print(plan.table())


@app.command("export-onnx")
def export_onnx(
    checkpoint: Annotated[
        Path | None, typer.Argument(help="Checkpoint file (default: the bundled one).", show_default=False)
    ] = None,
    out: Annotated[Path, typer.Option(help="ONNX file to write.")] = Path("click.onnx"),
    size: Annotated[str, typer.Option(help="Image size, multiples of 32.", metavar="WxH")] = "1024x768",
    click: Click = "512,384",
    levels: Levels = "3-7",
    mask_cells: Annotated[
        str, typer.Option(help="Square of N x N P3 cells around the click asked of the mask, or all, or none.")
    ] = "32",
    inputs: Annotated[
        str, typer.Option(help="window: the model takes the part of the image it reads; whole: it cuts it out.")
    ] = "window",
    check: Annotated[
        bool, typer.Option("--check", help="Compare with the full network and measure both in ONNX Runtime first.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Write what one click needs as an ONNX model."""
    plane, at = parse_size(size), parse_click(click)
    level_range, cells = parse_levels(levels), parse_mask_cells(mask_cells)

    from tracenet.click_onnx import export_click

    result = export_click(checkpoint, plane, at, out, levels=level_range, mask_cells=cells, inputs=inputs, check=check)
    if as_json:
        print(json.dumps(result))
        return
    line = f"{result['output']}: {result['nodes']} nodes, {result['bytes'] / 1e6:.0f} MB, "
    line += f"{result['macs'] / 1e9:.1f} of {result['full_macs'] / 1e9:.1f} GMACs"
    if check:
        line += f", {result['traced_ms']:.0f} of {result['full_ms']:.0f} ms, max error {result['max_error']:.1e}"
    print(line)


@app.command()
def evaluate(
    images: Annotated[Path, typer.Option(help="Folder of the photos.")],
    annotations: Annotated[Path, typer.Option(help="COCO or LVIS json.")],
    checkpoint: Annotated[Path | None, typer.Option(help="Checkpoint file (default: the bundled one).")] = None,
    clicks: Annotated[int, typer.Option(help="Simulated clicks per object, a multiple of five.")] = 25,
    seed: Annotated[int, typer.Option(help="Of the simulated clicks and of samples.")] = 0,
    rft: Annotated[int, typer.Option(help="Clicks run again through the tracer and compared.")] = 10,
    full_mta: Annotated[
        int, typer.Option(help="Objects clicked at every pixel (large ones on a grid), to check mTA's estimate.")
    ] = 0,
    limit: Annotated[int | None, typer.Option(help="Only the first so many images.")] = None,
    working_size: Annotated[
        int | None, typer.Option(help="Longest side that photos are resized to (default: the checkpoint's).")
    ] = None,
    zoom: Annotated[
        str | None, typer.Option(help="auto, off, or factors such as 0.5,1,2 (default: the checkpoint's).")
    ] = None,
    skip_bad: Annotated[
        bool, typer.Option("--skip-bad", help="Leave out bad annotations and images, and say so.")
    ] = False,
    figures: Annotated[Path | None, typer.Option(help="Folder to draw pictures into.")] = None,
    tolerance: Annotated[
        int | None, typer.Option(help="Annotation id whose clicks --figures draws (default: one that shows well).")
    ] = None,
    json_path: Annotated[
        Path | None,
        typer.Option("--json", help="File to write the metrics to; a killed run resumes from what lies beside it."),
    ] = None,
) -> None:
    """mIoU-T, mTA, one-click IoU and AP on annotated images; under torchrun, on all its processes."""
    from tracenet.files import check_target
    from tracenet.models.weights import bundled_checkpoint

    try:
        from tracenet.data import CocoDataset
        from tracenet.distributed import processes
        from tracenet.evaluation.protocol import ClickProtocol
        from tracenet.evaluation.report import tables
        from tracenet.evaluation.run import evaluate_checkpoint, finish

        if figures is not None:
            from tracenet.evaluation.figures import draw_figures, make_folder
    except ModuleNotFoundError as error:
        raise InputError(f"evaluation needs {error.name}; install it with pip install 'tracenet[eval]'") from error
    protocol = ClickProtocol(clicks=clicks, seed=seed, full_mta=full_mta)
    changes: dict[str, Any] = {} if working_size is None else {"working_size": working_size}
    scales = parse_zoom(zoom)
    if isinstance(scales, tuple):
        changes.update(zoom="auto", zoom_factors=scales)
    elif scales is not None:
        changes["zoom"] = scales
    if json_path is not None:
        check_target(json_path)
    dataset = CocoDataset(images, annotations, on_error="skip" if skip_bad else "raise")
    if figures is not None:
        make_folder(figures)
    if tolerance is not None and not any(i.id == tolerance for record in dataset.records for i in record.instances):
        raise InputError(f"--tolerance is {tolerance}; give the id of an annotation in {annotations}")
    with processes() as mine:
        file = checkpoint or bundled_checkpoint()
        done = evaluate_checkpoint(file, dataset, protocol, json_path, limit, rft, mine, changes)
        if not mine.first:
            return
        if json_path is not None:
            finish(done, json_path)
        _print(tables(done.report))
        if figures is not None:
            draw_figures(figures, done, dataset, protocol, tolerance)


@app.command()
def train(
    config: Annotated[Path, typer.Argument(help="TOML file; see configs/.", show_default=False)],
    out: Annotated[Path, typer.Option(help="Folder of the run; one that is there already is continued.")],
    overrides: Annotated[
        list[str] | None, typer.Option("--set", help="table.key=value, in place of the file's.", metavar="KEY=VALUE")
    ] = None,
) -> None:
    """Train a model; under torchrun, on all its processes. Killed at any moment, the same command goes on."""
    try:
        from tracenet.distributed import processes
        from tracenet.training.config import load_config
        from tracenet.training.run import train as train_run
    except ModuleNotFoundError as error:
        raise InputError(f"training needs {error.name}; install it with pip install 'tracenet[train]'") from error
    settings = load_config(config, overrides or [])
    with processes("cpu" if settings.run.task == "cached" else settings.run.device) as ranks:
        checkpoint = train_run(settings, out, ranks)
        if ranks.first:
            print(checkpoint)


@app.command()
def teach(
    images: Annotated[Path, typer.Option(help="Folder of the photos.")],
    annotations: Annotated[Path, typer.Option(help="COCO or LVIS json: what is annotated is not proposed again.")],
    encoder: Annotated[Path, typer.Option(help="ONNX file of the teacher's image encoder.")],
    decoder: Annotated[Path, typer.Option(help="ONNX file of its prompt decoder.")],
    out: Annotated[Path, typer.Option(help="COCO-style json to write; a killed run goes on from OUT.partial.")],
    grid: Annotated[int | None, typer.Option(help="Clicks along the photo's longer side.")] = None,
    predicted_iou: Annotated[float | None, typer.Option(help="Least IoU that the teacher predicts.")] = None,
    stability: Annotated[float | None, typer.Option(help="Least IoU between nearby mask thresholds.")] = None,
    without: Annotated[Path | None, typer.Option(help="Annotation json of photos to leave out.")] = None,
    limit: Annotated[int | None, typer.Option(help="At most so many photos, evenly spread.")] = None,
    skip_bad: Annotated[bool, typer.Option("--skip-bad", help="Leave out bad entries instead of stopping.")] = False,
    threads: Annotated[int, typer.Option(help="Of the teacher.")] = 2,
    figures: Annotated[int, typer.Option(help="Also draw the proposals on so many photos, in OUT_figures.")] = 0,
) -> None:
    """Propose masks on annotated photos with a SAM-style ONNX pair, to train with."""
    try:
        from tracenet.training.teach import TeacherSettings, teach_files
    except ModuleNotFoundError as error:
        raise InputError(f"proposals need {error.name}; install it with pip install 'tracenet[train]'") from error
    given: dict[str, Any] = {"grid": grid, "predicted_iou": predicted_iou, "stability": stability}
    settings = TeacherSettings(**{name: value for name, value in given.items() if value is not None})
    report = teach_files(
        images,
        annotations,
        encoder,
        decoder,
        out,
        settings,
        without=without,
        limit=limit,
        skip_bad=skip_bad,
        threads=threads,
        figures=figures,
    )
    print(json.dumps(report, indent=2))


@app.command()
def tune(
    checkpoint: Annotated[Path | None, typer.Option(help="Checkpoint file (default: the bundled one).")] = None,
    size: Annotated[str, typer.Option(help="Working size, multiples of 32.", metavar="WxH")] = "1024x768",
    dtype: Annotated[str, typer.Option(help="fp16, bf16, fp32 or int8.")] = "fp16",
    out: Annotated[
        Path | None,
        typer.Option(help="File to write (default: this GPU's in the user's configuration folder); it is continued."),
    ] = None,
    limit: Annotated[int, typer.Option(help="Configurations tried per layer, the model's best.")] = 24,
    seconds: Annotated[float | None, typer.Option(help="Begin no further layer after this long.")] = None,
    as_json: Json = False,
) -> None:
    """Measure kernel configurations for this machine's GPU."""
    plane = parse_size(size)

    from tracenet.tune import tune_network

    result = tune_network(checkpoint, plane, dtype, out, limit, seconds)
    if as_json:
        print(json.dumps(result))
        return
    print(f"{result['file']}: {result['keys']} configurations, {result['new']} new, {result['left']} left to measure")


@app.command()
def viewer(
    folder: Annotated[
        Path | None, typer.Argument(help="Folder of photos to offer.", metavar="[IMAGE_DIR]", show_default=False)
    ] = None,
    checkpoint: Annotated[Path | None, typer.Option(help="Checkpoint file (default: the bundled one).")] = None,
    backend: Annotated[str, typer.Option(help="auto, triton, native or torch.")] = "auto",
    host: Annotated[str, typer.Option(help="Address to listen on; any but loopback opens it to the network.")] = (
        "127.0.0.1"
    ),
    port: Annotated[int, typer.Option(help="Port to listen on; 0 takes any that is free.")] = 8080,
    allow_host: Annotated[
        list[str] | None, typer.Option(help="Further name under which browsers may ask for the server.")
    ] = None,
    memory: Annotated[
        int | None,
        typer.Option(
            help="MiB of decoded photos and kept features, of all visitors (default: a quarter of the machine's)."
        ),
    ] = None,
) -> None:
    """Open a page in the browser where a click on a photo gives its mask; and serve other programs."""
    try:
        from tracenet.viewer.serve import serve
    except ModuleNotFoundError as error:
        raise InputError(f"the viewer needs {error.name}; install it with pip install 'tracenet[viewer]'") from error
    serve(folder, checkpoint, backend, host, port, allow_host or (), memory)


@app.command()
def costs(
    size: Annotated[str, typer.Option(help="Image size, multiples of 32.", metavar="WxH")] = "1024x768",
    classes: Annotated[int, typer.Option(help="Classes of the score head.")] = 80,
    stride_in_1x1: Annotated[bool, typer.Option("--stride-in-1x1", help="MSRA stride placement.")] = False,
    as_json: Json = False,
) -> None:
    """Multiply-adds of FullNet and TraceNet beside the paper's table III."""
    plane = parse_size(size)

    from tracenet.standard import costs_table

    data = costs_table(plane, num_classes=classes, stride_in_1x1=stride_in_1x1)
    if as_json:
        print(json.dumps(data))
        return
    _print(_costs(f"{size}, {classes} classes, CondInst mask branch, centre click", data["rows"]))
    near = data["nearest"]
    _print(
        _costs(f"{near['size'][0]}x{near['size'][1]}, stride in the 1x1, no mask branch, centre click", near["rows"])
    )
    _print(
        "The paper states its figures for 1024x768; FullNet's cannot be counted at that size and agree with 800x528. "
        "GMACs are multiply-adds; the paper prints them as FLOPs."
    )


def _print(what: RenderableType) -> None:
    from rich.console import Console

    Console(width=140 if not sys.stdout.isatty() else None, highlight=False).print(what)


def _costs(title: str, rows: list[dict[str, Any]]) -> Table:
    from rich.table import Table

    table = Table(title=title, title_justify="left")
    for name in ("network", "levels", "mask cells", "GMACs", "of full", "paper's GFLOPs"):
        table.add_column(name, justify="left" if name == "network" else "right")
    for row in rows:
        table.add_row(
            f"{row['network']}-R-{row['depth']}-FPN",
            "all" if row["levels"] is None else "-".join(map(str, row["levels"])),
            str(row["mask_cells"]),
            f"{row['gmacs']:.2f}",
            f"{row['share']:.1%}",
            "" if row["paper_gflops"] is None else f"{row['paper_gflops']:.2f}",
        )
    return table


def main() -> None:
    """Entry point: errors made on purpose and wrong usage become one line on standard error and exit code 2."""
    try:
        code = app(sys.argv[1:] or ["--help"], prog_name="tracenet", standalone_mode=False)
    except TraceNetError as error:
        _fail(str(error))
    except _UsageError as error:
        command = error.ctx.command_path if error.ctx else "tracenet"
        _fail(f"{error.format_message().rstrip('.')}; see {command} --help")
    except _ClickError as error:
        _fail(error.format_message())
    except typer.Abort:
        sys.exit(1)
    sys.exit(code if isinstance(code, int) else 0)


def _fail(message: str) -> NoReturn:
    print(f"tracenet: {' '.join(message.splitlines())}", file=sys.stderr)
    sys.exit(2)


if __name__ == "__main__":
    main()
