"""ONNX models as traced graphs: every translation equals ONNX Runtime inside windows, everything else is refused."""

from __future__ import annotations

import contextlib
import importlib.util
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper

import tracenet
from tests.graph.onnx_models import check_windows, onnx_model, run_onnx
from tracenet.graph.onnx import TRANSLATIONS
from tracenet_kernels.errors import CaptureError, InputError, TraceNetError

RNG = np.random.default_rng(0)


def weights(*shape: int) -> np.ndarray:
    return RNG.normal(size=shape).astype(np.float32)


def ints(*values: int) -> np.ndarray:
    return np.array(values, np.int64)


def check(model: onnx.ModelProto, shape: tuple[int, ...] = (1, 3, 17, 19), positive: bool = False) -> None:
    torch.manual_seed(0)
    x = torch.rand(shape) + 0.1 if positive else torch.randn(shape)
    traced = tracenet.trace(model, {model.graph.input[0].name: shape})
    check_windows(traced, x, run_onnx(model, {"x": x.numpy()}))


def one(
    kind: str, inputs: str = "x", constants: dict[str, Any] | None = None, opset: int = 17, **attributes: Any
) -> Any:
    """A model of one node between two convolutions, so that its windows grow and shrink."""
    tensors = {"w0": weights(4, 3, 3, 3), **(constants or {})}
    nodes = [("Conv", "x w0", "a", {"pads": [1, 1, 1, 1]}), (kind, inputs.replace("x", "a", 1), "y", attributes)]
    return onnx_model(nodes, constants=tensors, opset=opset)


K3 = {"kernel_shape": [3, 3]}
LAYERS = {
    "conv": one("Conv", "x w b", {"w": weights(5, 4, 3, 2), "b": weights(5)}, strides=[2, 1], pads=[1, 0, 1, 0]),
    "conv uneven pads": one("Conv", "x w", {"w": weights(5, 4, 3, 3)}, pads=[0, 1, 2, 3], strides=[2, 2]),
    "conv same upper": one("Conv", "x w", {"w": weights(5, 4, 3, 4)}, auto_pad="SAME_UPPER", strides=[2, 3]),
    "conv same lower": one("Conv", "x w", {"w": weights(5, 4, 3, 4)}, auto_pad="SAME_LOWER", strides=[2, 3]),
    "conv valid": one("Conv", "x w", {"w": weights(5, 4, 3, 4)}, auto_pad="VALID", dilations=[2, 2]),
    "conv grouped": one("Conv", "x w", {"w": weights(8, 2, 3, 3)}, group=2, dilations=[1, 2], pads=[1, 2, 1, 2]),
    "transposed": one("ConvTranspose", "x w b", {"w": weights(4, 5, 4, 3), "b": weights(5)}, strides=[2, 2],
                      pads=[1, 1, 1, 1]),
    "transposed uneven pads": one("ConvTranspose", "x w b", {"w": weights(4, 5, 3, 3), "b": weights(5)},
                                  strides=[2, 2], pads=[2, 0, 0, 1]),
    "transposed output padding": one("ConvTranspose", "x w", {"w": weights(4, 2, 3, 3)}, strides=[2, 3], group=2,
                                     pads=[1, 1, 1, 1], output_padding=[1, 2]),
    "transposed same": one("ConvTranspose", "x w", {"w": weights(4, 5, 3, 4)}, strides=[2, 2], auto_pad="SAME_LOWER"),
    "transposed same upper": one("ConvTranspose", "x w", {"w": weights(4, 5, 3, 4)}, strides=[2, 2],
                                 auto_pad="SAME_UPPER"),
    "transposed output shape": one("ConvTranspose", "x w", {"w": weights(4, 5, 4, 4)}, strides=[2, 2],
                                   output_shape=[33, 38]),
    "max": one("MaxPool", strides=[2, 2], pads=[1, 1, 1, 1], **K3),
    "max uneven": one("MaxPool", strides=[2, 2], pads=[0, 1, 2, 0], dilations=[2, 1], **K3),
    "max ceil": one("MaxPool", strides=[2, 2], ceil_mode=1, pads=[1, 0, 1, 0], **K3),
    "max same": one("MaxPool", strides=[2, 2], auto_pad="SAME_UPPER", kernel_shape=[3, 2]),
    "average": one("AveragePool", strides=[2, 2], pads=[1, 1, 1, 1], **K3),
    "average with pad": one("AveragePool", strides=[2, 2], pads=[1, 1, 1, 1], count_include_pad=1, **K3),
    "average uneven": one("AveragePool", strides=[2, 1], pads=[0, 1, 2, 0], **K3),
    "average uneven with pad": one("AveragePool", strides=[2, 1], pads=[0, 1, 2, 0], count_include_pad=1, **K3),
    "average ceil": one("AveragePool", strides=[2, 2], ceil_mode=1, pads=[0, 1, 0, 1], opset=19, **K3),
    "average ceil with pad": one("AveragePool", strides=[3, 2], ceil_mode=1, pads=[1, 1, 1, 1], count_include_pad=1,
                                 opset=19, **K3),
    "global average": one("GlobalAveragePool"),
    "global max": one("GlobalMaxPool"),
    "batch norm": one("BatchNormalization", "x s b m v", {"s": weights(4), "b": weights(4), "m": weights(4),
                                                          "v": np.abs(weights(4)) + 0.5}, epsilon=1e-3),
    "instance norm": one("InstanceNormalization", "x s b", {"s": weights(4), "b": weights(4)}),
    "group norm": one("GroupNormalization", "x s b", {"s": weights(4), "b": weights(4)}, num_groups=2, opset=21),
    "layer norm": one("LayerNormalization", "x s b", {"s": weights(19), "b": weights(19)}),
    "prelu": one("PRelu", "x s", {"s": weights(4, 1, 1)}),
    "prelu plane": one("PRelu", "x s", {"s": weights(1, 17, 19)}),
}  # fmt: skip


@pytest.mark.parametrize("name", LAYERS)
def test_layers_equal_onnx_runtime(name: str) -> None:
    check(LAYERS[name])


UNARY = {
    "Relu": {}, "Sigmoid": {}, "Tanh": {}, "HardSwish": {}, "Softplus": {}, "Softsign": {}, "Erf": {}, "Neg": {},
    "Abs": {}, "Exp": {}, "Reciprocal": {}, "Floor": {}, "Ceil": {}, "Round": {}, "Sign": {}, "Sin": {}, "Cos": {},
    "Atan": {}, "LeakyRelu": {"alpha": 0.2}, "Elu": {"alpha": 0.5}, "Celu": {"alpha": 0.7}, "Selu": {},
    "ThresholdedRelu": {"alpha": 0.3}, "HardSigmoid": {}, "Identity": {}, "Softmax": {"axis": 1},
    "LogSoftmax": {"axis": -1}, "ReduceMean": {"axes": [2, 3]}, "ReduceMax": {"axes": [1]},
    "ReduceL2": {"axes": [1], "keepdims": 0}, "ReduceL1": {"axes": [1, 2]}, "ReduceSumSquare": {"axes": [1]},
    "ReduceProd": {"axes": [1]}, "ReduceLogSumExp": {"axes": [1]}, "ReduceMin": {}, "Flatten": {"axis": 2},
    "Transpose": {"perm": [0, 2, 3, 1]}, "DepthToSpace": {"blocksize": 2}, "ArgMax": {"axis": 1}, "IsNaN": {},
    "Dropout": {"seed": 1},
}  # fmt: skip


@pytest.mark.parametrize("kind", UNARY)
def test_operations_of_one_input(kind: str) -> None:
    check(one(kind, **UNARY[kind]))


@pytest.mark.parametrize("kind", ["Sqrt", "Log"])
def test_operations_of_positive_numbers(kind: str) -> None:
    check(onnx_model([(kind, "x", "y")]), positive=True)


@pytest.mark.parametrize(
    ("kind", "opset"), [("Gelu", 20), ("Mish", 18), ("HardSwish", 14), ("HardSigmoid", 6 + 3), ("Softmax", 11)]
)
def test_operations_of_other_sets(kind: str, opset: int) -> None:
    check(one(kind, opset=opset))


def test_gelu_tanh_and_hard_sigmoid_as_exported() -> None:
    check(one("Gelu", opset=20, approximate="tanh"))
    check(one("HardSigmoid", alpha=1 / 6))


@pytest.mark.parametrize("kind", ["Add", "Sub", "Mul", "Div", "Max", "Min", "Sum", "Mean", "PRelu"])
@pytest.mark.parametrize("shape", [(), (4, 1, 1), (17, 1), (1, 1, 17, 19)])
def test_operations_of_two_inputs(kind: str, shape: tuple[int, ...]) -> None:
    check(one(kind, "x c", {"c": np.abs(weights(*shape)) + np.float32(0.5)}))


def test_powers_comparisons_and_choices() -> None:
    check(one("Pow", "x c", {"c": np.array(2.0, np.float32)}))
    check(one("Pow", "x c", {"c": np.full((4, 1, 1), 3.0, np.float32)}))
    check(one("Mod", "x c", {"c": np.array(0.7, np.float32)}, fmod=1))
    nodes = [
        ("Greater", "x z", "p"),
        ("Less", "x h", "q"),
        ("And", "p q", "r"),
        ("Not", "r", "s"),
        ("Where", "s x z", "y"),
    ]
    check(onnx_model(nodes, constants={"z": np.float32(0), "h": np.float32(0.5)}))


@pytest.mark.parametrize(
    ("inputs", "opset", "attributes"),
    [("x lo hi", 13, {}), ("x - hi", 13, {}), ("x lo", 13, {}), ("x", 9, {"min": 0.0, "max": 6.0})],
)
def test_clip(inputs: str, opset: int, attributes: dict[str, float]) -> None:
    bounds = {"lo": np.float32(-0.5), "hi": np.float32(0.25)} if opset > 9 else {}
    check(one("Clip", inputs, bounds, opset, **attributes))


SHAPED = {
    "split": ([("Split", "x s", "a b", {"axis": 1}), ("Concat", "b a", "y", {"axis": 1})], {"s": ints(1, 2)}, 13),
    "split rows": ([("Split", "x", "a b", {"axis": 2, "num_outputs": 2}), ("Concat", "b a", "y", {"axis": 2})], {}, 18),
    "split attribute": ([("Split", "x", "a b", {"axis": -1, "split": [4, 15]}), ("Relu", "b", "y")], {}, 11),
    "slice": ([("Slice", "x s e a t", "y")],
              {"s": ints(2, -1), "e": ints(-1, -100), "a": ints(2, 3), "t": ints(3, -2)}, 13),
    "slice attribute": ([("Slice", "x", "y", {"starts": [1, 0], "ends": [99, 4], "axes": [2, 3]})], {}, 9),
    "pad": ([("Pad", "x p v", "y")], {"p": ints(0, 0, 1, 2, 0, 1, 3, -1), "v": np.float32(0.5)}, 13),
    "pad attribute": ([("Pad", "x", "y", {"pads": [0, 0, 1, 2, 0, 0, 0, 0], "value": 1.5})], {}, 9),
    "pad axes": ([("Pad", "x p - a", "y", {"mode": "reflect"})], {"p": ints(2, 1, 3, 4), "a": ints(3, -2)}, 18),
    "pad edge": ([("Pad", "x p", "y", {"mode": "edge"})], {"p": ints(0, 0, 2, 1, 0, 0, 3, 4)}, 13),
    "pad wrap": ([("Pad", "x p", "y", {"mode": "wrap"})], {"p": ints(0, 0, 2, 1, 0, 0, 3, 4)}, 19),
    "squeeze": ([("Unsqueeze", "x a", "b"), ("Relu", "b", "c"), ("Squeeze", "c a", "y")], {"a": ints(0, -1)}, 13),
    "squeeze attribute": ([("Unsqueeze", "x", "b", {"axes": [2]}), ("Squeeze", "b", "y", {"axes": [2]})], {}, 11),
    "squeeze all": ([("Squeeze", "x", "y")], {}, 13),
    "gather channels": ([("Gather", "x i", "y", {"axis": 1})], {"i": ints(2, -1, 0)}, 13),
    "gather one": ([("Gather", "x i", "y", {"axis": 1})], {"i": np.int64(1)}, 13),
    "gather grid": ([("Gather", "x i", "y", {"axis": 1})], {"i": ints(2, 0, 1, 1).reshape(2, 2)}, 13),
    "expand": ([("Expand", "x s", "y")], {"s": ints(2, 1, 1, 1)}, 13),
    "tile": ([("Tile", "x r", "y")], {"r": ints(1, 2, 2, 1)}, 13),
    "space to depth": ([("Slice", "x s e a", "b"), ("SpaceToDepth", "b", "y", {"blocksize": 2})],
                       {"s": ints(1, 1), "e": ints(17, 19), "a": ints(2, 3)}, 13),
    "depth to space": ([("Concat", "x x x x", "b", {"axis": 1}),
                        ("DepthToSpace", "b", "y", {"blocksize": 2, "mode": "CRD"})], {}, 13),
    "channels last": ([("Transpose", "x", "b", {"perm": [0, 2, 3, 1]}), ("MatMul", "b w", "c"), ("Add", "c v", "d"),
                       ("Transpose", "d", "y", {"perm": [0, 3, 1, 2]})], {"w": weights(3, 5), "v": weights(5)}, 13),
    "attention": ([("Reshape", "x s", "t"), ("Transpose", "t", "u", {"perm": [0, 2, 1]}), ("MatMul", "u t", "a"),
                   ("Softmax", "a", "b"), ("MatMul", "b u", "y")], {"s": ints(0, 3, -1)}, 13),
    "classifier": ([("GlobalAveragePool", "x", "a"), ("Flatten", "a", "b"),
                    ("Gemm", "b w v", "y", {"transB": 1})], {"w": weights(7, 3), "v": weights(7)}, 13),
    "scaled gemm": ([("GlobalAveragePool", "x", "a"), ("Flatten", "a", "b"),
                     ("Gemm", "b w v", "y", {"alpha": 0.5, "beta": 2.0})],
                    {"w": weights(3, 7), "v": weights(1, 7)}, 13),
    "squeeze excite": ([("ReduceMean", "x a", "m"), ("Conv", "m w", "g"), ("Sigmoid", "g", "s"), ("Mul", "x s", "y")],
                       {"a": ints(2, 3), "w": weights(3, 3, 1, 1)}, 18),
    "casts": ([("Cast", "x", "d", {"to": TensorProto.DOUBLE}), ("Sqrt", "d", "e"), ("CastLike", "d x", "y")], {}, 15),
}  # fmt: skip


@pytest.mark.parametrize("name", SHAPED)
def test_shapes_and_axes(name: str) -> None:
    nodes, constants, opset = SHAPED[name]
    check(onnx_model(nodes, constants=constants, opset=opset))


def test_shape_arithmetic_is_folded() -> None:
    """The pattern of older exporters: flatten to [N, -1] by Shape, Gather, Unsqueeze and Concat, and back."""
    nodes = [
        ("Shape", "x", "s"), ("Gather", "s zero", "n"), ("Unsqueeze", "n axis", "u"),
        ("Constant", "", "minus", {"value_ints": [-1]}),
        ("Concat", "u minus", "t", {"axis": 0}), ("Reshape", "x t", "f"), ("Size", "x", "size"),
        ("Reshape", "f s", "r"),
        ("ConstantOfShape", "s", "ones", {"value": helper.make_tensor("v", TensorProto.FLOAT, [1], [1.0])}),
        ("Range", "zero two one", "steps"), ("Cast", "steps", "c", {"to": TensorProto.FLOAT}), ("ReduceSum", "c", "k"),
        ("Add", "r ones", "p"), ("Mul", "p k", "y"),
    ]  # fmt: skip
    constants = {"zero": np.int64(0), "axis": ints(0), "two": np.int64(3), "one": np.int64(1)}
    model = onnx_model(nodes, ["batch", 3, "h", "w"], constants)
    check(model)
    traced = tracenet.trace(model, {"x": (1, 3, 17, 19)})
    assert {node.op for node in traced.graph.nodes} <= {"input", "constant", "aten.reshape", "aten.add", "aten.mul"}


RESIZES = [
    {"mode": "nearest", "coordinate_transformation_mode": c, "nearest_mode": n}
    for c in ("asymmetric", "half_pixel", "align_corners", "pytorch_half_pixel")
    for n in ("floor", "ceil", "round_prefer_floor", "round_prefer_ceil")
] + [
    {"mode": mode, "coordinate_transformation_mode": c}
    for mode in ("linear", "cubic")
    for c in ("half_pixel", "pytorch_half_pixel", "align_corners")
]


@pytest.mark.parametrize("attributes", RESIZES, ids=lambda a: "-".join(a.values()))
def test_resize(attributes: dict[str, Any]) -> None:
    sized, scaled = ints(1, 3, 36, 5), np.array([1, 1, 1.75, 0.7], np.float32)
    nodes = [("Resize", "x - - s", "y", attributes), ("Resize", "x - t", "z", attributes)]
    check(onnx_model(nodes, (1, 3, 12, 10), {"s": sized, "t": scaled}, outputs="y z"), (1, 3, 12, 10))


def test_repeated_cells_become_the_resize_that_kernels_know() -> None:
    model = onnx_model([("Resize", "x - s", "y")], constants={"s": np.array([1, 1, 2, 3], np.float32)})
    check(model)
    assert tracenet.trace(model).graph.outputs["y"].op == "aten.upsample_nearest2d"


def test_coordinates_on_the_edge_of_two_cells_are_refused() -> None:
    model = onnx_model([("Resize", "x - s", "y")], constants={"s": np.array([1, 1, 1, 1.3], np.float32)})
    with pytest.raises(CaptureError, match="rounding decides"):
        tracenet.trace(model)


def test_resize_of_other_sets() -> None:
    scales = np.array([1, 1, 2, 1.5], np.float32)
    check(onnx_model([("Upsample", "x s", "y", {"mode": "nearest"})], constants={"s": scales}, opset=9))
    check(onnx_model([("Resize", "x s", "y", {"mode": "nearest"})], constants={"s": scales}, opset=10))
    check(
        onnx_model(
            [("Resize", "x - s", "y", {"axes": [2, 3], "mode": "linear"})], constants={"s": scales[2:]}, opset=18
        )
    )


@settings(max_examples=40)
@given(
    kind=st.sampled_from(["Conv", "MaxPool", "AveragePool"]),
    plane=st.tuples(st.integers(5, 14), st.integers(5, 14)),
    kernel=st.tuples(st.integers(1, 4), st.integers(1, 4)),
    strides=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    pads=st.tuples(*[st.integers(0, 3)] * 4),
    flags=st.tuples(st.booleans(), st.booleans()),
    opset=st.sampled_from([11, 18, 19, 22]),
)
def test_any_sliding_window_is_exact_or_refused(
    kind: str, plane: Any, kernel: Any, strides: Any, pads: Any, flags: tuple[bool, bool], opset: int
) -> None:
    attributes: dict[str, Any] = {"kernel_shape": kernel, "strides": strides, "pads": pads}
    if kind != "Conv":
        pads = [min(p, kernel[i % 2] - 1) for i, p in enumerate(pads)]
        attributes.update(ceil_mode=int(flags[0]), pads=pads)
    if kind == "AveragePool":
        attributes["count_include_pad"] = int(flags[1])
    constants = {"w": weights(2, 1, *kernel)} if kind == "Conv" else {}
    model = onnx_model([(kind, "x w" if constants else "x", "y", attributes)], (1, 1, *plane), constants, opset)
    uneven = pads[:2] != pads[2:] or any(2 * p > k for p, k in zip(pads[:2], kernel, strict=True))
    if attributes.get("ceil_mode") and uneven:
        with pytest.raises(CaptureError, match="ceil_mode with pads"):
            tracenet.trace(model)
        return
    check(model, (1, 1, *plane))


# Whole networks


def random_network(stage: Any) -> torch.nn.Module:
    """A small network with what exporters meet: strides, groups, concatenation, resizes, squeeze-excite, heads."""
    nn = torch.nn

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1, bias=False), nn.BatchNorm2d(8), nn.SiLU())
            self.deep = nn.Sequential(nn.Conv2d(8, 16, 3, 2, 1, groups=4), nn.BatchNorm2d(16), nn.Hardswish())
            self.pool = nn.MaxPool2d(3, 1, 1)
            self.up = nn.ConvTranspose2d(16, 8, 2, 2)
            self.out = nn.Conv2d(24, 4, 1)
            for block in self.modules():
                if isinstance(block, nn.BatchNorm2d):
                    nn.init.uniform_(block.running_var, 0.5, 1.5)
                    nn.init.normal_(block.running_mean)

        def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            a = self.stem(x)
            b = self.pool(self.deep(a))
            up = torch.nn.functional.interpolate(b, scale_factor=2.0, mode="bilinear")
            near = torch.nn.functional.interpolate(b[:, :8], size=a.shape[-2:], mode="nearest")
            return self.out(torch.cat([up[:, 8:], near, self.up(b) + a], 1)), b

    return Net().eval()


@pytest.mark.skipif(importlib.util.find_spec("onnxscript") is None, reason="torch.onnx.export needs onnxscript")
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("opset", [18, 21])
def test_networks_exported_by_pytorch(opset: int, tmp_path: Path) -> None:
    network, x = random_network(None), torch.randn(1, 3, 32, 48)
    path = tmp_path / "net.onnx"
    torch.onnx.export(network, (x,), path, opset_version=opset, dynamo=True, verbose=False, external_data=True)
    traced = tracenet.trace(path)
    full = run_onnx(onnx.load(path), {traced.graph.inputs[0].name: x.numpy()})
    check_windows(traced, x, full)
    own = tracenet.trace(network, x)
    window = tracenet.Window(3, 5, 4, 9)
    theirs, ours = traced.plan({0: window}), own.plan({0: window})
    assert (theirs.macs, theirs.windows[traced.graph.inputs[0].name]) == (ours.macs, ours.windows["x"])


def test_names_folding_and_sharing() -> None:
    """BatchNorms are folded, weights used twice stay one, nodes keep their names, plans count their work."""
    nodes = [
        ("Conv", "x w", "a", {"pads": [1, 1, 1, 1]}), ("BatchNormalization", "a s b s v", "n"), ("Relu", "n", "r"),
        ("Conv", "r w", "c", {"pads": [1, 1, 1, 1]}), ("BatchNormalization", "c s b s v", "y"),
    ]  # fmt: skip
    model = onnx_model(
        nodes, constants={"w": weights(3, 3, 3, 3), "s": weights(3), "b": weights(3), "v": np.ones(3, "f")}
    )
    traced = tracenet.trace(model)
    assert [node.name for node in traced.graph.nodes if not node.is_constant] == ["x", "n0", "n2", "n3"]
    convolutions = [node for node in traced.graph.nodes if node.op == "aten.conv2d"]
    assert convolutions[0].args[1] is convolutions[1].args[1]
    assert traced.output_names == ["y"]
    plan = traced.plan({"y": tracenet.Window.of_cell(5, 6)})
    assert plan.windows == {
        "x": (3, 8, 4, 9),
        "n0": (4, 7, 5, 8),
        "n2": (4, 7, 5, 8),
        "n3": (5, 6, 6, 7),
        "y": (5, 6, 6, 7),
    }
    check(model)


def test_the_native_backend_runs_onnx_networks() -> None:
    pytest.importorskip("tracenet_kernels._C")
    nodes = [("Conv", "x w", "a", {"strides": [2, 2], "pads": [1, 1, 1, 1]}), ("Relu", "a", "r"), ("Conv", "r v", "y")]
    model = onnx_model(nodes, (1, 3, 33, 41), {"w": weights(16, 3, 3, 3), "v": weights(8, 16, 1, 1)})
    traced, x = tracenet.trace(model), torch.randn(1, 3, 33, 41)
    plan = traced.plan({0: tracenet.Window(3, 9, 5, 12)})
    wanted = torch.from_numpy(run_onnx(model, {"x": x.numpy()})["y"])[:, :, 3:9, 5:12]
    torch.testing.assert_close(traced.run(x, plan, backend="native")[0], wanted, rtol=0, atol=1e-4)


# What is refused

DAMAGED = onnx_model(
    [("Conv", "x w", "a", {"pads": [1, 1, 1, 1]}), ("Shape", "a", "s"), ("Reshape", "a s", "b"), ("Relu", "b", "c"),
     ("Resize", "c - f", "d"), ("Slice", "d i j", "e"), ("Split", "e", "y z", {"axis": 1, "num_outputs": 2})],
    (1, 1, 5, 6),
    {"w": weights(2, 1, 3, 3), "f": np.array([1, 1, 2, 2], "f"), "i": ints(0, 0), "j": ints(1, 2)}, 18, "y z",
)  # fmt: skip


def refused(model: Any, match: str, examples: Any = None, error: type[Exception] = CaptureError) -> None:
    with pytest.raises(error, match=match):
        tracenet.trace(model, examples)


def test_operators_that_cannot_be_traced_are_named() -> None:
    refused(onnx_model([("NonZero", "x", "y")]), "'n0' is NonZero, which cannot be traced; cut the graph")
    refused(onnx_model([("QuantizeLinear", "x s", "y")], constants={"s": np.float32(1)}), "is QuantizeLinear")
    custom = onnx_model([("Relu", "x", "y")])
    custom.graph.node[0].domain = "com.example"
    custom.opset_import.append(helper.make_opsetid("com.example", 1))
    refused(custom, "'n0' is com.example.Relu; only the standard operators")


def test_control_flow_and_functions_are_refused() -> None:
    branch = helper.make_graph(
        [helper.make_node("Relu", ["x"], ["z"])], "b", [], [helper.make_tensor_value_info("z", TensorProto.FLOAT, None)]
    )
    model = onnx_model([("Relu", "x", "y")])
    model.graph.node.append(helper.make_node("If", ["c"], ["q"], "choice", then_branch=branch, else_branch=branch))
    refused(model, "'choice'.*'else_branch'.*control flow")
    model = onnx_model([("Relu", "x", "y")])
    model.functions.append(helper.make_function("own", "F", ["a"], ["b"], [], [helper.make_opsetid("", 17)]))
    refused(model, "functions of its own.*inline")


@pytest.mark.parametrize(
    ("nodes", "constants", "opset", "match"),
    [
        ([("Conv", "x w", "y")], {"w": np.zeros((2, 3, 3), "f")}, 17, "only two-dimensional kernels|cannot be comp"),
        ([("Resize", "x - s", "y", {"mode": "linear", "coordinate_transformation_mode": "asymmetric"})],
         {"s": np.array([1, 1, 2, 2], "f")}, 17, "'n0' .Resize.: coordinate_transformation_mode 'asymmetric'"),
        ([("Resize", "x - s", "y", {"antialias": 1, "mode": "linear"})],
         {"s": np.array([1, 1, 2, 2], "f")}, 18, "antialias"),
        ([("MaxPool", "x", "y i", {"kernel_shape": [2, 2]})], {}, 17, "its output 'i' cannot be traced"),
        ([("Shape", "x", "s"), ("Reshape", "x t", "y")],
         {"t": np.array([7, 7], np.int64)}, 17, "'n1' .Reshape.: cannot"),
        ([("Pad", "x p", "y", {"mode": "reflect"})], {"p": np.array([0, 0, 99, 0, 0, 0, 0, 0])}, 17, "further than"),
        ([("ReduceSum", "x", "a"), ("Cast", "a", "i", {"to": 7}), ("Expand", "x i", "y")],
         {}, 13, "shape is computed from"),
        ([("ConstantOfShape", "s", "y")], {"s": np.array([2**20, 2**20], np.int64)}, 17, "at most"),
        ([("ConstantOfShape", "s", "y")], {"s": np.array([2**15, 2**15], np.int64)}, 17, "computed constants"),
        ([("Conv", "x w", "y", {"pads": [-1, 0, 0, 0]})], {"w": np.zeros((2, 3, 3, 3), "f")}, 17, "not be negative"),
        ([("AveragePool", "x", "y", {"kernel_shape": [2, 2], "dilations": [2, 2]})], {}, 19, "dilations"),
        ([("BatchNormalization", "x s s s s", "y", {"training_mode": 1})], {"s": np.ones(3, "f")}, 15, "training_mode"),
    ],
)  # fmt: skip
def test_attributes_that_cannot_be_traced_are_named(nodes: Any, constants: Any, opset: int, match: str) -> None:
    refused(onnx_model(nodes, constants=constants, opset=opset), match)


def test_unknown_attributes_are_refused() -> None:
    model = onnx_model([("Relu", "x", "y")])
    model.graph.node[0].attribute.append(helper.make_attribute("slope", 2.0))
    refused(model, "slope|valid")


def test_versions() -> None:
    refused(onnx_model([("Relu", "x", "y")], opset=7), "operator set 7; sets 9 to 23")
    refused(onnx.ModelProto(), "no version")


def test_open_sizes_need_examples() -> None:
    model = onnx_model([("Relu", "x", "y")], ["n", 3, "h", None])
    refused(model, r"'x' leaves sizes open: .*'x': \(1, 3, 1, 1\)", None, InputError)
    refused(model, "came with shape", torch.zeros(1, 4, 8, 8), InputError)
    refused(model, "came with shape", (1, 3, 8), InputError)
    refused(model, "came as torch.float64", torch.zeros(1, 3, 8, 8, dtype=torch.float64), InputError)
    refused(model, "2 example inputs", (torch.zeros(1), torch.zeros(1)), InputError)
    refused(model, "'z' is not an input", {"z": (1, 3, 8, 8)}, InputError)
    refused(model, "pass a tensor or a shape", ["x"], InputError)
    for examples in (torch.zeros(1, 3, 8, 9), (1, 3, 8, 9), {"x": (1, 3, 8, 9)}, [torch.zeros(1, 3, 8, 9)]):
        assert tracenet.trace(model, examples).graph.inputs[0].shape == (1, 3, 8, 9)


def test_files(tmp_path: Path) -> None:
    model = onnx_model([("Conv", "x w", "y")], constants={"w": weights(4, 3, 3, 3)})
    data = model.SerializeToString()
    refused(tmp_path / "none.onnx", "no ONNX model at", None, InputError)
    refused(tmp_path, "no ONNX model at", None, InputError)
    for name, content in (("half", data[: len(data) // 2]), ("text", b"hello, this is text"), ("empty", b"")):
        (tmp_path / name).write_bytes(content)
        refused(tmp_path / name, "not an ONNX model|not valid|damaged")
    (tmp_path / "good.onnx").write_bytes(data)
    assert tracenet.trace(str(tmp_path / "good.onnx")).output_names == ["y"]
    short = onnx_model([("Conv", "x w", "y")], constants={"w": weights(4, 3, 3, 3)})
    short.graph.initializer[0].raw_data = b"\0" * 8
    refused(short, "raw_data size .8 bytes. is too small")
    huge = onnx_model([("Conv", "x w", "y")], constants={"w": weights(4, 3, 3, 3)})
    huge.graph.initializer[0].dims[:] = [2**40, 2**40]
    refused(huge, "overflow|do not fit")


@settings(max_examples=60)
@given(data=st.data())
def test_damaged_models_are_refused_or_read(data: st.DataObject) -> None:
    """Whatever is in a file, no other error comes out of it."""
    content = bytearray(DAMAGED.SerializeToString())
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    model = onnx.ModelProto()
    try:
        model.ParseFromString(bytes(content))
    except Exception:  # what protobuf refuses is for the test of files
        return
    with contextlib.suppress(TraceNetError):
        tracenet.trace(model)


@pytest.mark.parametrize("location", ["../secret.bin", "/etc/hostname", "link.bin", "", "none.bin", "."])
def test_tensors_outside_the_models_folder_are_not_read(location: str, tmp_path: Path) -> None:
    (tmp_path / "secret.bin").write_bytes(bytes(432))
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "link.bin").symlink_to(tmp_path / "secret.bin")
    model = external(location)
    (folder / "net.onnx").write_bytes(model.SerializeToString())
    refused(folder / "net.onnx", "'w' is stored at .*only files in the model's own folder")


def external(location: str, **entries: str) -> onnx.ModelProto:
    model = onnx_model([("Conv", "x w", "y")], constants={"w": weights(4, 3, 3, 3)})
    tensor = model.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in {"location": location, **entries}.items():
        tensor.external_data.add(key=key, value=value)
    return model


def test_tensors_beside_the_model(tmp_path: Path) -> None:
    values = weights(4, 3, 3, 3)
    (tmp_path / "w.bin").write_bytes(b"pad!" + values.tobytes())
    path = tmp_path / "net.onnx"
    path.write_bytes(external("w.bin", offset="4", length="432").SerializeToString())
    stored = next(node for node in tracenet.trace(path).graph.nodes if node.name == "w")
    assert torch.equal(stored.value, torch.from_numpy(values))
    refused(external("w.bin"), "pass the model's path")
    for entries in ({"offset": "-4"}, {"offset": "400", "length": "432"}, {"length": "x"}, {"length": "16"}):
        path.write_bytes(external("w.bin", **entries).SerializeToString())
        refused(path, "lie outside|cannot be read|too small")


def test_without_the_package_onnx(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnx", None)
    refused("net.onnx", r"pip install 'tracenet\[onnx\]'", None, InputError)


def test_other_arguments() -> None:
    refused(3, "pass a torch.nn.Module", torch.zeros(1), InputError)
    refused(torch.nn.ReLU().eval(), "is a NoneType; pass tensors", None, InputError)


def test_the_table_is_frozen() -> None:
    with pytest.raises(TypeError):
        TRANSLATIONS["Relu"] = TRANSLATIONS["Neg"]  # type: ignore[index]
