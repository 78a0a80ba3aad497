"""One photo and one click to files on disk: what ``tracenet segment`` and the demo run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from tracenet.files import check_picture_target, save_pictures
from tracenet.image_io import load_image
from tracenet.predictor import Predictor
from tracenet_kernels.errors import InputError


def segment_photo(
    image: str | Path,
    click: tuple[float, float],
    output: str | Path,
    *,
    levels: tuple[int, int] | None = None,
    mask_window: str | float | None = None,
    checkpoint: str | Path | None = None,
    backend: str = "auto",
    zoom: Any = None,
    overlay_path: str | Path | None = None,
    windows_path: str | Path | None = None,
    predictor: Predictor | None = None,
) -> dict[str, Any]:
    """Segment the thing under ``click`` (photo pixels) and write its mask as an 8-bit PNG, 255 on the object.

    Returns:
        plain data: ``output``, ``score``, ``level``, ``zoom`` (the factor at which it was seen), ``box`` (photo
        pixels), ``mask_pixels``, ``width``, ``height``, ``predict_ms`` (both phases, without capturing the graph),
        ``capture_ms``, ``macs`` at all scales, ``full_macs`` of the whole network at the working size.

    Raises:
        ImageError, ClickError, CheckpointError, BackendError, InputError: each says what came and what is allowed;
            no file is written then, not even a part of them.
    """
    _check_paths(image, output, overlay_path, windows_path)
    photo = load_image(image)
    if predictor is None:
        predictor = Predictor.from_pretrained(checkpoint, backend)
    predictor.set_image(photo)
    masks, scores, _ = predictor.predict([list(click)], [1], levels=levels, mask_window=mask_window, zoom=zoom)
    assert predictor.last_plan is not None and predictor.last_boxes is not None
    assert predictor.last_levels is not None and predictor.last_zoom is not None
    written = {Path(output): Image.fromarray(masks[0].astype(np.uint8) * 255)}
    box = [round(float(v), 2) for v in predictor.last_boxes[0]]
    if overlay_path is not None:
        from tracenet import pictures  # fonts and drawing are not needed for a mask alone

        written[Path(overlay_path)] = pictures.overlay(photo, masks[0], [click], box)
    if windows_path is not None:
        written[Path(windows_path)] = windows_of(predictor, photo, click)
    save_pictures(written)
    return {
        "output": str(output),
        "score": float(scores[0]),
        "level": int(predictor.last_levels[0]),
        "zoom": float(predictor.last_zoom[0]),
        "box": box,
        "mask_pixels": int(masks[0].sum()),
        "width": photo.width,
        "height": photo.height,
        "predict_ms": predictor.timings_ms["predict"],
        "capture_ms": predictor.timings_ms["capture"],
        "macs": predictor.last_plan.macs,
        "full_macs": predictor.last_plan.full_macs,
    }


def _check_paths(image: str | Path, *outputs: str | Path | None) -> None:
    """Before anything is computed: outputs can be written, differ from one another and from the photo."""
    taken = {Path(image).absolute()}
    for path in outputs:
        if path is None:
            continue
        check_picture_target(path)
        if Path(path).absolute() in taken:
            raise InputError(f"{path} is the photo or another output; write every picture to a file of its own")
        taken.add(Path(path).absolute())


def windows_of(predictor: Predictor, photo: Image.Image, click: tuple[float, float]) -> Image.Image:
    """Picture of the windows that the predictor's last click computed at the scale that answered, layer by layer."""
    from tracenet import pictures

    plan, canvas = predictor.last_plan, predictor.last_scale.canvas
    assert plan is not None
    working = Image.new("RGB", (canvas.padded_width, canvas.padded_height), (124, 117, 104))
    working.paste(photo.resize((canvas.width, canvas.height), Image.Resampling.BILINEAR))
    planes = {name: size for part in plan.at(plan.factor) for name, size in part.planes.items()}
    layers = [layer for layer in pictures.LAYERS if layer in plan.windows]
    at = ((click[0] + 0.5) * canvas.scale_x, (click[1] + 0.5) * canvas.scale_y)
    return pictures.windows_picture(working, plan.windows, planes, layers, at, columns=5, panel_width=300)
