"""One-click masks from any SAM-style pair of ONNX files: an image encoder and a prompt decoder.

Such pairs differ in names and shapes: the layout of the image, whether the encoder normalises it, whether the decoder
takes a previous mask and the photo's size, how many masks it returns and at which size, whether several prompts go in
at once. All of that is read from the two graphs' inputs and outputs; the little they do not tell is in
:class:`SamOptions`. The names of inputs and outputs follow Segment Anything's own ONNX export (``point_coords``,
``point_labels``, ``mask_input``, ``has_mask_input``, ``orig_im_size``; ``masks``, ``iou_predictions``,
``low_res_masks``), and the variants of it found in MobileSAM, NanoSAM, SAM 2 and transformers exports.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image

from tracenet.image_io import as_image
from tracenet_kernels.errors import BackendError, CheckpointError, ClickError, ExecutionError, InputError

MEAN = (123.675, 116.28, 103.53)
STD = (58.395, 57.12, 57.375)
"""ImageNet statistics of RGB 0..255, which every SAM encoder was trained with."""

STABILITY_OFFSET = 1.0
"""Logits up and down from the mask's threshold between which a stable mask hardly changes."""

MASK_SCALE = 4
"""Cells of SAM's low-resolution masks per cell of its image embedding, along each side."""

NORMALISATIONS = ("auto", "imagenet", "unit", "raw")
FITS = ("pad", "stretch")
_DTYPES: dict[str, Any] = {
    "tensor(float)": np.float32,
    "tensor(float16)": np.float16,
    "tensor(double)": np.float64,
    "tensor(uint8)": np.uint8,
    "tensor(int32)": np.int32,
    "tensor(int64)": np.int64,
    "tensor(bool)": np.bool_,
}
_BATCH_TOLERANCE = 1e-2
"""Logits of a prompt in a batch may differ from those of the prompt alone by this share of their largest."""


@dataclass(frozen=True)
class SamOptions:
    """What a pair's graphs do not say, and how to run them.

    Attributes:
        normalisation: what the encoder expects: ``"imagenet"`` (pixel - mean) / std, ``"unit"`` 0..1, ``"raw"`` 0..255.
            ``"auto"``: raw for uint8 and for channels-last images (their graphs normalise), imagenet otherwise.
        fit: ``"pad"`` keeps the photo's proportions and pads right and bottom (SAM), ``"stretch"`` does not (SAM 2).
        side: longest side in pixels for encoders that leave the image size open.
        padding_point: add the point (0, 0) of label -1 that SAM's export asks for where no box is given. None: where
            the points are ``(B, N, 2)`` and N is not fixed to 1.
        threads: of ONNX Runtime, within one operation.
        batch: prompts in one call of the decoder, if it takes several.
    """

    normalisation: str = "auto"
    fit: str = "pad"
    side: int = 1024
    padding_point: bool | None = None
    threads: int = 2
    batch: int = 16

    def __post_init__(self) -> None:
        if self.normalisation not in NORMALISATIONS:
            raise InputError(f"normalisation is {self.normalisation!r}; choose one of {NORMALISATIONS}")
        if self.fit not in FITS:
            raise InputError(f"fit is {self.fit!r}; choose one of {FITS}")
        if min(self.side, self.threads, self.batch) < 1:
            raise InputError(f"side {self.side}, threads {self.threads}, batch {self.batch}: each must be at least 1")


@dataclass(frozen=True)
class Port:
    """One input or output of a graph: its name, its axes (a number where fixed, a word where open) and its dtype."""

    name: str
    shape: tuple[int | str | None, ...]
    type: str

    def __str__(self) -> str:
        return f"{self.name} {self.type.removeprefix('tensor')[1:-1]}{list(self.shape)}"

    @property
    def dtype(self) -> Any:
        return _DTYPES[self.type]

    def fixed(self, axis: int) -> int | None:
        """Extent of an axis, None where it is open."""
        size = self.shape[axis]
        return size if isinstance(size, int) and size > 0 else None


@dataclass(frozen=True)
class EncoderLayout:
    """How an image encoder takes its photo.

    Attributes:
        channels_last: ``[.., H, W, 3]`` instead of ``[.., 3, H, W]``.
        batched: with a leading axis of 1.
        height, width: of the image in pixels, None where the graph leaves it open.
    """

    image: Port
    outputs: tuple[Port, ...]
    channels_last: bool
    batched: bool
    height: int | None
    width: int | None

    @classmethod
    def of(cls, inputs: Sequence[Port], outputs: Sequence[Port], where: str) -> EncoderLayout:
        """Raises CheckpointError where the graph does not have one image input and an embedding."""
        expected = "one RGB image [1, 3, H, W], [1, H, W, 3], [3, H, W] or [H, W, 3] in, an embedding of it out"
        if len(inputs) != 1 or not outputs or len(inputs[0].shape) not in (3, 4) or inputs[0].type not in _DTYPES:
            raise CheckpointError(_mismatch(where, "encoder", inputs, outputs, expected))
        image = inputs[0]
        last, first = image.fixed(-1) == 3, image.fixed(-3) == 3
        if not (last or first) or (len(image.shape) == 4 and image.fixed(0) not in (1, None)):
            raise CheckpointError(_mismatch(where, "encoder", inputs, outputs, expected))
        channels_last = last and not first
        rows, columns = (-3, -2) if channels_last else (-2, -1)
        size = image.fixed(rows), image.fixed(columns)
        return cls(image, tuple(outputs), channels_last, len(image.shape) == 4, *size)


@dataclass(frozen=True)
class DecoderLayout:
    """Which inputs and outputs of a prompt decoder are what.

    Attributes:
        features: decoder input -> encoder output that feeds it.
        nested: points are ``[1, B, N, 2]`` instead of ``[B, N, 2]``.
        batched: the axis of B is open, so several prompts may go in at once.
        points_per_prompt: fixed N, or None.
    """

    points: Port
    labels: Port
    mask_input: Port | None
    has_mask: Port | None
    photo_size: Port | None
    features: dict[str, str]
    repeated: tuple[str, ...]
    nested: bool
    batched: bool
    points_per_prompt: int | None
    iou: str
    masks: str | None
    low_res: str | None

    @classmethod
    def of(
        cls, inputs: Sequence[Port], outputs: Sequence[Port], encoder_outputs: Sequence[Port], where: str
    ) -> DecoderLayout:
        """Raises CheckpointError where points, labels, features, masks or predicted IoU cannot be told."""

        def refuse(reason: str) -> CheckpointError:
            expected = (
                "embeddings of the encoder, point coordinates [B, N, 2] and labels [B, N] in (also a previous mask, "
                "whether there is one, and the photo's size), masks and predicted IoU out"
            )
            return CheckpointError(f"{_mismatch(where, 'decoder', inputs, outputs, expected)}; {reason}")

        unknown = [port for port in (*inputs, *outputs) if port.type not in _DTYPES]
        if unknown:
            raise refuse(f"{unknown[0]} is of a type that is not supported")
        points = _first(inputs, lambda p: len(p.shape) in (3, 4) and p.fixed(-1) == 2 and "point" in p.name)
        labels = _first(inputs, lambda p: "label" in p.name)
        if points is None or labels is None or len(labels.shape) != len(points.shape) - 1:
            raise refuse("found no points with their labels")
        has_mask = _first(inputs, lambda p: "has_mask" in p.name)
        mask_input = _first(inputs, lambda p: "mask" in p.name and p is not has_mask and len(p.shape) == 4)
        photo_size = _first(inputs, lambda p: "size" in p.name and p.shape in ((2,), (1, 2)))
        known = {port.name for port in (points, labels, has_mask, mask_input, photo_size) if port is not None}
        fed = [port for port in inputs if port.name not in known]
        by_name = {port.name: port.name for port in encoder_outputs}
        if len(fed) == len(encoder_outputs) == 1:
            by_name = {fed[0].name: encoder_outputs[0].name}
        missing = [port.name for port in fed if port.name not in by_name]
        if missing or not fed:
            raise refuse(f"inputs {missing} are not among the encoder's outputs {[str(p) for p in encoder_outputs]}")
        for port in fed:
            given = next(p for p in encoder_outputs if p.name == by_name[port.name])
            if not _compatible(given, port):
                raise refuse(f"{port} cannot take the encoder's {given}")
        iou = _first(outputs, lambda p: ("iou" in p.name or "score" in p.name) and len(p.shape) in (2, 3))
        low_res = _first(outputs, lambda p: "low" in p.name and len(p.shape) >= 4)
        masks = _first(outputs, lambda p: "mask" in p.name and len(p.shape) >= 4 and p is not low_res)
        if iou is None or (low_res is None and masks is None):
            raise refuse("found no masks with their predicted IoU")
        if photo_size is None and low_res is None:
            low_res, masks = masks, None
        nested = len(points.shape) == 4
        axis = points.shape[1 if nested else 0]
        if isinstance(axis, int) and axis > 1:
            raise refuse(f"it takes exactly {axis} prompts at once")
        return cls(
            points,
            labels,
            mask_input,
            has_mask,
            photo_size,
            {port.name: by_name[port.name] for port in fed},
            tuple(port.name for port in fed if isinstance(axis, str) and port.shape[0] == axis and not nested),
            nested,
            not isinstance(axis, int),
            points.fixed(-2),
            iou.name,
            None if masks is None else masks.name,
            None if low_res is None else low_res.name,
        )


@dataclass(frozen=True)
class SamMasks:
    """Answers to B prompts, C masks each.

    Attributes:
        masks: bool ``[B, C, H, W]`` at photo size.
        scores: float32 ``[B, C]``, predicted IoU.
        stability: float32 ``[B, C]``, see :func:`stability_scores`.
        logits: float32 ``[B, C, h, w]`` at the decoder's own resolution, the part that shows the photo.
    """

    masks: NDArray[np.bool_]
    scores: NDArray[np.float32]
    stability: NDArray[np.float32]
    logits: NDArray[np.float32]

    def best(self, single: bool = False) -> NDArray[np.int64]:
        """Index ``[B]`` of the mask to take; see :func:`best_masks`."""
        return best_masks(self.scores, single)


def best_masks(scores: NDArray[np.float32], single: bool = False) -> NDArray[np.int64]:
    """Which of C masks to take for each of B prompts, from their predicted IoU ``[B, C]``.

    The one of the highest predicted IoU. Of four masks the first is SAM's answer to unambiguous prompts, which SAM
    itself leaves out of the choice after one click; ``single`` takes just that one (it is also the only one of C = 1).

    Raises:
        InputError: ``single`` is asked of a decoder that has no such mask.
    """
    count = scores.shape[1]
    if single:
        if count not in (1, 4):
            raise InputError(f"the decoder returns {count} masks and none of them is a single-mask answer")
        return np.zeros(len(scores), np.int64)
    first = 1 if count == 4 else 0
    return scores[:, first:].argmax(1) + first


def stability_scores(logits: NDArray[np.float32], offset: float = STABILITY_OFFSET) -> NDArray[np.float32]:
    """IoU of the masks ``logits > offset`` and ``logits > -offset``, over the last two axes; 0 for empty masks."""
    inner = (logits > offset).sum((-2, -1), dtype=np.int64)
    outer = (logits > -offset).sum((-2, -1), dtype=np.int64)
    return (inner / np.maximum(outer, 1)).astype(np.float32)


@dataclass(frozen=True)
class _View:
    """A photo fitted into the encoder's image: its size there, the image's size and pixels per photo pixel."""

    photo: tuple[int, int]  # (height, width), like all pairs here
    fitted: tuple[int, int]
    image: tuple[int, int]

    @property
    def scale(self) -> tuple[float, float]:
        return self.fitted[0] / self.photo[0], self.fitted[1] / self.photo[1]


class SamOnnxPredictor:
    """Masks of clicked things from a SAM-style ONNX pair.

    ::

        p = SamOnnxPredictor("encoder.onnx", "decoder.onnx")
        p.set_image(photo)
        found = p.predict([[[x, y]]])
        mask = found.masks[0, found.best()[0]]

    Args:
        encoder, decoder: paths of the two files.

    Attributes:
        timings_ms: of the last image (``prepare``, ``encode``) and the last prompts (``decode``, ``resize``).

    Raises:
        BackendError: ONNX Runtime is not installed.
        CheckpointError: a file is absent, not ONNX, or the two do not look like such a pair.
    """

    def __init__(self, encoder: str | Path, decoder: str | Path, options: SamOptions | None = None) -> None:
        self.options = options or SamOptions()
        self._paths = (Path(encoder), Path(decoder))
        self._encoder = _session(Path(encoder), self.options.threads)
        self._decoder = _session(Path(decoder), self.options.threads)
        self.encoder_layout = EncoderLayout.of(*_ports(self._encoder), f"{encoder}")
        self.decoder_layout = DecoderLayout.of(
            *_ports(self._decoder), self.encoder_layout.outputs, f"{encoder} and {decoder}"
        )
        self._batches: bool | None = None if self.decoder_layout.batched and self.options.batch > 1 else False
        self._view: _View | None = None
        self._low_side = 0
        self._features: dict[str, NDArray[Any]] = {}
        self.timings_ms: dict[str, float] = {}

    def set_image(self, image: Any) -> None:
        """Encode a photo: ``[H, W, 3]`` uint8, a PIL image or a path, as :meth:`tracenet.Predictor.set_image` takes it.

        Raises:
            ImageError: empty, enormous, corrupt, or of a type or dtype that is not allowed.
        """
        start = time.perf_counter()
        photo = as_image(image)
        view = self._fit((photo.height, photo.width))
        inputs = {self.encoder_layout.image.name: self._prepare(photo, view)}
        prepared = time.perf_counter()
        names = [port.name for port in self.encoder_layout.outputs]
        outputs = _run_session(self._encoder, self._paths[0], names, inputs)
        self._view, self._features = view, dict(zip(names, outputs, strict=True))
        self.timings_ms = {
            "prepare": (prepared - start) * 1e3,
            "encode": (time.perf_counter() - prepared) * 1e3,
        }

    @property
    def prompts_at_once(self) -> int:
        """How many prompts one call of the decoder takes."""
        return self.options.batch if self.decoder_layout.batched else 1

    @property
    def fingerprint(self) -> str:
        """Of both files and the options that change what they answer."""
        digest = hashlib.sha256()
        for path in self._paths:
            digest.update(path.read_bytes())
        o = self.options
        digest.update(repr((o.normalisation, o.fit, o.side, o.padding_point)).encode())
        return digest.hexdigest()[:16]

    @property
    def _placed(self) -> _View:
        if self._view is None:
            raise InputError("no image is set; call set_image(image) first")
        return self._view

    def predict(self, point_coords: Any, point_labels: Any = None) -> SamMasks:
        """Masks of B separate objects.

        Args:
            point_coords: ``(B, N, 2)`` clicks (x, y) in photo pixels, N on each of B objects, or ``(N, 2)`` for B = 1.
            point_labels: ``(B, N)`` or ``(N,)``: 1 on the object, 0 off it; all 1 by default.

        Raises:
            ClickError: points outside the photo, not finite, of the wrong shape or label.
            InputError: no image is set, or more clicks on one object than the decoder takes.
            ExecutionError: ONNX Runtime failed.
        """
        points, labels = self._check(point_coords, point_labels)
        start = time.perf_counter()
        scores, logits, full = self._decode(points, labels, full=True)
        decoded = time.perf_counter()
        masks = (self.resize(logits) if full is None else full) > 0
        self.timings_ms.update(decode=(decoded - start) * 1e3, resize=(time.perf_counter() - decoded) * 1e3)
        return SamMasks(masks, scores, stability_scores(logits), logits)

    def decode(self, point_coords: Any, point_labels: Any = None) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """``logits`` ``[B, C, h, w]`` at the decoder's own resolution and predicted IoU ``[B, C]``, as :meth:`predict`.

        Cheaper than masks at photo size where only few of them are kept; :meth:`resize` makes those.
        """
        scores, logits, _ = self._decode(*self._check(point_coords, point_labels), full=False)
        return logits, scores

    def resize(self, logits: NDArray[np.float32]) -> NDArray[np.float32]:
        """Logits ``[..., h, w]`` of :meth:`decode` -> ``[..., H, W]`` at photo size, bilinearly.

        Where the photo was padded, first to the encoder's image, then the padding is cut off, as SAM does.
        """
        view = self._placed
        if self.decoder_layout.low_res is None and self._undoes_padding:
            return logits  # the graph has no others than those at photo size
        flat = torch.from_numpy(np.ascontiguousarray(logits)).reshape(1, -1, *logits.shape[-2:])
        scale = max(view.image) / self._low_side
        grown = F.interpolate(
            flat, size=[round(n * scale) for n in flat.shape[-2:]], mode="bilinear", align_corners=False
        )
        shown = grown[..., : view.fitted[0], : view.fitted[1]]
        full = F.interpolate(shown, size=list(view.photo), mode="bilinear", align_corners=False)
        return full.reshape(*logits.shape[:-2], *view.photo).numpy()

    def encoder_inputs(self, image: Any) -> dict[str, NDArray[Any]]:
        """What the encoder is fed for a photo, by input name."""
        photo = as_image(image)
        return {self.encoder_layout.image.name: self._prepare(photo, self._fit((photo.height, photo.width)))}

    def decoder_inputs(self, point_coords: Any, point_labels: Any = None) -> dict[str, NDArray[Any]]:
        """What the decoder is fed for clicks on the current photo, by input name; as :meth:`predict`."""
        return self._feeds(*self._check(point_coords, point_labels))

    def _fit(self, photo: tuple[int, int]) -> _View:
        layout, side = self.encoder_layout, self.options.side
        limit = (layout.height or side, layout.width or side)
        if self.options.fit == "stretch":
            return _View(photo, limit, limit)
        scale = min(limit[0] / photo[0], limit[1] / photo[1])
        fitted = tuple(max(1, min(round(n * scale), most)) for n, most in zip(photo, limit, strict=True))
        return _View(photo, (fitted[0], fitted[1]), limit)

    def _prepare(self, photo: Image.Image, view: _View) -> NDArray[Any]:
        """The encoder's image: resized, normalised, padded with zeros or, where the graph normalises, with the mean."""
        layout = self.encoder_layout
        kind = self.options.normalisation
        if kind == "auto":
            kind = "raw" if layout.channels_last or layout.image.dtype == np.uint8 else "imagenet"
        small = photo.resize((view.fitted[1], view.fitted[0]), Image.Resampling.BILINEAR)
        pixels: NDArray[Any] = np.asarray(small, np.float32)
        mean: NDArray[Any] = np.array(MEAN, np.float32)
        padding: NDArray[Any] = mean
        if kind == "imagenet":
            pixels, padding = (pixels - mean) / np.array(STD, np.float32), np.zeros(3, np.float32)
        elif kind == "unit":
            pixels, padding = pixels / 255, mean / 255
        image: NDArray[Any] = np.empty((*view.image, 3), np.float32)
        image[:] = padding
        image[: view.fitted[0], : view.fitted[1]] = pixels
        if kind == "raw" and layout.image.dtype == np.uint8:
            image = image.round()
        if not layout.channels_last:
            image = image.transpose(2, 0, 1)
        image = np.ascontiguousarray(image, dtype=layout.image.dtype)
        return image[None] if layout.batched else image

    @property
    def _undoes_padding(self) -> bool:
        """Whether the decoder's graph brings its masks to photo size: it is made for photos padded to a square."""
        view = self._placed
        return self.decoder_layout.masks is not None and self.options.fit == "pad" and view.image[0] == view.image[1]

    def _check(self, coords: Any, labels: Any) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
        """Points ``[B, N, 2]`` and labels ``[B, N]``."""
        try:
            points = np.asarray(coords, np.float64)
        except (TypeError, ValueError) as error:
            raise ClickError(f"point_coords are not numbers ({error}); pass [[[x, y]]] in photo pixels") from error
        if points.ndim not in (2, 3) or points.shape[-1] != 2 or 0 in points.shape:
            raise ClickError(f"point_coords have shape {points.shape}; pass (B, N, 2) or (N, 2)")
        height, width = self._placed.photo
        centred = points + 0.5
        if not (np.isfinite(points).all() and (centred >= 0).all() and (centred < (width, height)).all()):
            raise ClickError(f"point_coords hold points outside the photo of {width}x{height} pixels")
        given = np.ones(points.shape[:-1], np.int64) if labels is None else np.asarray(labels)
        if given.shape != points.shape[:-1] or given.dtype.kind not in "biu" or not np.isin(given, (0, 1)).all():
            raise ClickError(f"point_labels must be 1 (on the object) or 0 (off it), shaped {points.shape[:-1]}")
        batch = (-1, points.shape[-2])
        return points.reshape(*batch, 2), given.astype(np.int64).reshape(batch)

    def _decode(
        self, points: NDArray[np.float64], labels: NDArray[np.int64], full: bool
    ) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.float32] | None]:
        """Predicted IoU, logits and, if ``full`` and the graph makes them, masks at photo size, of all B prompts."""
        if self._batches is None and len(points) > 1:
            self._batches = self._try_batch(points[:2], labels[:2])
        step = self.options.batch if self._batches else 1
        parts = [self._run(points[i : i + step], labels[i : i + step], full) for i in range(0, len(points), step)]
        scores, logits, masks = zip(*parts, strict=True)
        joined = [one for one in masks if one is not None]
        return np.concatenate(scores), np.concatenate(logits), np.concatenate(joined) if joined else None

    def _try_batch(self, points: NDArray[np.float64], labels: NDArray[np.int64]) -> bool:
        """Whether two prompts at once give what each gives alone: traced exports often only look as if they did."""
        wanted = np.concatenate([self._run(points[i : i + 1], labels[i : i + 1], False)[1] for i in range(2)])
        try:
            both = self._run(points, labels, False)[1]
        except (ExecutionError, ValueError):  # a fixed size somewhere inside, or an answer for one prompt only
            return False
        limit = _BATCH_TOLERANCE * max(float(np.abs(wanted).max()), 1.0)
        return both.shape == wanted.shape and float(np.abs(both - wanted).max()) <= limit

    def _run(
        self, points: NDArray[np.float64], labels: NDArray[np.int64], full: bool
    ) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.float32] | None]:
        """One call of the decoder, see :meth:`_decode`."""
        layout = self.decoder_layout
        own = layout.masks is not None and (layout.low_res is None or (full and self._undoes_padding))
        names = [name for name in (layout.iou, layout.masks if own else None, layout.low_res) if name is not None]
        values = _run_session(self._decoder, self._paths[1], names, self._feeds(points, labels))
        count = len(points)
        scores = np.asarray(values[0], np.float32).reshape(count, -1)
        if own and self._undoes_padding and values[1].shape[-2:] != self._placed.photo:
            raise ExecutionError(
                f"{self._paths[1]}: {layout.masks} came as {list(values[1].shape)} for a photo of "
                f"{list(self._placed.photo)} (height, width)"
            )
        planes = [np.asarray(v, np.float32).reshape(count, -1, *v.shape[-2:]) for v in values[1:]]
        if layout.low_res is None and self._undoes_padding:
            return scores, planes[0], planes[0]
        return scores, self._shown(planes[-1]), planes[0] if len(planes) == 2 else None

    def _feeds(self, points: NDArray[np.float64], labels: NDArray[np.int64]) -> dict[str, NDArray[Any]]:
        layout, view = self.decoder_layout, self._placed
        count, clicks = labels.shape
        scaled = points * view.scale[::-1]
        fixed = layout.points_per_prompt
        padded = self.options.padding_point
        if padded is None:
            padded = not layout.nested and fixed != 1
        filler = (fixed - clicks) if fixed is not None else int(padded)
        if filler < 0:
            raise InputError(f"{clicks} clicks per object; this decoder takes {fixed}")
        scaled = np.pad(scaled, ((0, 0), (0, filler), (0, 0)))
        labels = np.pad(labels, ((0, 0), (0, filler)), constant_values=-1)
        feeds: dict[str, NDArray[Any]] = {
            name: np.repeat(self._features[source], count, 0) if name in layout.repeated else self._features[source]
            for name, source in layout.features.items()
        }
        lead = (1, count) if layout.nested else (count,)
        feeds[layout.points.name] = scaled.reshape(*lead, -1, 2).astype(layout.points.dtype)
        feeds[layout.labels.name] = labels.reshape(*lead, -1).astype(layout.labels.dtype)
        if layout.mask_input is not None:
            port = layout.mask_input
            sides = [port.fixed(axis) or MASK_SCALE * self._embedding_side for axis in (2, 3)]
            feeds[port.name] = np.zeros([port.fixed(0) or count, port.fixed(1) or 1, *sides], port.dtype)
        if layout.has_mask is not None:
            feeds[layout.has_mask.name] = np.zeros([n or 1 for n in _sizes(layout.has_mask)], layout.has_mask.dtype)
        if layout.photo_size is not None:
            # Told the size of the encoder's image, a graph that cannot undo this padding has nothing to undo.
            size = np.array(view.photo if self._undoes_padding else view.image, layout.photo_size.dtype)
            feeds[layout.photo_size.name] = size.reshape([n or 1 for n in _sizes(layout.photo_size)])
        return feeds

    @property
    def _embedding_side(self) -> int:
        return int(next(iter(self._features.values())).shape[-1])

    def _shown(self, low_res: NDArray[np.float32]) -> NDArray[np.float32]:
        """The part of low-resolution logits that shows the photo: what lies over padding is cut off."""
        view = self._placed
        self._low_side = max(low_res.shape[-2:])
        step = max(view.image) / self._low_side
        rows, columns = (int(-(-n // step)) for n in view.fitted)
        return np.ascontiguousarray(low_res[..., :rows, :columns])


def _ports(session: Any) -> tuple[list[Port], list[Port]]:
    inputs, outputs = (
        [Port(p.name, tuple(p.shape), p.type) for p in some] for some in (session.get_inputs(), session.get_outputs())
    )
    return inputs, outputs


def _sizes(port: Port) -> list[int | None]:
    return [port.fixed(axis) for axis in range(len(port.shape))]


def _first(ports: Sequence[Port], fits: Callable[[Port], bool]) -> Port | None:
    return next((port for port in ports if fits(port)), None)


def _compatible(given: Port, wanted: Port) -> bool:
    """Whether a tensor of one description may be fed to the other: same type, rank and fixed extents."""
    if given.type != wanted.type or len(given.shape) != len(wanted.shape):
        return False
    pairs = zip(_sizes(given), _sizes(wanted), strict=True)
    return all(a is None or b is None or a == b for a, b in pairs)


def _mismatch(where: str, part: str, inputs: Sequence[Port], outputs: Sequence[Port], expected: str) -> str:
    found = f"inputs {', '.join(map(str, inputs)) or 'none'}; outputs {', '.join(map(str, outputs)) or 'none'}"
    return f"{where}: not the {part} of a SAM-style pair: found {found}; expected {expected}"


def _run_session(session: Any, path: Path, names: list[str], inputs: dict[str, NDArray[Any]]) -> list[Any]:
    try:
        return list(session.run(names, inputs))
    except Exception as error:  # ONNX Runtime raises one class per status, all straight below Exception
        fed = ", ".join(f"{name} {value.dtype}{list(value.shape)}" for name, value in inputs.items())
        raise ExecutionError(f"{path} failed on {fed}: {str(error).splitlines()[0][:200]}") from error


def _session(path: Path, threads: int) -> Any:
    try:
        import onnxruntime
    except ModuleNotFoundError as error:
        raise BackendError(
            "SAM-style pairs run in ONNX Runtime, which is not installed; pip install 'tracenet[bench]'"
        ) from error
    if not path.is_file():
        what = "is a folder" if path.is_dir() else "does not exist"
        raise CheckpointError(f"{path} {what}; pass the path of an ONNX file")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3  # exports come with hundreds of warnings about unused initialisers
    try:
        return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # ONNX Runtime raises one class per status, all straight below Exception
        reason = str(error).splitlines()[0][:200]
        raise CheckpointError(f"{path} is not an ONNX file that ONNX Runtime can load: {reason}") from error
