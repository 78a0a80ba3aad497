"""What goes over the wire: requests, checked, and the form of the answers, for the OpenAPI description."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from tracenet.viewer.limits import Limits

MOST_POINTS = Limits().points
Point = Annotated[list[float], Field(min_length=2, max_length=2)]


class _Request(BaseModel):
    model_config = ConfigDict(extra="forbid")


class SegmentRequest(_Request):
    """Clicks on one thing of a photo."""

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={
            "examples": [
                {"photo": "coffee", "points": [[300, 200]]},
                {"photo": "coffee", "points": [[300, 200]], "alternatives": True, "polygons": True, "trace": True},
                {"image": "/9j/4AAQ...", "points": [[12.5, 40]], "levels": [3, 5], "mask_window": 200},
            ]
        },
    )

    photo: str | None = Field(None, description="Id of a photo, of /api/photos; or pass `image`.", max_length=80)
    image: str | None = Field(
        None,
        description="A photo's file in base64. It is kept as one of the visitor's photos, and the answer's `photo` is "
        "its id; the third such photo takes the place of the first.",
    )
    points: list[Point] = Field(
        description="Clicks (x, y) in photo pixels, integers are pixel centres; several clicks are on one thing.",
        min_length=1,
        max_length=MOST_POINTS,
    )
    labels: list[int] | None = Field(None, description="1 for each click.", max_length=MOST_POINTS)
    levels: Annotated[list[int], Field(min_length=2, max_length=2)] | None = Field(
        None, description="First and last pyramid level asked at the click, within 3..7."
    )
    mask_window: Literal["box", "full"] | float | None = Field(
        None, description="Where the mask is computed: the predicted box, the photo, or a radius in photo pixels."
    )
    zoom: Literal["off", "auto"] | Annotated[list[float | Literal["native"]], Field(max_length=8)] | None = Field(
        None, description="Scales at which the photo is looked at, as factors of the working size."
    )
    alternatives: bool = Field(False, description="Also the masks of the other levels, best first.")
    polygons: bool = Field(False, description="Also outlines as polygons.")
    trace: bool = Field(False, description="Also the window of every layer.")
    forget: bool = Field(False, description="Drop what is kept of the photo first.")
    keep: bool = Field(True, description="Keep features for the next click on this photo.")
    full: bool = Field(False, description="Also run the whole network and compare: slow.")
    keep_older: bool = Field(False, description="Let older clicks of this visitor go on.")


class ToleranceRequest(_Request):
    """The mask of a thing whose every click is to be tried."""

    photo: str = Field(max_length=80)
    rle: Rle
    most: int = Field(400, ge=1, description="Clicks at most; a larger thing is clicked on a grid.")


class Rle(BaseModel):
    """COCO's uncompressed RLE: column by column, beginning with zeros."""

    model_config = ConfigDict(extra="forbid", json_schema_extra={"examples": [{"size": [2, 3], "counts": [1, 2, 3]}]})

    size: Annotated[list[int], Field(min_length=2, max_length=2)]
    counts: list[int]


class Mask(BaseModel):
    """One mask."""

    rle: Rle
    score: float = Field(description="Predicted quality, 0..1.")
    box: list[float] = Field(description="Predicted box (x0, y0, x1, y1) in photo pixels.")
    level: int = Field(description="The pyramid level that answered.")
    zoom: float = Field(description="The scale that answered.")
    area: int = Field(description="Pixels.")
    polygons: list[list[float]] | None = None


class Timing(BaseModel):
    """Milliseconds."""

    queue: float
    set_image: float
    capture: float
    predict: float


class Canvas(BaseModel):
    """The photo as the network sees it at the scale that answered."""

    width: int
    height: int
    padded_width: int
    padded_height: int
    scale_x: float
    scale_y: float
    factor: float


class Layer(BaseModel):
    """One layer's window: rows and columns are half-open, `[y0, y1, x0, x1]`."""

    name: str
    stage: str
    plane: list[int] = Field(description="Rows and columns.")
    demand: list[int] = Field(description="What this click needs of the plane, whatever was kept.")
    photo_box: list[float] = Field(description="The same as edges in photo pixels, clipped to the photo.")
    computed: list[list[int]] = Field(description="What was computed anew.")
    computed_photo: list[list[float]]
    macs: int
    full_macs: int


class StageCost(BaseModel):
    """Multiply-adds of one stage, computed by this click and of the whole network, at the scale that answered."""

    stage: str
    macs: int
    full_macs: int


class Trace(BaseModel):
    """What the click needed and computed at the scale that answered."""

    canvas: Canvas
    layers: list[Layer]
    stages: list[StageCost]
    visited: list[int] = Field(description="Nodes of the photo's graph that the click needs.")
    computed: list[int] = Field(description="Those that were computed anew.")


class Full(BaseModel):
    """The whole network beside the click."""

    ms: float
    max_error: float = Field(description="Largest difference of mask logits inside the mask window.")
    max_logit: float = Field(description="Largest mask logit of the whole network there.")


class SegmentAnswer(BaseModel):
    """Masks, best first, and what they cost."""

    photo: str
    width: int
    height: int
    masks: list[Mask]
    timing_ms: Timing
    macs: int = Field(description="Multiply-adds that this click computed.")
    full_macs: int = Field(description="Of the whole network at the working size.")
    kept_bytes: int
    full: Full | None = None
    trace: Trace | None = None


class ErrorDetail(BaseModel):
    """What went wrong."""

    code: str
    message: str
    hint: str


class Error(BaseModel):
    """What every request that fails is answered with."""

    error: ErrorDetail


class PhotoInfo(BaseModel):
    """One photo."""

    id: str
    name: str
    width: int
    height: int
    source: Literal["bundled", "folder", "upload"]


class Photos(BaseModel):
    """Photos that this visitor can click."""

    photos: list[PhotoInfo]


class GraphNode(BaseModel):
    """One node; `inputs` are positions in the list."""

    name: str
    op: str
    stage: str
    plane: list[int] | None
    inputs: list[int]
    full_macs: int


class Graph(BaseModel):
    """The network at a photo's working size."""

    nodes: list[GraphNode]


class Job(BaseModel):
    """A job that was taken."""

    job: str


class ToleranceResult(BaseModel):
    """IoU of the mask that every click gives with the thing's own."""

    step: int = Field(description="Pixels between clicks.")
    clicks: int
    share: float = Field(description="Of the clicks, those that give an IoU of at least 0.7.")
    points: list[list[float]] = Field(description="x, y, IoU.")


class JobState(BaseModel):
    """How far a job is."""

    state: Literal["waiting", "running", "done", "cancelled", "failed"]
    done: int
    total: int
    error: ErrorDetail | None = None
    result: ToleranceResult | None = None


class InfoLimits(BaseModel):
    """What the server allows."""

    max_bytes: int
    max_pixels: int
    photos_per_visitor: int
    queue: int


class Info(BaseModel):
    """The server."""

    version: str
    model: str
    backend: str
    device: str
    working_size: int
    levels: list[int]
    has_level_head: bool
    limits: InfoLimits


ToleranceRequest.model_rebuild()


def schema(model: type[BaseModel]) -> dict[str, Any]:
    """A model's JSON schema with its parts inside, for a request that is read by hand."""
    return model.model_json_schema(ref_template="#/components/schemas/{model}")
