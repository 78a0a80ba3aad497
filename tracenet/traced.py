"""``tracenet.trace``: capture a network once, plan windows, run them."""

from __future__ import annotations

import contextlib
import os
import threading
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from tracenet import crop_pad
from tracenet.crop_pad import Patch
from tracenet.global_context import (
    WHOLE_IMAGE,
    ApproximationError,
    GlobalVectors,
    checked_vectors,
    difference,
    low_size,
    resized,
    vectors_from_low,
)
from tracenet.graph import Graph, Node, capture, fold_batch_norm
from tracenet.rft.context import EXACT, global_vectors
from tracenet.rft.layouts import infer_layouts
from tracenet.rft.trace import MAX_PIECES, MIN_SAVING, Asked, Kept, Plan, plan_windows, resolve_output
from tracenet_kernels.backends import AUTO, BACKENDS, choose
from tracenet_kernels.errors import BackendError, InputError, RequestError, ScheduleError

if TYPE_CHECKING:
    from tracenet.engine.execute import NativeExecutor
    from tracenet.engine.gpu.execute import GpuExecutor

Inputs = Tensor | Patch | Sequence[Tensor | Patch]
"""The network's inputs: one or a sequence, each full size or a :class:`~tracenet.crop_pad.Patch` of it."""


class TracedModel:
    """A captured network. One capture serves one input size; plans and runs are cheap.

    Attributes:
        graph: the captured :class:`tracenet.graph.Graph`.
    """

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        infer_layouts(graph)
        self._native: NativeExecutor | None = None
        self._unreduced: NativeExecutor | None = None
        self._gpu: GpuExecutor | None = None
        self._native_lock = threading.Lock()
        self._twin: weakref.ref[TracedModel] | None = None
        self._capture_at: Callable[[int, int], TracedModel] | None = None
        self._low: dict[tuple[int, int], TracedModel] = {}

    @property
    def output_names(self) -> list[str]:
        """Names that a request may use, in order."""
        return list(self.graph.outputs)

    def plan(
        self,
        request: Mapping[int | str, Asked],
        kept: Kept | None = None,
        *,
        global_context: str = EXACT,
        vectors: GlobalVectors | Mapping[str, Tensor] | None = None,
        max_pieces: int = MAX_PIECES,
        min_saving: float = MIN_SAVING,
    ) -> Plan:
        """Trace windows of the outputs back to the inputs; see :func:`tracenet.rft.plan_windows`.

        Args:
            request: output index or name -> window on its plane (None: all of it), or a list of windows, whose values
                then come as a list in the same order.
            kept: windows of nodes whose values are already known.
            global_context: how reductions of a whole plane to one vector (squeeze-and-excitation, global pooling) are
                come by. ``"exact"``: everything before them is computed. ``"cached"``: they are constants, from
                ``vectors``; exact if those are. ``"window"``: an approximation, reduced from the window that other
                nodes need. ``plan.exact`` and ``plan.approximations`` say what is not the full network's.
            vectors: for ``"cached"``: from :meth:`global_vectors` or :meth:`run_with_vectors` for the same image, or
                a mapping from node names to values of the caller's own.
            max_pieces: where demands of a node lie far apart (several clicks), up to so many disjoint windows of it
                are computed instead of their hull; 1: always the hull.
            min_saving: only if the plan then has at least this share of multiply-adds less (``plan.macs`` against
                ``plan.hull_macs``); at every size the values are the same.
        """
        known = checked_vectors(self.graph, vectors)
        return plan_windows(
            self.graph, request, kept, global_context, known, max_pieces=max_pieces, min_saving=min_saving
        )

    def global_vectors(
        self,
        inputs: Tensor | Sequence[Tensor],
        scale: float | None = None,
        *,
        low: TracedModel | None = None,
        backend: str = "torch",
    ) -> GlobalVectors:
        """All global vectors of one image, for plans with ``global_context="cached"``.

        Args:
            inputs: the network's inputs, full size.
            scale: take them from the image at this scale instead, an approximation; the model that was traced must
                still be alive, it is captured once more at the smaller size.
            low: the same, by a capture of the same model at a smaller size.
            backend: as in :meth:`run`.

        Raises:
            InputError: inputs that do not fit; a scale outside (0, 1]; both ``scale`` and ``low``; a smaller capture
                that is not of the same network.
        """
        names = [node.name for node in global_vectors(self.graph.nodes)]
        images = self._images(inputs)
        if scale is not None and low is not None:
            raise InputError("both scale and low came; pass one of them")
        if scale is not None:
            low = self._smaller(low_size(self.graph, scale), images[0].device)
        if low is None:
            values = self._values_of(names, images, backend)
            return GlobalVectors(self.graph, values, WHOLE_IMAGE, True, images)
        if not isinstance(low, TracedModel):
            raise InputError(f"low is a {type(low).__name__}; pass a capture of the same model, from tracenet.trace")
        if len(low.graph.inputs) != len(images) or [node.name for node in global_vectors(low.graph.nodes)] != names:
            raise InputError("the smaller capture has other inputs or global vectors; trace the same model for it")
        small = tuple(
            resized(node, image, *twin.plane)
            for node, twin, image in zip(self.graph.inputs, low.graph.inputs, images, strict=True)
        )
        found = vectors_from_low(self.graph, names, low.graph, low._values_of(names, small, backend))
        sizes = " and ".join(f"{n.plane[0]} x {n.plane[1]}" for n in low.graph.inputs if n.layout is not None)
        return GlobalVectors(self.graph, found, f"the image at {sizes}", False, images)

    def run_with_vectors(
        self, inputs: Tensor | Sequence[Tensor], plan: Plan
    ) -> tuple[dict[int | str, Any], GlobalVectors]:
        """As :meth:`run` in PyTorch; also gives the global vectors that the plan computed, for later clicks.

        Raises:
            RequestError: the plan does not compute its global vectors exactly.
        """
        if isinstance(plan, Plan) and plan.global_context != EXACT:
            raise RequestError(
                f"the plan has global_context={plan.global_context!r}; only an exact plan computes vectors to keep"
            )
        images = self._images(inputs)
        names = [node.name for node in global_vectors(self.graph.nodes)]
        outputs, patches = self.run_keeping(images, plan, keep=names)
        values = {name: several[0].tensor.clone() for name, several in patches.items()}
        return outputs, GlobalVectors(self.graph, values, WHOLE_IMAGE, True, images)

    def approximation_error(
        self, inputs: Inputs, plan: Plan, backend: str = "torch"
    ) -> dict[int | str, ApproximationError]:
        """How far a plan's outputs are from an exact run of the same request, keyed like it; the worst of a list."""
        got = self.run(inputs, plan, backend=backend)
        exact = self.run(inputs, self.plan(plan.request), backend=backend)
        return {key: difference(got[key], exact[key]) for key in exact}

    def _images(self, inputs: Tensor | Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Copies of the inputs, so that what they are changed to later does not count as the same image."""
        given: list[Any] = list(inputs) if isinstance(inputs, (list, tuple)) else [inputs]
        for value in given:
            if isinstance(value, Patch):
                raise InputError("global vectors are of the whole image; pass full-size inputs, not patches")
        return tuple(value.detach().clone() for value in self._check(given) if isinstance(value, Tensor))

    def _values_of(self, names: Sequence[str], images: Sequence[Tensor], backend: str) -> dict[str, Tensor]:
        if not names:
            return {}
        values = self.run(images, self.plan(dict.fromkeys(names)), backend=backend)
        return {name: values[name].clone() for name in names}

    def _smaller(self, size: tuple[int, int], device: torch.device) -> TracedModel:
        """This model captured at a smaller size; once per size."""
        if size not in self._low:
            if self._capture_at is None:
                raise InputError(
                    "this network was not captured from a model that can be captured again; pass low=, a capture of "
                    "the same network at a smaller size"
                )
            smaller = self._capture_at(*size).to(device)
            smaller.share_weights(self)
            self._low[size] = smaller
        return self._low[size]

    def run(self, inputs: Inputs, plan: Plan, backend: str = "torch") -> dict[int | str, Any]:
        """Execute a plan.

        Args:
            inputs: the network's inputs, as given to :func:`trace` (one tensor or a sequence). Instead of a full-size
                tensor, a patch that holds the window the plan reads: ``Patch(plan.windows["image"], crop)``.
            plan: from :meth:`plan` of this object.
            backend: ``"torch"``, the crop-and-pad path; ``"native"``, the C++ kernels, in place on windows, for fp32 on
                the CPU and one image (what has no kernel runs in PyTorch); ``"triton"``, the same on an NVIDIA GPU,
                where every step must have a kernel; ``"auto"``, the first of triton, native and torch that can.

        Returns:
            the requested windows, keyed like the request: a tensor each, or a list of them where it asks with a list.

        Raises:
            InputError: an input's shape or dtype differs from the captured one, or a patch does not hold its window.
            RequestError: the plan belongs to another capture.
            BackendError: the backend is not known, not available, or does not fit the network, inputs or plan.
            ExecutionError: a node failed; the message names it.
        """
        outputs, _ = self.run_keeping(inputs, plan, backend=backend)
        return outputs

    def run_keeping(
        self,
        inputs: Inputs,
        plan: Plan,
        store: crop_pad.Store | None = None,
        keep: Sequence[str] = (),
        backend: str = "torch",
    ) -> tuple[dict[int | str, Any], dict[str, list[crop_pad.Patch]]]:
        """As :meth:`run`, with kept patches from ``store``; also gives what was computed of the nodes in ``keep``.

        Stores of patches belong to the torch backend: in the native one a :class:`tracenet.engine.session.Session`
        keeps planes itself.
        """
        if not isinstance(plan, Plan):
            raise RequestError(f"run got a {type(plan).__name__} as its plan; pass what plan() of this object returned")
        if plan.graph is not self.graph:
            raise RequestError("the plan was made by another traced model; call plan() on this one")
        unknown = [name for name in keep if name not in self.graph.by_name]
        if unknown:
            raise RequestError(f"{unknown[0]!r} is to be kept but is not a node; use the names in plan.windows")
        given = self._check(inputs, plan)
        self._check_values(given)
        if keep and not plan.exact:
            raise RequestError(
                "values of an approximate plan are not kept, later plans would take them for exact ones; "
                f"{plan.approximations[0].name!r} is {plan.approximations[0].how}"
            )
        if isinstance(plan.vectors, GlobalVectors):
            plan.vectors.check_inputs(plan, given)
        obstacles: dict[str, str] = {}
        for name, find in (("triton", self._gpu_obstacle), ("native", self._obstacle)):
            entry = BACKENDS[name]
            if (backend == name and entry.available) or (backend == AUTO and entry.automatic):
                obstacles[name] = "patches are kept by the caller" if store or keep else find(plan, given)
        chosen = choose(backend, obstacles)
        if chosen == "triton":
            assert self._gpu is not None
            return self._gpu.run(plan, given), {}
        if chosen == "native":
            return self._executor(plan).run(plan, given), {}
        self._check_device(given)
        with _without_autocast():
            return crop_pad.run_plan(plan, given, store, keep)

    def _executor(self, plan: Plan) -> NativeExecutor:
        """The native program and a session, made when first asked for.

        Plans that come by global vectors in another way than by a kernel, or ask for them, have a program of their own.
        """
        from tracenet.engine.execute import NativeExecutor

        nodes = [resolve_output(self.graph, key) for key in plan.request]
        with self._native_lock:
            if plan.global_context != EXACT or global_vectors(nodes):
                if self._unreduced is None:
                    self._unreduced = NativeExecutor(self.graph, reduce=False)
                return self._unreduced
            if self._native is None:
                twin = None if self._twin is None else self._twin()
                self._native = NativeExecutor(self.graph, None if twin is None else twin._native)
            return self._native

    def _gpu_obstacle(self, plan: Plan, inputs: Sequence[Tensor | Patch]) -> str:
        """Why the triton backend does not run a plan; an empty string where it does. Makes its executor."""
        from tracenet.engine.gpu.execute import GpuExecutor, can_run, device_of

        if reason := can_run(inputs):
            return reason
        try:
            with self._native_lock:
                if self._gpu is None or self._gpu.program.device != device_of(inputs):
                    self._gpu = GpuExecutor(self.graph, device_of(inputs))
                return self._gpu.obstacle(plan, inputs)
        except (InputError, ScheduleError, BackendError) as error:
            return f"the network has no program ({error})"

    def _obstacle(self, plan: Plan, inputs: Sequence[Tensor | Patch]) -> str:
        """Why the native backend does not run a plan; an empty string where it does."""
        try:
            return self._executor(plan).obstacle(plan, inputs)
        except (InputError, ScheduleError) as error:
            return f"the network has no schedule ({error})"

    def _check(self, inputs: Inputs, plan: Plan | None = None) -> list[Tensor | Patch]:
        given: list[Any] = list(inputs) if isinstance(inputs, (list, tuple)) else [inputs]
        if len(given) != len(self.graph.inputs):
            names = [node.name for node in self.graph.inputs]
            raise InputError(f"run got {len(given)} inputs; the network takes {len(names)}: {names}")
        for node, value in zip(self.graph.inputs, given, strict=True):
            if isinstance(value, Patch):
                assert plan is not None
                _check_patch(node, value, plan)
                continue
            tensor = value
            if not isinstance(tensor, Tensor):
                raise InputError(f"input {node.name!r} is a {type(tensor).__name__}; pass a tensor")
            if tuple(tensor.shape) != node.shape or tensor.dtype != node.dtype:
                raise InputError(
                    f"input {node.name!r} is {tuple(tensor.shape)} {tensor.dtype}, but the capture was made for "
                    f"{node.shape} {node.dtype}; trace the model again at this size"
                )
        return given

    @cached_property
    def _devices(self) -> dict[torch.device, Node]:
        """Where the weights lie, and one that lies there."""
        return {node.value.device: node for node in self.graph.nodes if node.value is not None}

    def _check_values(self, given: Sequence[Tensor | Patch]) -> None:
        """Refuse to compute with tensors that hold no values."""
        inputs = (n for n, value in zip(self.graph.inputs, given, strict=True) if _tensor_of(value).is_meta)
        node = self._devices.get(torch.device("meta")) or next(inputs, None)
        if node is not None:
            raise InputError(
                f"{node.name!r} is on the meta device and has no values: such a capture can be planned and "
                "counted, not run; trace the model with its weights and pass real inputs"
            )

    def _check_device(self, given: Sequence[Tensor | Patch]) -> None:
        """The torch backend computes where the inputs are, with weights that lie there too."""
        devices = self._devices
        for node, value in zip(self.graph.inputs, given, strict=True):
            device = _tensor_of(value).device
            if devices and device not in devices:
                raise InputError(
                    f"input {node.name!r} lies on {device}, the weights on {', '.join(map(str, devices))}; move the "
                    f"input, or the traced model with traced.to({str(device)!r})"
                )

    def share_weights(self, other: TracedModel) -> None:
        """Use the stored tensors of another capture of the same model where they are equal, so that they exist once.

        The same goes for what the native backend packs of them.
        """
        self._twin = weakref.ref(other)
        for node in self.graph.nodes:
            twin = other.graph.by_name.get(node.name)
            if node.value is None or twin is None or twin.value is None or node.value.device != twin.value.device:
                continue
            if node.value.dtype == twin.value.dtype and torch.equal(node.value, twin.value):
                node.value = twin.value

    def to(self, device: torch.device | str) -> TracedModel:
        """Move the stored weights to a device, in place; the other backends' copies of them are dropped."""
        with self._native_lock:
            self._native = self._unreduced = self._gpu = None
        for node in self.graph.nodes:
            if node.value is not None:
                node.value = node.value.to(device)
        self.__dict__.pop("_devices", None)
        self._low.clear()
        return self


def _tensor_of(given: Tensor | Patch) -> Tensor:
    return given.tensor if isinstance(given, Patch) else given


@contextlib.contextmanager
def _without_autocast() -> Iterator[None]:
    """A plan computes in the dtypes of its capture, whatever surrounds the call."""
    on = [kind for kind in ("cpu", "cuda") if torch.is_autocast_enabled(kind)]
    with contextlib.ExitStack() as stack:
        for kind in on:
            stack.enter_context(torch.autocast(kind, enabled=False))
        yield


def _check_patch(node: Node, patch: Patch, plan: Plan) -> None:
    layout = node.layout
    if layout is None or layout.merged:
        raise InputError(f"input {node.name!r} has no rows and columns, so it cannot be given in part; pass all of it")
    shape = list(node.shape)
    shape[layout.y], shape[layout.x] = patch.window.height, patch.window.width
    if list(patch.tensor.shape) != shape or patch.tensor.dtype != node.dtype:
        raise InputError(
            f"the patch of input {node.name!r} is {tuple(patch.tensor.shape)} {patch.tensor.dtype}, but its window "
            f"{patch.window} asks for {tuple(shape)} {node.dtype}"
        )
    entry = plan.by_node.get(node)
    if entry is not None and not patch.window.contains(entry.window):
        raise InputError(
            f"the plan reads {entry.window} of input {node.name!r}, the patch holds {patch.window}; "
            f"pass at least plan.windows[{node.name!r}]"
        )


def trace(model: Any, example_inputs: Any = None, *, fold_bn: bool = True) -> TracedModel:
    """Capture ``model`` once, at the size of ``example_inputs``.

    Args:
        model: a network in evaluation mode that ``torch.export`` can follow, or an ONNX model: its path or a
            ``ModelProto``.
        example_inputs: a tensor or a tuple of tensors; the last two axes of each are its plane. For an ONNX model also
            a mapping from input names to tensors or shapes, or None if it leaves no size open.
        fold_bn: fold BatchNorm into the convolution before it (values change by rounding only).

    Raises:
        InputError: training mode, inputs that are not tensors or do not fit, or the package onnx is missing.
        CaptureError: the capture failed; the message says what to do.

    Example::

        traced = tracenet.trace(model, torch.zeros(1, 3, 480, 640))
        plan = traced.plan({0: tracenet.Window(10, 20, 10, 20)})
        out = traced.run(image, plan)[0]
    """
    graph = _captured(model, example_inputs)
    if fold_bn:
        fold_batch_norm(graph)
    traced = TracedModel(graph)
    if isinstance(model, nn.Module):
        traced._capture_at = _recapture(model, graph, fold_bn)
    return traced


def _recapture(model: nn.Module, graph: Graph, fold_bn: bool) -> Callable[[int, int], TracedModel]:
    """Captures the model again at another size, as long as it lives; its weights are not kept alive for that."""
    alive = weakref.ref(model)
    inputs = [(node.shape, node.dtype, node.layout is not None) for node in graph.inputs]

    def at(height: int, width: int) -> TracedModel:
        same = alive()
        if same is None:
            raise InputError(
                "the traced model is gone, so it cannot be captured at a smaller size; keep a reference to it, or pass "
                "low=, a capture of it at a smaller size"
            )
        device = next((p.device for p in same.parameters()), torch.device("cpu"))
        shapes = [(*shape[:-2], height, width) if plane else shape for shape, _, plane in inputs]
        examples = tuple(
            torch.zeros(shape, dtype=dtype, device=device) for shape, (_, dtype, _) in zip(shapes, inputs, strict=True)
        )
        return trace(same, examples, fold_bn=fold_bn)

    return at


def _captured(model: Any, example_inputs: Any) -> Graph:
    if isinstance(model, (str, os.PathLike)) or hasattr(model, "opset_import"):
        from tracenet.graph.onnx import capture_onnx

        return capture_onnx(model, example_inputs)
    return capture(model, example_inputs)
