"""Schedules as bytes and as JSON.

Bytes are what the C++ runtime reads; ``csrc/include/tracenet/schedule.hpp`` gives their layout. Both forms carry the
shapes of the tensors and not their values, which are many and lie apart.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeVar

import numpy as np

from tracenet.engine.schedule import DTYPES, OPS, Plane, Schedule, Step
from tracenet_kernels.errors import ScheduleError

MAGIC = b"TNSC"
VERSION = 1

T = TypeVar("T")


def schedule_to_bytes(schedule: Schedule) -> bytes:
    """The compact form, little-endian.

    Raises:
        ScheduleError: an operation is not known, a step names a tensor that is not there, or a number does not fit.
    """
    numbers = {name: i for i, name in enumerate(schedule.tensors)}
    writer = _Writer()
    writer.raw(MAGIC)
    writer.number("I", VERSION)
    writer.many(schedule.planes, lambda plane: _write_plane(writer, plane))
    writer.many(schedule.tensors.items(), lambda item: _write_tensor(writer, *item))
    writer.many(schedule.steps, lambda step: _write_step(writer, step, numbers))
    writer.many(schedule.inputs, lambda plane: writer.number("I", plane))
    writer.pairs("I", schedule.outputs)
    return bytes(writer.data)


def schedule_from_bytes(data: bytes, tensors: Mapping[str, np.ndarray] | None = None) -> Schedule:
    """What :func:`schedule_to_bytes` wrote.

    Args:
        tensors: values by name, C-contiguous fp32; without them tensors hold zeros that take no memory.

    Raises:
        ScheduleError: the data is truncated, foreign or of another version, or a tensor has another shape.
    """
    reader = _Reader(data)
    if data[:4] != MAGIC:
        raise ScheduleError(f"these {len(data)} bytes are no schedule: they do not start with {MAGIC.decode()}")
    reader.raw(4)
    version = reader.number("I")
    if version != VERSION:
        raise ScheduleError(f"the schedule has version {version}, this build reads {VERSION}; write it again")
    planes = tuple(reader.many(lambda: _read_plane(reader)))
    shapes = list(reader.many(lambda: (reader.text(), tuple(reader.number("q") for _ in range(reader.number("B"))))))
    names = [name for name, _ in shapes]
    steps = tuple(reader.many(lambda: _read_step(reader, names)))
    inputs = tuple(reader.many(lambda: reader.number("I")))
    outputs = dict(reader.many(lambda: (reader.text(), reader.number("I"))))
    if reader.at != len(data):
        raise ScheduleError(f"the schedule ends {len(data) - reader.at} bytes before the data does")
    return Schedule(planes, steps, inputs, outputs, _values(shapes, tensors))


def schedule_to_json(schedule: Schedule) -> str:
    """The readable form: one line per plane, step and tensor."""
    parts = {
        "version": VERSION,
        "planes": [_plane_to_json(plane) for plane in schedule.planes],
        "tensors": {name: list(value.shape) for name, value in schedule.tensors.items()},
        "steps": [_step_to_json(step) for step in schedule.steps],
        "inputs": list(schedule.inputs),
        "outputs": schedule.outputs,
    }
    lines = [f'  "{key}": {_json_lines(value)}' for key, value in parts.items()]
    return "{\n" + ",\n".join(lines) + "\n}\n"


def schedule_from_json(text: str, tensors: Mapping[str, np.ndarray] | None = None) -> Schedule:
    """What :func:`schedule_to_json` wrote; see :func:`schedule_from_bytes`."""
    try:
        parts = json.loads(text)
        if parts["version"] != VERSION:
            raise ScheduleError(f"the schedule has version {parts['version']}, this build reads {VERSION}")
        return Schedule(
            planes=tuple(Plane(*plane) for plane in parts["planes"]),
            steps=tuple(_step_from_json(step) for step in parts["steps"]),
            inputs=tuple(parts["inputs"]),
            outputs=dict(parts["outputs"]),
            tensors=_values([(name, tuple(shape)) for name, shape in parts["tensors"].items()], tensors),
        )
    except (json.JSONDecodeError, KeyError, TypeError, AttributeError, ValueError) as error:
        if isinstance(error, ScheduleError):
            raise
        raise ScheduleError(f"this text is no schedule ({error!r}); pass what schedule_to_json wrote") from error


def tensor_values(schedule: Schedule) -> list[np.ndarray]:
    """The values of all tensors in the order of the serialised table.

    Raises:
        ScheduleError: a tensor is not a C-contiguous fp32 array.
    """
    for name, value in schedule.tensors.items():
        if not isinstance(value, np.ndarray) or value.dtype != np.float32 or not value.flags.c_contiguous:
            raise ScheduleError(f"tensor {name!r} is not a C-contiguous float32 array; convert it")
    return list(schedule.tensors.values())


class _Writer:
    def __init__(self) -> None:
        self.data = bytearray()

    def raw(self, data: bytes) -> None:
        self.data += data

    def number(self, kind: str, value: float) -> None:
        try:
            self.data += struct.pack("<" + kind, value)
        except struct.error as error:
            raise ScheduleError(f"{value!r} cannot be stored in a schedule ({error})") from error

    def text(self, value: str) -> None:
        encoded = value.encode()
        self.number("I", len(encoded))
        self.data += encoded

    def many(self, items: Iterable[T], write: Callable[[T], object]) -> None:
        listed = list(items)
        self.number("I", len(listed))
        for item in listed:
            write(item)

    def pairs(self, kind: str, items: Mapping[str, float]) -> None:
        self.number("I", len(items))
        for key, value in items.items():
            self.text(key)
            self.number(kind, value)


class _Reader:
    def __init__(self, data: bytes) -> None:
        self.data = data
        self.at = 0

    def raw(self, length: int) -> bytes:
        if length > len(self.data) - self.at:
            raise ScheduleError(
                f"the schedule is truncated: byte {self.at} of {len(self.data)} asks for {length} bytes more"
            )
        self.at += length
        return self.data[self.at - length : self.at]

    def number(self, kind: str) -> Any:
        return struct.unpack("<" + kind, self.raw(struct.calcsize("<" + kind)))[0]

    def text(self) -> str:
        try:
            return self.raw(self.number("I")).decode()
        except UnicodeDecodeError as error:
            raise ScheduleError(f"a name in the schedule is not UTF-8 ({error})") from error

    def many(self, read: Callable[[], T]) -> Iterable[T]:
        for _ in range(self.number("I")):
            yield read()


def _write_plane(writer: _Writer, plane: Plane) -> None:
    if plane.dtype not in DTYPES:
        raise ScheduleError(f"plane {plane.name!r} has the dtype {plane.dtype!r}; known are {', '.join(DTYPES)}")
    writer.text(plane.name)
    for side in (plane.channels, plane.height, plane.width):
        writer.number("q", side)
    writer.number("B", bool(plane.keep))
    writer.number("B", DTYPES.index(plane.dtype))
    writer.number("d", float(np.float32(plane.scale)))
    writer.number("q", plane.zero_point)


def _read_plane(reader: _Reader) -> Plane:
    name = reader.text()
    channels, height, width = (reader.number("q") for _ in range(3))
    keep, dtype = bool(reader.number("B")), reader.number("B")
    if dtype >= len(DTYPES):
        raise ScheduleError(f"plane {name!r} has dtype number {dtype}; there are {len(DTYPES)}")
    return Plane(name, channels, height, width, keep, DTYPES[dtype], reader.number("d"), reader.number("q"))


def _write_tensor(writer: _Writer, name: str, value: np.ndarray) -> None:
    writer.text(name)
    writer.number("B", value.ndim)
    for length in value.shape:
        writer.number("q", length)


def _write_step(writer: _Writer, step: Step, tensors: Mapping[str, int]) -> None:
    if step.op not in OPS:
        raise ScheduleError(f"step {step.name!r} has the operation {step.op!r}; known are {', '.join(OPS)}")
    for attribute, name in step.tensors.items():
        if name not in tensors:
            raise ScheduleError(f"the {attribute} of step {step.name!r} is {name!r}, which is not among the tensors")
    writer.number("B", OPS.index(step.op))
    writer.text(step.name)
    writer.many(step.inputs, lambda plane: writer.number("I", plane))
    writer.number("I", step.output)
    writer.pairs("q", step.ints)
    writer.pairs("d", step.floats)
    writer.pairs("I", {attribute: tensors[name] for attribute, name in step.tensors.items()})
    writer.number("I", step.group)
    writer.many(step.nodes, writer.text)


def _read_step(reader: _Reader, tensors: list[str]) -> Step:
    op = reader.number("B")
    name = reader.text()
    if op >= len(OPS):
        raise ScheduleError(f"step {name!r} has operation number {op}; there are {len(OPS)}")
    inputs = tuple(reader.many(lambda: reader.number("I")))
    output = reader.number("I")
    ints = dict(reader.many(lambda: (reader.text(), reader.number("q"))))
    floats = dict(reader.many(lambda: (reader.text(), reader.number("d"))))
    named = dict(reader.many(lambda: (reader.text(), reader.number("I"))))
    if any(number >= len(tensors) for number in named.values()):
        raise ScheduleError(f"step {name!r} names a tensor that is not there; there are {len(tensors)}")
    group = reader.number("I")
    nodes = tuple(reader.many(reader.text))
    return Step(
        OPS[op], name, inputs, output, ints, floats, {k: tensors[number] for k, number in named.items()}, group, nodes
    )


def _plane_to_json(plane: Plane) -> list[Any]:
    """Name, sides and ``keep``; 8-bit planes also dtype, scale and zero point."""
    values = [plane.name, plane.channels, plane.height, plane.width, plane.keep]
    return values if plane.dtype == "float32" else [*values, plane.dtype, plane.scale, plane.zero_point]


_STEP_FIELDS = ("op", "name", "inputs", "output", "ints", "floats", "tensors", "group", "nodes")


def _step_to_json(step: Step) -> dict[str, Any]:
    """Fields that say something."""
    values = {field: getattr(step, field) for field in _STEP_FIELDS}
    return {field: value for field, value in values.items() if value not in ({}, (), 0) or field == "output"}


def _step_from_json(parts: dict[str, Any]) -> Step:
    unknown = parts.keys() - set(_STEP_FIELDS)
    if unknown:
        raise ScheduleError(f"a step has the unknown field {unknown.pop()!r}")
    lists = {key: tuple(parts.get(key, ())) for key in ("inputs", "nodes")}
    return Step(**{**parts, **lists})


def _json_lines(value: Any) -> str:
    if not isinstance(value, (list, dict)) or not value:
        return json.dumps(value, allow_nan=False)
    if isinstance(value, dict):
        items = [f"{json.dumps(key)}: {json.dumps(item, allow_nan=False)}" for key, item in value.items()]
        return "{\n    " + ",\n    ".join(items) + "\n  }"
    return "[\n    " + ",\n    ".join(json.dumps(item, allow_nan=False) for item in value) + "\n  ]"


def _values(
    shapes: list[tuple[str, tuple[int, ...]]], tensors: Mapping[str, np.ndarray] | None
) -> dict[str, np.ndarray]:
    values: dict[str, np.ndarray] = {}
    for name, shape in shapes:
        if any(length < 0 for length in shape):
            raise ScheduleError(f"tensor {name!r} has the shape {shape}")
        if tensors is None:
            values[name] = np.broadcast_to(np.float32(0), shape)
            continue
        if name not in tensors or tensors[name].shape != shape:
            raise ScheduleError(f"tensor {name!r} of shape {shape} is not among the values given")
        values[name] = tensors[name]
    return values
