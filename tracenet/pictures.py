"""Pictures people look at: a mask over its photo, and the traced windows of each layer over the image.

Drawn with Pillow alone; the windows follow the paper's figures 2 and 3 (kept region lit, the rest greyed).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFilter, ImageFont

from tracenet.image_io import load_image
from tracenet_kernels.errors import InputError
from tracenet_kernels.window import EMPTY, Window

MASK_COLOUR = (30, 144, 255)
WINDOW_COLOUR = (64, 160, 255)
CLICK_COLOUR = (255, 214, 10)
LAYERS = ("image", "backbone.conv1", "C2", "C3", "C4", "C5", "P5", "P4", "P3", "maskfeat")
"""Layers shown in the picture of windows, from the image to the mask features."""
MIN_CELL_PIXELS = 4
"""A window's grid is drawn where its cells are at least this large on the picture."""


def overlay(
    photo: Image.Image,
    mask: np.ndarray,
    clicks: Sequence[Sequence[float]] = (),
    box: Sequence[float] | None = None,
    colour: tuple[int, int, int] = MASK_COLOUR,
) -> Image.Image:
    """The photo with the mask tinted and outlined, the clicks as crosses and the box as a frame.

    Args:
        photo: RGB, ``W x H``.
        mask: bool ``[H, W]``.
        clicks: (x, y) in photo pixels.
        box: (x0, y0, x1, y1) in photo pixels.

    Raises:
        InputError: the mask is not bool or of another size than the photo.
    """
    if mask.dtype != np.bool_:
        raise InputError(f"the mask is {mask.dtype}; pass booleans, for example mask > 0")
    if mask.shape != (photo.height, photo.width):
        raise InputError(
            f"the mask is {mask.shape}, the photo {(photo.height, photo.width)}; they must be the same size"
        )
    tint = Image.new("RGB", photo.size, colour)
    alpha = Image.fromarray((mask * 110).astype(np.uint8))
    picture = Image.composite(tint, photo.convert("RGB"), alpha)
    solid = Image.fromarray((mask * 255).astype(np.uint8))
    line = max(3, round(max(photo.size) / 250) | 1)
    grown = np.asarray(solid.filter(ImageFilter.MaxFilter(line))) > 0
    picture.paste(colour, mask=Image.fromarray(((grown & ~mask) * 255).astype(np.uint8)))
    draw = ImageDraw.Draw(picture)
    if box is not None:
        draw.rectangle([float(v) for v in box], outline=(255, 255, 255), width=max(1, line // 2))
    for x, y in clicks:
        _cross(draw, float(x), float(y), max(photo.size) / 60)
    return picture


def _cross(draw: ImageDraw.ImageDraw, x: float, y: float, reach: float) -> None:
    for width, colour in ((5, (0, 0, 0)), (3, CLICK_COLOUR)):
        draw.line([(x - reach, y), (x + reach, y)], fill=colour, width=width)
        draw.line([(x, y - reach), (x, y + reach)], fill=colour, width=width)


def windows_picture(
    image: Image.Image,
    windows: Mapping[str, Window | Sequence[Window]],
    planes: Mapping[str, tuple[int, int]],
    layers: Sequence[str],
    click: Sequence[float] | None = None,
    columns: int = 3,
    panel_width: int = 360,
) -> Image.Image:
    """One panel per layer: the window's cells lit over the image, everything that is not computed greyed.

    Args:
        image: the network's input as a picture (working size, padded).
        windows: layer -> window in cells of its plane, or several.
        planes: layer -> (height, width) of its plane in cells.
        layers: which layers, in order.
        click: (x, y) in pixels of ``image``.

    Raises:
        InputError: no layers, one that is not in the plan, or a window outside its plane.
    """
    if not layers or columns < 1 or panel_width < 1:
        raise InputError(f"{len(layers)} layers in {columns} columns of {panel_width} pixels: all must be at least 1")
    missing = [layer for layer in layers if layer not in windows or layer not in planes]
    if missing:
        raise InputError(f"layers {missing} are not in the plan; choose among {sorted(windows)[:20]} ...")
    parts = {layer: _parts(windows[layer]) for layer in layers}
    for layer in layers:
        height, width = planes[layer]
        for part in parts[layer]:
            if not Window.full(height, width).contains(part):
                raise InputError(f"{part} of {layer!r} lies outside its plane of {height}x{width} cells")
    scale = panel_width / image.width
    panel_height = max(1, round(image.height * scale))
    small = image.resize((panel_width, panel_height), Image.Resampling.LANCZOS)
    grey = Image.blend(small.convert("L").convert("RGB"), Image.new("RGB", small.size, (128, 128, 128)), 0.65)
    title, gap = 26, 8
    rows = math.ceil(len(layers) / columns)
    used = min(columns, len(layers))
    sheet = Image.new(
        "RGB", (used * (panel_width + gap) + gap, rows * (panel_height + title + gap) + gap), (255, 255, 255)
    )
    draw = ImageDraw.Draw(sheet)
    font = ImageFont.load_default(size=15)
    for i, layer in enumerate(layers):
        left = gap + (i % columns) * (panel_width + gap)
        top = gap + (i // columns) * (panel_height + title + gap)
        pieces, (height, width) = parts[layer], planes[layer]
        panel = _windows_panel(small, grey, pieces, height, width)
        if click is not None:
            _cross(ImageDraw.Draw(panel), click[0] * scale, click[1] * scale, 6)
        sheet.paste(panel, (left, top + title))
        share = sum(piece.area for piece in pieces) / (height * width)
        cells = f"{pieces[0].height}x{pieces[0].width}" if len(pieces) == 1 else f"{len(pieces)} windows"
        draw.text((left, top + 4), f"{layer}  {cells} of {height}x{width}", (0, 0, 0), font)
        text = f"{share:.1%}" if share < 0.1 else f"{share:.0%}"
        draw.text((left + panel_width - draw.textlength(text, font), top + 4), text, (0, 90, 200), font)
    return sheet


def _parts(windows: Window | Sequence[Window]) -> list[Window]:
    """A layer's windows as a list; an empty one stands for none."""
    return [windows] if isinstance(windows, Window) else list(windows) or [EMPTY]


def _windows_panel(
    small: Image.Image, grey: Image.Image, windows: Sequence[Window], height: int, width: int
) -> Image.Image:
    panel = grey.copy()
    for window in windows:
        if not window.is_empty:
            _light(panel, small, window, small.height / height, small.width / width)
    return panel


def _light(panel: Image.Image, small: Image.Image, window: Window, cell_y: float, cell_x: float) -> None:
    """Show one window of the image on a panel that is grey elsewhere."""
    box = [window.x0 * cell_x, window.y0 * cell_y, window.x1 * cell_x, window.y1 * cell_y]
    left, top, right, bottom = (round(v) for v in box)
    if right > left and bottom > top:
        panel.paste(small.crop((left, top, right, bottom)), (left, top))
    draw = ImageDraw.Draw(panel)
    if min(cell_x, cell_y) >= MIN_CELL_PIXELS:
        for x in range(window.x0 + 1, window.x1):
            draw.line([(x * cell_x, box[1]), (x * cell_x, box[3])], fill=WINDOW_COLOUR, width=1)
        for y in range(window.y0 + 1, window.y1):
            draw.line([(box[0], y * cell_y), (box[2], y * cell_y)], fill=WINDOW_COLOUR, width=1)
    draw.rectangle(
        [box[0], box[1], max(box[2] - 1, box[0] + 1), max(box[3] - 1, box[1] + 1)], outline=(0, 60, 220), width=2
    )


def join(pictures: Sequence[Image.Image], gap: int = 8) -> Image.Image:
    """Pictures side by side at the height of the first, on white."""
    if not pictures:
        raise InputError("there are no pictures to join")
    height = pictures[0].height
    scaled = [
        p.resize((max(1, round(p.width * height / p.height)), height), Image.Resampling.LANCZOS) for p in pictures
    ]
    sheet = Image.new("RGB", (sum(p.width for p in scaled) + gap * (len(scaled) - 1), height), (255, 255, 255))
    left = 0
    for picture in scaled:
        sheet.paste(picture, (left, 0))
        left += picture.width + gap
    return sheet


def plan_picture(plan: Any, image: Image.Image, click: Sequence[float] | None = None) -> Image.Image:
    """:func:`windows_picture` of a plan of TraceNet: those of :data:`LAYERS` that it visits."""
    layers = [layer for layer in LAYERS if layer in plan.windows]
    return windows_picture(image, pieces_of(plan), plan.planes, layers, click, columns=5, panel_width=300)


def pieces_of(plan: Any) -> dict[str, list[Window]]:
    """What a plan computes of every name in ``plan.windows``; of inputs and what is only handed on, the window."""
    aliases = {name: plan.graph.outputs[name].name for name in plan.windows if name in plan.graph.outputs}
    pieces = plan.pieces
    return {name: pieces.get(aliases.get(name, name)) or [window] for name, window in plan.windows.items()}


def backdrop(size: tuple[int, int], photo: str | Path | None = None) -> Image.Image:
    """A photo stretched to ``size`` (width, height), or a plain one."""
    if photo is None:
        return Image.new("RGB", size, (214, 226, 240))
    return load_image(photo).resize(size, Image.Resampling.BILINEAR)
