"""Sessions of Triton kernels against the plain-torch oracle: values, windows, classes, kept planes, errors."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Sequence

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.engine.networks import UNet, randomised, tracenet_inputs, tracenet_model
from tests.engine.schedules import every_op
from tests.engine.test_quantise import Chain
from tracenet.engine.click_class import AtClick, RequestForm
from tracenet.engine.gpu import session as session_module
from tracenet.engine.gpu.capture import Replay, eager
from tracenet.engine.gpu.program import GpuProgram
from tracenet.engine.gpu.session import GpuSession
from tracenet.engine.lower import lower
from tracenet.engine.quantise import calibrate, quantise
from tracenet.engine.reference import run_schedule
from tracenet.engine.schedule import Schedule
from tracenet.traced import trace
from tracenet_kernels import native
from tracenet_kernels.errors import BackendError, ClickError, ExecutionError, InputError, RequestError, WindowError
from tracenet_kernels.testing import assert_close
from tracenet_kernels.window import Window

triton = pytest.importorskip("triton")
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
HEADS = ("logits", "reg", "ctr", "theta")


def unet() -> tuple[Schedule, Tensor]:
    torch.manual_seed(0)
    x = torch.randn(1, 3, 32, 48)
    return lower(trace(randomised(UNet()), (x,)).graph), x


@pytest.fixture(scope="module")
def network() -> tuple[Schedule, tuple[Tensor, ...]]:
    torch.manual_seed(0)
    model = tracenet_model(channels=16)
    inputs = tracenet_inputs(model, 64, 64)
    return lower(trace(model, inputs).graph), inputs


def started(schedule: Schedule, inputs: Sequence[Tensor], dtype: str = "float32", **options: object) -> GpuSession:
    session = GpuSession(GpuProgram(schedule, DEVICE, dtype), poison=True, **options)  # type: ignore[arg-type]
    for index, x in enumerate(inputs):
        session.set_planar(index, x) if x.ndim == 4 else None
    return session


def flat(inputs: Sequence[Tensor]) -> dict[int, np.ndarray]:
    return {i: x.reshape(-1).numpy() for i, x in enumerate(inputs) if x.ndim != 4}


def windows(schedule: Schedule, name: str) -> list[Window]:
    plane = schedule.planes[schedule.outputs[name]]
    h, w = plane.height, plane.width
    return [
        Window(0, 1, 0, 1),
        Window(h - 1, h, w - 1, w),
        Window(h // 3, h // 2 + 1, w // 4, w // 2 + 1),
        Window.full(h, w),
    ]


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_windows_of_every_output_equal_the_oracle(dtype: str) -> None:
    """Whole planes are close to the oracle, and windows have the bits of whole planes."""
    schedule, x = unet()
    whole = run_schedule(schedule, [x])
    session = started(schedule, [x], dtype)
    planes = session.run(dict.fromkeys(("low", "logits", "probability", "half"))).outputs
    for name in schedule.outputs:
        # The interpreter cuts bfloat16 off where devices round, which adds up over layers.
        if dtype == "bfloat16" and DEVICE == "cpu":
            assert np.isfinite(planes[name]).all()
        else:
            assert_close(torch.from_numpy(planes[name]), whole[name], dtype=session.program.dtype, what=name)
    for name, which in (("low", 2), ("logits", 0), ("half", 1)):
        window = windows(schedule, name)[which]
        found = session.run({name: window}).outputs[name]
        assert np.array_equal(found, planes[name][..., window.y0 : window.y1, window.x0 : window.x1])


def test_every_operation() -> None:
    schedule = every_op()
    torch.manual_seed(0)
    planes = [schedule.planes[n] for n in schedule.inputs]
    inputs = [torch.randn(1, p.channels, *((p.height, p.width) if p.height > 1 else ())) for p in planes]
    whole = run_schedule(schedule, [x if x.ndim == 4 else x.view(1, -1, 1, 1) for x in inputs])
    session = started(schedule, inputs)
    for name in schedule.outputs:
        window = windows(schedule, name)[2]
        result = session.run({name: window}, flat(inputs))
        expected = whole[name][..., window.y0 : window.y1, window.x0 : window.x1]
        assert_close(torch.from_numpy(result.outputs[name]), expected, what=name)
    assert {op.op for op in schedule.steps} >= {"stem", "concat", "mask_head", "resize", "add", "sigmoid"}


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_8_bit_networks(dtype: str) -> None:
    """Quantised planes are the oracle's integers, but where a sum lies near the middle between two."""
    torch.manual_seed(0)
    x = torch.randn(1, 3, 20, 24)
    floats = lower(trace(randomised(Chain()), (x,)).graph)
    schedule = quantise(floats, calibrate(floats, [(x,)]))
    assert sum(plane.dtype == "uint8" for plane in schedule.planes) >= 3
    whole = run_schedule(schedule, [x])
    session = started(schedule, [x], dtype)
    for name in schedule.outputs:
        window = windows(schedule, name)[2]
        for asked in (window, Window.full(*whole[name].shape[2:])):
            value = session.run({name: asked}).outputs[name]
            expected = whole[name][..., asked.y0 : asked.y1, asked.x0 : asked.x1]
            assert_close(torch.from_numpy(value), expected, dtype=torch.float16, what=name)


def locate(schedule: Schedule, click: tuple[int, int], levels: Sequence[int] = (3, 4, 5, 6, 7)) -> dict[str, Window]:
    found = {}
    for level in levels:
        y, x = click[1] // 2**level, click[0] // 2**level
        found |= {f"{head}{level}": Window(y, y + 1, x, x + 1) for head in HEADS}
    return found


@pytest.mark.slow
def test_the_whole_tracenet_and_its_second_click(
    network: tuple[Schedule, tuple[Tensor, ...]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """R-50: locate and segment, then a second click that computes only what is missing.

    The tails of stages 1 and 2 are fused; those of stages 3 and 4 are too wide for the kernel in float32.
    """
    monkeypatch.setattr("tracenet.engine.gpu.program.MIN_TAIL_TILES", 0)
    schedule, inputs = network
    whole = run_schedule(schedule, inputs)
    program = GpuProgram(schedule, DEVICE, "float32")
    assert sum(unit.kind == "tail" for unit in program.units(keep=True)) == 7
    assert all(unit.kind != "tail" for unit in GpuProgram(schedule, DEVICE, fuse_tails=False).units(keep=True))
    session = GpuSession(program, keep=True, poison=True)
    session.set_planar(0, inputs[0])
    macs = []
    for click in ((40, 30), (52, 12)):
        request = locate(schedule, click)
        first = session.run(request)
        window = Window(*(max(0, click[1] // 8 - 2), click[1] // 8 + 1, max(0, click[0] // 8 - 2), click[0] // 8 + 1))
        second = session.run({"mask": window}, flat(inputs))
        for name, value in (first.outputs | second.outputs).items():
            asked = request.get(str(name), window)
            expected = whole[str(name)][..., asked.y0 : asked.y1, asked.x0 : asked.x1]
            assert_close(torch.from_numpy(value), expected, what=str(name))
        macs.append(first.macs + second.macs)
    if native.available():
        assert macs[1] < 0.5 * macs[0]
        assert session.kept_bytes > 0
    assert session.program.full_macs > macs[0]
    session.forget()
    assert session.kept_bytes == 0


class Counted:
    """A capture that counts, and replays eagerly."""

    def __init__(self) -> None:
        self.captures = self.replays = 0

    def __call__(self, work: Sequence[Callable[[], None]]) -> Replay:
        self.captures += 1
        inner, outer = eager(work), self

        class Counting:
            def replay(self) -> None:
                outer.replays += 1
                inner.replay()

        return Counting()


def test_one_capture_serves_every_click_of_a_form() -> None:
    schedule, x = unet()
    whole = run_schedule(schedule, [x])
    counted = Counted()
    session = started(schedule, [x], mode="graph", capture=counted)
    plane = schedule.planes[schedule.outputs["logits"]]
    form = RequestForm.segment(schedule, 4, 5, "logits")
    rng = random.Random(0)
    for _ in range(6):
        y, x0 = rng.randrange(plane.height - 3), rng.randrange(plane.width - 4)
        window = Window(y, y + rng.randint(1, 4), x0, x0 + rng.randint(1, 5))
        value = session.run({"logits": window}, form=form).outputs["logits"]
        assert_close(torch.from_numpy(value), whole["logits"][..., window.y0 : window.y1, window.x0 : window.x1])
    assert (counted.captures, counted.replays) == (1, 6)
    with pytest.raises(RequestError, match=r"does not belong to the form given: .* the form's class has"):
        session.run({"logits": Window.full(plane.height, plane.width)}, form=form)


def test_a_click_graph_plans_on_the_device() -> None:
    schedule, x = unet()
    whole = run_schedule(schedule, [x])
    counted = Counted()
    session = started(schedule, [x], mode="graph", capture=counted)
    low, logits = schedule.outputs["low"], schedule.outputs["logits"]
    clicks = session.click_graph(RequestForm({low: AtClick(8), logits: AtClick(2, 3, 5)}))
    for click in ((0, 0), (47, 31), (20, 9), (47.9, 0.2), (13, 30)):
        request = clicks.clicks.request(click)
        for name, value in clicks.run(click).items():
            w = request[schedule.outputs[name]]
            assert_close(value.cpu(), whole[name][..., w.y0 : w.y1, w.x0 : w.x1])
    assert (counted.captures, counted.replays) == (1, 5)
    with pytest.raises(ClickError, match=r"0 <= x < 48"):
        clicks.run((48, 3))
    with pytest.raises(RequestError, match="a click does not decide"):
        session.click_graph(RequestForm.segment(schedule, 2, 2, "logits"))
    with pytest.raises(RequestError, match="the session keeps planes"):
        GpuSession(session.program, keep=True).click_graph(RequestForm({low: AtClick(8)}))


def test_every_launch_is_printed(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("TRACENET_DEBUG", "2")
    schedule, x = unet()
    session = started(schedule, [x])
    request = {"low": Window(1, 3, 2, 5)}
    session.run(request)
    lines = capsys.readouterr().err.splitlines()
    assert [line.split()[0] for line in lines] == [launch.name for launch in session.launches(request)]
    assert all(line.endswith("GB/s") and " us " in line for line in lines)
    assert any(str(request["low"]) in line for line in lines)


def test_classes_without_a_form_are_rounded_and_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session_module, "MAX_CLASSES", 2)
    schedule, x = unet()
    counted = Counted()
    session = started(schedule, [x], mode="graph", capture=counted)
    first = session.run({"low": Window(1, 2, 1, 2)})
    again = session.run({"low": Window(1, 2, 1, 2)})
    assert (first.captured, again.captured) == (True, False)
    assert np.array_equal(first.outputs["low"], again.outputs["low"])
    for name in ("logits", "half", "probability"):
        session.run({name: Window(0, 2, 0, 2)})
    assert session.run({"low": Window(1, 2, 1, 2)}).captured


def test_results_stay_bit_for_bit_the_same() -> None:
    """From scratch, again, in a larger window, and on the device: always the same bits."""
    schedule, x = unet()
    session = started(schedule, [x], "float16")
    window = Window(5, 9, 7, 12)
    once = session.run({"logits": window}).outputs["logits"]
    larger = session.run({"logits": Window(2, 14, 3, 20)}).outputs["logits"][..., 3:7, 4:9]
    device = session.run_on_device({"logits": window})["logits"].float().cpu().numpy()
    assert np.array_equal(once, larger)
    assert np.array_equal(once, device)


def test_pixels_are_normalised_as_they_are_read() -> None:
    schedule, _ = unet()
    photo = np.random.default_rng(0).integers(0, 256, (27, 41, 3), dtype=np.uint8)
    mean, std = (10.0, 100.0, 50.0), (50.0, 60.0, 70.0)
    image = torch.zeros(1, 3, 32, 48)
    values = (torch.from_numpy(photo[..., ::-1].copy()).float() - torch.tensor(mean)) / torch.tensor(std)
    image[0, :, :27, :41] = values.permute(2, 0, 1)
    whole = run_schedule(schedule, [image])
    session = started(schedule, [])
    session.set_pixels(0, photo, mean, std, reverse=True)
    for window in windows(schedule, "logits"):
        value = session.run({"logits": window}).outputs["logits"]
        assert_close(torch.from_numpy(value), whole["logits"][..., window.y0 : window.y1, window.x0 : window.x1])


def test_a_new_image_is_seen_by_captured_graphs() -> None:
    schedule, x = unet()
    session = started(schedule, [x])
    window = Window(0, 2, 0, 2)
    session.run({"low": window})
    session.set_planar(0, -x)
    value = session.run({"low": window}).outputs["low"]
    assert_close(torch.from_numpy(value), run_schedule(schedule, [-x])["low"][..., :2, :2])


def test_threads_and_sessions_side_by_side() -> None:
    schedule, x = unet()
    program = GpuProgram(schedule, DEVICE, "float32")
    expected = run_schedule(schedule, [x])["low"]
    failures: list[BaseException] = []

    def work(session: GpuSession, cell: int) -> None:
        try:
            value = session.run({"low": Window(cell, cell + 1, cell, cell + 1)}).outputs["low"]
            assert_close(torch.from_numpy(value), expected[..., cell : cell + 1, cell : cell + 1])
        except BaseException as error:
            failures.append(error)

    sessions = [GpuSession(program) for _ in range(2)]
    for session in sessions:
        session.set_planar(0, x)
    threads = [threading.Thread(target=work, args=(sessions[i % 2], i)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures


def test_bad_input_is_refused() -> None:
    schedule, x = unet()
    program = GpuProgram(schedule, DEVICE, "float32")
    session = GpuSession(program)
    with pytest.raises(InputError, match=r"input 0 \('x'\) is read but not set"):
        session.run({"low": Window(0, 1, 0, 1)})
    with pytest.raises(WindowError, match="its plane is"):
        session.run({"low": Window(0, 99, 0, 1)})
    with pytest.raises(RequestError, match="'nothing' is not an output"):
        session.run({"nothing": None})
    with pytest.raises(InputError, match="pass float32"):
        session.set_planar(0, x.double())
    with pytest.raises(InputError, match="has shape"):
        session.set_planar(0, x[..., :4])
    with pytest.raises(InputError, match="at most"):
        session.set_pixels(0, np.zeros((33, 48, 3), np.uint8))
    with pytest.raises(InputError, match="dtype 'int4' is not known"):
        GpuProgram(schedule, DEVICE, "int4")
    with pytest.raises(InputError, match="precision 'fast' is not known"):
        GpuProgram(schedule, DEVICE, precision="fast")
    with pytest.raises(InputError, match="mode 'lazy' is not known"):
        GpuSession(program, mode="lazy")
    session.set_planar(0, x[..., 5:, :], Window(5, 32, 0, 48))
    with pytest.raises(InputError, match=r"holds \[5, 32\) x \[0, 48\), but .* is read; set at least that"):
        session.run({"low": Window(0, 1, 0, 1)})
    session.set_planar(0, x)
    assert session.run({"low": Window(0, 1, 0, 1)}).outputs["low"].shape == (1, 12, 1, 1)


def test_what_has_no_kernel_is_named() -> None:
    class Odd(torch.nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.cumsum(x, 2)

    schedule = lower(trace(Odd().eval(), (torch.rand(1, 3, 8, 8),)).graph)
    with pytest.raises(BackendError, match="no kernel computes 'cumsum"):
        GpuProgram(schedule, DEVICE)


@pytest.mark.parametrize(
    ("body", "name"),
    [
        (lambda y: torch.nn.functional.silu(y), "silu"),
        (lambda y: y * y, "mul"),
        (lambda y: y.mean((2, 3), keepdim=True), "mean"),
        (lambda y: y[:, 1:], "slice"),
        (lambda y: torch.nn.functional.group_norm(y, 2), "group_norm"),
    ],
)
def test_steps_that_only_the_cpu_has_kernels_for_are_named(body: Callable[[Tensor], Tensor], name: str) -> None:
    class Net(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = torch.nn.Conv2d(3, 4, 3)

        def forward(self, x: Tensor) -> Tensor:
            return body(self.conv(x))

    schedule = lower(trace(Net().eval(), (torch.rand(1, 3, 8, 8),)).graph)
    with pytest.raises(BackendError, match=f"no kernel computes '{name}.*choose 'native', which computes it"):
        GpuProgram(schedule, DEVICE)


def test_the_device_is_checked() -> None:
    schedule, _ = unet()
    if not torch.cuda.is_available():
        with pytest.raises(InputError, match="PyTorch sees no CUDA device"):
            GpuProgram(schedule, "cuda")
        with pytest.raises(InputError, match="tma=False, pdl=True: cpu is older than sm_90"):
            GpuSession(GpuProgram(schedule, "cpu"), pdl=True)
        with pytest.raises(InputError, match="there are none on cpu"):
            GpuSession(GpuProgram(schedule, "cpu"), mode="graph")
    with pytest.raises(InputError, match="kernels run on CUDA devices, not on meta"):
        GpuProgram(schedule, "meta")


def test_too_little_memory_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    schedule, _ = unet()
    program = GpuProgram(schedule, DEVICE)

    def full(*_: object, **__: object) -> Tensor:
        raise torch.cuda.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(torch, "zeros", full)
    with pytest.raises(ExecutionError, match=r"no room for a workspace of .* MiB .* smaller image or float16"):
        GpuSession(program)


def test_traced_models_run_on_it() -> None:
    x = torch.randn(1, 3, 32, 48).to(DEVICE)
    traced = trace(randomised(UNet()).to(DEVICE), (x,))
    plan = traced.plan({"low": Window(1, 3, 2, 5), 1: Window(3, 9, 4, 7)})
    expected = traced.run(x, plan)
    found = traced.run(x, plan, backend="triton")
    assert found.keys() == expected.keys()
    for key, value in found.items():
        assert value.device == x.device
        assert_close(value, expected[key])
    apart = traced.plan({1: [Window(0, 1, 0, 1), Window(8, 9, 11, 12)]}, min_saving=0)
    assert len(apart.asked[1]) == 2  # whatever the plan computes apart, the hull is computed here, with the same values
    for got, wanted in zip(traced.run(x, apart, backend="triton")[1], traced.run(x, apart)[1], strict=True):
        assert_close(got, wanted)
    if DEVICE == "cpu":
        assert traced.run(x, plan, backend="auto").keys() == expected.keys()  # never the interpreter
