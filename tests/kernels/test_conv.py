"""Convolution on windows: against fp64, bit for bit across windows, tiles, threads and instruction sets, bad input."""

from __future__ import annotations

import hashlib
import itertools
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tracenet_kernels import native
from tracenet_kernels.arrays import Plane, as_plane
from tracenet_kernels.errors import InputError, TraceNetError, WindowError
from tracenet_kernels.testing import assert_close, assert_only_written, poisoned
from tracenet_kernels.threads import set_threads, threads
from tracenet_kernels.window import Window
from tracenet_kernels.windowed import ConvJob, PackedConv, conv2d, conv2d_jobs

pytestmark = pytest.mark.skipif(not native.available(), reason=native.why_not())


def instruction_sets() -> list[str]:
    if not native.available():
        return []
    features = native.require().cpu_features()
    flags = {"avx512": "avx512f", "avx2": "avx2_fma", "neon": "neon"}
    return ["portable", *(isa for isa, flag in flags.items() if features[flag])]


@dataclass(frozen=True)
class Case:
    """A convolution over a plane of height x width."""

    inputs: int
    outputs: int
    kernel: tuple[int, int] = (3, 3)
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int] = (1, 1)
    dilation: tuple[int, int] = (1, 1)
    groups: int = 1
    height: int = 13
    width: int = 17

    @property
    def out_size(self) -> tuple[int, int]:
        size = (self.height, self.width)
        rows, columns = (
            (n + 2 * p - d * (k - 1) - 1) // s + 1
            for n, k, s, p, d in zip(size, self.kernel, self.stride, self.padding, self.dilation, strict=True)
        )
        return rows, columns

    @property
    def full(self) -> Window:
        return Window.full(*self.out_size)

    def demand(self, window: Window) -> Window:
        """Cells of the input that a window reads."""
        spans = []
        for (a, b), k, s, p, d in zip(
            ((window.y0, window.y1), (window.x0, window.x1)),
            self.kernel,
            self.stride,
            self.padding,
            self.dilation,
            strict=True,
        ):
            spans += [a * s - p, (b - 1) * s - p + d * (k - 1) + 1]
        return Window(*spans).clip(self.height, self.width)

    def tensors(self, seed: int = 0) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """x [H, W, I], weight, scale, bias."""
        generator = torch.Generator().manual_seed(seed)
        return (
            torch.randn(self.height, self.width, self.inputs, generator=generator),
            torch.randn(self.outputs, self.inputs // self.groups, *self.kernel, generator=generator),
            torch.rand(self.outputs, generator=generator) + 0.5,
            torch.randn(self.outputs, generator=generator),
        )

    def pack(self, weight: Tensor, isa: str | None = None) -> PackedConv:
        return PackedConv(
            weight, stride=self.stride, padding=self.padding, dilation=self.dilation, groups=self.groups, isa=isa
        )

    def reference(self, x: Tensor, weight: Tensor) -> Tensor:
        """The plain sum in fp64, [rows, columns, out]."""
        y = F.conv2d(
            x.double().permute(2, 0, 1)[None],
            weight.double(),
            stride=self.stride,
            padding=self.padding,
            dilation=self.dilation,
            groups=self.groups,
        )
        return y[0].permute(1, 2, 0)


CASES = {
    "1x1": Case(24, 40, (1, 1), padding=(0, 0)),
    "1x1 strided": Case(19, 33, (1, 1), (2, 2), (0, 0)),
    "1x1 padded": Case(5, 3, (1, 1), (1, 1), (2, 1)),
    "3x3": Case(32, 64),
    "3x3 odd channels": Case(7, 13),
    "3x3 theta": Case(16, 169),
    "3x3 strided": Case(17, 31, stride=(2, 2)),
    "3x3 dilated": Case(9, 18, padding=(2, 2), dilation=(2, 2)),
    "3x3 one output": Case(33, 1),
    "3x3 one input": Case(1, 5),
    "3x3 grouped": Case(24, 36, groups=4),
    "3x3 wide groups": Case(6, 70, groups=2),
    "3x3 one input per group": Case(6, 18, groups=6),
    "3x3 depthwise": Case(45, 45, groups=45),
    "3x3 depthwise strided": Case(64, 64, stride=(2, 2), groups=64),
    "5x5 depthwise dilated": Case(5, 5, (5, 5), (1, 1), (4, 4), (2, 2), groups=5),
    "7x7 stem": Case(3, 64, (7, 7), (2, 2), (3, 3)),
    "7x7 wider than the plane": Case(4, 6, (7, 7), (1, 1), (3, 3), height=3, width=2),
    "1x5": Case(8, 12, (1, 5), (1, 2), (0, 2)),
    "5x1": Case(8, 12, (5, 1), (3, 1), (2, 0)),
    "uneven strides": Case(6, 10, (2, 4), (3, 2), (1, 0), (1, 3)),
    "large padding": Case(3, 4, padding=(5, 6)),
}


def embed(array: Tensor, extent: Window, pixel_gap: int = 0, row_gap: int = 0) -> Plane:
    """The extent's cells of a plane in a NaN-filled buffer with gaps between pixels and rows."""
    height, width, channels = array.shape
    pixel = channels + pixel_gap
    rows = poisoned(extent.height, extent.width * pixel + row_gap)
    cells = rows.as_strided((extent.height, extent.width, channels), (rows.stride(0), pixel, 1))
    cells.copy_(array[extent.slices])
    return as_plane(cells, "x", extent=extent, plane=(height, width))


@pytest.fixture(autouse=True)
def _two_threads() -> Iterator[None]:
    set_threads(2)
    yield
    set_threads(0)


@pytest.mark.parametrize("isa", instruction_sets())
@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_full_planes_match_fp64(case: Case, isa: str) -> None:
    x, weight, scale, bias = case.tensors()
    generator = torch.Generator().manual_seed(1)
    residual = torch.randn(*case.out_size, case.outputs, generator=generator)
    out = poisoned(*case.out_size, case.outputs)
    packed = case.pack(weight, isa)
    assert (packed.in_channels, packed.out_channels, packed.isa) == (case.inputs, case.outputs, isa)
    conv2d(x, packed, case.full, out=out, scale=scale, bias=bias, residual=residual, activation="relu")
    plain = case.reference(x, weight)
    assert_close(out, (plain * scale.double() + bias.double() + residual.double()).relu(), what="with epilogue")
    assert_close(torch.from_numpy(conv2d(x, packed, case.full)), plain, what="without epilogue")


def some_windows(full: Window) -> list[Window]:
    """Corners, edges, the middle; single cells, rows, columns and rectangles."""
    _, bottom, _, right = full
    rows = {(0, 1), (bottom - 1, bottom), (bottom // 3, bottom // 3 + 2), (0, bottom)}
    columns = {(0, 1), (right - 1, right), (right // 3, right // 3 + 3), (1, right - 1)}
    return [
        Window(*r, *c)
        for r, c in itertools.product(sorted(rows), sorted(columns))
        if r[0] < r[1] <= bottom and c[0] < c[1] <= right
    ]


@pytest.mark.parametrize("isa", instruction_sets())
@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_windows_are_bit_equal_to_the_full_plane_and_read_only_their_demand(case: Case, isa: str) -> None:
    x, weight, _, bias = case.tensors(seed=2)
    packed = case.pack(weight, isa)
    full = torch.from_numpy(conv2d(x, packed, case.full, bias=bias))
    for window in some_windows(case.full):
        # Everything the window does not need is NaN, or not there at all.
        for pixel_gap, row_gap in ((0, 0), (3, 5)):
            source = embed(x, case.demand(window), pixel_gap, row_gap)
            out = embed(torch.full_like(full, torch.nan), case.full, pixel_gap, row_gap)
            conv2d(source, packed, window, out=out, bias=bias)
            y = torch.from_numpy(out.array)
            assert_only_written(y, [window], axes=(0, 1))
            assert torch.equal(y[window.slices], full[window.slices]), window


def test_gaps_between_pixels_and_rows_are_not_written() -> None:
    case = CASES["3x3 odd channels"]
    x, weight, _, _ = case.tensors()
    rows, columns = case.out_size
    buffer = poisoned(rows, columns, case.outputs + 4)
    conv2d(x, case.pack(weight), case.full, out=buffer[:, :, 2:-2])
    assert buffer[:, :, :2].isnan().all() and buffer[:, :, -2:].isnan().all()
    assert_close(buffer[:, :, 2:-2], case.reference(x, weight))


def test_all_instruction_sets_and_thread_counts_give_the_same_bits() -> None:
    for case in CASES.values():
        x, weight, scale, bias = case.tensors(seed=3)
        results = []
        for isa, count in itertools.product(instruction_sets(), (1, 2, 3)):
            set_threads(count)
            assert threads() == count
            results.append(conv2d(x, case.pack(weight, isa), case.full, scale=scale, bias=bias))
        for result in results[1:]:
            np.testing.assert_array_equal(result, results[0])


def test_many_threads_and_chunks_give_the_same_bits() -> None:
    case = Case(64, 96, height=61, width=67)
    x, weight, _, bias = case.tensors()
    set_threads(1)
    alone = conv2d(x, case.pack(weight), case.full, bias=bias)
    for count in (2, 5, 16):
        set_threads(count)
        np.testing.assert_array_equal(conv2d(x, case.pack(weight), case.full, bias=bias), alone)


DIGEST = """
import hashlib, sys
import torch
from tracenet_kernels import native
from tracenet_kernels.window import Window
from tracenet_kernels.windowed import PackedConv, conv2d

torch.manual_seed(5)
x, weight, bias = torch.randn(9, 11, 20), torch.randn(37, 20, 3, 3), torch.randn(37)
y = conv2d(x, PackedConv(weight, padding=1), Window(0, 9, 0, 11), bias=bias, activation="relu")
print(native.require().active_isa(), hashlib.sha256(y.tobytes()).hexdigest())
"""


def run_with_isa(isa: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "TRACENET_ISA": isa}
    return subprocess.run([sys.executable, "-c", DIGEST], capture_output=True, text=True, check=False, env=environment)


def test_the_environment_chooses_the_instruction_set() -> None:
    torch.manual_seed(5)
    x, weight, bias = torch.randn(9, 11, 20), torch.randn(37, 20, 3, 3), torch.randn(37)
    y = conv2d(x, PackedConv(weight, padding=1), Window(0, 9, 0, 11), bias=bias, activation="relu")
    result = run_with_isa("portable")
    assert result.stdout.split() == ["portable", hashlib.sha256(y.tobytes()).hexdigest()], result.stderr
    refused = run_with_isa("sse9")
    assert refused.returncode != 0
    assert "InputError: TRACENET_ISA is sse9" in refused.stderr


@pytest.mark.parametrize("factor", [1, 2, 3])
def test_residuals_are_upsampled_by_nearest(factor: int) -> None:
    case = Case(10, 21, height=12, width=18)
    x, weight, _, bias = case.tensors()
    small = torch.randn(12 // factor, 18 // factor, 21)
    whole = case.reference(x, weight) + bias.double()
    whole += small.double().repeat_interleave(factor, 0).repeat_interleave(factor, 1)
    window = Window(3, 11, 5, 16)
    part = Window(3 // factor, 10 // factor + 1, 5 // factor, 15 // factor + 1)
    y = conv2d(x, case.pack(weight), window, bias=bias, residual=embed(small, part), residual_factor=factor)
    assert_close(torch.from_numpy(y), whole[window.slices])


def test_the_residual_may_be_the_output() -> None:
    case = CASES["3x3"]
    x, weight, _, bias = case.tensors()
    before = torch.randn(*case.out_size, case.outputs)
    out = before.clone()
    conv2d(x, case.pack(weight), case.full, out=out, bias=bias, residual=out)
    assert_close(out, case.reference(x, weight) + bias.double() + before.double())


@pytest.mark.parametrize("isa", instruction_sets())
def test_jobs_share_weights_and_keep_their_own_epilogue(isa: str) -> None:
    case = CASES["3x3 theta"]
    _, weight, _, _ = case.tensors()
    packed = case.pack(weight, isa)
    sizes = ((9, 9), (7, 7), (4, 6), (1, 2), (1, 1))
    jobs, alone = [], []
    for level, (height, width) in enumerate(sizes):
        x = torch.randn(height, width, 16)
        window = Window(height // 3, height, 0, max(width - 1, 1))
        epilogue: dict[str, Any] = {"activation": ("none", "relu")[level % 2]}
        if level != 1:
            epilogue["bias"] = torch.randn(169)
        if level != 2:
            epilogue["scale"] = torch.rand(169)
        if level == 3:
            epilogue["residual"] = torch.randn(height, width, 169)
        out = poisoned(height, width, 169)
        jobs.append(ConvJob(x, out, window, **epilogue))
        alone.append(conv2d(x, packed, window, **epilogue))
    jobs.insert(2, ConvJob(torch.randn(3, 3, 16), poisoned(3, 3, 169), Window(1, 1, 0, 3)))  # empty: nothing happens
    conv2d_jobs(packed, jobs)
    assert jobs.pop(2).out.isnan().all()
    for job, expected in zip(jobs, alone, strict=True):
        assert_only_written(job.out, [job.window], axes=(0, 1))
        assert torch.equal(job.out[job.window.slices], torch.from_numpy(expected))
    conv2d_jobs(packed, [])


def test_pieces_of_one_plane_run_together() -> None:
    case = CASES["3x3 strided"]
    x, weight, _, _ = case.tensors()
    out = poisoned(*case.out_size, case.outputs)
    pieces = [Window(0, 2, 0, 9), Window(2, 5, 0, 3), Window(2, 5, 6, 9), Window(5, 7, 0, 9)]
    conv2d_jobs(case.pack(weight), [ConvJob(x, out, piece) for piece in pieces])
    assert_only_written(out, pieces, axes=(0, 1))
    full = torch.from_numpy(conv2d(x, case.pack(weight), case.full))
    for piece in pieces:
        assert torch.equal(out[piece.slices], full[piece.slices])


@pytest.mark.parametrize("isa", instruction_sets())
def test_nan_and_infinity_travel_as_in_torch(isa: str) -> None:
    x = torch.zeros(3, 4, 2)
    x[1, 1, 0] = torch.nan
    weight = torch.ones(5, 2, 3, 3)
    weight[4, 1, 0, 0] = torch.inf  # meets padding: inf * 0 is NaN
    expected = F.conv2d(x.permute(2, 0, 1)[None], weight, padding=1)[0].relu().permute(1, 2, 0)
    y = conv2d(x, PackedConv(weight, padding=1, isa=isa), Window(0, 3, 0, 4), activation="relu")
    np.testing.assert_array_equal(y, expected.numpy())


def test_identity_kernels_return_their_input() -> None:
    x = torch.randn(6, 7, 40)
    weight = torch.zeros(40, 40, 3, 3)
    weight[torch.arange(40), torch.arange(40), 1, 1] = 1
    y = conv2d(x, PackedConv(weight, padding=1), Window(0, 6, 0, 7))
    np.testing.assert_array_equal(y, x.numpy())


@st.composite
def cases(draw: st.DrawFn) -> tuple[Case, Window, int, bool]:
    groups = draw(st.integers(1, 4))
    depthwise = draw(st.booleans())
    axis = st.tuples(st.integers(1, 4), st.integers(1, 3), st.integers(0, 4), st.integers(1, 3))
    (ky, sy, py, dy), (kx, sx, px, dx) = draw(axis), draw(axis)
    inputs = groups if depthwise else groups * draw(st.integers(1, 20))
    case = Case(
        inputs=inputs,
        outputs=groups if depthwise else groups * draw(st.integers(1, 37)),
        kernel=(ky, kx),
        stride=(sy, sx),
        padding=(py, px),
        dilation=(dy, dx),
        groups=groups,
        height=draw(st.integers(max(1, dy * (ky - 1) + 1 - 2 * py), 14)),
        width=draw(st.integers(max(1, dx * (kx - 1) + 1 - 2 * px), 14)),
    )
    rows, columns = case.out_size
    y0, x0 = draw(st.integers(0, rows - 1)), draw(st.integers(0, columns - 1))
    window = Window(y0, draw(st.integers(y0 + 1, rows)), x0, draw(st.integers(x0 + 1, columns)))
    return case, window, draw(st.integers(0, 3)), draw(st.booleans())


@settings(max_examples=150, deadline=None)
@given(cases(), st.sampled_from(instruction_sets() or ["portable"]))
def test_any_convolution_on_any_window(drawn: tuple[Case, Window, int, bool], isa: str) -> None:
    case, window, gap, relu = drawn
    x, weight, scale, bias = case.tensors()
    out = poisoned(*case.out_size, case.outputs)
    source = embed(x, case.demand(window), gap, gap)
    packed = case.pack(weight, isa)
    conv2d(source, packed, window, out=out, scale=scale, bias=bias, activation="relu" if relu else "none")
    expected = case.reference(x, weight) * scale.double() + bias.double()
    assert_only_written(out, [window], axes=(0, 1))
    # One tolerance for the plane: a window of a few cells may cancel to nearly nothing.
    expected = expected.relu() if relu else expected
    out = torch.where(out.isnan(), expected.float(), out)
    assert_close(out, expected)


def _x() -> Tensor:
    return torch.zeros(6, 7, 8)


def _packed(**changes: Any) -> PackedConv:
    return PackedConv(torch.zeros(5, 8, 3, 3), **{"padding": 1, **changes})


FULL = Window(0, 6, 0, 7)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: PackedConv(torch.zeros(5, 8, 3)), "C-ordered array"),
        (lambda: PackedConv(torch.zeros(5, 8, 3, 3).double()), "float64"),
        (lambda: PackedConv(torch.zeros(5, 8, 3, 0)), "kernel 0"),
        (lambda: PackedConv(torch.zeros(0, 8, 3, 3)), "groups is 1"),
        (lambda: PackedConv(torch.zeros(5, 0, 3, 3)), "0 input"),
        (lambda: _packed(stride=0), "stride 0"),
        (lambda: _packed(padding=-1), "padding -1"),
        (lambda: _packed(dilation=(1, 0)), "dilation 0"),
        (lambda: _packed(stride=(1, 2, 3)), "tuple"),
        (lambda: _packed(stride=2.0), "integer"),
        (lambda: _packed(padding=2**63), "64 bits"),
        (lambda: _packed(groups=0), "groups is 0"),
        (lambda: _packed(groups=2), "multiples of the groups"),
        (lambda: _packed(groups=2**62), "groups is"),
        (lambda: _packed(isa="mmx"), "'mmx' is not known"),
        (lambda: conv2d(_x(), _packed(isa="neon"), FULL), "packed for neon"),
        (lambda: conv2d(_x()[..., :7], _packed(), FULL), "7 channels"),
        (lambda: conv2d(_x().numpy()[::-1], _packed(), FULL), "backwards"),
        (lambda: conv2d(_x().permute(0, 2, 1), _packed(), FULL), "channels"),
        (lambda: conv2d(_x()[None], _packed(), FULL), "batch axis"),
        (lambda: conv2d(torch.zeros(6, 1, 8).expand(6, 7, 8), _packed(), FULL), "overlap"),
        (lambda: conv2d(_x(), _packed(), FULL, extent=Window(0, 6, 0, 7), plane=(9, 7)), "reads"),
        (lambda: conv2d(_x(), _packed(), FULL, out=torch.zeros(6, 6, 5)), "not inside the extent"),
        (lambda: conv2d(_x(), _packed(), FULL, out=torch.zeros(6, 7, 6)), "6 channels"),
        (lambda: conv2d(_x(), _packed(), FULL, out=np.zeros((6, 7, 5), np.float64)), "float64"),
        (lambda: conv2d(_x(), _packed(), FULL, out=_read_only(6, 7, 5)), "read-only"),
        (lambda: conv2d(_x(), _packed(), FULL, bias=torch.zeros(4)), "bias: pass 5"),
        (lambda: conv2d(_x(), _packed(), FULL, scale=torch.zeros(10)[::2]), "scale: pass 5 contiguous"),
        (lambda: conv2d(_x(), _packed(), FULL, activation="gelu"), "'gelu'"),
        (lambda: conv2d(_x(), _packed(), FULL, residual=torch.zeros(6, 6, 5)), "residual, which holds"),
        (lambda: conv2d(_x(), _packed(), FULL, residual=torch.zeros(6, 7, 4)), "residual has 4 channels"),
        (
            lambda: conv2d(_x(), _packed(), FULL, residual=torch.zeros(6, 7, 5), residual_factor=0),
            "residual_factor is 0",
        ),
        (
            lambda: conv2d(_x(), _packed(), FULL, residual=torch.zeros(2, 4, 5), residual_factor=2),
            "residual, which holds",
        ),
        (lambda: set_threads(-1), "threads is -1"),
        (lambda: set_threads(2**40), "threads is"),
        (lambda: set_threads(100_000), "threads"),
        (lambda: set_threads(True), "integer"),
    ],
)
def test_bad_arguments_are_input_errors(call: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        call()


def _read_only(*shape: int) -> np.ndarray[Any, Any]:
    array = np.zeros(shape, np.float32)
    array.flags.writeable = False
    return array


def test_windows_off_the_plane_are_errors() -> None:
    with pytest.raises(WindowError):
        conv2d(_x(), _packed(), (3, 2, 0, 7))  # type: ignore[arg-type]
    with pytest.raises(TraceNetError):
        conv2d(_x(), _packed(), Window(0, 2**62, 0, 1), out=torch.zeros(1, 1, 5))
    with pytest.raises(TraceNetError):
        conv2d(_x(), _packed(), Window(-1, 1, 0, 7), out=torch.zeros(6, 7, 5))


def test_shared_memory_is_refused_before_anything_is_written() -> None:
    square = PackedConv(torch.ones(8, 8, 3, 3), padding=1)
    x = torch.ones(6, 7, 8)
    with pytest.raises(InputError, match="shares memory with what the window reads"):
        conv2d(x, square, FULL, out=x)
    out = torch.zeros(7, 7, 8)
    shifted = as_plane(out[1:], "residual")
    with pytest.raises(InputError, match="shares memory with the residual"):
        conv2d(x, square, FULL, out=out[:6], residual=shifted)
    with pytest.raises(InputError, match="two jobs write"):
        conv2d_jobs(square, [ConvJob(x, out, Window(0, 3, 0, 7)), ConvJob(x, out, Window(2, 4, 6, 7))])
    assert (x == 1).all() and (out == 0).all()


def test_disjoint_parts_of_one_buffer_are_allowed() -> None:
    square = PackedConv(torch.ones(8, 8, 3, 3), padding=1)
    both = torch.zeros(6, 7, 16)
    both[..., :8] = torch.randn(6, 7, 8)
    expected = conv2d(both[..., :8].contiguous(), square, FULL)
    conv2d(both[..., :8], square, FULL, out=both[..., 8:])  # channels of one buffer
    np.testing.assert_array_equal(both[..., 8:].numpy(), expected)
    tall = torch.zeros(12, 7, 8)
    tall[:6] = both[..., :8]
    conv2d(tall[:6], square, FULL, out=tall[6:])
    np.testing.assert_array_equal(tall[6:].numpy(), expected)
