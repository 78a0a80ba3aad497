"""Tiny SAM-style ONNX pairs whose masks are known: a disc around the first click.

The encoder's embedding is the mean of 16 x 16 blocks of its image. The decoder answers a click at (x, y) of a 64-pixel
image with logits ``radius - distance`` on a 16 x 16 plane, one cell being 4 pixels, plus ``gain`` times the embedding's
first value: whatever the encoder was fed shows.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

SIDE = 64
LOW = 16
CELL = SIDE // LOW


@dataclass(frozen=True)
class Layout:
    """How a pair is laid out; the defaults are those of Segment Anything's own export."""

    channels_last: bool = False
    batch_axis: bool = True
    uint8: bool = False
    open_size: bool = False
    mask_input: bool = True
    photo_size: bool = True
    low_res: bool = True
    count: int = 1
    nested: bool = False
    prompts: int | str = 1
    points: int | str = "points"
    int_labels: bool = False
    radius: float = 12.0
    gain: float = 0.0
    iou: tuple[float, ...] = (0.9, 0.95, 0.8, 0.85)
    two_features: bool = False
    names: tuple[str, str] = ("images", "image_embeddings")


def _constant(name: str, value: Any, dtype: Any = np.float32) -> Any:
    return numpy_helper.from_array(np.array(value, dtype), name)


def _save(path: Path, nodes: list[Any], inputs: list[Any], outputs: list[Any], constants: list[Any]) -> Path:
    graph = helper.make_graph(nodes, path.stem, inputs, outputs, constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model)
    path.write_bytes(model.SerializeToString())
    return path


def write_encoder(path: Path, layout: Layout) -> Path:
    side: Any = "side" if layout.open_size else SIDE
    shape = [side, side, 3] if layout.channels_last else [3, side, side]
    kind = TensorProto.UINT8 if layout.uint8 else TensorProto.FLOAT
    image = helper.make_tensor_value_info(layout.names[0], kind, [1, *shape] if layout.batch_axis else shape)
    embedding_shape = [1, 3, LOW // 4, LOW // 4]
    embedding = helper.make_tensor_value_info(layout.names[1], TensorProto.FLOAT, embedding_shape)
    nodes = [helper.make_node("Cast", [layout.names[0]], ["float"], to=TensorProto.FLOAT)]
    last = "float"
    if not layout.batch_axis:
        nodes.append(helper.make_node("Unsqueeze", [last, "zero"], ["batched"]))
        last = "batched"
    if layout.channels_last:
        nodes.append(helper.make_node("Transpose", [last], ["nchw"], perm=[0, 3, 1, 2]))
        last = "nchw"
    nodes.append(helper.make_node("AveragePool", [last], [layout.names[1]], kernel_shape=[16, 16], strides=[16, 16]))
    outputs = [embedding]
    if layout.two_features:
        nodes.append(helper.make_node("Neg", [layout.names[1]], ["high_res_feats"]))
        outputs.insert(0, helper.make_tensor_value_info("high_res_feats", TensorProto.FLOAT, embedding_shape))
    return _save(path, nodes, [image], outputs, [_constant("zero", [0], np.int64)])


def write_decoder(path: Path, layout: Layout) -> Path:
    lead: list[Any] = [1, layout.prompts] if layout.nested else [layout.prompts]
    info = helper.make_tensor_value_info
    label_type = TensorProto.INT64 if layout.int_labels else TensorProto.FLOAT
    inputs = [
        info("image_embeddings", TensorProto.FLOAT, [1, 3, LOW // 4, LOW // 4]),
        info("point_coords", TensorProto.FLOAT, [*lead, layout.points, 2]),
        info("point_labels", label_type, [*lead, layout.points]),
    ]
    if layout.two_features:
        inputs.append(info("high_res_feats", TensorProto.FLOAT, [1, 3, LOW // 4, LOW // 4]))
    if layout.mask_input:
        inputs += [
            info("mask_input", TensorProto.FLOAT, [1, 1, LOW, LOW]),
            info("has_mask_input", TensorProto.FLOAT, [1]),
        ]
    if layout.photo_size:
        inputs.append(info("orig_im_size", TensorProto.FLOAT, [2]))
    # Cell centres in image pixels, as SAM has them: pixel i of the image is centred at i + 0.5.
    centres = (np.arange(LOW) + 0.5) * CELL
    count = layout.count
    constants = [
        _constant("first", [0], np.int64),
        _constant("one", [1], np.int64),
        _constant("two", [2], np.int64),
        _constant("half", 0.5),
        _constant("xs", np.broadcast_to(centres[None], (LOW, LOW)).reshape(1, 1, LOW, LOW)),
        _constant("ys", np.broadcast_to(centres[:, None], (LOW, LOW)).reshape(1, 1, LOW, LOW)),
        _constant("radii", (layout.radius * 0.75 ** np.arange(count)).reshape(1, count, 1, 1)),
        _constant("gain", layout.gain),
        _constant("scores", np.array(layout.iou[:count]).reshape(1, count)),
        _constant("column", [-1, 1, 1, 1], np.int64),
        _constant("score_shape", [-1, 1], np.int64),
    ]
    node = helper.make_node
    second = "high_res_feats" if layout.two_features else "image_embeddings"
    nodes = [
        node("Squeeze", ["point_coords", "first"], ["points"])
        if layout.nested
        else node("Identity", ["point_coords"], ["points"]),
        node("Slice", ["points", "first", "one", "one"], ["click"]),  # [B, 1, 2]
        node("Add", ["click", "half"], ["centred"]),
        node("Slice", ["centred", "first", "one", "two"], ["x_flat"]),
        node("Slice", ["centred", "one", "two", "two"], ["y_flat"]),
        node("Reshape", ["x_flat", "column"], ["x"]),
        node("Reshape", ["y_flat", "column"], ["y"]),
        node("Sub", ["xs", "x"], ["dx"]),
        node("Sub", ["ys", "y"], ["dy"]),
        node("Mul", ["dx", "dx"], ["dx2"]),
        node("Mul", ["dy", "dy"], ["dy2"]),
        node("Add", ["dx2", "dy2"], ["d2"]),
        node("Sqrt", ["d2"], ["distance"]),
        node("Sub", ["radii", "distance"], ["disc"]),  # [B, C, LOW, LOW]
        node("Sub" if layout.two_features else "Max", ["image_embeddings", second], ["features"]),
        node("Slice", ["features", "first", "one", "one"], ["red"]),
        node("Slice", ["red", "first", "one", "two"], ["top"]),
        node("Slice", ["top", "first", "one", "three"], ["corner"]),  # [1, 1, 1, 1]
        node("Mul", ["corner", "gain"], ["shift"]),
        node("Add", ["disc", "shift"], ["logits"]),
        node("Mul", ["x_flat", "nothing"], ["zero3"]),
        node("Reshape", ["zero3", "score_shape"], ["zeros"]),
        node("Add", ["zeros", "scores"], ["iou_flat"]),  # [B, C]
    ]
    constants += [
        _constant("three", [3], np.int64),
        _constant("nothing", 0.0),
    ]
    if layout.nested:  # points are [1, B, N, 2], and everything comes back with that leading axis
        nodes += [node("Unsqueeze", ["logits", "first"], ["low"]), node("Unsqueeze", ["iou_flat", "first"], ["iou"])]
    else:
        nodes += [node("Identity", ["logits"], ["low"]), node("Identity", ["iou_flat"], ["iou"])]
    outputs = [info("iou_predictions", TensorProto.FLOAT, [*lead, count])]
    nodes.append(node("Identity", ["iou"], ["iou_predictions"]))
    name = "low_res_masks" if layout.low_res else "masks"
    if layout.low_res or not layout.photo_size:
        nodes.append(node("Identity", ["low"], [name]))
        outputs.append(info(name, TensorProto.FLOAT, [*lead, count, LOW, LOW]))
    if layout.photo_size:
        _own_masks(nodes, constants)
        outputs.insert(0, info("masks", TensorProto.FLOAT, [*lead, count, "height", "width"]))
    return _save(path, nodes, inputs, outputs, constants)


def _own_masks(nodes: list[Any], constants: list[Any]) -> None:
    """SAM's own post-processing: to the square image, cut the padding off, to the photo's size."""
    node = helper.make_node
    linear = {"mode": "linear", "coordinate_transformation_mode": "half_pixel"}
    constants += [
        _constant("square", [SIDE, SIDE], np.int64),
        _constant("side", float(SIDE)),
        _constant("axes", [2, 3], np.int64),
        _constant("start", [0, 0], np.int64),
    ]
    nodes += [
        node("Shape", ["logits"], ["lead2"], start=0, end=2),
        node("Concat", ["lead2", "square"], ["to_square"], axis=0),
        node("Resize", ["logits", "", "", "to_square"], ["grown"], **linear),
        node("ReduceMax", ["orig_im_size"], ["longest"], keepdims=1),
        node("Div", ["side", "longest"], ["scale"]),
        node("Mul", ["orig_im_size", "scale"], ["fitted"]),
        node("Round", ["fitted"], ["rounded"]),
        node("Cast", ["rounded"], ["end"], to=TensorProto.INT64),
        node("Slice", ["grown", "start", "end", "axes"], ["shown"]),
        node("Cast", ["orig_im_size"], ["size"], to=TensorProto.INT64),
        node("Concat", ["lead2", "size"], ["to_photo"], axis=0),
        node("Resize", ["shown", "", "", "to_photo"], ["masks"], **linear),
    ]


def write_pair(folder: Path, layout: Layout | None = None) -> tuple[Path, Path]:
    """Encoder and decoder in ``folder``."""
    layout = layout or Layout()
    folder.mkdir(exist_ok=True, parents=True)
    return write_encoder(folder / "encoder.onnx", layout), write_decoder(folder / "decoder.onnx", layout)
