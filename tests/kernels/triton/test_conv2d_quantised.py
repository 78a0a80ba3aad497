"""conv2d of int8 and fp8 planes: real values as its twin gives them, integers within one step at most."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

pytest.importorskip("triton")

from tests.kernels.triton.convolutions import DEVICE
from tracenet_kernels import reference
from tracenet_kernels.errors import InputError
from tracenet_kernels.testing import assert_close, assert_only_written, poisoned
from tracenet_kernels.triton.configs import ConvConfig
from tracenet_kernels.triton.conv2d import conv2d, conv2d_launches
from tracenet_kernels.triton.planes import DevicePlane
from tracenet_kernels.triton.weights import DeviceWeight, pack_weight
from tracenet_kernels.window import Window

FP8 = torch.float8_e4m3fn
SMALL = ConvConfig(16, 16, 32)
PLANE = (6, 7)
OUT_SCALE = 0.25


def real_weight(weight: DeviceWeight) -> Tensor:
    """What a packed 8-bit weight stands for, in torch's layout and float64."""
    assert weight.scales is not None
    values = weight.tensor[..., : weight.group_channels].double() * weight.scales.double().view(-1, 1, 1)
    return values.view(weight.out_channels, *weight.kernel, weight.group_channels).movedim(3, 1)


def quantised_plane(dtype: torch.dtype, channels: int, zero_point: int = 0, scale: float = 0.05) -> DevicePlane:
    if dtype == torch.int8:
        values = torch.randint(-128, 128, (*PLANE, channels), dtype=torch.int8)
    else:
        values = (torch.randn(*PLANE, channels) * 10).to(dtype)
    return DevicePlane(values.to(DEVICE), PLANE, scale=scale, zero_point=zero_point)


def real(plane: DevicePlane) -> Tensor:
    return reference.dequantise(plane.tensor, plane.scale, plane.zero_point)


def check(
    x: DevicePlane,
    weight: DeviceWeight,
    out: DevicePlane,
    window: Window,
    config: ConvConfig = SMALL,
    **epilogue: Any,
) -> None:
    conv2d(x, weight, out, window, config=config, **epilogue)
    exact = {key: value.double() if isinstance(value, Tensor) else value for key, value in epilogue.items()}
    if "residual" in epilogue:
        residual = epilogue["residual"]
        exact["residual"] = real(residual) if isinstance(residual, DevicePlane) else residual.double()
    expected = reference.conv2d(
        real(x),
        real_weight(weight),
        plane=out.plane,
        stride=weight.stride,
        padding=weight.padding,
        dilation=weight.dilation,
        groups=weight.groups,
        **exact,
    )[window.slices]
    found = out.tensor[window.slices]
    if out.dtype == torch.int8:
        assert_only_written(out.tensor, [window], axes=(0, 1))
        wanted = reference.quantise(expected, out.scale, out.zero_point)
        differs = found != wanted
        # Halfway between two integers the last bits of a sum decide.
        halfway = ((expected / out.scale).abs() % 1 - 0.5).abs() < 1e-3
        assert not (differs & ~halfway).any()
        assert (found.int() - wanted.int()).abs().max() <= 1
    elif out.dtype == FP8:
        assert ((found.double() - expected / out.scale).abs() <= (expected / out.scale).abs() / 16 + 2**-10).all()
        wanted = reference.quantise(expected, out.scale, dtype=FP8)
        assert (found.float() != wanted.float()).double().mean() < 0.02
    else:
        assert_only_written(out.tensor, [window], axes=(0, 1))
        assert_close(found, expected)


def plane_of(dtype: torch.dtype, channels: int, plane: tuple[int, int] = PLANE, zero_point: int = 0) -> DevicePlane:
    if dtype == torch.int8:
        # The poison of integers is the least one, which results may be: zero points keep them away from it.
        return DevicePlane(poisoned(*plane, channels, dtype=dtype, device=DEVICE), plane, (0, 0), OUT_SCALE, zero_point)
    if dtype == FP8:
        return DevicePlane(torch.zeros(*plane, channels, device=DEVICE).to(dtype), plane, scale=OUT_SCALE)
    return DevicePlane(poisoned(*plane, channels, dtype=dtype, device=DEVICE), plane)


@pytest.mark.parametrize("out_dtype", [torch.int8, torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("zero_point", [0, -128, 11])
def test_int8_borders_hold_the_zero_point(zero_point: int, out_dtype: torch.dtype) -> None:
    weight = pack_weight(torch.randn(18, 20, 3, 3) / 30, dtype=torch.int8, device=DEVICE, padding=1)
    bias = torch.randn(18, device=DEVICE)
    x = quantised_plane(torch.int8, 20, zero_point)
    check(x, weight, plane_of(out_dtype, 18, zero_point=9), Window(0, 2, 0, 7), bias=bias)
    check(x, weight, plane_of(out_dtype, 18, zero_point=9), Window(3, 6, 4, 7), bias=bias, activation="relu")


@pytest.mark.parametrize("swap", [False, True])
def test_int8_split_sums_are_exact(swap: bool) -> None:
    weight = pack_weight(torch.randn(18, 70, 1, 1) / 30, dtype=torch.int8, device=DEVICE, stride=2)
    x = quantised_plane(torch.int8, 70, 5)
    one, split = plane_of(torch.float32, 18, (3, 4)), plane_of(torch.float32, 18, (3, 4))
    check(x, weight, one, Window.full(3, 4))
    check(x, weight, split, Window.full(3, 4), ConvConfig(16, 16, 32, split_k=3, swap=swap))
    assert torch.equal(one.tensor, split.tensor)


@given(data=st.data())
@settings(max_examples=12)
def test_any_int8_convolution(data: st.DataObject) -> None:
    groups = data.draw(st.integers(1, 2))
    channels, out_channels = groups * data.draw(st.integers(1, 12)), groups * data.draw(st.integers(1, 12))
    kernel = data.draw(st.tuples(st.integers(1, 3), st.integers(1, 3)))
    weight = pack_weight(
        torch.randn(out_channels, channels // groups, *kernel) / 10,
        dtype=torch.int8,
        device=DEVICE,
        padding=data.draw(st.tuples(st.integers(0, 2), st.integers(0, 2))),
        dilation=data.draw(st.integers(1, 2)),
        groups=groups,
    )
    epilogue: dict[str, Any] = {"activation": data.draw(st.sampled_from(["none", "relu"]))}
    if data.draw(st.booleans()):
        epilogue["scale"] = torch.rand(out_channels, device=DEVICE) + 0.5
    residual = data.draw(st.sampled_from([None, torch.int8, torch.float16, torch.float32]))
    if residual == torch.int8:
        epilogue["residual"] = quantised_plane(residual, out_channels, data.draw(st.integers(-128, 127)))
    elif residual is not None:
        epilogue["residual"] = torch.randn(*PLANE, out_channels).to(DEVICE, residual)
    x = quantised_plane(torch.int8, channels, data.draw(st.integers(-128, 127)))
    out = plane_of(data.draw(st.sampled_from([torch.int8, torch.float32])), out_channels, zero_point=9)
    check(x, weight, out, Window(1, 6, 0, 3), **epilogue)


def test_integers_are_rounded_to_even_and_clamped() -> None:
    weight = DeviceWeight(
        torch.ones(1, 1, 16, dtype=torch.int8, device=DEVICE),
        1,
        1,
        (1, 1),
        (1, 1),
        (0, 0),
        (1, 1),
        torch.ones(1, device=DEVICE),
        torch.ones(1, dtype=torch.int32, device=DEVICE),
    )
    values = torch.tensor([-128, -127, -3, -1, 0, 1, 3, 5, 126, 127], dtype=torch.int8, device=DEVICE)
    x = DevicePlane(values.view(1, 10, 1), (1, 10), scale=0.5)
    out = DevicePlane(torch.zeros(1, 10, 1, dtype=torch.int8, device=DEVICE), (1, 10))
    conv2d(x, weight, out, Window.full(1, 10), config=SMALL)
    assert out.tensor.view(-1).tolist() == [-64, -64, -2, 0, 0, 0, 2, 2, 63, 64]
    wide = DevicePlane(out.tensor, (1, 10), scale=0.25, zero_point=100)
    conv2d(x, weight, wide, Window.full(1, 10), config=SMALL)
    assert out.tensor.view(-1).tolist() == [-128, -128, 94, 98, 100, 102, 106, 110, 127, 127]


def test_half_planes_are_quantised() -> None:
    weight = pack_weight(torch.randn(9, 5, 1, 1), dtype=torch.float16, device=DEVICE)
    x = torch.randn(*PLANE, 5).to(DEVICE, torch.float16)
    out = plane_of(torch.int8, 9, zero_point=9)
    conv2d(x, weight, out, Window(0, 2, 0, 7), config=SMALL)
    found = plane_of(torch.float32, 9)
    conv2d(x, weight, found, Window(0, 2, 0, 7), config=SMALL)
    wanted = reference.quantise(found.tensor[:2].double(), OUT_SCALE, 9)
    assert torch.equal(out.tensor[:2], wanted)


@pytest.mark.skipif(
    DEVICE == "cuda" and torch.cuda.get_device_capability() < (8, 9), reason="fp8 needs compute capability 8.9"
)
@pytest.mark.parametrize("swap", [False, True])
@pytest.mark.parametrize("out_dtype", [FP8, torch.float32, torch.bfloat16])
def test_fp8(out_dtype: torch.dtype, swap: bool) -> None:
    weight = pack_weight(torch.randn(18, 20, 3, 3) / 30, dtype=FP8, device=DEVICE, padding=1)
    epilogue = {"bias": torch.randn(18, device=DEVICE), "residual": quantised_plane(FP8, 18), "activation": "relu"}
    config = ConvConfig(16, 16, 32, swap=swap)
    check(quantised_plane(FP8, 20), weight, plane_of(out_dtype, 18), Window(0, 2, 0, 7), config, **epilogue)


def test_misfits_are_named() -> None:
    weight = pack_weight(torch.randn(18, 20, 1, 1), dtype=torch.int8, device=DEVICE)
    x, out, window = quantised_plane(torch.int8, 20), plane_of(torch.int8, 18), [Window(0, 1, 0, 1)]
    with pytest.raises(InputError, match="block_k is 16"):
        conv2d_launches(x, weight, out, window, config=ConvConfig(16, 16, 16))
    with pytest.raises(InputError, match="both must be the same"):
        conv2d_launches(x.tensor.float(), weight, out, window)
    with pytest.raises(InputError, match="scale 0"):
        conv2d_launches(DevicePlane(x.tensor, PLANE, scale=0.0), weight, out, window)
    with pytest.raises(InputError, match="zero point 128"):
        conv2d_launches(DevicePlane(x.tensor, PLANE, zero_point=128), weight, out, window)
    with pytest.raises(InputError, match="zero point 1"):
        conv2d_launches(x, weight, DevicePlane(out.tensor.to(FP8), PLANE, zero_point=1), window)
    for fields, message in (({"scales": None}, "has no scales"), ({"sums": None}, "has no sums")):
        with pytest.raises(InputError, match=message):
            conv2d_launches(x, replace(weight, **fields), out, window)
