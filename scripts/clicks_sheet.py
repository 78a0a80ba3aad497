"""One sheet of clicks on the bundled photos, as the checkpoint answers them: right and wrong, chosen before it was run.

python scripts/clicks_sheet.py docs/clicks.jpg [--checkpoint F] [--zoom auto]
"""

from __future__ import annotations

import argparse
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from tracenet import pictures
from tracenet.demo import photo_path
from tracenet.files import save_picture
from tracenet.image_io import load_image
from tracenet.predictor import Predictor

CLICKS = (
    ("rocket", (322, 280), "rocket"),
    ("rocket", (70, 300), "tower"),
    ("astronaut", (398, 431), "helmet"),
    ("coffee", (300, 190), "cup"),
    ("coffee", (300, 300), "saucer"),
    ("coffee", (365, 286), "spoon"),
    ("chelsea", (220, 150), "cat"),
    ("chelsea", (160, 120), "an eye"),
    ("astronaut", (220, 120), "face"),
    ("astronaut", (230, 400), "suit"),
    ("astronaut", (440, 110), "shuttle"),
    ("astronaut", (35, 130), "flag"),
)
"""Photo, click (x, y) in its pixels, and what is meant."""
COLUMNS, HEIGHT, TITLE = 4, 260, 22


def panel(predictor: Predictor, name: str, click: tuple[int, int], meant: str, zoom: str) -> Image.Image:
    """The photo with the answer to one click, under what was meant and the predicted quality."""
    photo = load_image(photo_path(name))
    predictor.set_image(photo)
    masks, scores, _ = predictor.predict([list(click)], [1], zoom=zoom)
    drawn = pictures.overlay(photo, masks[0], [click])
    width = round(drawn.width * HEIGHT / drawn.height)
    sheet = Image.new("RGB", (width, HEIGHT + TITLE), (255, 255, 255))
    sheet.paste(drawn.resize((width, HEIGHT), Image.Resampling.LANCZOS), (0, TITLE))
    text = f"{meant}, score {float(scores[0]):.2f}"
    ImageDraw.Draw(sheet).text((4, 3), text, (0, 0, 0), ImageFont.load_default(size=14))
    return sheet


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--checkpoint", type=Path, help="the bundled one by default")
    parser.add_argument("--zoom", default="off", choices=("off", "auto"))
    args = parser.parse_args()
    predictor = Predictor.from_pretrained(args.checkpoint)
    panels = [panel(predictor, *click, zoom=args.zoom) for click in CLICKS]
    rows = [pictures.join(panels[i : i + COLUMNS]) for i in range(0, len(panels), COLUMNS)]
    sheet = Image.new("RGB", (max(row.width for row in rows), sum(row.height for row in rows)), (255, 255, 255))
    top = 0
    for row in rows:
        sheet.paste(row, (0, top))
        top += row.height
    save_picture(sheet, args.out)


if __name__ == "__main__":
    main()
