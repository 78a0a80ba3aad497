"""The fused stem and its convolution alone, on windows, against their twins."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.kernels.triton.cells import DEVICE, FLOATS, drawn_window
from tracenet.rft.rules.convolution import sliding_demand
from tracenet_kernels import reference
from tracenet_kernels.errors import InputError, WindowError
from tracenet_kernels.testing import assert_close, assert_only_written, poisoned
from tracenet_kernels.triton.configs import ConvConfig
from tracenet_kernels.triton.planes import DevicePlane, Windows
from tracenet_kernels.triton.stem import stem, stem_conv, stem_conv_launches, stem_launches
from tracenet_kernels.triton.weights import DeviceWeight, pack_weight
from tracenet_kernels.window import Window, clip

MEAN, STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)
PHOTO = {"mean": MEAN, "std": STD}
SMALL = ConvConfig(16, 32, 0, 1, 1, 1)
"""Tiles so small that a test's windows have several."""


def random_photo(height: int, width: int) -> Tensor:
    values = torch.randint(0, 256, (height, width, 3), generator=torch.Generator().manual_seed(1))
    return values.to(torch.uint8).to(DEVICE)


def random_weight(out: int, kernel: tuple[int, int] = (7, 7)) -> Tensor:
    return torch.randn(out, 3, *kernel, generator=torch.Generator().manual_seed(2)) * 0.1


def packed(weight: Tensor, dtype: torch.dtype = torch.float32, **geometry) -> DeviceWeight:
    return pack_weight(weight, dtype=dtype, device=DEVICE, **geometry)


def of_cells(out: int) -> dict[str, Tensor]:
    return {"scale": torch.rand(out, device=DEVICE) + 0.5, "bias": torch.randn(out, device=DEVICE)}


def normalised(photo: Tensor, reverse: bool = False) -> Tensor:
    """[H, W, 3] in float64."""
    return reference.pixels(photo.cpu(), tuple(photo.shape[:2]), MEAN, STD, reverse=reverse).double()


def twin_of(values: dict[str, Tensor]) -> dict[str, Tensor]:
    return {key: value.double().cpu() for key, value in values.items()}


def run(call, size: tuple[int, int], channels: int, dtype: torch.dtype, windows: list[Window]) -> Tensor:
    """The whole plane, after the same bits came out of every window alone."""
    whole = poisoned(*size, channels, dtype=dtype, device=DEVICE)
    call(whole, Windows.of([Window.full(*size)], DEVICE))
    for window in windows:
        out = poisoned(*size, channels, dtype=dtype, device=DEVICE)
        call(out, Windows.of([window], DEVICE))
        assert_only_written(out, [window], axes=(0, 1))
        assert torch.equal(out[window.slices], whole[window.slices]), f"other bits on {window}"
    return whole


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("reverse", [False, True])
def test_photo_to_pooled_cells(reverse: bool, dtype: torch.dtype) -> None:
    # The network's input is 24 x 32, the photo ends before it.
    photo, weight, cells = random_photo(21, 29), random_weight(20), of_cells(20)
    geometry = {"stride": (2, 2), "padding": (3, 3)}
    device_weight = packed(weight, dtype, **geometry)

    def call(out: Tensor, windows: Windows) -> None:
        stem(photo, device_weight, out, windows, conv_plane=(12, 16), reverse=reverse, config=SMALL, **PHOTO, **cells)

    found = run(call, (6, 8), 20, dtype, [Window(0, 1, 0, 1), Window(2, 6, 3, 8), Window(2, 2, 0, 0)])
    wanted = reference.stem(normalised(photo, reverse), weight, (6, 8), (12, 16), **geometry, **twin_of(cells))
    assert_close(found, wanted.to(DEVICE))


@pytest.mark.parametrize("dtype", FLOATS)
def test_planar_image_to_pooled_cells(dtype: torch.dtype) -> None:
    image = torch.randn(4, 20, 24, device=DEVICE).to(dtype)[1:, :18, :22]
    weight, cells, geometry = random_weight(16), of_cells(16), {"stride": (2, 2), "padding": (3, 3)}
    device_weight = packed(weight, dtype, **geometry)

    def call(out: Tensor, windows: Windows) -> None:
        stem(image, device_weight, out, windows, conv_plane=(9, 11), config=SMALL, **cells)

    found = run(call, (5, 6), 16, dtype, [Window(4, 5, 5, 6), Window(1, 4, 0, 5)])
    twin = image.permute(1, 2, 0).double().cpu()
    assert_close(found, reference.stem(twin, weight, (5, 6), (9, 11), **geometry, **twin_of(cells)).to(DEVICE))


def test_strips_and_tiles_meet() -> None:
    # 17 pooled columns in tiles of 7, 9 pooled rows in strips of 2.
    photo, weight, geometry = random_photo(36, 68), random_weight(3, (3, 3)), {"stride": (2, 2), "padding": (1, 1)}

    def call(out: Tensor, windows: Windows) -> None:
        stem(photo, packed(weight, **geometry), out, windows, conv_plane=(18, 34), config=SMALL, **PHOTO)

    found = run(call, (9, 17), 3, torch.float32, [Window(3, 9, 1, 17)])
    assert_close(found, reference.stem(normalised(photo), weight, (9, 17), (18, 34), **geometry).to(DEVICE))


@pytest.mark.parametrize(
    ("kernel", "stride", "padding"), [((2, 2), (2, 2), (0, 0)), ((3, 3), (1, 2), (1, 0)), ((3, 3), (2, 2), (0, 1))]
)
def test_other_poolings(kernel, stride, padding) -> None:
    photo, weight, geometry = random_photo(16, 18), random_weight(5, (3, 4)), {"stride": (1, 2), "padding": (1, 0)}
    pool = {"pool_kernel": kernel, "pool_stride": stride, "pool_padding": padding}

    def call(out: Tensor, windows: Windows) -> None:
        stem(photo, packed(weight, **geometry), out, windows, conv_plane=(15, 9), config=SMALL, **PHOTO, **pool)

    found = run(call, (7, 4), 5, torch.float32, [Window(1, 4, 1, 3)])
    wanted = reference.stem(normalised(photo), weight, (7, 4), (15, 9), **geometry, **pool)
    assert_close(found, wanted.to(DEVICE))


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("activation", ["none", "relu"])
def test_convolution_alone(activation: str, dtype: torch.dtype) -> None:
    photo, weight, cells = random_photo(13, 15), random_weight(9, (5, 3)), of_cells(9)
    geometry = {"stride": (2, 1), "padding": (2, 1), "dilation": (1, 2)}
    device_weight, how = packed(weight, dtype, **geometry), {"activation": activation}

    def call(out: Tensor, windows: Windows) -> None:
        stem_conv(photo, device_weight, out, windows, config=SMALL, **how, **PHOTO, **cells)

    found = run(call, (7, 13), 9, dtype, [Window(0, 2, 0, 2), Window(3, 7, 5, 13)])
    wanted = reference.stem_conv(normalised(photo), weight, (7, 13), **geometry, **how, **twin_of(cells))
    assert_close(found, wanted.to(DEVICE))


def test_default_tiles() -> None:
    photo, weight, geometry = random_photo(24, 24), random_weight(64), {"stride": (2, 2), "padding": (3, 3)}
    out = poisoned(6, 6, 64, device=DEVICE)
    stem(photo, packed(weight, **geometry), out, Window(1, 3, 1, 5), conv_plane=(12, 12), **PHOTO)
    wanted = reference.stem(normalised(photo), weight, (6, 6), (12, 12), **geometry)
    assert_only_written(out, [Window(1, 3, 1, 5)], axes=(0, 1))
    assert_close(out[1:3, 1:5].cpu(), wanted[1:3, 1:5])


@settings(max_examples=8)
@given(st.data())
def test_a_window_reads_its_own_part_of_the_photo_alone(data: st.DataObject) -> None:
    photo, weight, geometry = random_photo(22, 26), random_weight(4, (3, 3)), {"stride": (2, 2), "padding": (1, 1)}
    size, conv = (6, 7), (11, 13)
    window = data.draw(drawn_window(*size))
    rows, columns = (sliding_demand(*ends, 3, 2, 1, 1) for ends in ((window.y0, window.y1), (window.x0, window.x1)))
    cells = clip(Window(*rows, *columns), *conv)
    rows, columns = (sliding_demand(*ends, 3, 2, 1, 1) for ends in ((cells.y0, cells.y1), (cells.x0, cells.x1)))
    part = clip(Window(*rows, *columns), 22, 26)
    # Around the part lies what would change the result.
    buffer = torch.full((part.height + 2, part.width + 2, 3), 255, dtype=torch.uint8, device=DEVICE)
    buffer[1:-1, 1:-1] = photo[part.slices]
    held = DevicePlane(buffer[1:-1, 1:-1], (22, 26), (part.y0, part.x0))
    out = poisoned(*size, 4, device=DEVICE)
    stem(held, packed(weight, **geometry), out, window, conv_plane=conv, config=SMALL, **PHOTO)
    assert_only_written(out, [window], axes=(0, 1))
    wanted = reference.stem(normalised(photo), weight, size, conv, **geometry)
    assert_close(out[window.slices].cpu(), wanted[window.slices])


def test_a_weight_that_changes_is_packed_anew() -> None:
    photo, weight = random_photo(8, 8), packed(random_weight(4, (3, 3)), padding=1)
    out = torch.zeros(8, 8, 4, device=DEVICE)
    stem_conv(photo, weight, out, Window.full(8, 8), config=SMALL, activation="none", **PHOTO)
    before = out.clone()
    weight.tensor.mul_(-1)
    stem_conv(photo, weight, out, Window.full(8, 8), config=SMALL, activation="none", **PHOTO)
    assert torch.equal(out, -before)


def test_errors_say_what_fits() -> None:
    photo, weight, whole = random_photo(8, 8), packed(random_weight(4, (3, 3)), stride=2, padding=1), Window.full(2, 2)
    out, conv = torch.zeros(2, 2, 4, device=DEVICE), {"conv_plane": (4, 4)}
    with pytest.raises(InputError, match="pass its mean and std"):
        stem_launches(photo, weight, out, whole, **conv)
    with pytest.raises(InputError, match="none of std 0"):
        stem_launches(photo, weight, out, whole, mean=MEAN, std=(1.0, 1.0, 0.0), **conv)
    with pytest.raises(InputError, match="normalised already"):
        stem_launches(torch.zeros(3, 8, 8, device=DEVICE), weight, out, whole, **conv, **PHOTO)
    four = pack_weight(torch.ones(4, 4, 3, 3), dtype=torch.float32, device=DEVICE)
    with pytest.raises(InputError, match="of 3 in one group"):
        stem_launches(photo, four, out, whole, **conv, **PHOTO)
    with pytest.raises(InputError, match="4 output channels and out 3"):
        stem_conv_launches(photo, weight, out[:, :, :3], whole, **PHOTO)
    with pytest.raises(InputError, match="pass 4 contiguous float32"):
        stem_launches(photo, weight, out, whole, bias=torch.zeros(3, device=DEVICE), **conv, **PHOTO)
    with pytest.raises(InputError, match="choose one of none, relu"):
        stem_launches(photo, weight, out, whole, activation="gelu", **conv, **PHOTO)
    with pytest.raises(InputError, match="padding >= 0"):
        stem_launches(photo, weight, out, whole, pool_stride=0, **conv, **PHOTO)
    with pytest.raises(WindowError, match="not within"):
        stem_launches(photo, weight, out, Window(0, 3, 0, 1), **conv, **PHOTO)
