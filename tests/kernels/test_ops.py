"""The operations registered with torch.library: schemas, fakes, compilation, export, windows, kernels, errors."""

from __future__ import annotations

import contextlib
import gc
import importlib.util
import subprocess
import sys
import weakref
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tracenet_kernels import Window, ops, reference
from tracenet_kernels.errors import BackendError, InputError, WindowError
from tracenet_kernels.gpu import interpreted
from tracenet_kernels.ops import packing, registration
from tracenet_kernels.testing import assert_close, assert_only_written, poisoned

needs_triton = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton is not installed")
FLOATS = (torch.float32, torch.float16, torch.bfloat16)


@dataclass
class Case:
    """An operation with arguments that fit it.

    Attributes:
        name: in ``tracenet_kernels.ops``; ``<name>_out`` is its form in place.
        inputs: tensors in order.
        options: of both forms.
        more: options of the form that returns new tensors.
        size, channels: of the results.
        keep: positions of inputs that are fp32 beside planes of any dtype.
    """

    name: str
    inputs: tuple[Tensor, ...]
    size: tuple[int, int]
    channels: tuple[int, ...]
    options: dict[str, Any] = field(default_factory=dict)
    more: dict[str, Any] = field(default_factory=dict)
    keep: tuple[int, ...] = ()

    def cast(self, dtype: torch.dtype) -> list[Tensor]:
        """The inputs with planes and weights in ``dtype``; a residual is cast where it is."""
        if "residual" in self.options:
            self.options["residual"] = self.options["residual"].to(dtype)
        return [value if index in self.keep else value.to(dtype) for index, value in enumerate(self.inputs)]

    def __call__(self, *inputs: Tensor, **changed: Any) -> list[Tensor]:
        found = getattr(ops, self.name)(*(inputs or self.inputs), **{**self.options, **self.more, **changed})
        return [plane for plane in (found if isinstance(found, tuple) else (found,)) if plane is not None]

    def into(self, outs: list[Tensor], *inputs: Tensor, **changed: Any) -> None:
        targets: list[Tensor | None] = list(outs)
        if self.name == "bottleneck_tail" and len(outs) == 1:
            targets.append(None)
        getattr(ops, f"{self.name}_out")(*targets, *(inputs or self.inputs), **{**self.options, **changed})

    def outs(self, dtype: torch.dtype = torch.float32) -> list[Tensor]:
        return [poisoned(*self.size, channels, dtype=dtype) for channels in self.channels]


def random(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)))


def conv() -> Case:
    inputs = (random(7, 9, 5), random(6, 5, 3, 2) / 5, random(6))
    options = {"scale": random(6), "stride": (1, 2), "padding": 1, "activation": "relu"}
    return Case("conv2d", inputs, (7, 5), (6,), options, keep=(2,))


def conv_with_residual() -> Case:
    options = {"residual": random(3, 3, 3), "residual_factor": 2}
    return Case("conv2d", (random(6, 5, 2), random(3, 2, 1, 1)), (6, 5), (3,), options)


def depthwise() -> Case:
    inputs = (random(6, 7, 5), random(5, 1, 3, 3), random(5))
    return Case("conv2d", inputs, (6, 7), (5,), {"padding": 1, "groups": 5}, keep=(2,))


def max_pool() -> Case:
    return Case("max_pool2d", (random(7, 9, 5),), (4, 5), (5,), {"kernel": 3, "stride": 2, "padding": 1})


def avg_pool() -> Case:
    options = {"kernel": (2, 3), "stride": 2, "padding": (0, 1), "count_include_pad": False}
    return Case("avg_pool2d", (random(7, 9, 5),), (4, 5), (5,), options, {"size": (4, 5)})


def resize() -> Case:
    return Case("resize", (random(4, 5, 3),), (7, 9), (3,), {"mode": "bilinear"}, {"size": (7, 9)})


def aligned_resize() -> Case:
    options = {"mode": "aligned_bilinear", "factor": 2}
    return Case("resize", (random(4, 5, 3),), (8, 10), (3,), options)


def tail() -> Case:
    weights = (random(6, 5, 3, 3) / 7, random(9, 6, 1, 1) / 3, random(4, 9, 1, 1) / 3)
    options = {"stride": 2, "mid_affine": (random(6), random(6)), "following_affine": (None, random(4))}
    return Case("bottleneck_tail", (random(6, 9, 5), random(3, 5, 9), *weights), (3, 5), (9, 4), options)


def last_tail() -> Case:
    weights = (random(6, 5, 3, 3) / 7, random(9, 6, 1, 1) / 3)
    return Case("bottleneck_tail", (random(3, 5, 5), random(3, 5, 9), *weights), (3, 5), (9,))


def head() -> Case:
    inputs = (random(4, 5, 8), random(169) * 0.4, torch.tensor([20.0, 13.0]), torch.tensor([64.0]))
    return Case("mask_head", inputs, (8, 10), (1,), {"factor": 2, "sigmoid": True}, keep=(1, 2, 3))


def stem() -> Case:
    options = {"scale": random(5), "padding": 1, "conv_size": (7, 6)}
    return Case("stem", (random(3, 12, 11), random(5, 3, 3, 3) / 5, random(5)), (4, 3), (5,), options, keep=(2,))


def photo_stem() -> Case:
    photo = (random(9, 11, 3) * 40 + 128).to(torch.uint8)
    options = {"padding": 1, "mean": (120.0, 110.0, 100.0), "std": (50.0, 60.0, 70.0), "reverse": True}
    return Case("stem", (photo, random(4, 3, 3, 3) / 5), (3, 3), (4,), options, keep=(0,))


CASES = (
    conv,
    conv_with_residual,
    depthwise,
    max_pool,
    avg_pool,
    resize,
    aligned_resize,
    tail,
    last_tail,
    head,
    stem,
    photo_stem,
)


@pytest.fixture(params=CASES, ids=[make.__name__ for make in CASES])
def case(request: pytest.FixtureRequest) -> Case:
    return request.param()


def a_window(case: Case) -> Window:
    return Window(1, case.size[0] - 1, 2, case.size[1])


def test_shapes_and_precision(case: Case) -> None:
    planes, doubles = case(), in_double(case)()
    assert [tuple(plane.shape) for plane in planes] == [(*case.size, channels) for channels in case.channels]
    for plane, exact in zip(planes, doubles, strict=True):
        assert plane.is_contiguous()
        assert plane.dtype == torch.float32
        assert_close(plane, exact)


def in_double(case: Case) -> Case:
    def widen(value: Any) -> Any:
        if isinstance(value, Tensor):
            return value.double() if value.is_floating_point() else value
        return tuple(map(widen, value)) if isinstance(value, tuple) and isinstance(value[0], Tensor) else value

    options = {key: widen(value) for key, value in case.options.items()}
    return Case(case.name, widen(case.inputs), case.size, case.channels, options, case.more)


def test_values_are_torchs() -> None:
    case = conv()
    x, weight, bias = case.inputs
    image = x.movedim(-1, 0)[None]
    wanted = F.conv2d(image, weight, None, (1, 2), 1) * case.options["scale"].view(-1, 1, 1) + bias.view(-1, 1, 1)
    assert_close(case()[0], wanted[0].movedim(0, -1).relu())
    case = avg_pool()
    wanted = F.avg_pool2d(case.inputs[0].movedim(-1, 0)[None], (2, 3), 2, (0, 1), True, False)
    assert_close(case()[0], wanted[0].movedim(0, -1))
    case = stem()
    weight, bias = case.inputs[1] * case.options["scale"].view(-1, 1, 1, 1), case.inputs[2]
    padded = F.pad(case.inputs[0], (0, 1, 0, 2))
    wanted = F.max_pool2d(F.conv2d(padded[None], weight, bias, 2, 1).relu(), 3, 2, 1)
    assert_close(case()[0], wanted[0].movedim(0, -1))
    case = resize()
    wanted = F.interpolate(case.inputs[0].movedim(-1, 0)[None], size=(7, 9), mode="bilinear")
    assert_close(case()[0], wanted[0].movedim(0, -1))


def test_a_window_is_a_part_of_the_whole(case: Case) -> None:
    window = a_window(case)
    for part, whole in zip(case(window=window), case(), strict=True):
        assert part.is_contiguous()
        assert torch.equal(part, whole[window.slices])


def test_an_empty_window(case: Case) -> None:
    assert [tuple(plane.shape) for plane in case(window=(1, 1, 0, 2))] == [(0, 2, n) for n in case.channels]
    outs = case.outs()
    case.into(outs, window=(1, 1, 0, 2))
    assert all(out.isnan().all() for out in outs)


@pytest.mark.parametrize("dtype", FLOATS)
def test_in_place(case: Case, dtype: torch.dtype) -> None:
    inputs = case.cast(dtype)
    wholes, outs, windows = case(*inputs), case.outs(dtype), [a_window(case), Window(0, 1, 0, 1)]
    versions = [out._version for out in outs]
    case.into(outs, *inputs, window=windows[0])
    table = torch.tensor([[0, 1, 0, 1], [2, 2, 0, 5]], dtype=torch.int32)
    case.into(outs, *inputs, table=table, bound=(1, 5))
    for out, whole, version in zip(outs, wholes, versions, strict=True):
        assert_only_written(out, windows, axes=(0, 1))
        assert all(torch.equal(out[window.slices], whole[window.slices]) for window in windows)
        assert out._version >= version + 2


def plan_arguments() -> dict[str, Any]:
    lo = torch.tensor([[0, 0, 1], [1, 0, 0], [2, 1, 3]], dtype=torch.int32)
    hi = lo + torch.tensor([2, 3, 1], dtype=torch.int32)
    minus = torch.tensor([[1, 2, 0, 2], [0, 9, 0, 9], [0, 0, 0, 0]], dtype=torch.int32)
    return {
        "request": torch.tensor([17, 9], dtype=torch.int32),
        "tables_y": (lo, hi),
        "tables_x": (lo.flip(0).contiguous(), hi.flip(0).contiguous()),
        "unit": 8,
        "minus": minus,
        "may_subtract": torch.tensor([1, 1, 0], dtype=torch.int32),
    }


def test_planned_windows_are_tables_of_operations_in_place() -> None:
    windows = ops.plan_windows(**plan_arguments())
    assert windows.shape == (3, 4, 4)
    assert torch.equal(windows, reference.plan_windows(**plan_arguments()))
    case = max_pool()
    outs = case.outs()
    case.into(outs, table=windows[2])
    assert_only_written(outs[0], [Window(*row) for row in windows[2].tolist() if row[0] < row[1]], axes=(0, 1))


# The registered operations take all arguments by position; this is how a call's look.
class Recorder(torch.utils._python_dispatch.TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Any, tuple[Any, ...], dict[str, Any]]] = []

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function.namespace == "tracenet":
            self.calls.append((function, args, kwargs or {}))
        return function(*args, **(kwargs or {}))


def recorded(call: Callable[[], object]) -> tuple[Any, tuple[Any, ...], dict[str, Any]]:
    with Recorder() as recorder:
        call()
    assert len(recorder.calls) == 1
    return recorder.calls[0]


def test_registration(case: Case) -> None:
    torch.library.opcheck(*recorded(lambda: case(window=a_window(case))))


def test_registration_in_place(case: Case) -> None:
    outs = [out.nan_to_num(0.5) for out in case.outs()]
    torch.library.opcheck(*recorded(lambda: case.into(outs, window=a_window(case))))


def test_registration_of_tables_of_windows() -> None:
    case, table = conv(), torch.tensor([[0, 2, 1, 3], [1, 1, 0, 0]], dtype=torch.int32)
    torch.library.opcheck(*recorded(lambda: case.into([torch.zeros(7, 5, 6)], table=table, bound=(2, 2))))
    torch.library.opcheck(*recorded(lambda: ops.plan_windows(**plan_arguments())))


def compiled(function: Callable[..., Any], **options: Any) -> Callable[..., Any]:
    torch.compiler.reset()
    return torch.compile(function, backend="aot_eager", fullgraph=True, **options)


def test_compiled(case: Case) -> None:
    window = a_window(case)

    def run(*inputs: Tensor) -> list[Tensor]:
        doubled = [2 * plane for plane in case(*inputs)]
        return doubled + case(*inputs, window=window)

    for found, wanted in zip(compiled(run)(*case.inputs), run(*case.inputs), strict=True):
        assert torch.equal(found, wanted)


def test_compiled_in_place(case: Case) -> None:
    table = torch.tensor([[0, 1, 0, 2], [2, 3, 1, 3]], dtype=torch.int32)

    def run(outs: list[Tensor], table: Tensor, *inputs: Tensor) -> list[Tensor]:
        case.into(outs, *inputs, table=table)
        return [out + 1 for out in outs]

    outs, wanted = case.outs(), case.outs()
    found = compiled(run)(outs, table, *case.inputs)
    for result, expected in zip(found, run(wanted, table, *case.inputs), strict=True):
        assert torch.equal(result.nan_to_num(-7), expected.nan_to_num(-7))
    for out in outs:
        assert_only_written(out, [Window(0, 1, 0, 2), Window(2, 3, 1, 3)], axes=(0, 1))


def test_one_graph_serves_all_sizes() -> None:
    weight = random(4, 3, 3, 3)
    graphs = []

    def count(graph: torch.fx.GraphModule, inputs: Any) -> Any:
        graphs.append(graph)
        return graph.forward

    def run(x: Tensor, y0: int) -> Tensor:
        return ops.conv2d(x, weight, padding=1, window=(y0, x.shape[0], 0, x.shape[1] // 2))

    torch.compiler.reset()
    dynamic = torch.compile(run, backend=count, fullgraph=True, dynamic=True)
    for rows, columns, y0 in ((7, 9, 2), (12, 8, 5), (6, 21, 3)):
        x = random(rows, columns, 3)
        assert torch.equal(dynamic(x, y0), run(x, y0))
    assert len(graphs) == 1


# Inductor imports parts of PyTorch that others of its parts deprecate.
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_compiled_by_inductor() -> None:
    # Nothing but the operations, so that no C++ is compiled.
    first, second = conv(), max_pool()

    def run(*inputs: Tensor) -> Tensor:
        return ops.max_pool2d(ops.conv2d(*inputs, **first.options), **second.options)

    torch.compiler.reset()
    assert torch.equal(torch.compile(run, fullgraph=True)(*first.inputs), run(*first.inputs))


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(random(4, 3, 3, 3), requires_grad=False)

    def forward(self, images: Tensor) -> Tensor:
        x = images.movedim(1, -1)[0].contiguous()
        return ops.max_pool2d(ops.conv2d(x, self.weight, padding=1, activation="relu"), kernel=2, stride=2)


def test_exported() -> None:
    block, images = Block(), random(1, 3, 8, 6)
    rows = torch.export.Dim("rows", min=4, max=64)
    program = torch.export.export(block, (images,), dynamic_shapes=({2: 2 * rows},))
    called = [str(node.target) for node in program.graph.nodes if "tracenet" in str(node.target)]
    assert called == ["tracenet.conv2d.default", "tracenet.max_pool2d.default"]
    for size in (8, 12):
        images = random(1, 3, size, 6)
        assert torch.equal(program.module()(images), block(images))


def test_inputs_that_require_gradients_are_refused(case: Case) -> None:
    for index in [i for i, value in enumerate(case.inputs) if value.is_floating_point()]:
        inputs = list(case.inputs)
        inputs[index] = inputs[index].clone().requires_grad_()
        with pytest.raises(InputError, match=f"{case.name} has no gradient"):
            case(*inputs)
        with pytest.raises(InputError, match=f"{case.name}_out has no gradient"):
            case.into(case.outs(), *inputs)
        with torch.no_grad():
            assert not any(plane.requires_grad for plane in case(*inputs))


def test_a_backward_pass_through_the_bare_operation_is_refused() -> None:
    operation, arguments, options = recorded(conv())
    x = arguments[0].clone().requires_grad_()
    with pytest.raises(RuntimeError, match="no autograd formula"):
        operation(x, *arguments[1:], **options).sum().backward()


def test_inference_mode(case: Case) -> None:
    wanted = case()
    with torch.inference_mode():
        outs = case.outs()
        case.into(outs)
        assert all(torch.equal(a, b) for a, b in zip(case() + outs, wanted * 2, strict=True))


def test_meta_tensors_have_shapes(case: Case) -> None:
    inputs = [on_device(value, "meta") for value in case.inputs]
    case.options = {key: on_device(value, "meta") for key, value in case.options.items()}
    assert [plane.shape for plane in case(*inputs)] == [(*case.size, channels) for channels in case.channels]


@needs_triton
def test_kernels_in_inference_mode(case: Case) -> None:
    with kernels() as device:
        inputs = [on_device(value, device) for value in case.inputs]
        case.options = {key: on_device(value, device) for key, value in case.options.items()}
        with torch.inference_mode():
            inside = case(*inputs, window=(0, 1, 0, 2))
        assert all(torch.equal(a, b) for a, b in zip(inside, case(*inputs, window=(0, 1, 0, 2)), strict=True))


def on_device(value: Any, device: str) -> Any:
    if isinstance(value, Tensor):
        return value.to(device)
    return tuple(on_device(part, device) for part in value) if isinstance(value, tuple) else value


@contextlib.contextmanager
def kernels() -> Iterator[str]:
    """Triton's kernels run on the device that this gives."""
    if interpreted():
        with registration.kernels_on_cpu():
            yield "cpu"
    else:
        yield "cuda"


@needs_triton
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_kernels_agree_with_the_twin(case: Case, dtype: torch.dtype) -> None:
    inputs, window = case.cast(dtype), a_window(case)
    exact = in_double(Case(case.name, tuple(inputs), case.size, case.channels, case.options, case.more))()
    with kernels() as device:
        inputs = [on_device(value, device) for value in inputs]
        case.options = {key: on_device(value, device) for key, value in case.options.items()}
        wholes, parts = case(*inputs), case(*inputs, window=window)
        outs = [on_device(out, device) for out in case.outs(dtype)]
        table = torch.tensor([list(window), [0, 0, 0, 5]], dtype=torch.int32, device=device)
        case.into(outs, *inputs, table=table)
    for index, whole in enumerate(wholes):
        assert_close(whole, exact[index].to(device))
        assert torch.equal(parts[index], whole[window.slices])
        assert_only_written(outs[index], [window], axes=(0, 1))
        assert torch.equal(outs[index][window.slices], whole[window.slices])


@needs_triton
def test_planned_windows_of_the_kernel() -> None:
    with kernels() as device:
        for changed in ({}, {"minus": None, "may_subtract": None}):
            arguments = {**plan_arguments(), **changed}
            found = ops.plan_windows(**{key: on_device(value, device) for key, value in arguments.items()})
            assert torch.equal(found.cpu(), reference.plan_windows(**arguments))


@needs_triton
def test_kernels_are_compiled_into_graphs_as_they_are() -> None:
    case = conv()
    with kernels() as device:
        inputs = [on_device(value, device) for value in case.inputs]
        case.options = {key: on_device(value, device) for key, value in case.options.items()}
        assert torch.equal(compiled(lambda *given: case(*given)[0])(*inputs), case(*inputs)[0])


@needs_triton
def test_a_weight_is_packed_once_until_it_changes() -> None:
    weight = random(4, 3, 3, 3)
    first = packing.packed(weight, padding=(1, 1))
    assert packing.packed(weight, padding=(1, 1)) is first
    assert packing.packed(weight, padding=(0, 0)) is not first
    assert packing.packed(weight, padding=(1, 1)) is first
    weight.mul_(2)
    second = packing.packed(weight, padding=(1, 1))
    assert torch.equal(second.tensor, 2 * first.tensor)
    weight.data = weight.data.clone()
    assert packing.packed(weight, padding=(1, 1)) is not second
    with torch.inference_mode():
        inference = random(4, 3, 3, 3)
        before = packing.packed(inference)
        inference.mul_(2)
        assert torch.equal(packing.packed(inference).tensor, 2 * before.tensor)


@needs_triton
def test_packs_go_with_their_weights() -> None:
    weight = random(4, 3, 1, 1)
    held = weakref.ref(packing.packed(weight).tensor)
    assert held() is not None
    del weight
    gc.collect()
    assert held() is None


def test_half_precision_is_rounded_once() -> None:
    x, weight = random(5, 6, 40).half(), random(3, 40, 3, 3).half()
    wanted = F.conv2d(x.double().movedim(-1, 0)[None], weight.double(), None, 1, 1)[0].movedim(0, -1)
    assert torch.equal(ops.conv2d(x, weight, padding=1), wanted.half())


def test_other_dtypes_of_outputs() -> None:
    case = conv()
    out = poisoned(7, 5, 6, dtype=torch.float16)
    case.into([out])
    assert torch.equal(out, case()[0].half())


def test_planes_of_channels_last_batches() -> None:
    images = random(2, 5, 7, 9).contiguous(memory_format=torch.channels_last)
    found = ops.max_pool2d(images.movedim(1, -1)[1], kernel=3, stride=2, padding=1)
    assert torch.equal(found.movedim(-1, 0), F.max_pool2d(images, 3, 2, 1)[1])


MISTAKES: list[tuple[Callable[[], Case], dict[int, Tensor], dict[str, Any], str]] = [
    (conv, {0: random(7, 9)}, {}, r"x has shape \(7, 9\)"),
    (conv, {0: random(7, 9, 5).to(torch.int32)}, {}, "x holds torch.int32"),
    (conv, {0: random(5, 7, 9).movedim(0, -1)}, {}, "channels must be contiguous"),
    (conv, {0: random(7, 9, 4)}, {}, "weight takes 5 channels; it is given 4"),
    (conv, {0: random(7, 9, 5).half()}, {}, "weight holds torch.float32"),
    (conv, {1: random(6, 5, 3)}, {}, "weight has shape"),
    (conv, {2: random(5)}, {}, r"bias is torch.float32 \(5,\)"),
    (conv, {2: random(6).half()}, {}, "bias is torch.float16"),
    (conv, {}, {"scale": random(12)[::2]}, "pass contiguous float32"),
    (conv, {}, {"stride": 0}, "pass kernel, stride and dilation >= 1"),
    (conv, {}, {"stride": (1, 1, 1)}, r"pass a number or \(y, x\)"),
    (conv, {}, {"groups": 4}, "do not divide into 4 groups"),
    (conv, {}, {"activation": "gelu"}, "activation 'gelu' is unknown"),
    (conv, {}, {"precision": "half"}, "precision 'half' is unknown"),
    (conv_with_residual, {}, {"residual_factor": 0}, "residual_factor is 0"),
    (conv_with_residual, {}, {"residual_factor": 3}, "the residual has shape"),
    (max_pool, {}, {"kernel": -1}, "pass kernel, stride and dilation >= 1"),
    (avg_pool, {}, {"divisor": -2}, "avg_pool2d with divisor -2"),
    (resize, {}, {"mode": "cubic"}, "resize mode 'cubic'"),
    (resize, {}, {"ratio": (1.0, float("nan"))}, "pass two finite numbers"),
    (resize, {}, {"addend": random(7, 9, 2)}, "the addend has shape"),
    (aligned_resize, {}, {"factor": 0}, "resize with factor 0"),
    (tail, {2: random(6, 5, 1, 1)}, {}, "kernels"),
    (tail, {1: random(3, 5, 8)}, {}, "the residual has shape"),
    (last_tail, {}, {"following_affine": (None, random(4))}, "without following"),
    (tail, {}, {"expand_affine": (random(6), None)}, "the scale of expand"),
    (head, {0: random(4, 5, 7)}, {}, "features have 7 channels"),
    (head, {1: random(168)}, {}, "theta is"),
    (head, {}, {"stride": 0}, "mask_head with stride 0"),
    (stem, {0: random(4, 12, 11)}, {}, "the image is torch.float32"),
    (stem, {0: random(3, 12, 22)[:, :, ::2]}, {}, "the image has strides"),
    (stem, {}, {"std": (1.0, 1.0, 1.0)}, "are for uint8 photos"),
    (stem, {1: random(5, 4, 3, 3)}, {}, "weight takes 4 channels; it is given 3"),
    (stem, {}, {"conv_size": (7, 0)}, "stem with a result of size"),
    (stem, {}, {"pool_stride": 0}, "the pooling with kernel"),
    (photo_stem, {}, {"mean": None}, "pass three numbers of each"),
    (photo_stem, {}, {"std": (1.0, 0.0, 1.0)}, "none of std 0"),
]


@pytest.mark.parametrize("mistake", MISTAKES, ids=[f"{make.__name__}: {text}" for make, _, _, text in MISTAKES])
def test_mistakes(mistake: tuple[Callable[[], Case], dict[int, Tensor], dict[str, Any], str]) -> None:
    make, replaced, changed, message = mistake
    case = make()
    inputs = [replaced.get(index, value) for index, value in enumerate(case.inputs)]
    with pytest.raises(InputError, match=message):
        case(*inputs, **changed)
    with pytest.raises(InputError, match=message):
        case.into(case.outs(), *inputs, **changed)


@pytest.mark.parametrize("window", [(0, 8, 0, 5), (-1, 2, 0, 5), (3, 2, 0, 5), (0, 7, 0), (0, 7, 0, 6)])
def test_windows_off_the_plane(window: tuple[int, ...]) -> None:
    with pytest.raises(WindowError, match="window"):
        conv()(window=window)
    with pytest.raises(WindowError, match="window"):
        conv().into(conv().outs(), window=window)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"table": torch.zeros(1, 4)}, "the window table is torch.float32"),
        ({"table": torch.zeros(4, dtype=torch.int32)}, r"the window table is torch.int32 \(4,\)"),
        ({"table": torch.zeros(0, 4, dtype=torch.int32)}, "at least one row"),
        ({"table": torch.zeros(1, 4, dtype=torch.int32), "bound": (0, 3)}, "bound"),
        ({"table": torch.zeros(1, 4, dtype=torch.int32), "window": (0, 1, 0, 1)}, "both given"),
    ],
)
def test_bad_tables(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        conv().into(conv().outs(), **options)


def test_rows_off_the_plane() -> None:
    with pytest.raises(WindowError, match="of the table is not within"):
        conv().into(conv().outs(), table=torch.tensor([[0, 8, 0, 5]], dtype=torch.int32))


def test_outputs_that_do_not_fit() -> None:
    with pytest.raises(InputError, match="out has 7 channels; pass 6"):
        conv().into([poisoned(7, 5, 7)])
    with pytest.raises(InputError, match="gives 2 planes"):
        tail().into(tail().outs()[:1])
    with pytest.raises(InputError, match="pass planes of one size"):
        tail().into([poisoned(3, 5, 9), poisoned(2, 5, 4)])
    with pytest.raises(InputError, match="pass planes of"):
        tail().into([poisoned(4, 5, 9), poisoned(4, 5, 4)])
    with pytest.raises(InputError, match="has no cell on a plane"):
        ops.max_pool2d(random(2, 2, 3), kernel=3, stride=1)
    with pytest.raises(InputError, match="without a size"):
        ops.resize(random(2, 2, 3), mode="nearest")


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"request": torch.zeros(3, dtype=torch.int32)}, "the request is"),
        ({"unit": -1}, "unit -1"),
        ({"tables_x": (torch.zeros(3, 3), torch.zeros(3, 3))}, "tables_x hold torch.float32"),
        ({"tables_x": (torch.zeros(3, 2, dtype=torch.int16),) * 2}, "tables_x have shapes"),
        ({"minus": None}, "go together"),
        ({"may_subtract": torch.zeros(4, dtype=torch.int32)}, "may_subtract is"),
        ({"may_subtract": torch.zeros(6, dtype=torch.int32)[::2]}, "pass contiguous ones"),
    ],
)
def test_bad_plans(changed: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        ops.plan_windows(**{**plan_arguments(), **changed})


def test_where_no_kernel_can_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registration, "_why_not", lambda: "Triton is not installed")
    with pytest.raises(BackendError, match="conv2d on CUDA tensors needs Triton kernels, and Triton is not installed"):
        registration.require_kernels("conv2d")


def test_importing_the_operations_needs_no_triton() -> None:
    code = "import sys; sys.modules['triton'] = None; from tracenet_kernels import ops; print(ops.conv2d.__name__)"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "conv2d"
