"""The operations registered with torch.library: schemas, fakes, compilation, export, windows, kernels, errors."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tracenet_kernels import Window, ops, reference
from tracenet_kernels.errors import BackendError, InputError, WindowError
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
            return value.double()
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
    torch.library.opcheck(*recorded(case))
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


@pytest.mark.slow
def test_compiled_by_inductor() -> None:
    if not torch._inductor.cpp_builder.get_cpp_compiler():
        pytest.skip("there is no C++ compiler")
    case = conv()
    torch.compiler.reset()
    run = torch.compile(lambda *inputs: ops.conv2d(*inputs, **case.options).relu() + 1, fullgraph=True)
    assert_close(run(*case.inputs), case()[0].relu() + 1)


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
    for index in range(len(case.inputs)):
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
