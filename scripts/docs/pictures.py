"""The pictures of the concepts page, drawn from plans of the library itself: no window in them is drawn by hand.

python scripts/docs/pictures.py docs/pictures
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from xml.sax.saxutils import escape

import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor, nn

import tracenet
from tracenet.click_plan import ClickPlan
from tracenet.demo import photo_path
from tracenet.files import save_picture
from tracenet.image_io import load_image
from tracenet.pictures import join, windows_picture
from tracenet.rft.trace import NodePlan, Plan
from tracenet_kernels.window import Window, hull

BLUE, PALE, ORANGE, RED, GREY, INK = "#1e88e5", "#bbdefb", "#fb8c00", "#e53935", "#cfd8dc", "#263238"
FONT = 'font-family="Helvetica, Arial, sans-serif" font-size="12.5"'


class Svg:
    """A drawing on white, as text."""

    def __init__(self, width: int, height: int) -> None:
        self.parts = [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" '
            f'height="{height}" {FONT}>',
            f'<rect width="{width}" height="{height}" fill="#fff"/>',
        ]

    def rect(self, x: float, y: float, width: float, height: float, fill: str, line: str = "", dashed: bool = False):
        """A rectangle; ``line`` is the colour of its edge."""
        edge = f' stroke="{line}"' + (' stroke-dasharray="3 2"' if dashed else "") if line else ""
        self.parts.append(
            f'<rect x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{height:.1f}" fill="{fill}"{edge}/>'
        )

    def polygon(self, points: Sequence[tuple[float, float]], fill: str) -> None:
        """A filled polygon."""
        self.parts.append(f'<polygon points="{" ".join(f"{x:.1f},{y:.1f}" for x, y in points)}" fill="{fill}"/>')

    def text(self, x: float, y: float, text: str, colour: str = INK, anchor: str = "start", bold: bool = False) -> None:
        """One line of text."""
        weight = ' font-weight="bold"' if bold else ""
        self.parts.append(
            f'<text x="{x:.1f}" y="{y:.1f}" fill="{colour}" text-anchor="{anchor}"{weight}>{escape(text)}</text>'
        )

    def save(self, path: Path) -> None:
        """Write the drawing."""
        path.write_text("\n".join([*self.parts, "</svg>\n"]), encoding="utf-8")


def across(kernel: int, stride: int = 1, channels: tuple[int, int] = (4, 4)) -> nn.Conv2d:
    """A convolution along the columns, so that a plane is one row that can be drawn as a strip."""
    return nn.Conv2d(*channels, (1, kernel), (1, stride), (0, kernel // 2))


class Strip(nn.Module):
    """Five layers on one row of cells; with ``gate``, a squeeze-and-excitation after the second."""

    def __init__(self, gate: bool = False) -> None:
        super().__init__()
        self.conv1, self.conv2 = across(5, 2, (3, 4)), across(3)
        self.pool = nn.MaxPool2d((1, 3), (1, 2), (0, 1))
        self.conv3, self.conv4 = across(3), across(3)
        self.gate = gate

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv2(self.conv1(x))
        if self.gate:
            x = x * torch.sigmoid(x.mean((2, 3), keepdim=True))
        return self.conv4(self.conv3(self.pool(x)))


CELL = 7.4
"""Width of a cell of the image."""
STRIPS = {
    "conv4": "conv4, 3 wide",
    "conv3": "conv3, 3 wide",
    "pool": "max-pool, 3 wide, stride 2",
    "mean": "mean",
    "conv2": "conv2, 3 wide",
    "conv1": "conv1, 5 wide, stride 2",
    "x": "image",
}
"""Nodes that are drawn, from the output to the image, and what is written beside them."""


def strips(path: Path, title: str, plan: Plan) -> None:
    """Windows of one-row planes below each other: what is demanded of each layer, to scale, with borders."""
    step, left, top = 52, 36, 58
    rows = [(name, entry) for name in STRIPS if (entry := _entry(plan, name))]
    svg = Svg(round(left * 2 + 40 * CELL), top + step * len(rows))
    svg.text(left, 18, title, bold=True)
    svg.text(left, 36, f"{plan.macs / plan.full_macs:.0%} of the multiply-adds", BLUE)
    for row, ((_, entry), (_, producer)) in enumerate(pairwise(rows)):
        a, b = _span(entry, left), _span(producer, left)
        above, below = top + row * step + 16, top + (row + 1) * step
        svg.polygon([(a[0], above), (a[1], above), (b[1], below), (b[0], below)], "#e3f2fd")
    for row, (name, entry) in enumerate(rows):
        _strip(svg, plan, entry, left, top + row * step, STRIPS[name], is_barrier=name == "mean")
    svg.save(path)


def _entry(plan: Plan, name: str) -> NodePlan | None:
    return next((entry for entry in plan.nodes if name in (entry.node.name, entry.node.module)), None)


def _span(entry: NodePlan, left: float) -> tuple[float, float]:
    size = 40 * CELL / entry.node.plane[1]
    return left + entry.window.x0 * size, left + entry.window.x1 * size


def _strip(svg: Svg, plan: Plan, entry: NodePlan, left: float, y: float, title: str, is_barrier: bool) -> None:
    columns = entry.node.plane[1]
    size = 40 * CELL / columns
    before, after = _padding(plan, entry)
    for x in range(-before, columns + after):
        inside = entry.window.x0 <= x < entry.window.x1
        if 0 <= x < columns:
            fill = RED if is_barrier else BLUE if inside else "#f5f7f8"
            svg.rect(left + x * size, y, size, 16, fill, "#fff" if inside else GREY)
        else:
            svg.rect(left + x * size, y, size, 16, "#fff3e0", ORANGE, dashed=True)
    window = f"{title}: [{entry.window.x0}, {entry.window.x1}) of {columns}"
    pads = f" and {before + after} of padding" if before + after else ""
    text = f"{title}: the whole plane to one cell, a barrier" if is_barrier else window + pads
    svg.text(left, y + 29, text, RED if is_barrier else "#546e7a")


def _padding(plan: Plan, producer: NodePlan) -> tuple[int, int]:
    """Columns of padding that consumers read before and after a plane."""
    borders = [read.border for entry in plan.nodes for read in entry.reads if read.producer is producer.node]
    return max((b.left for b in borders), default=0), max((b.right for b in borders), default=0)


def trace_strip(gate: bool, window: Window) -> Plan:
    """A plan of a :class:`Strip` of 40 columns."""
    return tracenet.trace(Strip(gate).eval(), torch.zeros(1, 3, 1, 40)).plan({0: window})


class Pyramid(nn.Module):
    """Four convolutions, two of them of stride 2."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(3, 16, 3, 2, 1), nn.Conv2d(16, 32, 3, 2, 1)
        self.conv3, self.conv4 = nn.Conv2d(32, 32, 3, 1, 1), nn.Conv2d(32, 32, 3, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv4(self.conv3(self.conv2(self.conv1(x))))


def unions(path: Path) -> None:
    """Two windows far apart: what each layer computes of its plane, beside the hull."""
    traced = tracenet.trace(Pyramid().eval(), torch.zeros(1, 3, 192, 256))
    plan = traced.plan({0: [Window(4, 10, 5, 12), Window(36, 42, 50, 58)]})
    names = {"conv4": "conv4 (asked)", "conv3": "conv3", "conv2": "conv2 /2", "conv1": "conv1 /2", "x": "image"}
    width, height, gap, columns = 108, 81, 16, 3
    svg = Svg(columns * (width + gap) + gap, 2 * (height + 44) + 50)
    for number, (name, title) in enumerate(names.items()):
        entry = _entry(plan, name)
        assert entry is not None
        x0, y0 = gap + number % columns * (width + gap), 24 + number // columns * (height + 44)
        plane_rows, plane_columns = entry.node.plane
        pieces = entry.pieces if entry.reads else _read_of(plan, entry)
        svg.text(x0, y0 - 6, title, bold=True)
        svg.rect(x0, y0, width, height, "#f5f7f8", GREY)
        sx, sy = width / plane_columns, height / plane_rows
        _rectangle(svg, hull(pieces), x0, y0, sx, sy, "#fff3e0", ORANGE, dashed=True)
        for piece in pieces:
            _rectangle(svg, piece, x0, y0, sx, sy, BLUE)
        svg.text(x0, y0 + height + 14, f"{sum(piece.area for piece in pieces)} cells", "#546e7a")
    below = 2 * (height + 44) + 18
    saved = 1 - plan.macs / plan.hull_macs
    svg.text(gap, below, f"Windows apart: {plan.macs / 1e6:.1f} million multiply-adds,")
    svg.text(
        gap,
        below + 18,
        f"one hull per layer (dashed): {plan.hull_macs / 1e6:.1f} million. Saved: {saved:.0%}.",
        bold=True,
    )
    svg.save(path)


def _read_of(plan: Plan, producer: NodePlan) -> list[Window]:
    """Windows that consumers read of an input, which is not computed in pieces."""
    return [read.window for entry in plan.nodes for read in entry.reads if read.producer is producer.node]


def _rectangle(
    svg: Svg,
    window: Window,
    x0: float,
    y0: float,
    sx: float,
    sy: float,
    fill: str,
    line: str = "",
    dashed: bool = False,
) -> None:
    svg.rect(x0 + window.x0 * sx, y0 + window.y0 * sy, window.width * sx, window.height * sy, fill, line, dashed)


PHOTO, FIRST, SECOND = "coffee", (300, 190), (365, 286)
KEPT_PHOTO, KEPT_CLICKS = "rocket", ((560, 300), (70, 300))


def photo_pictures(folder: Path) -> None:
    """Pictures on a bundled photo: the two phases of a click, a second click, and the zoom pyramid."""
    photo = load_image(photo_path(PHOTO))
    predictor = tracenet.Predictor.from_pretrained(backend="torch")
    predictor.set_image(photo)
    canvas = predictor.canvas
    backdrop = Image.new("RGB", (canvas.padded_width, canvas.padded_height))
    backdrop.paste(photo.resize((canvas.width, canvas.height), Image.Resampling.LANCZOS), (0, 0))

    done = _click(predictor, FIRST)
    at = tuple(value * canvas.width / photo.width for value in FIRST)
    phases = [
        _titled(_panels(backdrop, plan, at), f"{title}: {plan.macs / 1e9:.1f} G multiply-adds")
        for title, plan in (("1. locate, heads at the click", done.locate[0]), ("2. segment, the box", done.segment[0]))
    ]
    save_picture(_below(phases), folder / "phases.jpg")

    save_picture(_second_click(predictor), folder / "kept.jpg")

    predictor.set_image(photo)
    predictor.predict([SECOND], [1], zoom=(0.5, 1, 2))
    zoomed = predictor.last_plan
    assert zoomed is not None
    panels = []
    for factor in (0.5, 1.0, 2.0):
        window = zoomed.windows_at(factor)["image"]
        height, width = next(plan.planes["image"] for plan in zoomed.at(factor) if "image" in plan.planes)
        macs = sum(plan.macs for plan in zoomed.at(factor))
        whole = photo.resize((round(photo.width * 420 / photo.width), round(photo.height * 420 / photo.width)))
        panel = windows_picture(whole, {"image": window}, {"image": (height, width)}, ["image"], None, 1, 420)
        panels.append(_titled(panel, f"scale {factor:g}, {macs / 1e9:.1f} G multiply-adds"))
    save_picture(join(panels), folder / "zoom.jpg")


def _click(predictor: tracenet.Predictor, at: tuple[int, int]) -> ClickPlan:
    predictor.predict([at], [1], levels=(3, 5))
    assert predictor.last_plan is not None
    return predictor.last_plan


def _second_click(predictor: tracenet.Predictor) -> Image.Image:
    """What a first click computed of three planes, and what a second one adds."""
    photo = load_image(photo_path(KEPT_PHOTO))
    predictor.set_image(photo)
    canvas = predictor.canvas
    backdrop = Image.new("RGB", (canvas.padded_width, canvas.padded_height))
    backdrop.paste(photo.resize((canvas.width, canvas.height), Image.Resampling.LANCZOS), (0, 0))
    first, second = (_click(predictor, at) for at in KEPT_CLICKS)
    panels = []
    for name in ("C3", "C5", "P3"):
        kept, new = (
            [piece for plan in done.plans for piece in plan.pieces.get(plan.graph.outputs[name].name, [])]  # type: ignore[attr-defined]
            for done in (first, second)
        )
        plane = next(plan.planes[name] for plan in first.plans if name in plan.planes)
        panels.append(_titled(_kept_panel(backdrop, kept, new, plane), name))
    title = f"computed by the first click (blue, {first.macs / 1e9:.1f} G multiply-adds), "
    return _titled(join(panels), f"{title}added by the second (orange, {second.macs / 1e9:.1f} G)")


def _panels(backdrop: Image.Image, plan: Plan, click: Sequence[float]) -> Image.Image:
    layers = [name for name in ("image", "C3", "C5", "P5", "P3", "maskfeat") if name in plan.windows]
    layers = [name for name in layers if not plan.windows[name].is_empty]
    return windows_picture(backdrop, plan.windows, plan.planes, layers, click, columns=6, panel_width=230)


def _kept_panel(
    backdrop: Image.Image, kept: Sequence[Window], new: Sequence[Window], plane: tuple[int, int]
) -> Image.Image:
    width = 360
    height = round(backdrop.height * width / backdrop.width)
    panel = backdrop.resize((width, height), Image.Resampling.LANCZOS).convert("L").convert("RGB")
    sy, sx = height / plane[0], width / plane[1]
    for windows, colour in ((kept, (30, 136, 229)), (new, (251, 140, 0))):
        for w in windows:
            box = (round(w.x0 * sx), round(w.y0 * sy), round(w.x1 * sx), round(w.y1 * sy))
            if box[2] > box[0] and box[3] > box[1]:
                part = panel.crop(box)
                panel.paste(Image.blend(part, Image.new("RGB", part.size, colour), 0.55), box[:2])
    return panel


def _titled(picture: Image.Image, title: str) -> Image.Image:
    sheet = Image.new("RGB", (picture.width, picture.height + 28), (255, 255, 255))
    sheet.paste(picture, (0, 28))
    ImageDraw.Draw(sheet).text((8, 6), title, (38, 50, 56), ImageFont.load_default(size=16))
    return sheet


def _below(pictures: Sequence[Image.Image]) -> Image.Image:
    sheet = Image.new("RGB", (max(p.width for p in pictures), sum(p.height for p in pictures)), (255, 255, 255))
    top = 0
    for picture in pictures:
        sheet.paste(picture, (0, top))
        top += picture.height
    return sheet


def drawings(folder: Path) -> None:
    """Diagrams of small networks."""
    strips(folder / "inside.svg", "A window inside the plane", trace_strip(False, Window(0, 1, 4, 6)))
    strips(folder / "edge.svg", "A window at its edge", trace_strip(False, Window(0, 1, 0, 2)))
    strips(folder / "gate.svg", "With squeeze-and-excitation", trace_strip(True, Window(0, 1, 4, 6)))
    unions(folder / "unions.svg")


def main() -> None:
    """Draw all of them."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("folder", type=Path, help="Folder to write to.")
    folder = parser.parse_args().folder
    folder.mkdir(parents=True, exist_ok=True)
    drawings(folder)
    photo_pictures(folder)


if __name__ == "__main__":
    main()
