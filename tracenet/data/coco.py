"""Instances of a COCO or LVIS json, checked; masks decoded on demand."""

from __future__ import annotations

import copy
import gc
import json
import math
import os
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pycocotools import mask as rle
from rich.console import Console
from rich.progress import track

from tracenet.data.segmentation import Box, Segmentation, decode, encode, parse_segmentation
from tracenet.image_io import load_image
from tracenet_kernels.errors import ImageError, InputError

MIN_PIXELS = 16
"""Instances with fewer mask pixels are left out."""
BOX_TOLERANCE = 12.0
"""Pixels by which a stated ``bbox`` may differ from the segmentation's; a tenth of its longest side besides."""
AREA_TOLERANCE = 100.0
"""Pixels by which a stated ``area`` may differ from the mask's; beyond them, a factor of two."""
ON_ERROR = ("raise", "skip")


@dataclass(frozen=True)
class Problem:
    """What is wrong with one entry of an annotation file.

    Attributes:
        file: the annotation file.
        kind: ``"image"``, ``"annotation"``, ``"proposal"`` or ``"category"``.
        id: the entry's id, or "(no id)".
        what: the sentence's other half: "has no segmentation".
    """

    file: Path
    kind: str
    id: int | str
    what: str

    def __str__(self) -> str:
        return f"{self.file}: {self.kind} {self.id} {self.what}"


@dataclass(frozen=True, eq=False, slots=True)
class Instance:
    """One object.

    Attributes:
        id: annotation id. Ids of proposals count apart from those of true masks.
        category_id: as in the json; None for a proposal without one.
        area: the json's ``area`` in pixels, -1 where it has none.
        segmentation: polygons or compressed RLE, see :mod:`tracenet.data.segmentation`.
        box: around the segmentation, photo pixels.
        proposal: proposed by another model, not drawn by a person.
        score: the proposal's score, 1 for true masks.
    """

    id: int
    category_id: int | None
    area: float
    segmentation: Segmentation
    box: Box
    proposal: bool = False
    score: float = 1.0

    @property
    def kind(self) -> str:
        return "proposal" if self.proposal else "annotation"


@dataclass(frozen=True)
class ImageRecord:
    """One image file with what is annotated on it.

    Attributes:
        source: the json's ``dataset`` of the image ("" without one): sets merged into one file are told apart by it.
        crowds: regions of many objects that were not told apart; neither an object nor background.
        neg_category_ids: (LVIS) categories known to be absent.
        not_exhaustive_category_ids: (LVIS) categories of which not every object is annotated.
    """

    id: int
    path: Path
    width: int
    height: int
    source: str = ""
    instances: list[Instance] = field(default_factory=list)
    crowds: list[Instance] = field(default_factory=list)
    neg_category_ids: tuple[int, ...] = ()
    not_exhaustive_category_ids: tuple[int, ...] = ()


class CocoDataset:
    """Images with at least one usable instance, in order of image id.

    ``iscrowd`` may be absent (taken as 0), so may ``area`` and ``bbox`` (taken from the mask) and ``categories``. LVIS:
    where an image has no ``file_name``, or no such file, the last part of its ``coco_url`` is looked for in ``images``
    and in its folder ``train2017`` or ``val2017``. Instances of fewer than :data:`MIN_PIXELS` pixels are dropped when
    decoded and counted in ``too_small``.

    Args:
        images: folder of the image files. None: they are not looked for, and :meth:`image` raises.
        annotations: COCO or LVIS json.
        only: image ids to keep; all by default.
        without: image ids to leave out.
        on_error: ``"raise"``: the first problem met is an error. ``"skip"``: the entry is left out and collected in
            ``problems``. Entries are checked on loading, masks when decoded, pixels when read; :meth:`validate` reads
            everything.
        proposals: json of masks that another model proposes for the same images: annotations with a ``score`` in
            0..1 and, if known, a ``category_id``.

    Attributes:
        records: the images.
        categories: names by category id, all that the json lists.
        problems: what was left out.
        too_small: (kind, id) of the instances dropped for their size so far.

    Raises:
        InputError: the json cannot be read, or is wrong in what the message names by file and id.
        ImageError: a file is absent.
    """

    def __init__(
        self,
        images: str | Path | None,
        annotations: str | Path,
        only: Collection[int] | None = None,
        without: Collection[int] = (),
        on_error: str = "raise",
        proposals: str | Path | None = None,
    ) -> None:
        if on_error not in ON_ERROR:
            raise InputError(f"on_error is {on_error!r}; use one of {ON_ERROR}")
        self.annotations = Path(annotations)
        self.proposals = None if proposals is None else Path(proposals)
        self.on_error = on_error
        self.problems: list[Problem] = []
        self.too_small: set[tuple[str, int]] = set()
        self._known: set[Problem] = set()
        self._refused: set[int] = set()
        files = None if images is None else _Files(Path(images))
        with _collector_paused():
            data = _read_json(self.annotations, ("images", "annotations"))
            self.categories = self._read_categories(data.get("categories", []))
            records = self._read_images(data["images"], files)
            self._read_instances(data["annotations"], records, proposal=False)
            if self.proposals is not None:
                entries = _read_json(self.proposals, ("annotations",))["annotations"]
                self._read_instances(entries, records, proposal=True)
        used = sorted(self.categories or _used_categories(records))
        self._index = {category: i for i, category in enumerate(used)}
        wanted = (
            record
            for _, record in sorted(records.items())
            if record.instances and record.id not in without and (only is None or record.id in only)
        )
        self.records = [record for record in wanted if files is None or self._present(record, files)]

    def subset(self, only: Collection[int] | None = None, without: Collection[int] = ()) -> CocoDataset:
        """The same dataset with fewer images, without reading the json again; arguments as of the constructor.

        Problems found from now on are each dataset's own.
        """
        chosen = copy.copy(self)
        chosen.problems, chosen._known, chosen.too_small = list(self.problems), set(self._known), set(self.too_small)
        chosen.records = [r for r in self.records if r.id not in without and (only is None or r.id in only)]
        return chosen

    def __len__(self) -> int:
        return len(self.records)

    def __iter__(self) -> Iterator[ImageRecord]:
        return iter(self.records)

    @property
    def num_classes(self) -> int:
        """Number of class indices, categories without an instance included."""
        return len(self._index)

    def class_index(self, category_id: int) -> int:
        """Contiguous class ``0 .. num_classes - 1`` of a category id, in order of the ids, which may have gaps.

        Raises:
            InputError: the json does not list the category.
        """
        if category_id not in self._index:
            raise InputError(f"{self.annotations}: category {category_id} is not listed; known are {list(self._index)}")
        return self._index[category_id]

    def image(self, record: ImageRecord) -> Image.Image:
        """RGB pixels of one image, upright.

        Raises:
            ImageError: the file is absent, truncated, or not of the size the json states.
        """
        try:
            image = load_image(record.path)
        except ImageError as error:
            raise ImageError(f"image {record.id} of {self.annotations}: cannot read {record.path}: {error}") from error
        if image.size != (record.width, record.height):
            raise ImageError(
                f"{record.path} is {image.width}x{image.height} pixels, "
                f"but {self.annotations} states {record.width}x{record.height} for image {record.id}"
            )
        return image

    def usable_image(self, record: ImageRecord) -> Image.Image | None:
        """RGB pixels of one image, or None where it cannot be used and ``on_error`` is ``"skip"``.

        Raises:
            ImageError: as :meth:`image`, where ``on_error`` is ``"raise"``.
        """
        try:
            return self.image(record)
        except ImageError as error:
            if self.on_error == "raise":
                raise
            self.refuse("image", record.id, f"cannot be used: {error}")
            return None

    def mask(self, record: ImageRecord, instance: Instance) -> NDArray[np.bool_]:
        """Mask ``[height, width]`` of one instance: union of its polygons, or its RLE.

        Raises:
            InputError: the mask is empty or contradicts the stated area.
        """
        what, encoded = self._encode(record, instance)
        if what:
            raise InputError(f"{self._problem(instance.kind, instance.id, what)}{self._advice()}")
        return decode(encoded)

    def usable_mask(self, record: ImageRecord, instance: Instance) -> NDArray[np.bool_] | None:
        """Mask ``[height, width]``, or None where the instance is to be left out: smaller than :data:`MIN_PIXELS`, or
        wrong and ``on_error`` is ``"skip"``.

        Raises:
            InputError: as :meth:`mask`, where ``on_error`` is ``"raise"``.
        """
        what, encoded = self._encode(record, instance)
        if what:
            self.refuse(instance.kind, instance.id, what)
            return None
        if rle.area(encoded) < MIN_PIXELS:
            self.too_small.add((instance.kind, instance.id))
            return None
        return decode(encoded)

    def masks(self, record: ImageRecord) -> list[tuple[Instance, NDArray[np.bool_]]]:
        """Every usable instance with its mask ``[height, width]``, see :meth:`usable_mask`."""
        decoded = ((instance, self.usable_mask(record, instance)) for instance in record.instances)
        return [(instance, mask) for instance, mask in decoded if mask is not None]

    def refuse(self, kind: str, id: int | str, what: str, error: type[InputError] = InputError) -> None:
        """Raise ``error`` for a problem, or collect it, as ``on_error`` says."""
        problem = self._problem(kind, id, what)
        if self.on_error == "raise":
            raise error(f"{problem}{self._advice()}")
        self.collect(problem)

    def collect(self, problem: Problem) -> None:
        """Add to ``problems`` what is not among them yet."""
        if problem not in self._known:
            self._known.add(problem)
            self.problems.append(problem)

    def validate(self, progress: bool = True) -> list[Problem]:
        """Read every image (where a folder was given) and decode every mask; all problems, those of loading included.

        Never raises for a problem, and leaves records as they are.
        """
        found = dict.fromkeys(self.problems)
        for record in track(self.records, "checking", disable=not progress, console=Console(stderr=True)):
            if record.path.name:
                try:
                    self.image(record)
                except ImageError as error:
                    found[self._problem("image", record.id, f"cannot be used: {error}")] = None
            for instance in [*record.instances, *record.crowds]:
                what, encoded = self._encode(record, instance)
                if what:
                    found[self._problem(instance.kind, instance.id, what)] = None
                elif rle.area(encoded) < MIN_PIXELS and instance not in record.crowds:
                    self.too_small.add((instance.kind, instance.id))
        return list(found)

    def _problem(self, kind: str, id: int | str, what: str) -> Problem:
        file = self.proposals if kind == "proposal" and self.proposals is not None else self.annotations
        return Problem(file, kind, id, what)

    def _advice(self) -> str:
        return "; correct the file, or leave such entries out with on_error='skip'"

    def _encode(self, record: ImageRecord, instance: Instance) -> tuple[str, dict[str, Any]]:
        """What is wrong with the mask ("" if nothing), and its compressed RLE."""
        encoded = encode(instance.segmentation, record.height, record.width)
        area = float(rle.area(encoded))
        if not area:
            return "has an empty mask", encoded
        stated = instance.area
        if stated >= 0 and abs(stated - area) > max(AREA_TOLERANCE, min(stated, area)):
            return f"states an area of {stated:g} pixels, but its segmentation has {area:g}", encoded
        return "", encoded

    def _read_categories(self, entries: Any) -> dict[int, str]:
        categories: dict[int, str] = {}
        for entry in _entries(entries, self.annotations, "categories"):
            number = entry.get("id", "(no id)")
            name = entry.get("name", str(number))
            if type(number) is not int:
                self.refuse("category", str(number), "has no integer id")
            elif number in categories:
                self.refuse("category", number, f"is listed twice, as {categories[number]!r} and {name!r}")
            elif name in categories.values():
                self.refuse("category", number, f"has the name {name!r} of another category")
            else:
                categories[number] = str(name)
        return categories

    def _read_images(self, entries: Any, files: _Files | None) -> dict[int, ImageRecord]:
        records: dict[int, ImageRecord] = {}
        for entry in _entries(entries, self.annotations, "images"):
            number = entry.get("id", "(no id)")
            what = _image_problem(entry)
            if what:
                self.refuse("image", str(number) if type(number) is not int else number, what)
                self._refused.add(number if type(number) is int else -1)
                continue
            path = Path() if files is None else files.find(entry)
            record = ImageRecord(
                number,
                path,
                entry["width"],
                entry["height"],
                str(entry.get("dataset", "")),
                neg_category_ids=tuple(entry.get("neg_category_ids", ())),
                not_exhaustive_category_ids=tuple(entry.get("not_exhaustive_category_ids", ())),
            )
            known = records.get(number)
            if known is None:
                records[number] = record
            elif known == record:
                self.refuse("image", number, "is listed twice; ids must be unique")
            else:
                self.refuse("image", number, "is listed twice with different contents; neither can be trusted")
                self._refused.add(number)
        for number in self._refused:
            records.pop(number, None)
        return records

    def _read_instances(self, entries: Any, records: dict[int, ImageRecord], proposal: bool) -> None:
        kind = "proposal" if proposal else "annotation"
        file = self.proposals if proposal and self.proposals is not None else self.annotations
        seen: set[int] = set()
        for entry in _entries(entries, file, "annotations"):
            number = entry.get("id", "(no id)")
            try:
                if type(number) is not int:
                    raise InputError("has no integer id")
                if number in seen:
                    raise InputError("is listed twice; ids must be unique")
                seen.add(number)
                self._add(entry, number, records, proposal)
            except InputError as error:
                self.refuse(kind, number if type(number) is int else str(number), str(error))

    def _add(self, entry: dict[str, Any], number: int, records: dict[int, ImageRecord], proposal: bool) -> None:
        needed = ("image_id", "segmentation", "score" if proposal else "category_id")
        missing = [name for name in needed if name not in entry]
        if missing:
            raise InputError(f"has no {' and no '.join(missing)}")
        if entry["image_id"] in self._refused:
            return  # the image is the problem, and is named
        record = records.get(entry["image_id"])
        if record is None:
            raise InputError(f"is on image {entry['image_id']}, which is not listed")
        category = entry.get("category_id")
        if category is not None and (
            type(category) is not int or (self.categories and category not in self.categories)
        ):
            raise InputError(f"has category {category!r}, which is not listed")
        segmentation, box = parse_segmentation(entry["segmentation"], record.height, record.width)
        area = _number(entry, "area", -1.0)
        score = _number(entry, "score", 1.0) if proposal else 1.0
        if not 0 <= score <= 1:
            raise InputError(f"has score {score:g}; expected 0 to 1")
        _check_box(entry.get("bbox"), box)
        instance = Instance(number, category, area, segmentation, box, proposal, score)
        (record.crowds if entry.get("iscrowd") else record.instances).append(instance)

    def _present(self, record: ImageRecord, files: _Files) -> bool:
        if files.has(record.path):
            return True
        self.refuse("image", record.id, f"is absent: there is no file {record.path}", ImageError)
        return False


class _Files:
    """Which files a folder holds; each folder is listed once."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._names: dict[Path, set[str]] = {}
        if not folder.is_dir():
            raise InputError(f"{folder} is not a folder; give the folder of the images")

    def has(self, path: Path) -> bool:
        if path.parent not in self._names:
            try:
                self._names[path.parent] = set(os.listdir(path.parent))
            except OSError:
                self._names[path.parent] = set()
        return path.name in self._names[path.parent]

    def find(self, entry: dict[str, Any]) -> Path:
        """Path of an image: the first place that has it, or else the first where it was looked for."""
        places = [self.folder / entry["file_name"]] if entry.get("file_name") else []
        if isinstance(entry.get("coco_url"), str):
            url = PurePosixPath(entry["coco_url"])
            places += [self.folder / url.name, self.folder / url.parent.name / url.name]
        return next((place for place in places if self.has(place)), places[0])


def _image_problem(entry: dict[str, Any]) -> str:
    if type(entry.get("id")) is not int:
        return "has no integer id"
    missing = [name for name in ("width", "height") if name not in entry]
    if not entry.get("file_name") and not entry.get("coco_url"):
        missing.append("file_name")
    if missing:
        return f"has no {' and no '.join(missing)}"
    width, height = entry["width"], entry["height"]
    if type(width) is not int or type(height) is not int or width < 1 or height < 1:
        return f"is stated as {width}x{height}; expected whole numbers of at least one pixel"
    if not isinstance(entry.get("file_name", ""), str):
        return f"has the file_name {entry['file_name']!r}; expected a string"
    return ""


def _check_box(stated: Any, box: Box) -> None:
    if stated is None:
        return
    try:
        x, y, w, h = (float(value) for value in stated)
    except (TypeError, ValueError):
        x = math.nan
        y = w = h = x
    if not all(map(math.isfinite, (x, y, w, h))) or w < 0 or h < 0:
        raise InputError(f"has bbox {stated}; expected [x, y, width, height], finite and not negative")
    off = max(abs(a - b) for a, b in zip((x, y, x + w, y + h), box, strict=True))
    if off > BOX_TOLERANCE + 0.1 * max(box[2] - box[0], box[3] - box[1]):
        raise InputError(
            f"states a bbox over x {x:g} to {x + w:g}, y {y:g} to {y + h:g}, but its segmentation lies over "
            f"x {box[0]:g} to {box[2]:g}, y {box[1]:g} to {box[3]:g}"
        )


def _number(entry: dict[str, Any], name: str, default: float) -> float:
    value = entry.get(name, default)
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise InputError(f"has {name} {value!r}; expected a finite number")
    if name in entry and value < 0:
        raise InputError(f"has {name} {value!r}; it cannot be negative")
    return float(value)


def _used_categories(records: dict[int, ImageRecord]) -> set[int]:
    return {i.category_id for r in records.values() for i in r.instances if i.category_id is not None}


@contextmanager
def _collector_paused() -> Iterator[None]:
    """Millions of small objects are made and none is garbage: looking for it takes a third of the time."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _entries(entries: Any, file: Path, name: str) -> list[dict[str, Any]]:
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise InputError(f"{file}: {name} is not a list of objects; expected a COCO json")
    return entries


def _read_json(path: Path, needed: tuple[str, ...]) -> dict[str, Any]:
    try:
        data = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"cannot read annotations {path}: {error}") from error
    missing = [key for key in needed if not isinstance(data, dict) or key not in data]
    if missing:
        raise InputError(f"{path} has no {' and no '.join(missing)}; expected a COCO json")
    return data
