"""conv2d on windows against its twin: geometries, borders, windows, epilogues, split sums, errors."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("triton")

import triton
import triton.language as tl

from tests.kernels.triton.convolutions import DEVICE, DTYPES, SMALL, Convolution, part
from tracenet_kernels.errors import InputError, WindowError
from tracenet_kernels.testing import assert_close, assert_only_written
from tracenet_kernels.triton import conv2d_launch
from tracenet_kernels.triton.configs import ConvConfig
from tracenet_kernels.triton.conv2d import conv2d, conv2d_launches
from tracenet_kernels.triton.conv2d_tile import tile_of
from tracenet_kernels.triton.planes import DevicePlane, Windows, interpreted
from tracenet_kernels.triton.split_k import Scratch
from tracenet_kernels.triton.weights import pack_weight
from tracenet_kernels.window import EMPTY, Window

POINTWISE = {"kernel": (1, 1), "padding": (0, 0)}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    "geometry",
    [
        POINTWISE,
        {**POINTWISE, "stride": (2, 2), "out_plane": (4, 5)},
        {},
        {"stride": (2, 2), "out_plane": (4, 5), "channels": 16, "out_channels": 16},
        {"kernel": (7, 7), "padding": (3, 3), "stride": (2, 2), "out_plane": (4, 5), "channels": 3},
        {"dilation": (2, 3), "padding": (2, 3), "kernel": (3, 2), "stride": (1, 2), "out_plane": (7, 5)},
        {"groups": 2, "channels": 34, "out_channels": 42},
        {"groups": 6, "channels": 6, "out_channels": 6},
        {"kernel": (3, 3), "padding": (0, 0), "out_plane": (5, 7)},
        {"out_plane": (10, 11)},
    ],
    ids=["1x1", "1x1s2", "3x3", "3x3s2", "7x7s2", "dilated", "grouped", "depthwise", "valid", "past-the-end"],
)
def test_every_geometry_gives_what_its_twin_gives(geometry: dict[str, Any], dtype: torch.dtype) -> None:
    case = Convolution(dtype=dtype, **geometry)
    rows, columns = case.out_plane
    case.check([Window(0, 2, 0, columns), Window(rows - 1, rows, columns - 2, columns)])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("residual_factor", [1, 2, 3])
def test_the_epilogue_adds_residuals_and_clips(residual_factor: int, dtype: torch.dtype) -> None:
    case = Convolution(dtype=dtype, residual_factor=residual_factor, activation="relu", channels=16)
    case.check([Window(1, 4, 2, 9), Window(5, 7, 0, 3)])
    assert (case.expected == 0).any()
    Convolution(dtype=dtype, scaled=False, channels=5).check([Window(3, 5, 3, 6)])


@given(data=st.data())
@settings(max_examples=10)
def test_any_window_is_bit_identical_to_the_whole_plane(data: st.DataObject) -> None:
    side, kernel = st.integers(1, 6), st.integers(1, 3)
    stride = data.draw(st.tuples(st.integers(1, 2), st.integers(1, 2)))
    plane = data.draw(st.tuples(side, side))
    case = Convolution(
        plane=plane,
        channels=data.draw(st.integers(1, 20)),
        out_channels=data.draw(st.integers(1, 20)),
        kernel=data.draw(st.tuples(kernel, kernel)),
        stride=stride,
        padding=data.draw(st.tuples(st.integers(0, 2), st.integers(0, 2))),
        dilation=data.draw(st.tuples(st.integers(1, 2), st.integers(1, 2))),
        out_plane=(-(-plane[0] // stride[0]), -(-plane[1] // stride[1])),
        dtype=data.draw(st.sampled_from(DTYPES)),
        residual_factor=data.draw(st.integers(0, 2)),
    )
    rows, columns = case.out_plane
    y0, x0 = data.draw(st.integers(0, rows - 1)), data.draw(st.integers(0, columns - 1))
    window = Window(y0, data.draw(st.integers(y0, rows)), x0, data.draw(st.integers(x0, columns)))
    config = ConvConfig(16, 16, 16, split_k=data.draw(st.integers(1, 3)), swap=data.draw(st.booleans()))
    whole = case.check([Window.full(rows, columns)], config)
    assert torch.equal(case.check([window], config)[window.slices], whole[window.slices])


@pytest.mark.parametrize("config", [ConvConfig(16, 32, 32), ConvConfig(32, 16, 64, split_k=2), None], ids=str)
def test_blocks_of_every_shape(config: ConvConfig | None) -> None:
    case, window = Convolution(channels=40, out_channels=36), Window(2, 7, 1, 8)
    for swap in (False, True) if config else (False,):
        chosen = config and replace(config, swap=swap)
        out = case.run([window], chosen)
        assert_close(out[window.slices], case.expected[window.slices])


def test_many_column_tiles_are_all_computed() -> None:
    case = Convolution(**POINTWISE, channels=4, out_channels=150)
    case.check([Window(2, 5, 0, 9)])


@triton.jit
def tiles_kernel(out, cell_tiles, column_tiles, GROUP_M: tl.constexpr):
    program = tl.program_id(0)
    cell_tile, column_tile = tile_of(program, cell_tiles, column_tiles, GROUP_M)
    tl.store(out + program * 2, cell_tile)
    tl.store(out + program * 2 + 1, column_tile)


def test_programs_share_out_all_tiles_group_by_group() -> None:
    for rows, columns, group in ((5, 3, 1), (7, 3, 4), (2, 5, 4), (4, 2, 4)):
        tiles = torch.full((rows * columns, 2), -1, dtype=torch.int32, device=DEVICE)
        tiles_kernel[(rows * columns,)](tiles, rows, columns, group)
        found = [tuple(tile) for tile in tiles.tolist()]
        assert sorted(found) == [(row, column) for row in range(rows) for column in range(columns)]
        if group > 1:
            assert {row for row, _ in found[: columns * min(group, rows)]} == set(range(min(group, rows)))


def test_programs_past_a_window_do_nothing() -> None:
    case = Convolution()
    table = torch.tensor([[9, 9, 9, 9], [0, 7, 0, 9], [3, 4, 5, 6], [2, 2, 0, 9], [4, 3, 0, 9]], dtype=torch.int32)
    out, scratch = case.out(), Scratch(DEVICE)
    windows = Windows(table.to(DEVICE), 2, 3, bound=(7, 9))
    (launch,) = conv2d_launches(
        case.x,
        case.weight,
        out,
        windows,
        config=ConvConfig(16, 16, 16, split_k=2),
        scratch=scratch,
        **case.epilogue,
    )
    assert launch.grid == (4 * 2, 3, 2)
    launch()
    window = Window(3, 4, 5, 6)
    assert_only_written(out, [window], axes=(0, 1))
    assert_close(out[window.slices], case.expected[window.slices])
    assert not scratch.counters(0).any()


def test_the_same_launch_serves_whatever_its_table_holds() -> None:
    case = Convolution(**POINTWISE)
    table = torch.tensor([[0, 2, 0, 2]], dtype=torch.int32, device=DEVICE)
    out = case.out()
    launches = conv2d_launches(
        case.x, case.weight, out, Windows(table, bound=(3, 4)), config=SMALL, name="head", **case.epilogue
    )
    launches[0]()
    table.copy_(torch.tensor([[4, 7, 5, 9]]))
    launches[0]()
    assert launches[0].name == "head"
    assert_only_written(out, [Window(0, 2, 0, 2), Window(4, 7, 5, 9)], axes=(0, 1))


def test_no_window_at_all_writes_nothing() -> None:
    Convolution().check([EMPTY])


@pytest.mark.parametrize("dtype", DTYPES)
def test_parts_of_planes(dtype: torch.dtype) -> None:
    case = Convolution(dtype=dtype, residual_factor=2, channels=16, out_channels=16)
    window = Window(3, 6, 4, 8)
    whole = case.out()
    out = part(whole, Window(2, 7, 4, 9))
    case.epilogue["residual"] = part(case.epilogue["residual"], Window(1, 3, 2, 4))
    conv2d(part(case.x, Window(2, 7, 3, 9)), case.weight, out, window, config=SMALL, **case.epilogue)
    inside = window.shift(-2, -4)
    assert_only_written(out.tensor, [inside], axes=(0, 1))
    assert_close(out.tensor[inside.slices], case.expected[window.slices])


@pytest.mark.parametrize("swap", [False, True])
def test_split_sums_do_not_depend_on_the_order_of_arrival(swap: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    case, config = Convolution(), ConvConfig(16, 16, 16, split_k=5, swap=swap)
    scratch, windows = Scratch(DEVICE), [Window(1, 5, 2, 7)]
    first = case.check(windows, config)
    assert torch.equal(case.run(windows, config, scratch=scratch).nan_to_num(), first.nan_to_num())
    if interpreted():
        from triton.runtime import interpreter

        builder = interpreter.interpreter_builder
        forwards = builder.set_grid_idx
        monkeypatch.setattr(builder, "set_grid_idx", lambda x, y, z: forwards(x, y, (7 - z) % 5))
    assert torch.equal(case.run(windows, config, scratch=scratch).nan_to_num(), first.nan_to_num())
    assert not scratch.counters(0).any()


def test_scratch_grows_and_bound_launches_keep_theirs() -> None:
    scratch = Scratch(DEVICE)
    small, counters = scratch.partials(10), scratch.counters(2)
    assert scratch.partials(4) is small
    assert scratch.counters(1) is counters
    large = scratch.partials(11)
    assert large.numel() >= 11
    assert small.numel() >= 10
    assert not scratch.counters(9).any()


def test_no_more_splits_than_steps() -> None:
    case = Convolution(**POINTWISE, channels=8)
    (launch,) = conv2d_launches(case.x, case.weight, case.out(), [EMPTY], config=ConvConfig(16, 16, 16, split_k=9))
    assert launch.grid[2] == 1


def test_tf32_is_a_choice() -> None:
    case = Convolution(**POINTWISE)
    for precision, tensor_cores in (("ieee", False), ("tf32", True), ("tf32x3", True)):
        (launch,) = conv2d_launches(case.x, case.weight, case.out(), [EMPTY], precision=precision)
        assert launch.meta["PRECISION"] == precision
        assert launch.tensor_cores is tensor_cores


def test_fp32_tiles_leave_registers_for_operands(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(conv2d_launch, "conv_config", lambda key: ConvConfig(128, 64, 32))
    case = Convolution(**POINTWISE)
    for precision, block_k, warps in (("ieee", 16, 4), ("tf32", 32, 4), ("tf32x3", 32, 8)):
        (launch,) = conv2d_launches(case.x, case.weight, case.out(), [EMPTY], precision=precision)
        assert launch.meta["BLOCK_K"] == block_k
        assert launch.options["num_warps"] == warps


def test_cost_is_what_the_largest_windows_take() -> None:
    case = Convolution(dtype=torch.float16, channels=16, out_channels=8)
    (launch,) = conv2d_launches(case.x, case.weight, case.out(), [Window(0, 3, 0, 4), EMPTY])
    assert launch.cost.macs == 2 * 12 * 8 * 16 * 9
    assert launch.cost.written == 2 * 12 * 8 * 2
    assert launch.cost.read == 2 * (5 * 6) * 16 * 2 + 8 * 16 * 9 * 2


def test_half_planes_may_give_other_dtypes() -> None:
    case = Convolution(dtype=torch.float16, residual_factor=1)
    case.epilogue["residual"] = case.epilogue["residual"].float()
    out = torch.zeros(7, 9, 21, device=DEVICE)
    conv2d(case.x, case.weight, out, Window(0, 2, 0, 9), config=SMALL, **case.epilogue)
    assert_close(out[:2], case.expected[:2], dtype=torch.float16)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": torch.zeros(7, 9, 18)}, "x has 18 channels"),
        ({"x": torch.zeros(7, 9, 19, dtype=torch.float16)}, "both must be the same"),
        ({"x": torch.zeros(7, 9, 19, dtype=torch.uint8)}, "both must be the same"),
        ({"x": torch.zeros(7, 19, 9).movedim(1, 2)}, "channels must be contiguous"),
        ({"x": torch.zeros(9, 19)}, r"pass \[rows, columns, channels\]"),
        ({"out": torch.zeros(7, 9, 20)}, "out has 20 channels"),
        ({"out": torch.zeros(7, 9, 21, dtype=torch.uint8)}, "out holds torch.uint8"),
        ({"out": torch.zeros(7, 9, 21, device="meta")}, "move them to one device"),
        ({"residual": torch.zeros(7, 8, 21)}, r"at least \(7, 9\)"),
        ({"residual": torch.zeros(3, 5, 21), "residual_factor": 2}, r"at least \(4, 5\)"),
        ({"residual": torch.zeros(7, 9, 20)}, "pass 21 channels"),
        ({"residual": torch.zeros(7, 9, 21), "residual_factor": 0}, "a factor >= 1"),
        ({"residual": torch.zeros(7, 9, 21, dtype=torch.uint8)}, "residual holds torch.uint8"),
        ({"scale": torch.zeros(20)}, r"scale is torch.float32 \(20,\)"),
        ({"bias": torch.zeros(21, dtype=torch.float16)}, "bias is torch.float16"),
        ({"activation": "gelu"}, "activation 'gelu'"),
        ({"precision": "fp16"}, "precision 'fp16'"),
        ({"config": ConvConfig(block_m=8)}, "block_m is 8"),
        ({"config": ConvConfig(block_n=48)}, "block_n is 48"),
        ({"config": ConvConfig(split_k=0)}, "split_k and stages"),
        ({"config": ConvConfig(warps=3)}, "warps one of"),
    ],
)
def test_misfits_are_named(change: dict[str, Any], message: str) -> None:
    case = Convolution()
    arguments = {"x": case.x, "weight": case.weight, "out": case.out(), "windows": [Window(0, 1, 0, 1)], **change}
    for key, value in arguments.items():
        if isinstance(value, torch.Tensor) and value.device.type == "cpu":
            arguments[key] = value.to(DEVICE)
    with pytest.raises(InputError, match=message):
        conv2d_launches(**arguments)


def test_windows_must_lie_in_memory_with_all_they_read() -> None:
    case = Convolution(residual_factor=1)
    epilogue = case.epilogue
    with pytest.raises(WindowError, match="the part of the output in memory"):
        conv2d_launches(case.x, case.weight, case.out(), Window(0, 8, 0, 9), **epilogue)
    with pytest.raises(WindowError, match=r"reads \[1, 5\) x \[0, 9\) of x"):
        conv2d_launches(part(case.x, Window(2, 7, 0, 9)), case.weight, case.out(), Window(2, 4, 0, 9), **epilogue)
    epilogue["residual"] = part(epilogue["residual"], Window(0, 3, 0, 9))
    with pytest.raises(WindowError, match="of the residual"):
        conv2d_launches(case.x, case.weight, case.out(), Window(2, 4, 0, 9), **epilogue)
    if interpreted():
        with pytest.raises(InputError, match="programmatic dependent launch"):
            conv2d_launches(case.x, case.weight, case.out(), EMPTY, pdl=True)
    with pytest.raises(InputError, match="rows 0 \\+ 2 of 1"):
        conv2d_launches(case.x, case.weight, case.out(), Windows(torch.zeros(1, 4, dtype=torch.int32), 0, 2))


def test_ones_add_the_channels_of_every_fourth_cell() -> None:
    weight = pack_weight(torch.ones(3, 2, 1, 1), dtype=torch.float32, device=DEVICE, stride=4)
    x = torch.arange(50.0, device=DEVICE).view(5, 5, 2)
    out = DevicePlane(torch.zeros(2, 2, 3, device=DEVICE), (2, 2))
    conv2d(x, weight, out, Window.full(2, 2), config=SMALL)
    assert out.tensor[..., 0].tolist() == [[1.0, 17.0], [81.0, 97.0]]
