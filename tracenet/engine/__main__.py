"""``python -m tracenet.engine``: the schedule of a checkpoint's network, or of what one click runs of it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import torch
import typer

from tracenet.cli import parse_click, parse_levels, parse_mask_cells, parse_size
from tracenet.conventions import THETA
from tracenet.engine.lower import lower
from tracenet.engine.table import schedule_table
from tracenet.models.weights import bundled_checkpoint, load_checkpoint
from tracenet.standard import standard_request
from tracenet.traced import trace
from tracenet_kernels.errors import TraceNetError


def main(
    checkpoint: Annotated[Path | None, typer.Option(help="Checkpoint file (default: the bundled one).")] = None,
    size: Annotated[str, typer.Option(help="Image size, multiples of 32.", metavar="WxH")] = "1024x768",
    click: Annotated[
        str | None, typer.Option(help="Only what this click runs, with its windows.", metavar="X,Y")
    ] = None,
    levels: Annotated[str, typer.Option(help="Pyramid levels asked at the click.", metavar="FIRST-LAST")] = "3-7",
    mask_cells: Annotated[str, typer.Option(help="P3 cells asked of the mask around it: N, all or none.")] = "none",
) -> None:
    """Print the schedule: steps in order, kernels, planes, groups that share a weight, and the nodes fused."""
    try:
        width, height = parse_size(size)
        model, _ = load_checkpoint(checkpoint or bundled_checkpoint())
        inputs: tuple[torch.Tensor, ...] = (torch.zeros(1, 3, height, width),)
        if model.mask_head is not None:
            inputs += (torch.zeros(1, THETA), torch.zeros(1, 2), torch.ones(1))
        traced = trace(model, inputs)
        plan = None
        if click is not None:
            at, cells = parse_click(click), parse_mask_cells(mask_cells)
            plan = traced.plan(standard_request(model.config, (width, height), at, parse_levels(levels), cells))
        typer.echo(schedule_table(lower(traced.graph), plan))
    except TraceNetError as error:
        raise typer.BadParameter(str(error)) from error


if __name__ == "__main__":
    typer.run(main)
