"""Schedules to bytes and JSON and back, and everything the C++ reader refuses."""

from __future__ import annotations

import json
import random
import struct
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tracenet.engine.schedule import OPS, Plane, Schedule, Step
from tracenet.engine.serialise import (
    schedule_from_bytes,
    schedule_from_json,
    schedule_to_bytes,
    schedule_to_json,
    tensor_values,
)
from tracenet_kernels import native
from tracenet_kernels.errors import ScheduleError

needs_extension = pytest.mark.skipif(not native.available(), reason=native.why_not())

WINDOW_3 = {"kernel_y": 3, "kernel_x": 3, "pad_y": 1, "pad_x": 1}


def small() -> Schedule:
    """Every operation once: image 3 x 16 x 24 -> stem -> convolutions -> upsampled mask logits."""
    planes = (
        Plane("image", 3, 16, 24),
        Plane("theta", 169, 1, 1),
        Plane("origin", 2, 1, 1),
        Plane("soi", 1, 1, 1),
        Plane("stem", 8, 4, 6, keep=True),
        Plane("a", 8, 4, 6),
        Plane("b", 8, 4, 6),
        Plane("sum", 8, 4, 6),
        Plane("max", 8, 2, 3),
        Plane("mean", 8, 2, 3),
        Plane("up", 8, 4, 6),
        Plane("gate", 8, 4, 6),
        Plane("both", 16, 4, 6),
        Plane("mixed", 8, 4, 6),
        Plane("own", 8, 4, 6),
        Plane("mask", 1, 8, 12),
        Plane("cell", 8, 1, 1),
        Plane("gated", 8, 4, 6),
        Plane("part", 5, 4, 6),
        Plane("norm", 8, 4, 6),
    )
    number = {plane.name: i for i, plane in enumerate(planes)}

    def step(op: str, output: str, inputs: str, ints=None, floats=None, tensors=None, group=0) -> Step:
        ids = tuple(number[name] for name in inputs.split())
        return Step(op, output, ids, number[output], ints or {}, floats or {}, tensors or {}, group, (output,))

    stem = {"kernel_y": 7, "kernel_x": 7, "stride_y": 2, "stride_x": 2, "pad_y": 3, "pad_x": 3, "activation": 1}
    stem |= {f"pool_{k}": v for k, v in (WINDOW_3 | {"stride_y": 2, "stride_x": 2}).items()}
    stem |= {"conv_height": 8, "conv_width": 12}
    halve = {"kernel_y": 2, "kernel_x": 2, "stride_y": 2, "stride_x": 2}
    shared = {"weight": "w3", "bias": "bias"}
    steps = (
        step("stem", "stem", "image", stem, tensors={"weight": "w7", "bias": "bias"}),
        step("conv2d", "a", "stem", WINDOW_3 | {"activation": 1}, tensors=shared, group=1),
        step("conv2d", "b", "stem", WINDOW_3, tensors=shared | {"scale": "scale"}, group=1),
        step("add", "sum", "a b", {"activation": 1}),
        step("max_pool2d", "max", "sum", halve),
        step("avg_pool2d", "mean", "sum", halve | {"count_include_pad": 1}),
        step("resize", "up", "mean sum", {"mode": 0}, {"ratio_y": 0.5, "ratio_x": 0.5}),
        step("sigmoid", "gate", "up"),
        step("concat", "both", "gate sum"),
        step("conv2d", "mixed", "both max", {"residual_factor": 2, "groups": 2}, tensors={"weight": "w1"}),
        step("external", "own", "mixed"),
        step("mask_head", "mask", "own theta origin soi", {"stride": 4, "factor": 2}),
        step("plane_mean", "cell", "sum"),
        step("mul", "gated", "sum cell", {"activation": 3}, {"a": 0.1}),
        step("take_channels", "part", "gated", {"first": 3}),
        step("group_norm", "norm", "gated", {"groups": 4}, {"epsilon": 1e-5}, {"bias": "bias"}),
    )
    rng = np.random.default_rng(0)
    shapes = {"w7": (8, 3, 7, 7), "w3": (8, 8, 3, 3), "w1": (8, 8, 1, 1), "bias": (8,), "scale": (8,)}
    tensors = {name: rng.standard_normal(shape, dtype=np.float32) for name, shape in shapes.items()}
    return Schedule(planes, steps, (0, 1, 2, 3), {"mask": number["mask"], "sum": number["sum"]}, tensors)


def same(a: Schedule, b: Schedule) -> bool:
    shapes = [{name: value.shape for name, value in s.tensors.items()} for s in (a, b)]
    return replace(a, tensors={}) == replace(b, tensors={}) and shapes[0] == shapes[1]


def rewrite(data: bytes) -> bytes:
    return native.require().rewrite_schedule(data)


def test_bytes_and_json_give_the_schedule_back() -> None:
    schedule = small()
    assert {step.op for step in schedule.steps} == set(OPS) - {"convert"}
    assert same(schedule_from_bytes(schedule_to_bytes(schedule)), schedule)
    text = schedule_to_json(schedule)
    assert same(schedule_from_json(text), schedule)
    assert schedule_to_bytes(schedule_from_json(text)) == schedule_to_bytes(schedule)
    full = schedule_from_bytes(schedule_to_bytes(schedule), schedule.tensors)
    assert full.tensors["w7"] is schedule.tensors["w7"]
    assert [value.shape for value in tensor_values(schedule)] == [value.shape for value in schedule.tensors.values()]


@needs_extension
def test_the_native_reader_gives_the_same_bytes() -> None:
    data = schedule_to_bytes(small())
    assert rewrite(data) == data


@needs_extension
def test_every_truncation_is_a_schedule_error() -> None:
    data = schedule_to_bytes(small())
    for length in range(len(data)):
        with pytest.raises(ScheduleError):
            rewrite(data[:length])
        with pytest.raises(ScheduleError):
            schedule_from_bytes(data[:length])
    with pytest.raises(ScheduleError, match="before the data does"):
        rewrite(data + b"\0")


@needs_extension
@given(st.binary(max_size=200))
def test_foreign_bytes_are_a_schedule_error(data: bytes) -> None:
    for reader in (rewrite, schedule_from_bytes):
        for prefix in (b"", b"TNSC", b"TNSC" + struct.pack("<I", 1)):
            with pytest.raises(ScheduleError):
                reader(prefix + b"\xff\xff\xff" + data)


@needs_extension
def test_mutated_bytes_never_do_worse_than_a_schedule_error() -> None:
    """What the reader lets pass is consistent: it writes back as it was, and a size can be asked of it."""
    rng = random.Random(0)
    data = schedule_to_bytes(small())
    passed = 0
    for _ in range(4000):
        mutated = bytearray(data)
        for _ in range(rng.choice((1, 1, 2, 8))):
            at = rng.randrange(len(mutated))
            kind = rng.randrange(4)
            if kind == 0:
                mutated[at] = rng.randrange(256)
            elif kind == 1:
                mutated[at] ^= 1 << rng.randrange(8)
            elif kind == 2:
                mutated[at : at + 8] = struct.pack("<q", rng.choice((-1, 0, 1, 2**31, 2**62, -(2**63))))
            else:
                del mutated[at : at + rng.randrange(1, 9)]
        try:
            again = rewrite(bytes(mutated))
        except ScheduleError:
            continue
        assert again == bytes(mutated)
        passed += 1
    assert passed > 0  # names and flags may change


def change_step(step: str, /, **changes: object) -> Schedule:
    schedule = small()
    steps = tuple(replace(s, **changes) if s.name == step else s for s in schedule.steps)  # type: ignore[arg-type]
    assert steps != schedule.steps
    return replace(schedule, steps=steps)


def change_ints(name: str, **ints: int) -> Schedule:
    old = next(step for step in small().steps if step.name == name)
    return change_step(name, ints=old.ints | ints)


def change_plane(plane: str, /, **changes: object) -> Schedule:
    schedule = small()
    planes = tuple(replace(p, **changes) if p.name == plane else p for p in schedule.planes)  # type: ignore[arg-type]
    return replace(schedule, planes=planes)


def change_tensor(name: str, *shape: int) -> Schedule:
    schedule = small()
    return replace(schedule, tensors=schedule.tensors | {name: np.zeros(shape, np.float32)})


@needs_extension
@pytest.mark.parametrize(
    ("schedule", "message"),
    [
        (change_step("sum", inputs=(5, 99)), "names plane 99"),
        (change_step("sum", output=77), "names plane 77"),
        (change_step("a", inputs=(10,), group=0), "not computed yet"),
        (change_step("sum", output=5), "second time"),
        (change_step("sum", inputs=(5, 0)), "must agree"),
        (change_step("sum", inputs=()), "reads nothing"),
        (change_step("sum", inputs=(5, 6, 5)), "takes 1 to 2"),
        (change_step("sum", ints={"activation": 11}), "activation 11"),
        (change_step("sum", floats={"a": float("nan")}), "NaN"),
        (change_step("sum", floats={"c": 1.0}), "does not know"),
        (change_step("gated", inputs=(4,)), "reads 1 planes"),
        (change_step("gated", inputs=(7, 8)), "must agree"),
        (change_step("cell", inputs=(12,)), "gives one cell of as many"),
        (change_step("norm", ints={"groups": 3}), "3 groups"),
        (change_step("norm", tensors={"scale": "w1"}), "one number for each of 8"),
        (change_step("norm", floats={"epsilon": -1.0}), "epsilon"),
        (change_step("part", ints={"first": 4}), "first 4"),
        (change_step("part", inputs=(8,)), "takes 5 channels of 8"),
        (change_step("sum", ints={"speed": 2}), "'speed'"),
        (change_step("gate", floats={"ratio_y": 1.0}), "'ratio_y'"),
        (change_step("gate", tensors={"weight": "w1"}), "'weight'"),
        (change_step("a", tensors={"bias": "bias"}), "no weight"),
        (change_step("a", tensors={"weight": "w7"}, group=0), "another shape"),
        (change_step("a", tensors={"weight": "w3", "bias": "w1"}), "one number for each"),
        (change_step("b", tensors={"weight": "w1"}, ints={}), "not the same convolution"),
        (change_step("b", inputs=(5,)), "of its own group"),
        (change_step("stem", tensors={"weight": "w7", "scale": "scale"}), "has a scale"),
        (change_ints("stem", activation=0), "no ReLU"),
        (change_ints("stem", conv_height=11), "height of its convolution"),
        (change_ints("stem", conv_height=-1), "conv_height -1"),
        (change_ints("stem", pool_pad_y=2), "padding 2"),
        (change_ints("a", stride_y=2), "height of 4 from 4"),
        (change_ints("a", kernel_y=2**40), "kernel_y 1099511627776"),
        (change_ints("a", groups=3), "3 groups"),
        (change_ints("a", pad_x=-1), "pad_x -1"),
        (change_ints("max", pad_y=2), "padding 2"),
        (change_ints("mean", dilation_y=2), "dilated"),
        (change_ints("mean", divisor=-1), "divisor -1"),
        (change_ints("mixed", residual_factor=3), "enlarged 3 times"),
        (change_ints("up", mode=4), "mode 4"),
        (change_ints("up", mode=3, factor=3), "3 times"),
        (change_step("up", floats={"ratio_y": 2.0, "ratio_x": 0.5}), "do not belong together"),
        (change_step("up", floats={"ratio_y": float("nan"), "ratio_x": 0.5}), "no number"),
        (change_step("both", inputs=(11, 7, 7)), "24 channels"),
        (change_step("both", inputs=(11, 8)), "different sizes"),
        (change_step("mask", ints={"factor": 2}), "stride"),
        (change_ints("mask", factor=3), "3 times"),
        (change_plane("theta", channels=168), "169 channels"),
        (change_plane("theta", width=2), "on one cell"),
        (change_plane("image", height=0), "sides lie in"),
        (change_plane("image", width=2**40), "sides lie in"),
        (change_plane("own", name="mixed"), "two planes"),
        (change_plane("stem", height=7), "height"),
        (change_tensor("w3", 8, 8, 3, 2), "another shape"),
        (change_tensor("bias", 0), "side of 0"),
        (replace(small(), inputs=(0, 1, 2)), "not computed yet"),
        (replace(small(), inputs=(0, 1, 2, 3, 4)), "second time"),
        (replace(small(), steps=small().steps[:-5]), "never computed"),
    ],
)
def test_inconsistent_schedules_are_refused(schedule: Schedule, message: str) -> None:
    data = schedule_to_bytes(schedule)
    with pytest.raises(ScheduleError, match=message):
        rewrite(data)


@needs_extension
def test_another_version_is_refused() -> None:
    data = bytearray(schedule_to_bytes(small()))
    data[4] = 2
    for reader in (rewrite, schedule_from_bytes):
        with pytest.raises(ScheduleError, match="version 2"):
            reader(bytes(data))


def test_what_cannot_be_written_is_refused() -> None:
    schedule = small()
    with pytest.raises(ScheduleError, match="'fft'"):
        schedule_to_bytes(change_step("gate", op="fft"))
    with pytest.raises(ScheduleError, match="not among the tensors"):
        schedule_to_bytes(change_step("a", tensors={"weight": "w9"}))
    with pytest.raises(ScheduleError, match="cannot be stored"):
        schedule_to_bytes(change_ints("a", pad_y=2**63))
    with pytest.raises(ScheduleError, match="float32"):
        tensor_values(replace(schedule, tensors={"w": np.zeros(3)}))


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"version": 2}', '{"version": 1, "planes": 3}'])
def test_foreign_json_is_refused(text: str) -> None:
    with pytest.raises(ScheduleError):
        schedule_from_json(text)


def test_json_with_unknown_fields_is_refused() -> None:
    parts = json.loads(schedule_to_json(small()))
    parts["steps"][0]["colour"] = 3
    with pytest.raises(ScheduleError, match="colour"):
        schedule_from_json(json.dumps(parts))
