"""What a caller asks of a session, checked: windows of planes, inputs, parameters. Shared by all executors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tracenet.engine.schedule import Plane, Schedule
from tracenet_kernels.errors import InputError, RequestError, WindowError
from tracenet_kernels.window import Window

Request = Mapping[int | str, Window | Sequence[int] | None]
"""Output name, its position among the outputs, or a plane's name -> window on its plane (None: all of it)."""
Floats = NDArray[np.float32]


def resolve_request(
    schedule: Schedule, plane_numbers: Mapping[str, int], request: Request
) -> list[tuple[int | str, int, Window]]:
    """Key, plane number and window of everything that is asked for.

    Args:
        plane_numbers: by plane name.

    Raises:
        RequestError: an empty request, or a name or position that is not there.
        WindowError: a window that is malformed, empty, or not on its plane.
    """
    if not isinstance(request, Mapping) or not request:
        raise RequestError(f"the request is {request!r}; pass a dict such as {{0: Window(0, 8, 0, 8)}}")
    resolved: list[tuple[int | str, int, Window]] = []
    for key, value in request.items():
        if isinstance(key, str):
            number = schedule.outputs.get(key, plane_numbers.get(key))
        elif isinstance(key, int) and not isinstance(key, bool) and 0 <= key < len(schedule.outputs):
            number = list(schedule.outputs.values())[key]
        else:
            number = None
        if number is None:
            names = ", ".join(list(schedule.outputs)[:12])
            raise RequestError(
                f"{key!r} is not an output; ask by position 0..{len(schedule.outputs) - 1} or by name: {names}"
            )
        plane = schedule.planes[number]
        whole = Window.full(plane.height, plane.width)
        if value is None:
            window = whole
        elif isinstance(value, (tuple, list)) and len(value) == 4:
            window = Window(*value)
        else:
            raise WindowError(f"the window of output {key!r} is {value!r}; pass Window(y0, y1, x0, x1) or None")
        if window.is_empty or not whole.contains(window):
            raise WindowError(
                f"the window of output {key!r} is {window}, its plane is {plane.height} x {plane.width} "
                "(rows x columns); ask for at least one cell of it"
            )
        resolved.append((key, number, window))
    return resolved


def input_plane(schedule: Schedule, index: int) -> Plane:
    """The plane of an input by its position. Raises InputError where there is none."""
    inputs = schedule.inputs
    if not isinstance(index, int) or isinstance(index, bool) or not 0 <= index < len(inputs):
        raise InputError(f"input {index!r} is set; the network has inputs 0..{len(inputs) - 1}")
    return schedule.planes[inputs[index]]


def flat_parameters(schedule: Schedule, parameters: Mapping[int, Any] | None) -> list[tuple[int, Floats]]:
    """Position and values of the flat inputs that are given.

    Raises:
        InputError: no such input, an image, or values of another number or dtype.
    """
    values: list[tuple[int, Floats]] = []
    for index, given in (parameters or {}).items():
        plane = input_plane(schedule, index)
        array = as_array(given, f"input {index}")
        if plane.height != 1 or plane.width != 1:
            raise InputError(f"input {index} ({plane.name!r}) is an image; set it before the run")
        if array.dtype != np.float32 or array.size != plane.channels:
            raise InputError(
                f"input {index} ({plane.name!r}) got {array.size} values of {array.dtype}; "
                f"pass {plane.channels} of float32"
            )
        values.append((index, np.ascontiguousarray(array).reshape(-1)))
    return values


def check_planar(schedule: Schedule, index: int, shape: Sequence[int], dtype: object, window: Window | None) -> Window:
    """The window of the input's plane that planar floats of this shape hold.

    Raises:
        InputError: no such input, another dtype or shape, a batch that is not 1.
        WindowError: the window is not on the plane.
    """
    plane = input_plane(schedule, index)
    whole = Window.full(plane.height, plane.width)
    part = whole if window is None else Window(*window)
    if part.is_empty or not whole.contains(part):
        raise WindowError(f"input {index} is given on {part}, its plane is {plane.height} x {plane.width}")
    if str(dtype).rpartition(".")[2] != "float32":
        raise InputError(f"input {index} holds {dtype}; pass float32")
    if len(shape) != 4 or shape[0] != 1:
        raise InputError(f"input {index} has shape {tuple(shape)}; pass [1, channels, rows, columns], batch 1")
    if tuple(shape[1:]) != (plane.channels, part.height, part.width):
        raise InputError(f"input {index} has shape {tuple(shape)}; pass {(1, plane.channels, part.height, part.width)}")
    return part


def check_pixels(shape: Sequence[int], dtype: object, mean: Sequence[float], std: Sequence[float]) -> None:
    """Raises InputError where a photo or its statistics cannot be used."""
    if str(dtype).rpartition(".")[2] != "uint8" or len(shape) != 3 or shape[2] != 3:
        raise InputError(f"the photo has shape {tuple(shape)} and holds {dtype}; pass uint8 [rows, columns, 3]")
    if len(mean) != 3 or len(std) != 3 or not np.isfinite([*mean, *std]).all() or min(std) <= 0:
        raise InputError(f"mean is {mean!r} and std {std!r}; pass three finite numbers each, std above 0")


def as_array(value: Any, name: str) -> NDArray[Any]:
    """Arrays, and anything that shares its memory with NumPy, such as a CPU tensor."""
    try:
        return np.asarray(value)
    except (TypeError, ValueError, RuntimeError) as error:
        raise InputError(
            f"{name} is {type(value).__name__} that NumPy cannot share ({error}); pass an array"
        ) from error
