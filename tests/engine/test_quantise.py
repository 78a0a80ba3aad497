"""Calibration and the pass to 8 bits: ranges, which planes change, and how far results move."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import tracenet
from tests.engine.networks import randomised, tracenet_inputs, tracenet_model
from tracenet.engine.lower import lower
from tracenet.engine.quantise import Calibration, Histogram, Range, calibrate, load_ranges, quantise, save_ranges
from tracenet.engine.reference import run_schedule
from tracenet.engine.schedule import Schedule
from tracenet_kernels import native
from tracenet_kernels.errors import InputError
from tracenet_kernels.testing import errors
from tracenet_kernels.window import Window
from tracenet_kernels.windowed_int8 import (
    Int8ConvJob,
    PackedInt8Conv,
    Quantisation,
    conv2d_int8_jobs,
    quantise_weight,
)


class Chain(nn.Module):
    """A stem, a block with a shortcut, a pooling in between and two outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.a = nn.Conv2d(8, 12, 1)
        self.b = nn.Conv2d(12, 8, 3, padding=1)
        self.pooled = nn.Conv2d(8, 5, 3, stride=2, padding=1)
        self.out = nn.Conv2d(8, 4, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = self.stem(x).relu()
        x = (self.b(self.a(x).relu()) + x).relu()
        return self.out(x), self.pooled(nn.functional.avg_pool2d(x, 2))


def lowered(model: nn.Module, *inputs: Tensor) -> Schedule:
    return lower(tracenet.trace(model, inputs).graph)


@pytest.fixture(scope="module")
def chain() -> tuple[Schedule, dict[str, Range]]:
    torch.manual_seed(0)
    schedule = lowered(randomised(Chain()), torch.randn(1, 3, 20, 24))
    return schedule, calibrate(schedule, [(torch.randn(1, 3, 20, 24),) for _ in range(4)])


@pytest.fixture(scope="module")
def whole() -> tuple[Schedule, Schedule, tuple[Tensor, ...]]:
    """A TraceNet's schedule, the same in 8 bits, and inputs."""
    torch.manual_seed(0)
    model = tracenet_model(level_head=True)
    inputs = tracenet_inputs(model)
    schedule = lowered(model, *inputs)
    return schedule, quantise(schedule, calibrate(schedule, [inputs])), inputs


def dtypes(schedule: Schedule) -> dict[str, str]:
    return {plane.name: plane.dtype for plane in schedule.planes}


def test_which_planes_become_uint8(chain: tuple[Schedule, dict[str, Range]]) -> None:
    schedule = quantise(*chain)
    ops = Counter(step.op for step in schedule.steps)
    # Two conversions: of the stem's plane, and of what the pooling gives. The block's plane is read by a pooling as
    # well, so it stays fp32 and is converted for the output's convolution.
    assert ops["convert"] == 3
    found = dtypes(schedule)
    inner = next(plane.name for plane in schedule.planes if plane.channels == 12)
    assert found[inner] == "uint8"
    assert sum(dtype == "uint8" for dtype in found.values()) == 4
    for number in (*schedule.inputs, *schedule.outputs.values()):
        assert schedule.planes[number].dtype == "float32"


def test_a_quantised_schedule_is_well_formed(whole: tuple[Schedule, Schedule, tuple[Tensor, ...]]) -> None:
    before, after, _ = whole
    ready = set(after.inputs)
    assert len({plane.name for plane in after.planes}) == len(after.planes)
    for step in after.steps:
        assert ready.issuperset(step.inputs)
        ready.add(step.output)
        assert after.planes[step.output].name == step.name
        sources = [after.planes[number].dtype for number in step.inputs]
        output = after.planes[step.output].dtype
        if step.op == "convert":
            assert (sources, output) == (["float32"], "uint8")
        elif step.op != "conv2d" or sources[0] == "float32":
            assert {*sources, output} == {"float32"}
    for group in {step.group for step in after.steps} - {0}:
        at = [i for i, step in enumerate(after.steps) if step.group == group]
        assert at == list(range(at[0], at[-1] + 1))
        assert len({after.planes[after.steps[i].inputs[0]].dtype for i in at}) == 1
    assert [step.name for step in after.steps if step.op != "convert"] == [step.name for step in before.steps]
    assert after.outputs == before.outputs
    int8 = [step for step in after.steps if step.op == "conv2d" and after.planes[step.inputs[0]].dtype == "uint8"]
    assert len(int8) == sum(step.op == "conv2d" for step in before.steps)
    # What is read on the way is uint8 although it is an output as well; results are not.
    read = {number for step in after.steps for number in step.inputs}
    for name, number in after.outputs.items():
        assert after.planes[number].dtype == "float32" or number in read, name
    assert after.planes[after.outputs["C3"]].dtype == after.planes[after.outputs["P3"]].dtype == "uint8"
    copies = Counter(step.inputs[0] for step in after.steps if step.op == "convert")
    assert set(copies.values()) == {1}
    assert len(copies) < len(int8) / 8


def test_planes_behind_a_relu_have_zero_point_zero(whole: tuple[Schedule, Schedule, tuple[Tensor, ...]]) -> None:
    _, after, _ = whole
    seen = 0
    for step in after.steps:
        plane = after.planes[step.output]
        if plane.dtype == "uint8" and step.ints.get("activation"):
            seen += 1
            assert plane.zero_point == 0
    assert seen > 10
    assert any(plane.zero_point > 50 for plane in after.planes)


def test_results_stay_close(whole: tuple[Schedule, Schedule, tuple[Tensor, ...]]) -> None:
    before, after, inputs = whole
    real, approximate = run_schedule(before, inputs), run_schedule(after, inputs)
    assert real.keys() == approximate.keys()
    for name in real:
        assert errors(approximate[name], real[name]).frobenius < 0.12, name
    assert any(not torch.equal(real[name], approximate[name]) for name in real)


def test_integers_are_exact() -> None:
    """Weights and activations that 8 bits hold give the fp32 result itself."""
    torch.manual_seed(1)
    model = nn.Sequential(nn.AvgPool2d(1), nn.Conv2d(3, 4, 3, padding=1, bias=False)).eval()
    weight = torch.randint(-126, 127, (4, 3, 3, 3)).float()
    weight[:, 0, 0, 0] = 127
    model[1].weight.data = weight
    x = torch.randint(0, 256, (1, 3, 9, 7)).float()
    schedule = lowered(model, x)
    pooled = schedule.planes[schedule.steps[0].output].name
    result = run_schedule(quantise(schedule, {pooled: Range(0.0, 255.0)}), (x,))
    torch.testing.assert_close(next(iter(result.values())), model(x), rtol=0, atol=0)


def test_steps_can_stay_fp32(chain: tuple[Schedule, dict[str, Range]]) -> None:
    schedule, ranges = chain
    convs = [step.name for step in schedule.steps if step.op == "conv2d"]
    same = quantise(schedule, ranges, keep_fp32=convs)
    assert same.planes == schedule.planes
    assert [step.name for step in same.steps] == [step.name for step in schedule.steps]
    assert quantise(schedule, {}).planes == schedule.planes
    with pytest.raises(InputError, match="no step is called 'nothing'"):
        quantise(schedule, ranges, keep_fp32=["nothing"])


def test_a_launch_is_of_one_kind(whole: tuple[Schedule, Schedule, tuple[Tensor, ...]]) -> None:
    before, _, inputs = whole
    ranges = calibrate(before, [inputs])
    step = next(step for step in before.steps if step.group)
    after = quantise(before, ranges, keep_fp32=[step.name])
    for member in after.steps:
        if member.group == step.group:
            assert after.planes[member.inputs[0]].dtype == "float32"


def test_sums_of_too_many_terms_stay_fp32() -> None:
    model = nn.Sequential(nn.AvgPool2d(1), nn.Conv2d(33000, 1, 1)).eval()
    x = torch.randn(1, 33000, 1, 1)
    schedule = lowered(model, x)
    assert all(plane.dtype == "float32" for plane in quantise(schedule, calibrate(schedule, [(x,)])).planes)


def test_calibration_needs_samples(chain: tuple[Schedule, dict[str, Range]]) -> None:
    schedule, _ = chain
    with pytest.raises(InputError, match="no samples"):
        calibrate(schedule, [])
    with pytest.raises(InputError, match="not finite"):
        calibrate(schedule, [(torch.full((1, 3, 20, 24), torch.nan),)])


def test_calibration_at_several_sizes(chain: tuple[Schedule, dict[str, Range]]) -> None:
    """Planes are told apart by name, so that images of all sizes count."""
    schedule, _ = chain
    torch.manual_seed(0)
    other = lowered(randomised(Chain()), torch.randn(1, 3, 32, 16))
    calibration = Calibration()
    x = torch.randn(1, 3, 20, 24)
    calibration.add(schedule, (x,))
    small = calibration.ranges()
    calibration.add(other, (10 * torch.randn(1, 3, 32, 16),))
    large = calibration.ranges()
    assert calibration.samples == 2
    assert small.keys() == large.keys()
    assert all(large[name].high > 2 * small[name].high for name in small)


def test_ranges_as_a_file(chain: tuple[Schedule, dict[str, Range]], tmp_path: Path) -> None:
    _, ranges = chain
    save_ranges(ranges, tmp_path / "ranges.json")
    assert load_ranges(tmp_path / "ranges.json") == ranges
    for text in ("", "[1]", '{"a": 1}', '{"a": ["x", 1]}', '{"a": [1, 2, 3]}'):
        (tmp_path / "wrong.json").write_text(text)
        with pytest.raises(InputError, match="holds no ranges"):
            load_ranges(tmp_path / "wrong.json")
    with pytest.raises(InputError, match="holds no ranges"):
        load_ranges(tmp_path / "absent.json")


def test_bad_ranges_are_input_errors(chain: tuple[Schedule, dict[str, Range]]) -> None:
    schedule, ranges = chain
    name = next(iter(ranges))
    for bad in (Range(1.0, 0.0), Range(0.0, float("inf")), Range(float("nan"), 1.0)):
        with pytest.raises(InputError, match="range"):
            quantise(schedule, {**ranges, name: bad})


def squared_error(values: Tensor, low: float, high: float) -> float:
    grid = Quantisation.of_range(low, high)
    steps = (values / grid.scale).round().add(grid.zero_point).clamp(0, 255)
    return float(((steps - grid.zero_point) * grid.scale - values).double().pow(2).mean())


def test_a_range_cuts_outliers_off() -> None:
    values = torch.randn(200_000, generator=torch.Generator().manual_seed(0))
    values[0], values[1] = 60.0, -11.0
    histogram = Histogram()
    histogram.add(values)
    found = histogram.range()
    assert found.high < 50
    assert squared_error(values, found.low, found.high) < 0.8 * squared_error(values, -11.0, 60.0)
    # Near the best of many.
    ends = [(low, high) for low in np.linspace(-11, -2, 19) for high in np.linspace(2, 60, 30)]
    best = min(squared_error(values, low, high) for low, high in ends)
    assert squared_error(values, found.low, found.high) < 1.3 * best


def test_a_histogram_grows() -> None:
    parts = [torch.rand(5000, generator=torch.Generator().manual_seed(i)) * 4.0**i - 0.5 for i in range(4)]
    histogram = Histogram()
    for part in parts:
        histogram.add(part)
    everything = torch.cat(parts)
    assert histogram.counts.sum() == everything.numel()
    assert histogram.reach == 64
    assert (histogram.low, histogram.high) == (float(everything.min()), float(everything.max()))
    centres = (np.arange(len(histogram.counts)) + 0.5) * (128 / len(histogram.counts)) - 64
    mean = (histogram.counts * centres).sum() / histogram.counts.sum()
    assert mean == pytest.approx(float(everything.mean()), abs=128 / len(histogram.counts))


def test_planes_of_zeros_and_of_one_sign() -> None:
    nothing = Histogram()
    nothing.add(torch.zeros(10))
    assert nothing.range() == Range(0.0, 0.0)
    nothing.add(torch.rand(1000) + 1)
    found = nothing.range()
    assert found.low == 0
    assert 1 < found.high <= 2
    assert Quantisation.of_range(found.low, found.high).zero_point == 0


@pytest.mark.skipif(not native.available(), reason=native.why_not())
def test_the_kernel_gives_the_bits_of_the_oracle(chain: tuple[Schedule, dict[str, Range]]) -> None:
    schedule = quantise(*chain)
    values: dict[int, Tensor] = {}
    run_schedule(schedule, (torch.randn(1, 3, 20, 24),), observe=values.__setitem__)
    checked = 0
    for step in schedule.steps:
        sources = [schedule.planes[number] for number in step.inputs]
        if step.op != "conv2d" or sources[0].dtype != "uint8":
            continue
        plane = schedule.planes[step.output]
        stride, padding = step.ints.get("stride_y", 1), step.ints.get("pad_y", 0)
        packed = PackedInt8Conv(
            *quantise_weight(schedule.tensors[step.tensors["weight"]]), stride=stride, padding=padding
        )
        operands = [values[number][0].permute(1, 2, 0).contiguous() for number in step.inputs]
        expected = values[step.output][0].permute(1, 2, 0)
        out = torch.zeros(plane.height, plane.width, plane.channels, dtype=getattr(torch, plane.dtype))
        grids = [Quantisation(p.scale, p.zero_point) if p.dtype == "uint8" else None for p in [*sources, plane]]
        assert grids[0] is not None
        job = Int8ConvJob(operands[0], grids[0], out, Window(0, plane.height, 0, plane.width), grids[-1])
        job = replace(
            job,
            bias=schedule.tensors[step.tensors["bias"]],
            residual=operands[1] if len(operands) > 1 else None,
            residual_quantisation=grids[1] if len(operands) > 1 else None,
            activation="relu" if step.ints.get("activation") else "none",
        )
        conv2d_int8_jobs(packed, [job])
        assert torch.equal(out, expected), step.name
        checked += 1
    assert checked == 4
