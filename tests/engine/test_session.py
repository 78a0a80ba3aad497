"""Programs and sessions against the plain-torch oracle and against the tracer: values, windows, memory, errors."""

from __future__ import annotations

import random
import subprocess
import sys
import threading
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

import tracenet
from tests.engine.networks import UNet, randomised, tracenet_inputs, tracenet_model
from tests.engine.schedules import Builder, every_op
from tracenet.engine.lower import lower
from tracenet.engine.program import Program
from tracenet.engine.reference import run_schedule
from tracenet.engine.schedule import Schedule
from tracenet.engine.session import Session, SessionResult, ThreadPool
from tracenet.rft.trace import plan_windows
from tracenet_kernels import native
from tracenet_kernels.errors import ExecutionError, InputError, RequestError, ScheduleError, WindowError
from tracenet_kernels.testing import assert_close
from tracenet_kernels.window import Window, hull

pytestmark = pytest.mark.skipif(not native.available(), reason=native.why_not())


def random_window(height: int, width: int, rng: random.Random) -> Window:
    y, x = sorted(rng.choices(range(height + 1), k=2)), sorted(rng.choices(range(width + 1), k=2))
    y0, x0 = min(y[0], height - 1), min(x[0], width - 1)
    return Window(y0, max(y[1], y0 + 1), x0, max(x[1], x0 + 1))


def random_request(schedule: Schedule, rng: random.Random, most: int = 3) -> dict[str, Window]:
    names = rng.sample(list(schedule.outputs), rng.randint(1, min(most, len(schedule.outputs))))
    planes = {name: schedule.planes[schedule.outputs[name]] for name in names}
    return {name: random_window(plane.height, plane.width, rng) for name, plane in planes.items()}


def flat_inputs(schedule: Schedule, inputs: tuple[Tensor, ...]) -> dict[int, np.ndarray]:
    return {i: x.reshape(-1).numpy() for i, x in enumerate(inputs) if is_flat(schedule, i)}


def is_flat(schedule: Schedule, index: int) -> bool:
    plane = schedule.planes[schedule.inputs[index]]
    return plane.height == plane.width == 1


def started(schedule: Schedule, inputs: tuple[Tensor, ...], **options: Any) -> Session:
    session = Session(Program(schedule), poison=True, **options)
    for i, x in enumerate(inputs):
        if not is_flat(schedule, i):
            session.set_planar(i, x)
    return session


def same_bits(a: Mapping[Any, np.ndarray], b: Mapping[Any, np.ndarray]) -> None:
    assert a.keys() == b.keys()
    for key, value in a.items():
        assert np.array_equal(value, b[key], equal_nan=False), key


def cropped(full: SessionResult, request: Mapping[str, Window]) -> dict[str, np.ndarray]:
    return {name: full.outputs[name][:, :, w.y0 : w.y1, w.x0 : w.x1] for name, w in request.items()}


@pytest.fixture(scope="module")
def ops() -> tuple[Schedule, tuple[Tensor, ...]]:
    torch.manual_seed(0)
    schedule = every_op()
    inputs = tuple(torch.randn(1, p.channels, p.height, p.width) for p in (schedule.planes[i] for i in schedule.inputs))
    inputs[-1].fill_(64.0)
    return schedule, inputs


@pytest.fixture(scope="module")
def unet() -> tuple[Any, Schedule, Tensor]:
    torch.manual_seed(1)
    x = torch.randn(1, 3, 64, 96)
    traced = tracenet.trace(randomised(UNet()), (x,))
    return traced, lower(traced.graph), x


@pytest.fixture(scope="module")
def bundled() -> tuple[Any, Schedule, tuple[Tensor, ...]]:
    torch.manual_seed(2)
    model = tracenet_model(tower_norm="bn_per_level")
    inputs = tracenet_inputs(model, 160, 128)
    traced = tracenet.trace(model, inputs)
    return traced, lower(traced.graph), inputs


def test_every_operation_equals_the_oracle(ops: tuple[Schedule, tuple[Tensor, ...]]) -> None:
    schedule, inputs = ops
    expected = run_schedule(schedule, inputs)
    session = started(schedule, inputs)
    result = session.run(dict.fromkeys(schedule.outputs), flat_inputs(schedule, inputs), profile=True)
    for name, value in expected.items():
        assert_close(torch.from_numpy(result.outputs[name]), value, what=name)
    logits = result.step_macs[schedule.planes[schedule.outputs["logits"]].name]
    assert result.macs == sum(row.macs for row in result.profile) == result.full_macs + logits  # computed by both heads
    assert len(result.profile) == len(schedule.steps) - 1  # two convolutions are one launch
    assert all(row.microseconds > 0 and row.bytes > 0 for row in result.profile)


def test_windows_hold_the_bits_of_the_full_run(ops: tuple[Schedule, tuple[Tensor, ...]]) -> None:
    schedule, inputs = ops
    rng = random.Random(0)
    session = started(schedule, inputs, threads=2)
    flat = flat_inputs(schedule, inputs)
    full = session.run(dict.fromkeys(schedule.outputs), flat)
    for _ in range(30):
        request = random_request(schedule, rng)
        result = session.run(request, flat)
        same_bits(result.outputs, cropped(full, request))
        assert result.macs <= full.macs
        assert result.peak_bytes == result.workspace_bytes <= full.peak_bytes


def test_windows_and_macs_are_the_tracers(unet: tuple[Any, Schedule, Tensor]) -> None:
    traced, schedule, x = unet
    rng = random.Random(1)
    session = started(schedule, (x,))
    for _ in range(40):
        request = random_request(schedule, rng)
        plan, ours = traced.plan(request, max_pieces=1), session.plan(request)  # sessions compute hulls
        assert (ours.macs, ours.full_macs) == (plan.macs, plan.full_macs)
        assert sum(ours.step_macs.values()) == ours.macs
        for name, window in ours.windows.items():
            assert window == plan.windows[name], name
        assert all(pieces == [ours.windows[name]] for name, pieces in ours.pieces.items())


def test_a_lowered_network_equals_the_model(unet: tuple[Any, Schedule, Tensor]) -> None:
    traced, schedule, x = unet
    rng = random.Random(2)
    session = started(schedule, (x,))
    for _ in range(10):
        request = random_request(schedule, rng)
        expected = traced.run((x,), traced.plan(request))
        for name, value in session.run(request).outputs.items():
            assert_close(torch.from_numpy(value), expected[name], what=name)


def test_the_bundled_kind_of_network(bundled: tuple[Any, Schedule, tuple[Tensor, ...]]) -> None:
    traced, schedule, inputs = bundled
    session = started(schedule, inputs)
    request = {"logits3": Window(5, 6, 7, 8), "theta4": Window(2, 3, 3, 4), "mask": Window(4, 15, 6, 19)}
    request = {name: window for name, window in request.items() if name in schedule.outputs}
    assert len(request) >= 2
    plan = traced.plan(request)
    result = session.run(request, flat_inputs(schedule, inputs))
    assert (result.macs, result.full_macs) == (plan.macs, plan.full_macs)
    for name, window in result.windows.items():
        assert window == plan.windows[name], name
    expected = traced.run(inputs, plan)
    for name, value in result.outputs.items():
        assert_close(torch.from_numpy(value), expected[name], what=name)


# Random schedules.


@st.composite
def random_schedules(draw: st.DrawFn) -> Schedule:
    builder = Builder(draw(st.integers(0, 2**31)))
    image = builder.image(draw(st.integers(1, 4)), draw(st.integers(1, 23)), draw(st.integers(2, 23)))
    planes = [image]
    for _ in range(draw(st.integers(1, 9))):
        planes.append(builder.random_step(planes, lambda *options: draw(st.sampled_from(options))))
    return builder.schedule({f"out{i}": plane for i, plane in enumerate(planes[1:]) if i % 2 == 0 or i == len(planes)})


@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@given(random_schedules(), st.integers(0, 2**31), st.booleans())
def test_random_schedules_equal_the_oracle_and_keep_their_bits(schedule: Schedule, seed: int, keep: bool) -> None:
    rng = random.Random(seed)
    torch.manual_seed(seed)
    plane = schedule.planes[schedule.inputs[0]]
    x = torch.randn(1, plane.channels, plane.height, plane.width)
    if keep:
        schedule = replace(schedule, planes=tuple(replace(p, keep=rng.random() < 0.6) for p in schedule.planes))
    scratch = started(schedule, (x,))
    full = scratch.run(dict.fromkeys(schedule.outputs))
    for name, value in run_schedule(schedule, (x,)).items():
        assert_close(torch.from_numpy(full.outputs[name]), value, what=name)
    session = started(schedule, (x,), keep=keep)
    for _ in range(6):
        request = random_request(schedule, rng)
        same_bits(session.run(request).outputs, cropped(full, request))


# Kept planes.


def test_clicks_with_kept_planes_equal_those_from_scratch(unet: tuple[Any, Schedule, Tensor]) -> None:
    traced, schedule, x = unet
    rng = random.Random(3)
    schedule = replace(schedule, planes=tuple(replace(p, keep=i % 3 != 1) for i, p in enumerate(schedule.planes)))
    scratch, session = started(schedule, (x,)), started(schedule, (x,), keep=True)
    saved = 0
    for click in range(40):
        if click % 13 == 12:
            session.forget()
            assert session.kept_bytes == 0 and session.kept_windows() == {}
        request = random_request(schedule, rng)
        kept = session.kept_windows()
        result, fresh = session.run(request), scratch.run(request)
        same_bits(result.outputs, fresh.outputs)
        saved += fresh.macs - result.macs
        plan = plan_windows(traced.graph, request, kept) if kept else traced.plan(request)
        assert result.macs == plan.macs
        planned = {node.node.name: node for node in plan.nodes}
        for name, window in result.windows.items():
            assert window == planned[name].window, name
        for step in schedule.steps:
            pieces = result.pieces.get(step.name, [])
            assert len(pieces) <= 4
            if step.name in planned:
                assert sorted(pieces) == sorted(planned[step.name].pieces), step.name
        by_name = {plane.name: plane for plane in schedule.planes}
        cells = {name: sum(w.area for w in windows) for name, windows in session.kept_windows().items()}
        assert result.kept_bytes == session.kept_bytes == sum(4 * by_name[n].channels * c for n, c in cells.items())
        for windows in session.kept_windows().values():
            assert all(a.intersect(b).is_empty for i, a in enumerate(windows) for b in windows[:i])
    assert saved > 0


def test_what_was_computed_is_not_computed_again(unet: tuple[Any, Schedule, Tensor]) -> None:
    _, schedule, x = unet
    schedule = replace(schedule, planes=tuple(replace(p, keep=True) for p in schedule.planes))
    session = started(schedule, (x,), keep=True)
    request = {"low": Window(2, 6, 3, 9)}
    first = session.run(request)
    again = session.run(request)
    same_bits(again.outputs, first.outputs)
    assert first.macs > 0 and again.macs == 0 and again.pieces == {}
    session.set_planar(0, x * 2)
    assert session.run(request).macs == first.macs


def test_too_much_is_dropped_altogether(unet: tuple[Any, Schedule, Tensor]) -> None:
    _, schedule, x = unet
    schedule = replace(schedule, planes=tuple(replace(p, keep=True) for p in schedule.planes))
    request = {"low": Window(0, 8, 0, 8)}
    kept = started(schedule, (x,), keep=True).run(request)
    session = started(schedule, (x,), keep=True, max_kept_bytes=kept.kept_bytes - 1)
    first = session.run(request)
    assert kept.kept_bytes > 0 and first.kept_bytes == 0 and session.kept_windows() == {}
    assert first.peak_bytes == kept.peak_bytes
    second = session.run(request)
    assert second.macs == first.macs
    same_bits(second.outputs, first.outputs)


def test_what_depends_on_flat_inputs_is_not_kept(bundled: tuple[Any, Schedule, tuple[Tensor, ...]]) -> None:
    _, schedule, inputs = bundled
    schedule = replace(schedule, planes=tuple(replace(p, keep=True) for p in schedule.planes))
    heads = [step for step in schedule.steps if step.op == "mask_head"]
    assert heads
    name = schedule.planes[heads[0].output].name
    session, scratch = started(schedule, inputs, keep=True), started(schedule, inputs)
    flat = flat_inputs(schedule, inputs)
    first = session.run({name: Window(4, 12, 4, 12)}, flat)
    other = {i: values * 0.5 for i, values in flat.items()}
    second = session.run({name: Window(4, 12, 4, 12)}, other)
    assert name not in session.kept_windows()
    assert 0 < second.macs < first.macs
    same_bits(second.outputs, scratch.run({name: Window(4, 12, 4, 12)}, other).outputs)


# Inputs.


def test_a_part_of_an_input_is_enough(unet: tuple[Any, Schedule, Tensor]) -> None:
    _, schedule, x = unet
    session = started(schedule, (x,))
    request = {schedule.steps[1].name: Window(4, 6, 5, 7)}
    expected = session.run(request)
    part = expected.windows[schedule.planes[schedule.inputs[0]].name]
    assert part.area < 64 * 96
    session.set_planar(0, x[:, :, part.y0 : part.y1, part.x0 : part.x1], part)
    same_bits(session.run(request).outputs, expected.outputs)
    with pytest.raises(InputError, match="set more of it"):
        session.run({"low": None})
    same_bits(session.run(request).outputs, expected.outputs)


def test_photos_are_normalised_as_they_are_read(unet: tuple[Any, Schedule, Tensor]) -> None:
    _, schedule, _ = unet
    rng = np.random.default_rng(0)
    photo = rng.integers(0, 256, (60, 90, 3), dtype=np.uint8)
    mean, std = (103.0, 116.5, 123.25), (57.0, 58.5, 59.25)
    x = np.zeros((1, 3, 64, 96), np.float32)
    pixels = photo[..., ::-1].astype(np.float32)
    x[0, :, :60, :90] = ((pixels - np.float32(mean)) / np.float32(std)).transpose(2, 0, 1)
    session = Session(Program(schedule), poison=True)
    session.set_pixels(0, photo, mean, std, reverse=True)
    result = session.run({"low": Window(3, 8, 6, 12), "half": None})
    expected = started(schedule, (torch.from_numpy(x),)).run({"low": Window(3, 8, 6, 12), "half": None})
    for name, value in result.outputs.items():
        assert_close(torch.from_numpy(value), torch.from_numpy(expected.outputs[name]), what=name)


def test_an_input_can_be_asked_for(unet: tuple[Any, Schedule, Tensor]) -> None:
    _, schedule, x = unet
    name = schedule.planes[schedule.inputs[0]].name
    result = started(schedule, (x,)).run({name: Window(3, 9, 2, 40), "low": Window(1, 3, 1, 3)})
    assert np.array_equal(result.outputs[name], x[:, :, 3:9, 2:40].numpy())


def test_wrong_inputs_are_typed_errors(ops: tuple[Schedule, tuple[Tensor, ...]]) -> None:
    schedule, inputs = ops
    session = Session(Program(schedule))
    image = inputs[0]
    flat = flat_inputs(schedule, inputs)
    with pytest.raises(InputError, match="read but not set"):
        session.run({"mask": None}, flat)
    for array, message in [
        (image.double(), "pass float32"),
        (image.expand(2, -1, -1, -1), "batch 1"),
        (image[0], "batch 1"),
        (image[:, :, 1:], "pass \\(1, 3"),
        (image.clone().requires_grad_(), "NumPy cannot share"),
    ]:
        with pytest.raises(InputError, match=message):
            session.set_planar(0, array)
    with pytest.raises(InputError, match=r"inputs 0\.\.3"):
        session.set_planar(4, image)
    with pytest.raises(WindowError):
        session.set_planar(0, image, Window(1, 1 + image.shape[2], 0, image.shape[3]))
    photo = np.zeros((8, 8, 3), np.uint8)
    for arguments, message in [
        ((photo.astype(np.float32),), "pass uint8"),
        ((photo[..., :2],), "pass uint8"),
        ((photo, (0, 0, 0), (1, 0, 1)), "std above 0"),
        ((photo, (0, 0)), "three finite numbers"),
        ((np.zeros((999, 8, 3), np.uint8),), "photo that fits"),
    ]:
        with pytest.raises(InputError, match=message):
            session.set_pixels(0, *arguments)
    session.set_planar(0, image)
    with pytest.raises(InputError, match="pass its values"):
        session.run({"mask": None}, {1: flat[1]})
    with pytest.raises(InputError, match="pass 169"):
        session.run({"mask": None}, flat | {1: flat[1][:-1]})
    with pytest.raises(InputError, match="set it before"):
        session.run({"mask": None}, flat | {0: flat[1]})
    assert np.isfinite(session.run({"mask": None}, flat).outputs["mask"]).all()


def test_wrong_requests_are_typed_errors(unet: tuple[Any, Schedule, Tensor]) -> None:
    _, schedule, x = unet
    session = started(schedule, (x,))
    for request, error, message in [
        ({}, RequestError, "pass a dict"),
        ({"nothing": None}, RequestError, "by name: low"),
        ({99: None}, RequestError, "not an output"),
        ({True: None}, RequestError, "not an output"),
        ({"low": Window(0, 1, 0, 999)}, WindowError, "its plane is"),
        ({"low": Window(1, 1, 0, 1)}, WindowError, "at least one cell"),
        ({"low": 3}, WindowError, "pass Window"),
    ]:
        for call in (session.run, session.plan, session.begin):
            with pytest.raises(error, match=message):
                call(request)
    with pytest.raises(InputError, match="threads"):
        Session(session.program, threads=-1)
    with pytest.raises(InputError, match="max_kept_bytes"):
        Session(session.program, max_kept_bytes=-1)
    assert session.run({0: Window(0, 1, 0, 1)}).outputs[0].shape[2:] == (1, 1)


def test_out_of_memory_is_a_typed_error_and_the_session_goes_on() -> None:
    builder = Builder(0)
    x = builder.image(1, 8, 8)
    huge = builder.step("resize", [x], 1, 1 << 17, 1 << 18, {"mode": 0}, {"ratio_y": 2.0**-14, "ratio_x": 2.0**-15})
    session = started(builder.schedule({"huge": huge}), (torch.ones(1, 1, 8, 8),))
    # Two runs in parts, so that the output itself is not the first thing memory is missing for.
    with pytest.raises(ExecutionError, match="out of memory"):
        session.begin({"huge": None})
    assert session.run({"huge": Window(5, 6, 7, 9)}).outputs["huge"].sum() == 2


# Runs in parts.


def outside(inputs: list[np.ndarray]) -> np.ndarray:
    """What the external step of :func:`every_op` computes, cell by cell."""
    return np.tanh(inputs[0]).astype(np.float32)


def test_external_steps_run_in_between(ops: tuple[Schedule, tuple[Tensor, ...]]) -> None:
    schedule, inputs = ops
    at = next(i for i, step in enumerate(schedule.steps) if step.name == "gate")
    external = replace(schedule.steps[at], op="external")
    schedule = replace(schedule, steps=(*schedule.steps[:at], external, *schedule.steps[at + 1 :]))
    expected = run_schedule(schedule, inputs, lambda step, x: torch.tanh(x[0]))
    session = started(schedule, inputs)
    flat = flat_inputs(schedule, inputs)
    with pytest.raises(RequestError, match="outside the schedule"):
        session.run(dict.fromkeys(schedule.outputs), flat)
    whole = {i: [Window.full(p.height, p.width)] for i, p in enumerate(schedule.planes) if i not in schedule.inputs}
    session.begin(whole, flat)
    with pytest.raises(RequestError, match="run is open"):
        session.run({"mask": None}, flat)
    with pytest.raises(RequestError, match="run is open"):
        session.set_planar(0, inputs[0])
    with pytest.raises(RequestError, match="has not written"):
        session.run_steps(0, at + 1)
    session.run_steps(0, at)
    plane = schedule.planes[external.inputs[0]]
    window = Window.full(plane.height, plane.width)
    values = session.read(plane.name, window)
    with pytest.raises(RequestError, match="not computed"):
        session.read(external.output, window)
    with pytest.raises(RequestError, match="has not written"):
        session.run_steps(at + 1, len(schedule.steps))
    session.write(external.output, window, outside([values]))
    session.run_steps(at + 1, len(schedule.steps))
    for name, value in expected.items():
        plane = schedule.planes[schedule.outputs[name]]
        read = session.read(schedule.outputs[name], Window.full(plane.height, plane.width))
        assert_close(torch.from_numpy(read).permute(2, 0, 1)[None], value, what=name)
    result = session.finish()
    assert result.outputs == {} and result.macs > result.full_macs  # two mask heads
    for call in (lambda: session.run_steps(0, 1), session.finish, lambda: session.read(0, window)):
        with pytest.raises(RequestError, match="no run is open"):
            call()


def test_given_windows_that_do_not_suffice_are_refused(unet: tuple[Any, Schedule, Tensor]) -> None:
    _, schedule, x = unet
    session = started(schedule, (x,))
    plan = session.plan({"low": Window(2, 6, 2, 6)})
    windows = {i: plan.pieces[p.name] for i, p in enumerate(schedule.planes) if p.name in plan.pieces}
    begun = session.begin(windows)
    assert begun.macs == plan.macs
    session.run_steps(0, len(schedule.steps))
    low = schedule.outputs["low"]
    values = session.read(low, Window(2, 6, 2, 6))
    session.finish()
    expected = session.run({"low": Window(2, 6, 2, 6)}).outputs["low"]
    assert np.array_equal(values.transpose(2, 0, 1)[None], expected)
    first = schedule.steps[0].output
    (window,) = windows[first]
    with pytest.raises(RequestError, match="neither given a window nor kept"):
        session.begin({**windows, first: [window._replace(y1=window.y1 - 1)]})
    with pytest.raises(RequestError, match="does not lie on it"):
        session.begin({**windows, first: [Window(0, 999, 0, 1)]})
    with pytest.raises(RequestError, match="there are"):
        session.begin({999: [Window(0, 1, 0, 1)]})


def test_planes_that_are_gone_cannot_be_read(unet: tuple[Any, Schedule, Tensor]) -> None:
    _, schedule, x = unet
    session = started(schedule, (x,))
    plan = session.begin({"half": None})
    session.run_steps(0, len(schedule.steps))
    first = schedule.planes[schedule.steps[0].output].name
    with pytest.raises(RequestError, match="no longer in memory"):
        session.read(first, plan.windows[first])
    with pytest.raises(RequestError, match="the next one is"):
        session.run_steps(0, 1)
    session.finish()


# Programs.


def test_a_saved_program_gives_the_same_bits(ops: tuple[Schedule, tuple[Tensor, ...]], tmp_path: Path) -> None:
    schedule, inputs = ops
    flat = flat_inputs(schedule, inputs)
    session = started(schedule, inputs)
    path = session.program.save(tmp_path / "network.tnprogram")
    loaded = Session(Program.load(path), threads=ThreadPool(1))
    loaded.set_planar(0, inputs[0])
    request = dict.fromkeys(schedule.outputs)
    same_bits(loaded.run(request, flat).outputs, session.run(request, flat).outputs)
    assert replace(loaded.program.schedule, tensors={}) == replace(schedule, tensors={})
    assert [p.name for p in tmp_path.iterdir()] == ["network.tnprogram"]
    again = loaded.program.save(tmp_path / "again.tnprogram")
    assert again.read_bytes() == path.read_bytes()


def test_damaged_programs_are_refused(ops: tuple[Schedule, tuple[Tensor, ...]], tmp_path: Path) -> None:
    schedule, _ = ops
    path = Program(schedule).save(tmp_path / "network")
    data = path.read_bytes()
    broken = tmp_path / "broken"
    offset = 8 + 4 + 4
    cases = [(data[:n], "no program|truncated") for n in (0, 1, 7, 8, 40, 63, 64, 200, len(data) // 2, len(data) - 1)]
    cases += [
        (data + b"\0", "truncated"),
        (b"X" + data[1:], "no program"),
        (data[:12] + b"\x63" + data[13:], "version 99"),
        (data[:offset] + b"sparc\0\0\0" + data[offset + 8 :], "packed for 'sparc'"),
        (data[:8] + data[8:12][::-1] + data[12:], "byte order"),
        (data[:100] + bytes([data[100] ^ 1]) + data[101:], "checksum"),
    ]
    for content, message in cases:
        broken.write_bytes(content)
        with pytest.raises(ScheduleError, match=message):
            Program.load(broken)
    for missing in (tmp_path / "none", tmp_path):
        with pytest.raises(InputError, match="cannot be read"):
            Program.load(missing)


def test_programs_load_and_run_without_torch(unet: tuple[Any, Schedule, Tensor], tmp_path: Path) -> None:
    _, schedule, x = unet
    path = Program(schedule).save(tmp_path / "network")
    np.save(tmp_path / "x.npy", x.numpy())
    script = (
        "import sys; sys.modules['torch'] = None\n"
        "import numpy as np\n"
        "from tracenet.engine.program import Program\n"
        "from tracenet.engine.session import Session\n"
        f"session = Session(Program.load({str(path)!r}))\n"
        f"session.set_planar(0, np.load({str(tmp_path / 'x.npy')!r}))\n"
        f"np.save({str(tmp_path / 'y.npy')!r}, session.run({{'low': (1, 4, 2, 7)}}).outputs['low'])\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True)
    expected = started(schedule, (x,)).run({"low": Window(1, 4, 2, 7)}).outputs["low"]
    assert np.array_equal(np.load(tmp_path / "y.npy"), expected)


def test_the_same_network_at_another_size(bundled: tuple[Any, Schedule, tuple[Tensor, ...]]) -> None:
    _, schedule, _ = bundled
    program = Program(schedule).at_size(96, 224)
    model = tracenet_model(tower_norm="bn_per_level")
    traced = tracenet.trace(model, tracenet_inputs(model, 224, 96))
    other = lower(traced.graph)
    assert [(p.channels, p.height, p.width) for p in program.schedule.planes] == [
        (p.channels, p.height, p.width) for p in other.planes
    ]
    assert [step.ints for step in program.schedule.steps] == [step.ints for step in other.steps]
    assert program.full_macs == Program(other).full_macs


def test_sizes_that_do_not_follow_are_refused(unet: tuple[Any, Schedule, Tensor]) -> None:
    _, schedule, _ = unet
    program = Program(schedule)
    with pytest.raises(RequestError, match=r"does not (fit|follow)"):
        program.at_size(66, 96)
    for size in ((0, 64), (64, 1 << 40)):
        with pytest.raises(RequestError, match="sides lie in"):
            program.at_size(*size)
    with pytest.raises(InputError, match="pass integers"):
        program.at_size(64.0, 64)  # type: ignore[arg-type]
    builder = Builder(0)
    x = builder.image(3, 8, 8)
    outside = builder.schedule({"y": builder.step("external", [x], 2, 4, 4)})
    with pytest.raises(RequestError, match="runs outside"):
        Program(outside).at_size(16, 16)
    assert Program(outside).at_size(8, 8).schedule.planes[1].height == 4


# Sharing.


def test_sessions_and_threads_share_a_program(unet: tuple[Any, Schedule, Tensor]) -> None:
    _, schedule, x = unet
    rng = random.Random(5)
    program = Program(schedule)
    pool = ThreadPool(2)
    requests = [random_request(schedule, rng) for _ in range(12)]
    single = Session(program)
    single.set_planar(0, x)
    expected = [single.run(request).outputs for request in requests]
    sessions = [Session(program, pool if i % 2 else 1) for i in range(3)]
    for session in sessions:
        session.set_planar(0, x)
    failures: list[BaseException] = []

    def work(session: Session, first: int) -> None:
        try:
            for i in range(len(requests)):
                at = (i + first) % len(requests)
                same_bits(session.run(requests[at]).outputs, expected[at])
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(sessions[i % 3], 2 * i)) for i in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures


def test_debug_prints_one_line_per_launch(
    ops: tuple[Schedule, tuple[Tensor, ...]], monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    schedule, inputs = ops
    session = started(schedule, inputs)
    monkeypatch.setenv("TRACENET_DEBUG", "2")
    result = session.run({"mask": None}, flat_inputs(schedule, inputs), profile=True)
    lines = capfd.readouterr().err.splitlines()
    assert len(lines) == len(result.profile)
    for line, row in zip(lines, result.profile, strict=True):
        assert line.startswith(row.name)
        assert row.op in line and row.kernel in line and "GFLOP/s" in line and "GB/s" in line


def test_planes_reuse_memory(bundled: tuple[Any, Schedule, tuple[Tensor, ...]]) -> None:
    _, schedule, inputs = bundled
    session = started(schedule, inputs)
    request = dict.fromkeys(("logits3", "logits4", "logits5"))
    plan = session.plan(request)
    planes = {plane.name: plane for plane in schedule.planes}
    total = sum(4 * planes[name].channels * hull(pieces).area for name, pieces in plan.pieces.items())
    largest = max(4 * planes[name].channels * hull(pieces).area for name, pieces in plan.pieces.items())
    assert largest <= plan.workspace_bytes < 0.35 * total
