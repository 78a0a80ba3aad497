"""Planes as the kernels take them: shared memory, defaults, typed errors."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tracenet_kernels.arrays import as_array, as_plane
from tracenet_kernels.errors import InputError, WindowError
from tracenet_kernels.window import Window


def test_tensors_and_arrays_share_memory() -> None:
    tensor = torch.zeros(2, 3, 4)
    as_array(tensor, "x")[1, 2, 3] = 5
    assert tensor[1, 2, 3] == 5
    array = np.zeros((2, 3, 4), np.float32)
    assert as_array(array, "x") is array


def test_a_channels_last_tensor_is_a_plane_without_a_copy() -> None:
    images = torch.randn(1, 5, 2, 3).contiguous(memory_format=torch.channels_last)
    plane = as_plane(images[0].permute(1, 2, 0), "x")
    assert plane.array.strides == (3 * 5 * 4, 5 * 4, 4)
    assert plane.array.ctypes.data == images.data_ptr()


def test_defaults_end_the_plane_where_the_array_ends() -> None:
    array = np.zeros((2, 3, 4), np.float32)
    assert as_plane(array, "x")[1:] == (Window(0, 2, 0, 3), (2, 3))
    assert as_plane(array, "x", extent=Window(4, 6, 1, 4))[1:] == (Window(4, 6, 1, 4), (6, 4))
    assert as_plane(array, "x", extent=Window(4, 6, 1, 4), plane=(9, 9)).size == (9, 9)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ([[[1.0]]], "list"),
        (np.zeros((2, 3, 4)), "float64"),
        (torch.zeros(2, 3, 4, dtype=torch.bfloat16), "bfloat16"),
        (torch.zeros(2, 3, 4, requires_grad=True), "detach"),
        (torch.zeros(2, 3, 4, device="meta"), "meta"),
        (torch.zeros(2, 3).to_sparse(), "sparse"),
        (torch.zeros(1, 2, 3, 4), "batch"),
    ],
)
def test_what_is_no_plane_is_an_input_error(value: object, message: str) -> None:
    with pytest.raises(InputError, match=message):
        as_plane(value, "x")


def test_extents_off_the_plane_or_of_another_size_are_window_errors() -> None:
    array = np.zeros((2, 3, 4), np.float32)
    with pytest.raises(WindowError, match="other sides"):
        as_plane(array, "x", extent=Window(0, 2, 0, 4))
    with pytest.raises(WindowError, match="does not lie"):
        as_plane(array, "x", extent=Window(0, 2, 0, 3), plane=(2, 2))
    with pytest.raises(WindowError, match="does not lie"):
        as_plane(array, "x", extent=Window(-1, 1, 0, 3), plane=(2, 3))
