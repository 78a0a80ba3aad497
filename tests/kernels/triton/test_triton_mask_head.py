"""The dynamic mask head on windows against its twin and the model's own head."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.kernels.triton.cells import DEVICE, FLOATS, check_kernel, drawn_window, exact, random_plane
from tracenet.models.mask import MaskHead
from tracenet.rft.rules.resize import aligned_taps
from tracenet_kernels import reference
from tracenet_kernels.errors import InputError, WindowError
from tracenet_kernels.testing import assert_close, assert_only_written, poisoned
from tracenet_kernels.triton.mask_head import mask_head, mask_head_launches
from tracenet_kernels.window import Window

ORIGIN, SIZE = (61.5, 33.25), 128.0


def theta_of(seed: int = 3) -> Tensor:
    return torch.randn(169, generator=torch.Generator().manual_seed(seed)) * 0.4


def on_device(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float32, device=DEVICE)


def check(features: Tensor, factor: int, *, sigmoid: bool = False, dtype=None, windows=None, stride: int = 8) -> None:
    theta, attributes = theta_of(), {"stride": stride, "factor": factor, "sigmoid": sigmoid}
    wanted = reference.mask_head(exact(features), theta, ORIGIN, SIZE, **attributes)
    rows, columns = (aligned_taps(length, max(1, factor)) for length in features.shape[:2])
    parameters = theta.to(DEVICE), on_device(*ORIGIN), on_device(SIZE)

    def demand(window: Window) -> Window:
        return Window(*rows.demand(window.y0, window.y1), *columns.demand(window.x0, window.x1))

    check_kernel(
        lambda s, o, w: mask_head(s, *parameters, o, w, **attributes),
        features,
        wanted,
        demand,
        dtype=dtype,
        windows=windows,
    )


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("sigmoid", [False, True])
def test_on_cells(sigmoid: bool, dtype: torch.dtype) -> None:
    check(random_plane(7, 20, 8, dtype), 0, sigmoid=sigmoid)


@pytest.mark.parametrize("dtype", FLOATS)
def test_upsampled_by_four(dtype: torch.dtype) -> None:
    check(random_plane(9, 18, 8, dtype), 4, sigmoid=True)


@pytest.mark.parametrize("factor", [1, 2, 3, 5, 8, 33])
def test_any_factor(factor: int) -> None:
    height, width = (9, 5) if factor < 10 else (2, 3)
    windows = [Window(0, 1, 0, 1), Window(factor // 2, 2 * factor, width * factor - 2, width * factor)]
    check(random_plane(height, width, 8), factor, windows=windows)
    check(random_plane(1, 1, 8), factor, windows=[Window(0, 1, 0, 1)])


def test_half_precision_features_to_fp32_of_another_stride() -> None:
    check(random_plane(5, 6, 8, torch.float16), 2, dtype=torch.float32, stride=5)


def test_the_twin_is_the_models_head() -> None:
    features, theta = torch.randn(6, 7, 8, dtype=torch.float64), theta_of(4)
    where = torch.tensor([ORIGIN], dtype=torch.float64), torch.tensor([SIZE], dtype=torch.float64)
    logits = MaskHead()(features.movedim(-1, 0)[None], theta.double()[None], *where)
    found = reference.mask_head(features, theta, ORIGIN, SIZE, factor=4)
    assert_close(found, reference.aligned_bilinear(logits, 4)[0].movedim(0, -1))


def test_known_answer() -> None:
    # One unit passes rel_x through all three layers: logit = rel_x where positive, plus the last bias.
    theta = torch.zeros(169, device=DEVICE)
    theta[0] = theta[80] = theta[80 + 64] = 1.0
    theta[168] = 0.25
    out = torch.zeros(1, 4, 1, device=DEVICE)
    features = torch.ones(1, 4, 8, device=DEVICE)
    mask_head(features, theta, on_device(20.0, 0.0), on_device(16.0), out, Window.full(1, 4))
    assert out.flatten().tolist() == [1.25, 0.75, 0.25, 0.25]  # pixels 4, 12, 20, 28


def test_parameters_are_read_when_it_runs() -> None:
    features, theta, origin, size = random_plane(4, 5, 8), theta_of(), on_device(*ORIGIN), on_device(SIZE)
    theta = theta.to(DEVICE)
    out = poisoned(16, 20, 1, device=DEVICE)
    window = Window(3, 14, 2, 19)
    (launch,) = mask_head_launches(features, theta, origin, size, out, window, factor=4)
    theta.copy_(theta_of(5))
    origin.copy_(on_device(8.0, 24.0))
    size.fill_(64.0)
    launch()
    assert_only_written(out, [window], axes=(0, 1))
    wanted = reference.mask_head(exact(features), theta_of(5), (8.0, 24.0), 64.0, factor=4)
    assert_close(out[window.slices].cpu(), wanted[window.slices])


@settings(max_examples=12)
@given(st.data())
def test_random_planes_and_windows(data: st.DataObject) -> None:
    height, width = data.draw(st.integers(1, 9)), data.draw(st.integers(1, 17))
    factor = data.draw(st.integers(0, 4))
    window = data.draw(drawn_window(height * max(1, factor), width * max(1, factor)))
    check(random_plane(height, width, 8), factor, windows=[window])


def test_errors_say_what_fits() -> None:
    features, out, whole = random_plane(4, 4, 8), torch.zeros(4, 4, 1, device=DEVICE), Window.full(4, 4)
    parameters = theta_of().to(DEVICE), on_device(*ORIGIN), on_device(SIZE)
    with pytest.raises(InputError, match="8 channels to 1"):
        mask_head_launches(features[:, :, :7], *parameters, out, whole)
    with pytest.raises(InputError, match="that many times as large"):
        mask_head_launches(features, *parameters, out, whole, factor=2)
    with pytest.raises(InputError, match="planes of one size"):
        mask_head_launches(features[:3], *parameters, out, whole)
    with pytest.raises(InputError, match="0 \\(none\\) to 64"):
        mask_head_launches(features, *parameters, out, whole, factor=65)
    with pytest.raises(InputError, match="pass 1 to 65536"):
        mask_head_launches(features, *parameters, out, whole, stride=0)
    with pytest.raises(InputError, match="169 contiguous float32"):
        mask_head_launches(features, parameters[0].half(), *parameters[1:], out, whole)
    with pytest.raises(WindowError, match="not within"):
        mask_head_launches(features, *parameters, out, Window(0, 5, 0, 1))
