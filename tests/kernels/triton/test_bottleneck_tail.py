"""The fused tail of a bottleneck block against its twin: windows, channels, strides, dtypes, bad input."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

pytest.importorskip("triton")

from tracenet_kernels import reference
from tracenet_kernels.errors import InputError, WindowError
from tracenet_kernels.testing import assert_close, assert_only_written, poisoned
from tracenet_kernels.triton.bottleneck_tail import bottleneck_tail, bottleneck_tail_launches, fits
from tracenet_kernels.triton.configs import ConvConfig
from tracenet_kernels.triton.planes import DevicePlane, Windows, interpreted
from tracenet_kernels.triton.weights import pack_weight
from tracenet_kernels.window import Window

DEVICE = "cpu" if interpreted() else "cuda"
SMALL = ConvConfig(block_m=16, block_n=16, block_k=16, warps=4, stages=2)


@dataclass
class Case:
    """A block's tail with random values, and its outputs in fp64."""

    channels: int = 5
    mid: int = 7
    out: int = 21
    following: int = 6
    stride: int = 1
    size: tuple[int, int] = (7, 9)
    dtype: torch.dtype = torch.float32
    x: Tensor = field(init=False)

    def __post_init__(self) -> None:
        rows, columns = (n * self.stride for n in self.size)
        self.x = self.values(rows, columns, self.channels)
        self.residual = self.values(*self.size, self.out)
        self.weights = [
            self.values(self.mid, self.channels, 3, 3) / (3 * self.channels**0.5),
            self.values(self.out, self.mid, 1, 1) / self.mid**0.5,
            *([self.values(self.following, self.out, 1, 1) / self.out**0.5] if self.following else []),
        ]
        self.packed = [
            pack_weight(weight, dtype=self.dtype, device=DEVICE, stride=stride, padding=padding)
            for weight, stride, padding in zip(self.weights, (self.stride, 1, 1), (1, 0, 0), strict=False)
        ]
        self.affines = [
            (torch.rand(len(w), device=DEVICE) + 0.5, torch.randn(len(w), device=DEVICE)) for w in self.weights
        ]
        if not self.following:
            self.packed.append(None)
            self.affines.append((None, None))

    def values(self, *shape: int) -> Tensor:
        return torch.randn(*shape).to(self.dtype).to(DEVICE)

    def expected(self) -> tuple[Tensor, Tensor | None]:
        mid, expand, *following = (weight.double() for weight in self.weights)
        return reference.bottleneck_tail(
            self.x.double(),
            mid,
            expand,
            self.residual.double(),
            *following,
            stride=self.stride,
            mid_affine=self.affines[0],
            expand_affine=self.affines[1],
            following_affine=self.affines[2],
        )

    def outputs(self) -> tuple[Tensor, Tensor | None]:
        y = poisoned(*self.size, self.out, dtype=self.dtype, device=DEVICE)
        z = poisoned(*self.size, self.following, dtype=self.dtype, device=DEVICE) if self.following else None
        return y, z

    def arguments(self, y: Any, z: Any, windows: Any, **changed: Any) -> dict[str, Any]:
        vectors = {
            f"{role}_{kind}": value
            for role, affine in zip(("mid", "expand", "next"), self.affines, strict=True)
            for kind, value in zip(("scale", "bias"), affine, strict=True)
        }
        named = dict(zip(("mid", "expand", "next"), self.packed, strict=True))
        return (
            dict(
                x=self.x,
                **named,
                residual=self.residual,
                block_out=y,
                next_out=z,
                windows=windows,
                config=SMALL,
                **vectors,
            )
            | changed
        )

    def run(self, windows: Any, **changed: Any) -> tuple[Tensor, Tensor | None]:
        y, z = self.outputs()
        bottleneck_tail(**self.arguments(y, z, windows, **changed))
        return y, z


def check(case: Case, windows: list[Window], **changed: Any) -> tuple[Tensor, Tensor | None]:
    results = case.run(windows, **changed)
    for result, expected in zip(results, case.expected(), strict=True):
        if result is None or expected is None:
            assert result is expected is None
            continue
        assert_only_written(result, windows, axes=(0, 1))
        for window in windows:
            if not window.is_empty:
                assert_close(result[window.slices], expected[window.slices])
    return results


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_against_the_twin(dtype: torch.dtype) -> None:
    case = Case(dtype=dtype)
    check(case, [Window.full(*case.size)])
    check(case, [Window(0, 1, 0, 1), Window(6, 7, 8, 9), Window(3, 3, 2, 5), Window(2, 6, 1, 7)])


def test_block_without_a_next_one() -> None:
    case = Case(following=0)
    check(case, [Window(1, 6, 0, 9)])


def test_stride_and_absent_scales() -> None:
    case = Case(stride=2, size=(4, 5))
    case.affines = [(None, None), (None, case.affines[1][1]), (case.affines[2][0], None)]
    check(case, [Window.full(*case.size)])


def test_several_blocks_of_every_channel_axis() -> None:
    case = Case(channels=33, mid=33, out=50, following=40, size=(4, 5), dtype=torch.float16)
    check(case, [Window.full(*case.size)], config=ConvConfig(16, 32, 16, warps=4, stages=2))


def test_default_configuration() -> None:
    case = Case(channels=16, mid=16, out=64, following=16, size=(5, 6), dtype=torch.float16)
    check(case, [Window(0, 5, 1, 6)], config=None)


def test_half_precision_is_what_single_launches_give() -> None:
    """What is handed on is rounded, so that the next block does not see more than its plane would hold."""
    case = Case(channels=16, mid=16, out=32, following=16, dtype=torch.float16)
    y, z = case.run([Window.full(*case.size)])
    assert z is not None and case.affines[2][0] is not None and case.affines[2][1] is not None
    product = torch.einsum("hwc,oc->hwo", y.double(), case.weights[2].double().flatten(1))
    unfused = torch.relu(product * case.affines[2][0].double() + case.affines[2][1].double())
    assert (z.double() - unfused).abs().max() <= 2e-3 * unfused.abs().max()


@settings(max_examples=10)
@given(st.data())
def test_windows_are_bit_identical(data: st.DataObject) -> None:
    torch.manual_seed(0)
    case = Case()
    full = case.run([Window.full(*case.size)])
    rows = sorted(data.draw(st.tuples(st.integers(0, 7), st.integers(0, 7)), label="rows"))
    columns = sorted(data.draw(st.tuples(st.integers(0, 9), st.integers(0, 9)), label="columns"))
    window = Window(*rows, *columns)
    for result, whole in zip(case.run([window]), full, strict=True):
        assert result is not None and whole is not None
        assert_only_written(result, [window], axes=(0, 1))
        assert torch.equal(result[window.slices], whole[window.slices])


def test_parts_of_planes_and_a_table_on_the_device() -> None:
    """Each plane is in memory in part, with its own origin; the table holds rows that belong to others."""
    case = Case(size=(8, 9))
    window = Window(2, 5, 3, 7)
    table = torch.tensor([[-1] * 4, list(window), [0, 8, 0, 9]], dtype=torch.int32, device=DEVICE)
    y, z = case.outputs()
    assert z is not None
    part = lambda tensor, y0, y1, x0, x1: DevicePlane(tensor[y0:y1, x0:x1], (8, 9), (y0, x0))  # noqa: E731
    bottleneck_tail(
        **case.arguments(
            part(y, 1, 6, 2, 8),
            part(z, 2, 5, 3, 7),
            Windows(table, 1, 1, (4, 6)),
            x=part(case.x, 1, 6, 2, 8),
            residual=part(case.residual, 2, 8, 3, 9),
        )
    )
    for result, expected in zip((y, z), case.expected(), strict=True):
        assert expected is not None
        assert_only_written(result, [window], axes=(0, 1))
        assert_close(result[window.slices], expected[window.slices])


def test_launches_are_data() -> None:
    case = Case(dtype=torch.float16)
    y, z = case.outputs()
    (launch,) = bottleneck_tail_launches(**case.arguments(y, z, [Window(0, 5, 0, 7)] * 2), name="layer1.0")
    assert launch.name == "layer1.0" and launch.grid == (3, 1, 2) and launch.tensor_cores
    assert launch.options == {"num_warps": 4, "num_stages": 2}
    assert launch.cost.macs == 2 * 35 * (9 * 5 * 7 + 7 * 21 + 21 * 6)
    assert launch.cost.written == 2 * 35 * (21 + 6) * 2
    assert not set(launch.args) & set(launch.meta)


@pytest.mark.parametrize(
    ("mid", "out", "dtype", "following", "expected"),
    [
        (64, 256, torch.float16, 64, True),
        (128, 512, torch.bfloat16, 256, True),
        (256, 1024, torch.float16, 0, True),
        (256, 1024, torch.float32, 0, False),
        (512, 2048, torch.float16, 0, False),
        (64, 256, torch.float16, 512, False),
        (64, 256, torch.int8, 0, False),
    ],
)
def test_fits(mid: int, out: int, dtype: torch.dtype, following: int, expected: bool) -> None:
    assert fits(mid, out, dtype, following) is expected


def test_bad_input() -> None:
    case = Case()
    y, z = case.outputs()
    window = Window(0, 1, 0, 1)

    def refused(match: str, error: type[Exception] = InputError, **changed: Any) -> None:
        with pytest.raises(error, match=match):
            bottleneck_tail_launches(**(case.arguments(y, z, window) | changed))

    refused("both next and next_out", next_out=None)
    refused("x holds", x=case.x.double())
    refused("residual holds", residual=case.residual.half())
    refused("kernel, padding", mid=case.packed[1])
    refused("takes 5 channels", x=case.x[..., :4])
    refused("residual is 20 channels", residual=case.residual[..., :20])
    refused("next_out is 6 channels on a plane", next_out=z[:5])
    refused("share memory", residual=y)
    refused("mid_bias is", mid_bias=torch.zeros(3, device=DEVICE))
    refused("precision 'ieee' has no tensor cores", precision="ieee")
    refused("not within", WindowError, windows=Window(0, 8, 0, 1))
    if interpreted():
        refused("does not exist in Triton's interpreter", pdl=True)
    wide = pack_weight(torch.zeros(512, 5, 3, 3), dtype=torch.float32, device=DEVICE, padding=1)
    back = pack_weight(torch.zeros(21, 512, 1, 1), dtype=torch.float32, device=DEVICE)
    refused("stay on chip", mid=wide, expand=back, mid_scale=None, mid_bias=None)
