"""8-bit windowed convolution: the same bits as the formula on every kernel, whatever the window."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from tracenet_kernels import native
from tracenet_kernels.arrays import as_plane
from tracenet_kernels.errors import InputError, WindowError
from tracenet_kernels.testing import assert_close
from tracenet_kernels.threads import set_threads
from tracenet_kernels.window import Window
from tracenet_kernels.windowed_int8 import (
    KERNELS,
    Int8ConvJob,
    PackedInt8Conv,
    Quantisation,
    conv2d_int8_jobs,
    dequantise,
    quantise,
    quantise_weight,
)

pytestmark = pytest.mark.skipif(not native.available(), reason=native.why_not())


def kernels() -> list[str]:
    """What this processor can run."""
    if not native.available():
        return []
    features = native.require().cpu_features()
    has = {"portable": True, "avx2": features["avx2_fma"], "avx512_vnni": features["avx512_vnni"]}
    return [kernel for kernel in KERNELS if has[kernel]]


@dataclass
class Case:
    """A convolution with random integers everywhere, as the formula sees it."""

    height: int = 9
    width: int = 11
    inputs: int = 8
    outputs: int = 33
    kernel: tuple[int, int] = (3, 3)
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int] = (1, 1)
    dilation: tuple[int, int] = (1, 1)
    groups: int = 1
    activation: str = "none"
    quantised: bool = True
    residual: str = "none"
    factor: int = 1
    scaled: bool = False

    def __post_init__(self) -> None:
        rng = np.random.default_rng(self.inputs * 100 + self.outputs)
        self.x = rng.integers(0, 256, (self.height, self.width, self.inputs)).astype(np.uint8)
        shape = (self.outputs, self.inputs // self.groups, *self.kernel)
        self.weight = rng.integers(-127, 128, shape).astype(np.int8)
        self.weight_scale = rng.uniform(1e-3, 1e-2, self.outputs).astype(np.float32)
        self.bias = rng.normal(size=self.outputs).astype(np.float32)
        self.scale = rng.uniform(0.5, 2, self.outputs).astype(np.float32) if self.scaled else None
        self.x_grid = Quantisation(0.013, 117)
        rows, columns = (
            (size + 2 * p - d * (k - 1) - 1) // s + 1
            for size, p, d, k, s in zip(
                (self.height, self.width), self.padding, self.dilation, self.kernel, self.stride, strict=True
            )
        )
        self.size = rows, columns
        self.residual_grid = Quantisation(0.05, 31) if self.residual == "uint8" else None
        coarse = (-(-rows // self.factor), -(-columns // self.factor), self.outputs)
        self.addend: NDArray[np.float32] | NDArray[np.uint8] | None = None
        if self.residual == "uint8":
            self.addend = rng.integers(0, 256, coarse).astype(np.uint8)
        elif self.residual == "float32":
            self.addend = rng.normal(size=coarse).astype(np.float32)
        real = self.real()
        self.out_grid = Quantisation.of_range(0.8 * float(real.min()), 0.8 * float(real.max()))

    def sums(self) -> NDArray[np.int64]:
        """Exact: float64 holds every integer here."""
        centred = torch.from_numpy(self.x).permute(2, 0, 1).double() - self.x_grid.zero_point
        sums = torch.nn.functional.conv2d(
            centred[None],
            torch.from_numpy(self.weight).double(),
            stride=self.stride,
            padding=self.padding,
            dilation=self.dilation,
            groups=self.groups,
        )
        return sums[0].permute(1, 2, 0).long().numpy()

    def real(self) -> NDArray[np.float32]:
        multiplier = np.float32(self.x_grid.scale) * self.weight_scale
        if self.scale is not None:
            multiplier = multiplier * self.scale
        y = self.sums().astype(np.float32) * multiplier + self.bias
        if self.addend is not None:
            rows, columns = (np.arange(size) // self.factor for size in self.size)
            addend = self.addend[rows][:, columns]
            if self.residual_grid is not None:
                centred = addend.astype(np.int32) - self.residual_grid.zero_point
                addend = centred.astype(np.float32) * np.float32(self.residual_grid.scale)
            y = y + addend
        return np.maximum(y, np.float32(0)) if self.activation == "relu" else y

    def expected(self) -> NDArray[np.float32] | NDArray[np.uint8]:
        return to_grid(self.real(), self.out_grid) if self.quantised else self.real()

    def packed(self) -> PackedInt8Conv:
        return PackedInt8Conv(
            self.weight,
            self.weight_scale,
            stride=self.stride,
            padding=self.padding,
            dilation=self.dilation,
            groups=self.groups,
        )

    def demand(self, window: Window) -> Window:
        return conv_demand(window, self)

    def job(
        self, out: NDArray[np.float32] | NDArray[np.uint8], window: Window, *, cropped: bool = False
    ) -> Int8ConvJob:
        """``cropped``: the input holds the cells the window needs and no more."""
        x = as_plane(self.x, "x", dtype=np.uint8)
        if cropped:
            need = self.demand(window)
            part = np.ascontiguousarray(self.x[need.slices])
            x = as_plane(part, "x", extent=need, plane=(self.height, self.width), dtype=np.uint8)
        return Int8ConvJob(
            x,
            self.x_grid,
            out,
            window,
            out_quantisation=self.out_grid if self.quantised else None,
            scale=self.scale,
            bias=self.bias,
            residual=self.addend,
            residual_quantisation=self.residual_grid,
            residual_factor=self.factor,
            activation=self.activation,
        )

    def run(self, window: Window | None = None, kernel: str | None = None, *, cropped: bool = False):
        """The whole output plane. What is outside the window keeps what it held, what is inside does not matter."""
        window = window or Window.full(*self.size)
        results = []
        for poison in (0, 255) if self.quantised else (np.nan, 7.0):
            dtype = np.uint8 if self.quantised else np.float32
            out = np.full((*self.size, self.outputs), poison, dtype)
            conv2d_int8_jobs(self.packed(), [self.job(out, window, cropped=cropped)], kernel=kernel)
            outside = np.ones(self.size, bool)
            outside[window.slices] = False
            np.testing.assert_array_equal(out[outside], np.full_like(out[outside], poison))
            results.append(out[window.slices])
        np.testing.assert_array_equal(results[0], results[1])
        return results[0]


def to_grid(y: NDArray[np.float32], grid: Quantisation) -> NDArray[np.uint8]:
    inverse = np.float32(1) / np.float32(grid.scale)
    steps = np.rint(y * inverse) + grid.zero_point
    return np.clip(steps, 0, 255).astype(np.uint8)


def conv_demand(window: Window, case: Case) -> Window:
    """Cells of the input that the window reads."""
    spans = []
    for begin, end, size, k, s, p, d in zip(
        (window.y0, window.x0),
        (window.y1, window.x1),
        (case.height, case.width),
        case.kernel,
        case.stride,
        case.padding,
        case.dilation,
        strict=True,
    ):
        first = min(max(begin * s - p, 0), size)
        last = min(max((end - 1) * s - p + d * (k - 1) + 1, first), size)
        spans += [first, last]
    return Window(*spans)


CASES = {
    "3x3": Case(),
    "1x1": Case(kernel=(1, 1), padding=(0, 0), inputs=64, outputs=64),
    "1x1 stride 2": Case(kernel=(1, 1), padding=(0, 0), stride=(2, 2), inputs=12, outputs=16),
    "7x7 stride 2": Case(kernel=(7, 7), padding=(3, 3), stride=(2, 2), inputs=3, outputs=10),
    "odd channels": Case(inputs=5, outputs=1),
    "two left over": Case(inputs=6, outputs=31),
    "dilated": Case(dilation=(2, 3), padding=(2, 3), inputs=4),
    "lopsided": Case(kernel=(1, 5), stride=(2, 1), padding=(0, 2), inputs=7, outputs=40),
    "groups": Case(groups=2, inputs=10, outputs=66),
    "depthwise": Case(groups=6, inputs=6, outputs=6),
    "more padding than plane": Case(height=2, width=1, padding=(4, 4), kernel=(3, 3)),
    "relu": Case(activation="relu"),
    "fp32 output": Case(quantised=False, scaled=True),
    "fp32 output, relu": Case(quantised=False, activation="relu", outputs=17),
    "residual": Case(residual="uint8", activation="relu"),
    "fp32 residual": Case(residual="float32"),
    "upsampled residual": Case(residual="uint8", factor=2, quantised=False),
    "upsampled fp32 residual": Case(residual="float32", factor=3, outputs=5),
}


@pytest.mark.parametrize("kernel", kernels())
@pytest.mark.parametrize("name", CASES)
def test_the_bits_of_the_formula(name: str, kernel: str) -> None:
    case = CASES[name]
    np.testing.assert_array_equal(case.run(kernel=kernel), case.expected())


@pytest.mark.parametrize("kernel", kernels())
@pytest.mark.parametrize("name", CASES)
def test_a_window_gives_the_bits_of_the_plane(name: str, kernel: str) -> None:
    case = CASES[name]
    rows, columns = case.size
    windows = [
        Window(0, 1, 0, 1),
        Window(rows - 1, rows, columns - 1, columns),
        Window(rows // 2, rows, 0, max(columns // 2, 1)),
        Window(rows // 3, rows // 3 + 1, 0, columns),
        Window(0, 0, 0, 0),
    ]
    for window in windows:
        found = case.run(window, kernel, cropped=True)
        np.testing.assert_array_equal(found, case.expected()[window.slices])


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_any_geometry(data: st.DataObject) -> None:
    draw = data.draw
    small = st.integers(1, 3)
    groups = draw(st.integers(1, 3))
    kernel = draw(st.tuples(small, small))
    dilation = draw(st.tuples(st.integers(1, 2), st.integers(1, 2)))
    padding = draw(st.tuples(st.integers(0, 3), st.integers(0, 3)))
    reach = [d * (k - 1) + 1 for k, d in zip(kernel, dilation, strict=True)]
    case = Case(
        height=draw(st.integers(max(reach[0] - 2 * padding[0], 1), 9)),
        width=draw(st.integers(max(reach[1] - 2 * padding[1], 1), 9)),
        inputs=groups * draw(st.integers(1, 9)),
        outputs=groups * draw(st.integers(1, 35)),
        kernel=kernel,
        stride=draw(st.tuples(small, small)),
        padding=padding,
        dilation=dilation,
        groups=groups,
        activation=draw(st.sampled_from(["none", "relu"])),
        quantised=draw(st.booleans()),
        residual=draw(st.sampled_from(["none", "uint8", "float32"])),
        factor=draw(st.integers(1, 2)),
    )
    rows, columns = case.size
    y, x = (draw(st.tuples(st.integers(0, n), st.integers(0, n)).map(sorted)) for n in (rows, columns))
    window = Window(*y, *x)
    np.testing.assert_array_equal(case.run(window, cropped=True), case.expected()[window.slices])


@pytest.mark.parametrize("kernel", kernels())
def test_the_largest_sums_do_not_overflow(kernel: str) -> None:
    # 32896 terms of 255 * -128, and of (0 - 255) * -128.
    weight = np.full((1, 32896, 1, 1), -128, np.int8)
    packed = PackedInt8Conv(weight, np.ones(1, np.float32))
    for value, zero_point in ((255, 0), (0, 255)):
        x = np.full((1, 1, 32896), value, np.uint8)
        out = np.zeros((1, 1, 1), np.float32)
        job = Int8ConvJob(x, Quantisation(1.0, zero_point), out, Window(0, 1, 0, 1))
        conv2d_int8_jobs(packed, [job], kernel=kernel)
        assert out.item() == float(np.float32((value - zero_point) * -128 * 32896))
    with pytest.raises(InputError, match="32897 terms"):
        PackedInt8Conv(np.zeros((1, 32897, 1, 1), np.int8), np.ones(1, np.float32))


def test_close_to_the_real_convolution() -> None:
    """Quantised weights and activations, multiplied in float64."""
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(40, 24, 3, 3, generator=generator).numpy()
    values, scale = quantise_weight(weight)
    grid = Quantisation.of_range(-3, 4)
    x = torch.randn(12, 13, 24, generator=generator).numpy()
    x8 = to_grid(x, grid)
    out = np.full((12, 13, 40), np.nan, np.float32)
    conv2d_int8_jobs(PackedInt8Conv(values, scale, padding=1), [Int8ConvJob(x8, grid, out, Window(0, 12, 0, 13))])
    rounded = (x8.astype(np.float64) - grid.zero_point) * grid.scale
    real_weight = torch.from_numpy(values.astype(np.float64) * scale[:, None, None, None])
    planes = torch.from_numpy(rounded).permute(2, 0, 1)
    reference = torch.nn.functional.conv2d(planes[None], real_weight, padding=1)[0].permute(1, 2, 0)
    assert_close(torch.from_numpy(out), reference)


def test_several_jobs_share_weights() -> None:
    big, small = Case(height=16, width=20), Case(height=5, width=3)
    small.weight, small.weight_scale = big.weight, big.weight_scale
    outs = [np.zeros((*case.size, case.outputs), np.uint8) for case in (big, small)]
    windows = [Window(0, 16, 0, 7), Window(3, 16, 7, 20)]
    jobs = [big.job(outs[0], window) for window in windows] + [small.job(outs[1], Window.full(*small.size))]
    conv2d_int8_jobs(big.packed(), jobs)
    for window in windows:
        np.testing.assert_array_equal(outs[0][window.slices], big.expected()[window.slices])
    np.testing.assert_array_equal(outs[1], small.expected())
    conv2d_int8_jobs(big.packed(), [])


def test_the_number_of_threads_does_not_matter() -> None:
    case = Case(height=33, width=40, inputs=16, outputs=70)
    try:
        for threads in (1, 3):
            set_threads(threads)
            np.testing.assert_array_equal(case.run(), case.expected())
    finally:
        set_threads(0)


def test_a_residual_may_be_the_output() -> None:
    case = Case(residual="uint8")
    assert case.addend is not None
    out = case.addend.copy()
    case.addend = out
    expected = case.expected()
    conv2d_int8_jobs(case.packed(), [case.job(out, Window.full(*case.size))])
    np.testing.assert_array_equal(out, expected)


def test_planes_with_gaps() -> None:
    case = Case(outputs=20)
    wide = np.zeros((case.height, case.width + 3, case.inputs + 5), np.uint8)
    wide[:, : case.width, 2 : 2 + case.inputs] = case.x
    out = np.zeros((*case.size, 50), np.uint8)
    expected = case.expected()
    case.x = wide[:, : case.width, 2 : 2 + case.inputs]
    conv2d_int8_jobs(case.packed(), [case.job(out[:, :, 11:31], Window.full(*case.size))])
    np.testing.assert_array_equal(out[:, :, 11:31], expected)
    assert not out[:, :, :11].any()
    assert not out[:, :, 31:].any()


def wrong_jobs() -> dict[str, tuple[Int8ConvJob, str]]:
    case = Case()
    full = Window.full(*case.size)
    out = np.zeros((*case.size, case.outputs), np.uint8)

    def job(**changes: object) -> Int8ConvJob:
        values = {name: getattr(case.job(out, full), name) for name in Int8ConvJob.__slots__}
        return Int8ConvJob(**{**values, **changes})

    part = as_plane(case.x[:4], "x", extent=Window(0, 4, 0, case.width), plane=case.x.shape[:2], dtype=np.uint8)
    frozen = out.copy()
    frozen.flags.writeable = False
    same = np.zeros((*case.size, case.outputs), np.uint8)
    return {
        "input dtype": (job(x=case.x.astype(np.float32)), "float32"),
        "output dtype": (job(out=out.astype(np.float32)), "float32"),
        "input channels": (job(x=case.x[:, :, :5].copy()), "channels"),
        "output channels": (job(out=out[:, :, :5].copy()), "channels"),
        "window": (job(window=Window(0, case.size[0] + 1, 0, 1)), "not inside the extent"),
        "input extent": (job(x=part), "not inside the extent"),
        "scale zero": (job(x_quantisation=Quantisation(0.0, 3)), "scale"),
        "scale nan": (job(out_quantisation=Quantisation(float("nan"), 3)), "scale"),
        "scale tiny": (job(out_quantisation=Quantisation(1e-42, 3)), "scale"),
        "zero point": (job(x_quantisation=Quantisation(1.0, 256)), "zero point"),
        "bias length": (job(bias=np.zeros(3, np.float32)), "bias"),
        "residual channels": (job(residual=np.zeros((9, 11, 4), np.float32)), "channels"),
        "residual size": (job(residual=np.zeros((3, 11, 33), np.float32)), "not inside the extent"),
        "residual factor": (job(residual=np.zeros((9, 11, 33), np.float32), residual_factor=0), "residual_factor"),
        "activation": (job(activation="gelu"), "gelu"),
        "read-only": (job(out=frozen), "read-only"),
        "overlap": (
            job(out=same, residual=same[::2], residual_quantisation=Quantisation(1.0, 0), residual_factor=2),
            "shares memory",
        ),
    }


@pytest.mark.parametrize("name", wrong_jobs())
def test_bad_jobs_are_refused_before_anything_is_written(name: str) -> None:
    case = Case()
    good_out = np.full((*case.size, case.outputs), 77, np.uint8)
    bad, message = wrong_jobs()[name]
    with pytest.raises((InputError, WindowError), match=message):
        conv2d_int8_jobs(case.packed(), [case.job(good_out, Window.full(*case.size)), bad])
    assert (good_out == 77).all()


def test_two_jobs_may_not_write_the_same_cells() -> None:
    case = Case()
    out = np.zeros((*case.size, case.outputs), np.uint8)
    jobs = [case.job(out, Window(0, 4, 0, 4)), case.job(out, Window(3, 6, 3, 6))]
    with pytest.raises(InputError, match="same cells"):
        conv2d_int8_jobs(case.packed(), jobs)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"weight": np.zeros((4, 4, 3), np.int8)}, "C-ordered"),
        ({"weight": np.zeros((4, 4, 3, 3), np.float32)}, "float32"),
        ({"weight": np.zeros((4, 0, 3, 3), np.int8)}, "in_channels"),
        ({"scale": np.zeros(3, np.float32)}, "scale"),
        ({"scale": np.array([1, 1, np.nan, 1], np.float32)}, "scale"),
        ({"groups": 3}, "groups"),
        ({"stride": 0}, "stride"),
        ({"padding": (-1, 0)}, "padding"),
    ],
)
def test_bad_weights_are_input_errors(changes: dict[str, object], message: str) -> None:
    values: dict[str, object] = {"weight": np.zeros((4, 4, 3, 3), np.int8), "scale": np.ones(4, np.float32), **changes}
    with pytest.raises(InputError, match=message):
        PackedInt8Conv(values.pop("weight"), values.pop("scale"), **values)  # type: ignore[arg-type]


def test_an_unknown_kernel_is_an_input_error() -> None:
    case = Case()
    with pytest.raises(InputError, match="avx512_vnni, avx2 or portable"):
        case.run(kernel="amx")


@pytest.mark.parametrize("channels", [1, 16, 33])
def test_quantise_rounds_half_to_even_and_saturates(channels: int) -> None:
    grid = Quantisation(0.5, 10)
    steps = np.array(
        [-100, -11, -10.5, -10, -9.5, -1.5, -0.5, 0, 0.5, 1.5, 2.5, 244.5, 245, 245.5, 1e9, np.inf, -np.inf]
    )
    values = np.resize(steps, (3, 5, channels)).astype(np.float32) * np.float32(0.5)
    out = np.full((3, 5, channels), 123, np.uint8)
    window = Window(0, 3, 1, 4)
    quantise(values, grid, out, window)
    np.testing.assert_array_equal(out[window.slices], to_grid(values, grid)[window.slices])
    assert (out[:, 0] == 123).all()
    assert (out[:, 4] == 123).all()
    back = np.full(values.shape, np.nan, np.float32)
    dequantise(out, grid, back, window)
    expected = (out.astype(np.float32) - np.float32(10)) * np.float32(0.5)
    np.testing.assert_array_equal(back[window.slices], expected[window.slices])
    assert np.isnan(back[:, 0]).all()


def test_nan_becomes_the_smallest_integer() -> None:
    out = np.full((1, 1, 20), 9, np.uint8)
    quantise(np.full((1, 1, 20), np.nan, np.float32), Quantisation(1.0, 128), out, Window(0, 1, 0, 1))
    assert not out.any()


def test_quantise_refuses_what_does_not_fit() -> None:
    plane = np.zeros((2, 2, 3), np.float32)
    with pytest.raises(InputError, match="channels"):
        quantise(plane, Quantisation(1.0, 0), np.zeros((2, 2, 4), np.uint8), Window(0, 2, 0, 2))
    with pytest.raises(InputError, match="not inside the extent"):
        dequantise(np.zeros((1, 2, 3), np.uint8), Quantisation(1.0, 0), plane, Window(0, 2, 0, 2))
    with pytest.raises(InputError, match="scale"):
        quantise(plane, Quantisation(-1.0, 0), np.zeros((2, 2, 3), np.uint8), Window(0, 2, 0, 2))


@given(st.floats(-1e6, 1e6, width=32), st.floats(-1e6, 1e6, width=32))
def test_a_range_is_covered_and_holds_zero(a: float, b: float) -> None:
    low, high = min(a, b), max(a, b)
    grid = Quantisation.of_range(low, high)
    assert 0 <= grid.zero_point <= 255
    for value in (low, high, 0.0):
        step = np.clip(np.rint(value / grid.scale) + grid.zero_point, 0, 255)
        assert abs((step - grid.zero_point) * grid.scale - value) <= 0.5001 * grid.scale


def test_weights_keep_half_a_step() -> None:
    weight = torch.randn(7, 5, 3, 3, generator=torch.Generator().manual_seed(1)).numpy()
    weight[3] = 0
    values, scale = quantise_weight(weight)
    assert np.abs(values.astype(int)).max() == 127
    assert not values[3].any()
    assert scale[3] == 1
    error = np.abs(values * scale[:, None, None, None] - weight)
    assert (error <= 0.5001 * scale[:, None, None, None]).all()
