"""8-bit schedules in the native runtime: against the oracle, in windows, kept, as files, and refused where wrong."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

import tracenet
from tests.engine.networks import tracenet_inputs, tracenet_model
from tracenet.engine.lower import lower
from tracenet.engine.program import Program
from tracenet.engine.quantise import calibrate, quantise
from tracenet.engine.reference import run_schedule
from tracenet.engine.schedule import Plane, Schedule, Step
from tracenet.engine.serialise import schedule_from_bytes, schedule_from_json, schedule_to_bytes, schedule_to_json
from tracenet.engine.session import Session
from tracenet_kernels import native
from tracenet_kernels.errors import RequestError, ScheduleError
from tracenet_kernels.testing import errors
from tracenet_kernels.window import Window

needs_extension = pytest.mark.skipif(not native.available(), reason=native.why_not())


@pytest.fixture(scope="module")
def network() -> tuple[Schedule, tuple[Tensor, ...]]:
    """A TraceNet in 8 bits and its inputs."""
    torch.manual_seed(0)
    model = tracenet_model(level_head=True)
    inputs = tracenet_inputs(model)
    schedule = lower(tracenet.trace(model, inputs).graph)
    return quantise(schedule, calibrate(schedule, [inputs])), inputs


def session_of(program: Program, inputs: tuple[Tensor, ...], **options: bool) -> Session:
    session = Session(program, threads=1, poison=True, **options)
    session.set_planar(0, inputs[0].numpy())
    return session


def parameters(inputs: tuple[Tensor, ...]) -> dict[int, np.ndarray]:
    return {i: value.numpy().reshape(-1) for i, value in enumerate(inputs) if i}


@needs_extension
def test_every_8_bit_step_has_the_bits_of_the_oracle(network: tuple[Schedule, tuple[Tensor, ...]]) -> None:
    """Step by step, because fp32 steps may differ from torch in the last bit, which moves a rounding here and there."""
    schedule, inputs = network
    session = session_of(Program(schedule), inputs)
    session.begin(dict.fromkeys(schedule.outputs), parameters(inputs))

    def read(number: int) -> Tensor:
        plane = schedule.planes[number]
        return torch.from_numpy(session.read(number, Window.full(plane.height, plane.width))).permute(2, 0, 1)[None]

    checked = 0
    last = 0
    for i, step in enumerate(schedule.steps):
        if i + 1 < len(schedule.steps) and step.group and schedule.steps[i + 1].group == step.group:
            continue
        launch = [s for s in schedule.steps[last : i + 1] if is_8_bit(schedule, s)]
        operands = {number: read(number) for member in launch for number in member.inputs}
        session.run_steps(last, i + 1)
        last = i + 1
        for member in launch:
            given = {number: integers(operands[number], schedule.planes[number]) for number in member.inputs}
            assert torch.equal(read(member.output), oracle(schedule, member, given)), member.name
            checked += 1
    assert checked > 100
    session.finish()


def is_8_bit(schedule: Schedule, step: Step) -> bool:
    return any(schedule.planes[number].dtype == "uint8" for number in (*step.inputs, step.output))


def integers(real: Tensor, plane: Plane) -> Tensor:
    """What a plane that was read as real values holds."""
    if plane.dtype == "float32":
        return real
    return (real / plane.scale + plane.zero_point).round().to(torch.uint8)


def oracle(schedule: Schedule, step: Step, values: dict[int, Tensor]) -> Tensor:
    """The step's plane as real values."""
    numbers = list(values)
    planes = (*(schedule.planes[number] for number in numbers), schedule.planes[step.output])
    alone = replace(step, inputs=tuple(numbers.index(number) for number in step.inputs), output=len(numbers))
    part = Schedule(planes, (alone,), tuple(range(len(numbers))), {"y": len(numbers)}, schedule.tensors)
    return run_schedule(part, [values[number] for number in numbers])["y"]


@needs_extension
def test_outputs_are_close_to_the_oracles(network: tuple[Schedule, tuple[Tensor, ...]]) -> None:
    schedule, inputs = network
    found = session_of(Program(schedule), inputs).run(dict.fromkeys(schedule.outputs), parameters(inputs)).outputs
    for name, reference in run_schedule(schedule, inputs).items():
        assert errors(torch.from_numpy(found[name]), reference).frobenius < 0.02, name


@needs_extension
def test_windows_have_the_bits_of_the_plane(network: tuple[Schedule, tuple[Tensor, ...]]) -> None:
    schedule, inputs = network
    program = Program(schedule)
    names = [name for name in schedule.outputs if schedule.planes[schedule.outputs[name]].height > 3][:6]
    whole = session_of(program, inputs).run(dict.fromkeys(schedule.outputs), parameters(inputs)).outputs
    kept = session_of(program, inputs, keep=True)
    for y, x in ((0, 0), (2, 3), (1, 0)):
        request = {name: Window(y, y + 2, x, x + 1) for name in names}
        for session in (session_of(program, inputs), kept):
            result = session.run(request, parameters(inputs))
            for name, window in request.items():
                rows, columns = window.slices
                np.testing.assert_array_equal(result.outputs[name], whole[name][..., rows, columns])
    assert kept.kept_bytes > 0


@needs_extension
def test_bytes_take_less_memory(network: tuple[Schedule, tuple[Tensor, ...]]) -> None:
    schedule, inputs = network
    torch.manual_seed(0)
    model = tracenet_model(level_head=True)
    real = lower(tracenet.trace(model, inputs).graph)
    request = dict.fromkeys(schedule.outputs)
    peaks = [session_of(Program(s), inputs).run(request, parameters(inputs)).peak_bytes for s in (schedule, real)]
    assert peaks[0] < 0.85 * peaks[1]


@needs_extension
def test_other_sizes_and_files(network: tuple[Schedule, tuple[Tensor, ...]], tmp_path: Path) -> None:
    schedule, inputs = network
    program = Program(schedule)
    program.save(tmp_path / "network.tnprogram")
    request = dict.fromkeys(schedule.outputs)
    expected = session_of(program, inputs).run(request, parameters(inputs)).outputs
    loaded = Program.load(tmp_path / "network.tnprogram")
    assert [plane.dtype for plane in loaded.schedule.planes] == [plane.dtype for plane in schedule.planes]
    found = session_of(loaded, inputs).run(request, parameters(inputs)).outputs
    for name in expected:
        np.testing.assert_array_equal(found[name], expected[name])
    larger = program.at_size(128, 160)
    image = torch.randn(1, 3, 128, 160)
    result = session_of(larger, (image, *inputs[1:])).run(request, parameters(inputs)).outputs
    for name, reference in run_schedule(larger_schedule(larger, schedule), (image, *inputs[1:])).items():
        assert errors(torch.from_numpy(result[name]), reference).frobenius < 0.02, name


def larger_schedule(program: Program, schedule: Schedule) -> Schedule:
    return replace(program.schedule, tensors=schedule.tensors)


def test_serialised_and_back(network: tuple[Schedule, tuple[Tensor, ...]]) -> None:
    schedule, _ = network
    for copy in (
        schedule_from_bytes(schedule_to_bytes(schedule), schedule.tensors),
        schedule_from_json(schedule_to_json(schedule), schedule.tensors),
    ):
        assert (copy.planes, copy.steps, copy.outputs) == (schedule.planes, schedule.steps, schedule.outputs)


def small(**changes: object) -> Schedule:
    """Image -> convert -> 8-bit convolution -> output, with changes to the 8-bit plane."""
    plane = replace(Plane("x:uint8", 4, 5, 6, dtype="uint8", scale=0.125, zero_point=7), **changes)  # type: ignore[arg-type]
    planes = (Plane("x", 4, 5, 6), plane, Plane("y", 3, 5, 6))
    steps = (
        Step("convert", "x:uint8", (0,), 1),
        Step("conv2d", "y", (1,), 2, tensors={"weight": "w"}),
    )
    weight = np.random.default_rng(0).normal(size=(3, 4, 1, 1)).astype(np.float32)
    return Schedule(planes, steps, (0,), {"y": 2}, {"w": weight})


@needs_extension
def test_a_small_schedule_runs() -> None:
    schedule = small()
    x = torch.randn(1, 4, 5, 6)
    result = session_of(Program(schedule), (x,)).run({"y": None, "x:uint8": Window(1, 3, 0, 6)})
    np.testing.assert_array_equal(result.outputs["y"], run_schedule(schedule, (x,))["y"].numpy())
    # A uint8 plane that is asked for comes as real values.
    grid = schedule.planes[1]
    steps = np.clip(np.rint(x.numpy() * (np.float32(1) / np.float32(grid.scale))) + 7, 0, 255)
    expected = (steps.astype(np.float32) - 7) * np.float32(grid.scale)
    np.testing.assert_array_equal(result.outputs["x:uint8"], expected[..., 1:3, :])


def wrong() -> dict[str, tuple[Schedule, str]]:
    good = small()
    x8 = replace(good.planes[0], dtype="uint8")
    pool = Step("max_pool2d", "y", (1,), 2)
    pooled = replace(good.planes[2], channels=4)
    return {
        "scale": (small(scale=0.0), "scale"),
        "tiny scale": (small(scale=1e-42), "scale"),
        "input": (replace(good, planes=(x8, *good.planes[1:])), "the input 'x' is uint8"),
        "operation": (
            replace(good, planes=(*good.planes[:2], pooled), steps=(good.steps[0], pool), tensors={}),
            "reads or gives a uint8 plane",
        ),
        "channels": (small(channels=3), "must agree"),
    }


@needs_extension
@pytest.mark.parametrize("name", wrong())
def test_wrong_schedules_are_refused(name: str) -> None:
    schedule, message = wrong()[name]
    with pytest.raises(ScheduleError, match=message):
        Program(schedule)


@needs_extension
def test_too_many_terms_are_refused() -> None:
    schedule = small()
    planes = (
        replace(schedule.planes[0], channels=33000),
        replace(schedule.planes[1], channels=33000),
        schedule.planes[2],
    )
    weight = np.zeros((3, 33000, 1, 1), np.float32)
    with pytest.raises(ScheduleError, match="33000 terms"):
        Program(replace(schedule, planes=planes, tensors={"w": weight}))


def test_an_unknown_dtype_is_refused() -> None:
    with pytest.raises(ScheduleError, match="float16"):
        schedule_to_bytes(small(dtype="float16"))


@needs_extension
def test_a_plane_without_a_step_is_a_request_error() -> None:
    with pytest.raises(RequestError):
        session_of(Program(small()), (torch.randn(1, 4, 5, 6),)).run({"z:uint8": None})
