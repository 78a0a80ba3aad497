"""The dynamic mask head on windows against the model's own head."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.kernels.planes import check_kernel, images, planes, random_plane
from tracenet.models.mask import MaskHead
from tracenet.rft.rules.resize import aligned_taps
from tracenet_kernels import native, reference, window_ops
from tracenet_kernels.arrays import Plane
from tracenet_kernels.errors import InputError
from tracenet_kernels.window import Window

pytestmark = pytest.mark.skipif(not native.available(), reason=native.why_not())

ORIGIN = (61.5, 33.25)
SIZE = 128.0


def theta_of(seed: int = 3) -> Tensor:
    return torch.randn(169, generator=torch.Generator().manual_seed(seed)) * 0.4


def torch_logits(features: Tensor, theta: Tensor) -> Tensor:
    """[1, 1, h, w] in float64."""
    head = MaskHead()
    return head(
        images(features).double(),
        theta.double()[None],
        torch.tensor([ORIGIN], dtype=torch.float64),
        torch.tensor([SIZE], dtype=torch.float64),
    )


@pytest.mark.parametrize("size", [(1, 1), (5, 17), (16, 33), (13, 48)])
def test_logits(size: tuple[int, int]) -> None:
    features, theta = random_plane(*size, 8), theta_of()

    def call(source: Plane, out: Plane, window: Window) -> None:
        window_ops.mask_head(source, theta, out, window, origin=ORIGIN, size_of_interest=SIZE)

    check_kernel(call, features, planes(torch_logits(features, theta)), lambda window: window)


@pytest.mark.parametrize("factor", [1, 2, 4, 5])
@pytest.mark.parametrize("size", [(1, 1), (6, 7), (9, 21)])
def test_upsampled_logits(size: tuple[int, int], factor: int) -> None:
    features, theta = random_plane(*size, 8), theta_of(4)
    wanted = reference.aligned_bilinear(torch_logits(features, theta), factor)
    rows, columns = aligned_taps(size[0], factor), aligned_taps(size[1], factor)

    def call(source: Plane, out: Plane, window: Window) -> None:
        window_ops.mask_head(source, theta, out, window, origin=ORIGIN, size_of_interest=SIZE, factor=factor)

    def demand(window: Window) -> Window:
        return Window(*rows.demand(window.y0, window.y1), *columns.demand(window.x0, window.x1))

    check_kernel(call, features, planes(wanted), demand)


def test_known_answer() -> None:
    # One unit passes rel_x through all three layers: logit = rel_x where positive, plus the last bias.
    theta = np.zeros(169, np.float32)
    theta[0] = theta[80] = theta[80 + 64] = 1.0
    theta[168] = 0.25
    out = np.zeros((1, 4, 1), np.float32)
    features = np.ones((1, 4, 8), np.float32)
    window_ops.mask_head(features, theta, out, origin=(20.0, 0.0), size_of_interest=16.0)
    assert out.ravel().tolist() == [1.25, 0.75, 0.25, 0.25]  # pixels 4, 12, 20, 28


def test_features_inside_a_wider_buffer_and_an_output_with_gaps() -> None:
    buffer, theta = random_plane(6, 9, 20), theta_of()
    features = buffer[:, :, 7:15]
    dense = np.zeros((6, 9, 1), np.float32)
    window_ops.mask_head(features.contiguous(), theta, dense, origin=ORIGIN, size_of_interest=SIZE)
    wide = np.full((6, 9, 3), np.nan, np.float32)
    window_ops.mask_head(features, theta, wide[:, :, 1:2], origin=ORIGIN, size_of_interest=SIZE)
    assert (wide[:, :, 1:2] == dense).all()
    assert np.isnan(wide[:, :, ::2]).all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"features": np.zeros((4, 5, 7), np.float32)}, "features have 7"),
        ({"out": np.zeros((4, 5, 2), np.float32)}, "the output 2"),
        ({"theta": np.zeros(168, np.float32)}, "169"),
        ({"theta": np.zeros((1, 169), np.float32)}, "169"),
        ({"size_of_interest": 0.0}, "not 0"),
        ({"origin": (float("nan"), 0.0)}, "finite"),
        ({"stride": 0}, "stride 0"),
        ({"factor": -1}, "factor >= 1"),
        ({"factor": 4}, "that many times as large"),
        ({"factor": 2**61}, "factor >= 1"),
        ({"out": np.zeros((4, 6, 1), np.float32)}, "planes of one size"),
    ],
)
def test_bad_calls_write_nothing(change, message: str) -> None:
    out = np.full((4, 5, 1), np.nan, np.float32)
    call = {
        "features": np.zeros((4, 5, 8), np.float32),
        "theta": np.zeros(169, np.float32),
        "out": out,
        "origin": ORIGIN,
        "size_of_interest": SIZE,
    }
    call |= change
    with pytest.raises(InputError, match=message):
        window_ops.mask_head(**call)
    assert np.isnan(out).all()
