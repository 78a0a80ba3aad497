"""Models that people bring: each is traced right, equal to its own forward pass, or refused with what to do.

What capture alone refuses is in ``tests/graph/test_capture.py``, what ONNX models are refused for in
``tests/graph/test_onnx.py``.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils import _pytree as pytree

import tracenet
from tracenet.rft.rules.pointwise import crop_output
from tracenet_kernels.errors import BackendError, CaptureError, InputError, TraceNetError, UnsupportedOpError
from tracenet_kernels.window import Window

SHAPE = (1, 2, 12, 14)


class Net(nn.Module):
    """A function of itself and its inputs, with a convolution and a buffer at hand."""

    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__()
        self.function = function
        self.conv = nn.Conv2d(2, 2, 3, padding=1)
        self.register_buffer("count", torch.zeros(1))

    def forward(self, *inputs: Any) -> Any:
        return self.function(self, *inputs)


def image(*shape: int) -> Tensor:
    return torch.rand(shape or SHAPE)


def check(model: nn.Module, inputs: Sequence[Tensor], run: Sequence[Tensor] | None = None) -> tracenet.Plan:
    """Every output at a corner and inside, on every backend that takes it, against the model itself."""
    given = list(run or inputs)
    with torch.no_grad():
        full = [leaf for leaf in pytree.tree_leaves(model(*(x.clone() for x in given))) if isinstance(leaf, Tensor)]
    traced = tracenet.trace(model, tuple(inputs))
    nodes = list(traced.graph.outputs.values())
    assert len(nodes) == len(full)
    for name, (y, x) in {"corner": (0, 0), "inside": (2, 3)}.items():
        request: dict[int | str, Any] = {}
        for i, node in enumerate(nodes):
            height, width = node.plane
            plain = node.layout is not None and min(height, width) > 5
            request[i] = Window(y, min(y + 2, height), x, min(x + 3, width)) if plain else None
        plan = traced.plan(request)
        for backend in ("torch", "auto"):
            outputs = traced.run(given, plan, backend=backend)
            for i, node in enumerate(nodes):
                wanted = crop_output(node, full[i], plan.request[i])
                assert outputs[i].dtype == wanted.dtype
                tolerance = 1e-6 if wanted.dtype in (torch.float32, torch.float64) else 1e-2
                torch.testing.assert_close(outputs[i], wanted, rtol=0, atol=tolerance, msg=f"{name}, {backend}, {i}")
    return plan


def refusal(model: Any, inputs: Any, error: type[TraceNetError] = CaptureError) -> str:
    """The message with which a model is refused, on the way to its first plan."""
    with pytest.raises(error) as caught:
        tracenet.trace(model, inputs).plan({0: None})
    return str(caught.value)


def remembers_its_output(net: Net, x: Tensor) -> Tensor:
    net.last = net.conv(x)
    return net.last + 1


@pytest.mark.parametrize(
    "body",
    [
        lambda net, x: (lambda y: (y, y[:, :1], y.flatten(2), y.transpose(2, 3)))(net.conv(x)),  # views of one another
        lambda net, x: (lambda y: [y, y, x])(net.conv(x)),
        lambda net, x: {"a": {"b": [net.conv(x), None]}, "c": (x + 1, 3, "text")},
        lambda net, x: (None, net.conv(x), None),
        lambda net, x: F.relu_(net.conv(x)).mul_(2),
        lambda net, x: net.conv(x) * (x.shape[2] / 7) + len(x.shape),
        lambda net, x: torch.utils.checkpoint.checkpoint(net.conv, x, use_reentrant=False),
        lambda net, x: torch.vmap(net.conv)(x),
        lambda net, x: torch.fake_quantize_per_tensor_affine(net.conv(x), 0.1, 3, -128, 127),
        lambda net, x: torch.where(torch.isnan(net.conv(x)).any(), torch.zeros(()), net.conv(x)),
        remembers_its_output,
    ],
    ids="views same nested nones in_place sizes checkpoint vmap fake_quantised any_nan remembered".split(),
)
def test_what_a_forward_pass_may_do(body: Callable[..., Any]) -> None:
    check(Net(body).eval(), [image()])


class Square(torch.autograd.Function):
    """A derivative of one's own."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x * x

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return gradient


def plain() -> Net:
    return Net(lambda net, x: net.conv(x))


def hooked() -> nn.Module:
    net = plain()
    net.conv.register_forward_pre_hook(lambda module, args: (args[0] * 2,))
    net.register_forward_hook(lambda module, args, output: output.relu())
    return net


def one_weight_twice() -> nn.Module:
    first, second = nn.Conv2d(2, 2, 3, padding=1), nn.Conv2d(2, 2, 3, padding=1)
    second.weight = first.weight
    return nn.Sequential(first, second, nn.ReLU(), first)


def with_old_norm(norm: Callable[..., nn.Module]) -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # deprecated in favour of parametrizations
        return nn.Sequential(norm(nn.Conv2d(2, 2, 3, padding=1)))


MODELS: dict[str, Callable[[], nn.Module]] = {
    "a custom autograd function": lambda: Net(lambda net, x: Square.apply(net.conv(x))),
    "hooks": hooked,
    "shared weights": one_weight_twice,
    "DataParallel": lambda: nn.DataParallel(plain()),
    "weight norm": lambda: nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Conv2d(2, 2, 3))),
    "spectral norm": lambda: nn.Sequential(nn.utils.parametrizations.spectral_norm(nn.Conv2d(2, 2, 3))),
    "old weight norm": lambda: with_old_norm(nn.utils.weight_norm),
    "old spectral norm": lambda: with_old_norm(nn.utils.spectral_norm),
    "channels last": lambda: plain().to(memory_format=torch.channels_last),  # type: ignore[call-overload]
    "a layer alone": lambda: nn.Conv2d(2, 3, 3),
}


@pytest.mark.parametrize("name", MODELS)
def test_models_of_every_kind(name: str) -> None:
    check(MODELS[name]().eval(), [image()])


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # what torch.compile imports
def test_compiled_models() -> None:
    check(torch.compile(plain().eval(), backend="eager"), [image()])  # type: ignore[arg-type]


def test_a_layer_alone_has_a_name() -> None:
    traced = tracenet.trace(nn.Conv2d(2, 3, 3).eval(), image())
    assert "conv2d" in traced.plan({0: None}).windows


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_weights_of_other_types(dtype: torch.dtype) -> None:
    check(plain().to(dtype).eval(), [image().to(dtype)])


def test_inputs_of_other_types_and_shapes() -> None:
    check(Net(lambda net, x: net.conv(x.float() / 255)).eval(), [(image() * 255).byte()])
    check(Net(lambda net, x, mask: net.conv(x).masked_fill(mask, 0.0)).eval(), [image(), image(1, 1, 12, 14) > 0.5])
    check(plain().eval(), [image(3, 2, 12, 14)])
    check(plain().eval(), [image(2, 12, 14)])
    check(plain().eval(), [nn.Parameter(image())])


def test_inputs_need_not_be_contiguous() -> None:
    model = plain().eval()
    check(model, [image(1, 2, 14, 12).transpose(2, 3)])
    check(model, [image()], run=[image(1, 12, 14, 2).permute(0, 3, 1, 2)])
    check(model, [image()], run=[image(1, 1, 12, 14).expand(1, 2, 12, 14)])
    check(model, [image()], run=[image(1, 2, 24, 28)[..., ::2, ::2]])


def test_one_tensor_given_for_two_inputs_is_not_one_input() -> None:
    x = image()
    model = Net(lambda net, a, b: net.conv(a) - b).eval()
    check(model, [x, x], run=[image(), image()])
    traced = tracenet.trace(model, (x, x))
    assert len(traced.graph.inputs) == 2


def needs_positive_mean(net: Net, x: Tensor) -> Tensor:
    y = net.conv(x)
    if y.mean() > 0:  # the line that a refusal names
        return y
    return -y


def counts_calls(net: Net, x: Tensor) -> Tensor:
    net.calls = getattr(net, "calls", 0) + 1
    return net.conv(x) * net.calls


def casts_inside(net: Net, x: Tensor) -> Tensor:
    with torch.autocast("cpu", torch.bfloat16):
        return net.conv(x)


@dataclass
class Unknown:
    """An output of a class that PyTorch does not know."""

    scores: Tensor


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (needs_positive_mean, ["test_bad_models.py:", "if y.mean() > 0:", "torch.where"]),
        (lambda net, x: x[:, :, : int(x.sum().item())], ["test_bad_models.py:", "depends on tensor values"]),
        (lambda net, x: x.nonzero(), ["node nonzero (aten.nonzero", "data-dependent shape", "End the traced part"]),
        (lambda net, x: torch.fft.fft2(x).abs(), ["node fft_fft2 (aten.fft_fft2", "is complex", "custom operation"]),
        (casts_inside, ["autocast", "holds a graph of its own", "model.half()"]),
        (lambda net, x: torch.cond(x.sum() > 0, torch.neg, torch.abs, (x,)), ["node cond", "torch.where"]),
        (lambda net, x: Unknown(net.conv(x)), ["register_dataclass"]),
        (lambda net, x: torch.from_numpy(net.conv(x).numpy()), ["test_bad_models.py:", "stay in tensors"]),
        (lambda net, x: net.conv(x).view(5, 5), ["test_bad_models.py:", "Check that model(*example_inputs) runs"]),
        (lambda net, x: net.conv(x.double()), ["Input type (double)", "of the dtype and on the device"]),
        (counts_calls, ["changes its attribute calls (from None to 1)", "run the model once before tracing"]),
    ],
    ids="branch slice nonzero complex autocast cond class numpy shape dtype counter".split(),
)
def test_what_a_forward_pass_may_not_do(body: Callable[..., Any], words: list[str], capfd: Any) -> None:
    message = refusal(Net(body).eval(), image())
    assert all(word in message for word in words), message
    assert "docs.google.com" not in message and len(message) < 800
    assert "def forward" not in capfd.readouterr().err, "a failed export printed its graph"


def test_a_number_that_a_model_changes_at_every_call_is_refused_but_a_size_that_it_remembers_is_not() -> None:
    def remembers_size(net: Net, x: Tensor) -> Tensor:
        net.rows = x.shape[2]
        return net.conv(x) / net.rows

    for body, fine in ((remembers_size, True), (counts_calls, False)):
        model = Net(body).eval()
        model(image())
        if fine:
            check(model, [image()])
        else:
            assert "(from 1 to 2)" in refusal(model, image())


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (lambda net, x: net.conv(x).to_sparse(), ["aten.to_sparse (at test_bad_models.py:", "register_rule"]),
        (lambda net, x: F.batch_norm(x, None, None, training=True), ["'batch_norm' normalises with batch statistics"]),
    ],
)
def test_operations_without_a_rule_name_their_line(body: Callable[..., Any], words: list[str]) -> None:
    message = refusal(Net(body).eval(), image(), UnsupportedOpError)
    assert all(word in message for word in words), message


@pytest.mark.parametrize("value", [2.0, 3, None, True, {"x": torch.zeros(1)}, [torch.zeros(1)], "text"])
def test_inputs_that_are_no_tensors(value: Any) -> None:
    message = refusal(Net(lambda net, x, k: net.conv(x)).eval(), (image(), value), InputError)
    assert f"example input 1 is a {type(value).__name__}" in message and "wrap the model" in message


def test_a_number_passed_on_by_a_wrapper() -> None:
    inner = Net(lambda net, x, factor: net.conv(x) * factor)

    class Fixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = inner

        def forward(self, x: Tensor) -> Tensor:
            return self.inner(x, 2.5)

    check(Fixed().eval(), [image()])


def test_empty_batches() -> None:
    assert "every size must be positive" in refusal(plain().eval(), image(0, 2, 12, 14), InputError)


def test_training_mode_anywhere_is_refused() -> None:
    model = nn.Sequential(plain(), nn.Sequential(nn.BatchNorm2d(2))).eval()
    model[1][0].train()  # type: ignore[index]
    assert "(first: 1.0); call model.eval()" in refusal(model, image(), InputError)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # scripting is deprecated and still used
def test_scripted_models() -> None:
    net = nn.Sequential(nn.Conv2d(2, 2, 3), nn.ReLU()).eval()
    for scripted in (torch.jit.script(net), torch.jit.trace(net, image())):
        assert "pass the module that it was made of" in refusal(scripted, image(), InputError)


def test_lazy_layers() -> None:
    assert "run it once on an image" in refusal(nn.LazyConv2d(2, 3).eval(), image())


def test_weights_made_under_inference_mode() -> None:
    with torch.inference_mode():
        net = nn.Conv2d(2, 2, 3).eval()
    assert "build or load the model outside" in refusal(net, image())


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")  # torch.ao.quantization moves away
def test_quantised_modules() -> None:
    from torch.ao import quantization

    net = nn.Sequential(quantization.QuantStub(), nn.Conv2d(2, 2, 3), nn.ReLU(), quantization.DeQuantStub()).eval()
    net.qconfig = quantization.get_default_qconfig("fbgemm")  # type: ignore[assignment]
    prepared = quantization.prepare(net)
    prepared(image())
    words = "trace the float model"
    assert words in refusal(quantization.convert(prepared).eval(), image())
    linear = nn.Sequential(nn.Linear(14, 3)).eval()
    dynamic = quantization.quantize_dynamic(linear, {nn.Linear}, dtype=torch.qint8)
    assert words in refusal(dynamic.eval(), image())
    check(net, [image()])  # not converted: stubs that do nothing


def test_autocast_around_trace_is_refused_and_around_run_changes_nothing() -> None:
    model, x = plain().eval(), image()
    with torch.autocast("cpu", torch.bfloat16):
        assert "inside torch.autocast" in refusal(model, x, InputError)
    traced = tracenet.trace(model, x)
    plan = traced.plan({0: None})
    with torch.autocast("cpu", torch.bfloat16):
        inside = traced.run(x, plan)[0]
    assert torch.equal(inside, traced.run(x, plan)[0])
    assert inside.dtype == torch.float32


def test_models_on_the_meta_device_are_planned_and_not_run() -> None:
    with torch.device("meta"):
        model = plain().eval()
    for example in (image(), image().to("meta")):
        traced = tracenet.trace(model, example)
        plan = traced.plan({0: Window(0, 1, 0, 1)})
        assert 0 < plan.macs < plan.full_macs
        for backend in ("torch", "auto"):
            with pytest.raises(InputError, match=r"meta device and has no values.*trace the model with its weights"):
                traced.run(image(), plan, backend=backend)
    real = tracenet.trace(plain().eval(), image())
    with pytest.raises(InputError, match="meta device and has no values"):
        real.run(image().to("meta"), real.plan({0: None}))


def test_the_native_backend_says_why_it_does_not_take_a_network() -> None:
    from tracenet_kernels.backends import BACKENDS

    if not BACKENDS["native"].available:
        with pytest.raises(BackendError, match="not available"):
            tracenet_run_native(image())
        return
    for x, model in ((image(2, 2, 12, 14), plain()), (image().double(), plain().double())):
        traced = tracenet.trace(model.eval(), x)
        with pytest.raises(BackendError, match="fp32 planes of one image"):
            traced.run(x, traced.plan({0: None}), backend="native")


def tracenet_run_native(x: Tensor) -> Any:
    traced = tracenet.trace(plain().eval(), x)
    return traced.run(x, traced.plan({0: None}), backend="native")
