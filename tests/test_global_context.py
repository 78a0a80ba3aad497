"""Global vectors: exact, cached and from the window; what is approximate is named so, and nothing is silently wrong."""

from __future__ import annotations

import gc
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import tracenet
from tracenet.crop_pad import Patch
from tracenet.rft.context import MODES, global_vectors, is_global_vector
from tracenet.traced import TracedModel
from tracenet_kernels.errors import BackendError, InputError, RequestError
from tracenet_kernels.window import Window


class Gate(nn.Module):
    """Squeeze and excitation, in the ways in which networks write it."""

    def __init__(self, channels: int, pool: str) -> None:
        super().__init__()
        self.pool = pool
        self.squeeze, self.excite = nn.Conv2d(channels, 4, 1), nn.Conv2d(4, channels, 1)
        nn.init.normal_(self.squeeze.weight, std=2.0)
        nn.init.normal_(self.excite.weight, std=2.0)

    def forward(self, x: Tensor) -> Tensor:
        if self.pool == "mean":
            vector = x.mean((2, 3), keepdim=True)
        elif self.pool == "adaptive":
            vector = F.adaptive_avg_pool2d(x, 1)
        else:
            assert self.pool == "max"
            vector = x.amax((-1, -2), keepdim=True) + F.adaptive_max_pool2d(x, 1)
        return x * F.hardsigmoid(self.excite(F.relu(self.squeeze(vector))))


class SEBottleneck(nn.Module):
    """As in SE-ResNet: the gate before the residual sum."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(channels, 8, 1), nn.Conv2d(8, channels, 3, padding=1)
        self.gate = Gate(channels, "adaptive")

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x + self.gate(self.conv2(F.relu(self.conv1(x)))))


class InvertedResidual(nn.Module):
    """As in MobileNetV3 and EfficientNet: expansion, depthwise convolution, gate, projection."""

    def __init__(self, channels: int, activation: Any, pool: str, kernel: int) -> None:
        super().__init__()
        self.activation = activation
        self.expand = nn.Conv2d(channels, 16, 1, bias=False)
        self.norm = nn.BatchNorm2d(16)
        self.depthwise = nn.Conv2d(16, 16, kernel, padding=kernel // 2, groups=16)
        self.gate, self.project = Gate(16, pool), nn.Conv2d(16, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.activation(self.depthwise(self.activation(self.norm(self.expand(x)))))
        return x + self.project(self.gate(y))


def se_resnet() -> nn.Module:
    stem = [nn.Conv2d(3, 12, 7, 2, 3), nn.ReLU(), nn.MaxPool2d(3, 2, 1)]
    return nn.Sequential(*stem, SEBottleneck(12), SEBottleneck(12), nn.Conv2d(12, 6, 3, padding=1))


def mobilenet_v3() -> nn.Module:
    blocks = [InvertedResidual(8, F.hardswish, "adaptive", 5), InvertedResidual(8, F.relu, "max", 3)]
    return nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.Hardswish(), *blocks, nn.Conv2d(8, 5, 1))


def efficientnet() -> nn.Module:
    blocks = [InvertedResidual(8, F.silu, "mean", kernel) for kernel in (3, 5)]
    return nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.SiLU(), *blocks)


class Response(nn.Module):
    """ConvNeXt V2's global response normalisation, channels last: the norm of every channel's plane."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Conv2d(3, 8, 5, padding=2), nn.Conv2d(8, 4, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.first(x).permute(0, 2, 3, 1)
        norm = y.norm(p=2, dim=(1, 2), keepdim=True)
        return self.last((y + y * norm / (norm.mean(-1, keepdim=True) + 1e-6)).permute(0, 3, 1, 2))


class ImagePooling(nn.Module):
    """DeepLab's image-level branch, spread out over the plane again."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.image, self.local = nn.Conv2d(3, 8, 3, 2, 1), nn.Conv2d(8, 4, 1), nn.Conv2d(8, 4, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.stem(x))
        pooled = F.interpolate(self.image(F.avg_pool2d(y, y.shape[-2:])), size=y.shape[-2:], mode="bilinear")
        return torch.cat([self.local(y), pooled], 1)


class LinearGate(nn.Module):
    """A gate of linear layers on flat vectors, and a classifier behind the plane."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.fc, self.head = nn.Conv2d(3, 8, 3, padding=1), nn.Linear(8, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        y = F.relu(self.conv(x))
        y = y * torch.sigmoid(self.fc(y.mean((2, 3))))[:, :, None, None]
        return {"map": y, "classes": self.head(y.mean((2, 3)))}


NETS = {
    "se_resnet": se_resnet,
    "mobilenet_v3": mobilenet_v3,
    "efficientnet": efficientnet,
    "response": Response,
    "image_pooling": ImagePooling,
}
SIZE = (64, 96)


@pytest.fixture(scope="module")
def nets() -> dict[str, tuple[nn.Module, TracedModel]]:
    torch.manual_seed(0)
    made = {name: make().eval() for name, make in NETS.items()}
    return {name: (model, tracenet.trace(model, torch.zeros(1, 3, *SIZE))) for name, model in made.items()}


def image(seed: int = 0) -> Tensor:
    """Bright on one side, so that the mean of a window is not that of the whole."""
    noise = torch.rand(1, 3, *SIZE, generator=torch.Generator().manual_seed(seed))
    return noise + torch.linspace(0, 4, SIZE[1])


def some_windows(traced: TracedModel) -> list[Window]:
    height, width = next(iter(traced.graph.outputs.values())).plane
    middle = Window(height // 2, height // 2 + 3, width // 2, width // 2 + 2)
    return [middle, Window.of_cell(0, 0), Window(height - 2, height, 1, 4)]


def max_relative(got: Tensor, wanted: Tensor) -> float:
    return float((got - wanted).abs().max() / wanted.abs().max())


@pytest.mark.parametrize("backend", ["torch", "native"])
@pytest.mark.parametrize("name", NETS)
def test_exact_vectors_of_the_image_change_nothing_and_save_what_lies_behind(
    nets: dict[str, tuple[nn.Module, TracedModel]], name: str, backend: str
) -> None:
    model, traced = nets[name]
    x = image()
    full = model(x).detach()
    vectors = traced.global_vectors(x)
    assert len(vectors) == len(global_vectors(traced.graph.nodes)) > 0
    assert vectors.exact
    for window in some_windows(traced):
        plan = traced.plan({0: window}, global_context="cached", vectors=vectors)
        assert plan.exact
        assert not plan.approximations
        assert not plan.barriers
        assert plan.macs < 0.5 * traced.plan({0: window}).macs
        if (name, backend) == ("image_pooling", "native"):
            with pytest.raises(BackendError, match="is cached, and a kernel would reduce the whole plane"):
                traced.run(x, plan, backend=backend)
            continue
        got = traced.run(x, plan, backend=backend)[0]
        assert max_relative(got, full[(..., *window.slices)]) <= 1e-4
        assert "global vectors are cached, computed of the whole image" in plan.table()


@pytest.mark.parametrize("name", NETS)
def test_the_window_mode_is_named_approximate_and_reads_no_more_than_the_cached_one(
    nets: dict[str, tuple[nn.Module, TracedModel]], name: str
) -> None:
    model, traced = nets[name]
    x = image()
    window = some_windows(traced)[0]
    plan = traced.plan({0: window}, global_context="window")
    cached = traced.plan({0: window}, global_context="cached", vectors=traced.global_vectors(x))
    assert not plan.exact
    assert {a.name for a in plan.approximations} == set(traced.global_vectors(x).values)
    assert all(a.how.startswith("reduced from [") for a in plan.approximations)
    assert plan.macs - cached.macs < 0.2 * cached.macs
    read = plan.windows[traced.graph.inputs[0].name]
    assert read == cached.windows[traced.graph.inputs[0].name]
    error = traced.approximation_error(x, plan)[0]
    wanted = model(x).detach()[(..., *window.slices)]
    got = traced.run(x, plan)[0]
    assert error.max == pytest.approx(float((got - wanted).abs().max()), rel=1e-2)
    assert error.relative == pytest.approx(max_relative(got, wanted), rel=1e-2)
    assert 1e-4 < error.relative < 3
    assert "approximate: " in plan.table()
    poisoned = torch.full_like(x, torch.nan)
    poisoned[(..., *read.slices)] = x[(..., *read.slices)]
    assert torch.equal(traced.run(poisoned, plan)[0], got)


def test_both_backends_reduce_the_same_window(nets: dict[str, tuple[nn.Module, TracedModel]]) -> None:
    for name in ("se_resnet", "mobilenet_v3", "efficientnet", "response"):
        traced = nets[name][1]
        plan = traced.plan({0: some_windows(traced)[0]}, global_context="window")
        got, wanted = (traced.run(image(), plan, backend=backend)[0] for backend in ("native", "torch"))
        assert max_relative(got, wanted) <= 1e-4


@pytest.mark.parametrize("name", NETS)
def test_a_window_that_is_the_whole_plane_is_exact(nets: dict[str, tuple[nn.Module, TracedModel]], name: str) -> None:
    model, traced = nets[name]
    plan = traced.plan({0: None}, global_context="window")
    assert plan.exact
    assert max_relative(traced.run(image(), plan)[0], model(image()).detach()) <= 1e-4


@pytest.mark.parametrize("name", ["se_resnet", "mobilenet_v3", "efficientnet", "response"])
def test_vectors_of_a_smaller_image_are_approximate(nets: dict[str, tuple[nn.Module, TracedModel]], name: str) -> None:
    model, traced = nets[name]
    smooth = F.interpolate(image()[..., ::8, ::8], size=SIZE, mode="bilinear")
    vectors = traced.global_vectors(smooth, scale=0.5)
    assert not vectors.exact
    assert vectors.source == "the image at 32 x 64"
    low = tracenet.trace(model, torch.zeros(1, 3, 32, 64))
    assert all(torch.equal(traced.global_vectors(smooth, low=low)[n], v) for n, v in vectors.values.items())
    plan = traced.plan({0: some_windows(traced)[0]}, global_context="cached", vectors=vectors)
    assert not plan.exact
    assert plan.approximations[0].how == "taken from the image at 32 x 64"
    error = traced.approximation_error(smooth, plan)[0]
    assert 0 < error.relative < 0.2
    # The image may have changed since, or the caller may take vectors from elsewhere: that counts as approximate too.
    own = traced.plan(plan.request, global_context="cached", vectors=traced.global_vectors(smooth).values)
    assert own.approximations[0].how == "taken from the caller"
    assert traced.approximation_error(smooth, own)[0].relative <= 1e-4


def test_vectors_are_kept_from_an_earlier_click(nets: dict[str, tuple[nn.Module, TracedModel]]) -> None:
    model, traced = nets["se_resnet"]
    x = image()
    first, second = some_windows(traced)[:2]
    outputs, vectors = traced.run_with_vectors(x, traced.plan({0: first}))
    assert torch.equal(outputs[0], traced.run(x, traced.plan({0: first}))[0])
    assert set(vectors.values) == {n.name for n in global_vectors(traced.graph.nodes)}
    plan = traced.plan({0: second}, global_context="cached", vectors=vectors)
    assert plan.exact
    assert max_relative(traced.run(x, plan)[0], model(x).detach()[(..., *second.slices)]) <= 1e-4


def test_several_images_at_once_flat_vectors_and_doubles() -> None:
    torch.manual_seed(0)
    model = LinearGate().double().eval()
    x = torch.randn(2, 3, 20, 24).double()
    traced = tracenet.trace(model, x)
    full = model(x)
    vectors = traced.global_vectors(x)
    assert all(value.shape == (2, 8) for value in vectors.values.values())
    window = Window(4, 6, 5, 9)
    plan = traced.plan({"map": window, "classes": None}, global_context="cached", vectors=vectors)
    outputs = traced.run(x, plan)
    torch.testing.assert_close(outputs["map"], full["map"][(..., *window.slices)].detach(), rtol=0, atol=1e-12)
    torch.testing.assert_close(outputs["classes"], full["classes"].detach(), rtol=0, atol=1e-12)
    assert plan.macs < 0.1 * traced.plan({"map": window}).macs
    with pytest.raises(RequestError, match="'mean_1' from the window that other nodes need of 'mul', and none needs"):
        traced.plan({"classes": None}, global_context="window")


def test_kept_values_beside_a_window(nets: dict[str, tuple[nn.Module, TracedModel]]) -> None:
    """The window that a vector is reduced from is computed or kept all over, also between what others need."""
    torch.manual_seed(0)
    model = LinearGate().eval()
    x = torch.randn(1, 3, 20, 24)
    traced = tracenet.trace(model, x)
    kept = {"relu": [Window(0, 6, 0, 6), Window(8, 12, 8, 12)]}
    values = F.relu(model.conv(x)).detach()
    store = {"relu": [Patch(w, values[(..., *w.slices)]) for w in kept["relu"]]}
    request = {"map": Window(4, 10, 4, 10)}
    plan = traced.plan(request, kept, global_context="window")
    assert not plan.exact
    got = traced.run_keeping(x, plan, store)[0]["map"]
    torch.testing.assert_close(got, traced.run(x, traced.plan(request, global_context="window"))["map"])


def test_what_is_a_global_vector() -> None:
    class Reductions(nn.Module):
        def forward(self, x: Tensor) -> dict[str, Tensor]:
            return {
                "mean": x.mean((2, 3)),
                "sum": x.sum((-2, -1), keepdim=True),
                "least": x.amin((1, 2, 3)),
                "norm": torch.linalg.vector_norm(x, 3, (2, 3)),
                "largest norm": torch.linalg.vector_norm(x, float("inf"), (2, 3)),
                "pool": F.max_pool2d(x, x.shape[-2:]),
                "tokens": x.flatten(2).mean(2),
                "rows": x.mean(2),
                "grid": F.adaptive_avg_pool2d(x, (1, 2)),
                "variance": x.var((2, 3)),
                "channels": x.mean(1),
                "where": x.flatten(2).argmax(2),
                "part": F.avg_pool2d(x, 4),
                "zero norm": torch.linalg.vector_norm(x, 0, (2, 3)),
            }

    x = torch.rand(1, 4, 6, 5)
    traced = tracenet.trace(Reductions().eval(), x)
    found = {name for name, node in traced.graph.outputs.items() if is_global_vector(node)}
    assert found == {"mean", "sum", "least", "norm", "largest norm", "pool", "tokens"}
    # As if the whole plane looked like the window: constant planes give the same from any of it.
    flat = torch.full_like(x, 0.7)
    plan = traced.plan(dict.fromkeys(found) | {"channels": Window(1, 3, 2, 4)}, global_context="exact")
    assert plan.exact

    class Both(nn.Module):
        def forward(self, x: Tensor) -> list[Tensor]:
            y = x * 2
            vectors = [y.mean((2, 3)), y.sum((2, 3)), y.amin((2, 3)), torch.linalg.vector_norm(y, 3, (2, 3))]
            pools = [F.max_pool2d(y, y.shape[-2:]), F.adaptive_avg_pool2d(y, 1), y.flatten(2).sum(2)]
            return [*vectors, *pools, y]

    traced = tracenet.trace(Both().eval(), x)
    request = {**dict.fromkeys(range(6)), 7: Window(1, 3, 2, 4)}
    plan = traced.plan(request, global_context="window")
    assert len(plan.approximations) == 6
    wanted = Both()(flat)
    for key, value in traced.run(flat, plan).items():
        torch.testing.assert_close(value, wanted[int(key)] if key != 7 else wanted[7][:, :, 1:3, 2:4])


def test_wrong_modes_vectors_and_images(nets: dict[str, tuple[nn.Module, TracedModel]]) -> None:
    model, traced = nets["efficientnet"]
    x, request = image(), {0: Window.of_cell(3, 4)}
    vectors = traced.global_vectors(x)
    name = next(iter(vectors.values))
    for mode, given, error, words in (
        ("fast", None, RequestError, "global_context is 'fast'; pass one of 'exact', 'cached', 'window'"),
        (None, None, RequestError, "global_context is None; pass one of"),
        ("cached", None, RequestError, "came without vectors; pass vectors=traced.global_vectors"),
        ("exact", vectors, RequestError, "they are for global_context='cached'"),
        ("window", vectors, RequestError, "they are for global_context='cached'"),
        ("cached", [1], InputError, "the vectors are a list; pass what traced.global_vectors"),
        ("cached", {}, RequestError, "needs the global vector .*, which is not among the vectors"),
        ("cached", {name: vectors[name]}, RequestError, "which is not among the vectors"),
        ("cached", {"lost": vectors[name]}, InputError, "'lost' is among the vectors but is not a node"),
        ("cached", {name: vectors[name][:, :-1]}, InputError, r"is \(1, 15, 1, 1\) torch.float32, but the network's"),
        ("cached", {name: vectors[name].double()}, InputError, "torch.float64, but the network's"),
        ("cached", {name: 1.0}, InputError, "is a float; pass a tensor"),
    ):
        with pytest.raises(error, match=words):
            traced.plan(request, global_context=mode, vectors=given)  # type: ignore[arg-type]
    other_size = tracenet.trace(model, torch.zeros(1, 3, 32, 64))
    with pytest.raises(InputError, match=r"of an image \(1, 3, 32, 64\), but input .* \(1, 3, 64, 96\)"):
        traced.plan(request, global_context="cached", vectors=other_size.global_vectors(x[..., :32, :64]))
    again = tracenet.trace(model, x)
    with pytest.raises(InputError, match="computed by another traced model"):
        traced.plan(request, global_context="cached", vectors=again.global_vectors(x))
    plan = traced.plan(request, global_context="cached", vectors=vectors)
    with pytest.raises(InputError, match=r"vectors were computed of another image: input .* differs inside"):
        traced.run(image(1), plan)
    changed = x.clone()
    again_vectors = traced.global_vectors(changed)
    changed += 1
    with pytest.raises(InputError, match="computed of another image"):
        traced.run(changed, traced.plan(request, global_context="cached", vectors=again_vectors))
    read = plan.windows[traced.graph.inputs[0].name]
    part = Patch(read, x[(..., *read.slices)])
    assert torch.equal(traced.run(part, plan)[0], traced.run(x, plan)[0])
    with pytest.raises(InputError, match="computed of another image"):
        traced.run(Patch(read, part.tensor + 1), plan)
    with pytest.raises(RequestError, match="only an exact plan computes vectors to keep"):
        traced.run_with_vectors(x, plan)
    with pytest.raises(RequestError, match=r"values of an approximate plan are not kept.*reduced from"):
        traced.run_keeping(x, traced.plan(request, global_context="window"), keep=[name])
    with pytest.raises(InputError, match="pass full-size inputs, not patches"):
        traced.global_vectors(part)  # type: ignore[arg-type]
    for backend in ("triton", "cuda"):
        with pytest.raises(BackendError):
            traced.run(x, plan, backend=backend)


def test_wrong_smaller_passes(nets: dict[str, tuple[nn.Module, TracedModel]]) -> None:
    model, traced = nets["efficientnet"]
    x = image()
    for scale in (0, -1, 1.5, True, "half", float("nan")):
        with pytest.raises(InputError, match="pass a number above 0 and at most 1"):
            traced.global_vectors(x, scale=scale)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="both scale and low"):
        traced.global_vectors(x, 0.5, low=traced)
    with pytest.raises(InputError, match="low is a Sequential; pass a capture"):
        traced.global_vectors(x, low=model)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="other inputs or global vectors"):
        traced.global_vectors(x, low=nets["se_resnet"][1])
    forgotten = tracenet.trace(efficientnet().eval(), x)
    gc.collect()
    with pytest.raises(InputError, match=r"the traced model is gone.*pass low="):
        forgotten.global_vectors(x, 0.5)
    assert forgotten.global_vectors(x).exact
    with pytest.raises(InputError, match="not captured from a model that can be captured again"):
        TracedModel(forgotten.graph).global_vectors(x, 0.5)


def test_networks_without_global_vectors_are_the_same_in_every_mode() -> None:
    model = nn.Conv2d(3, 4, 3, padding=1).eval()
    x = torch.rand(1, 3, 9, 9)
    traced = tracenet.trace(model, x)
    vectors = traced.global_vectors(x, scale=0.5)
    plans = [
        traced.plan({0: Window(2, 4, 2, 4)}, global_context=mode, vectors=vectors if mode == "cached" else None)
        for mode in MODES
    ]
    assert [plan.exact for plan in plans] == [True] * 3
    assert len({plan.macs for plan in plans}) == 1
