"""Programs for GPUs: a schedule and its weights, packed in the device's memory."""

from __future__ import annotations

from dataclasses import replace
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from tracenet.engine.gpu.out_of_memory import named_out_of_memory
from tracenet.engine.gpu.units import Unit, units
from tracenet.engine.planner import step_macs
from tracenet.engine.reference_windows import window_of
from tracenet.engine.schedule import ACTIVATIONS, Plane, Schedule, Step
from tracenet_kernels import gpu
from tracenet_kernels.errors import BackendError, InputError
from tracenet_kernels.triton import bottleneck_tail
from tracenet_kernels.triton.weights import DeviceWeight, pack_weight
from tracenet_kernels.window import Window

DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16, "float32": torch.float32}
PRECISIONS = ("ieee", "tf32", "tf32x3")
"""How float32 products are formed: exactly and without tensor cores; from 10 bits of each factor on tensor cores; from
three such products, nearly exact."""
MIN_TAIL_TILES = 128
"""Tiles of 64 cells that a plane must have for its block's tail to be fused: fewer leave multiprocessors idle."""


_WITHOUT_KERNEL = ("external", "mul", "plane_mean", "take_channels", "group_norm")


def has_kernel(step: Step) -> bool:
    """Whether the GPU's kernels compute a step: not every operation, and no activation but ReLU."""
    return step.op not in _WITHOUT_KERNEL and ACTIVATIONS[step.ints.get("activation", 0)] in ("none", "relu")


class GpuProgram:
    """A schedule with weights in the device's memory. Immutable; any number of sessions and threads use it at once.

    Args:
        schedule: what to run; planes of ``uint8`` stay 8-bit integers, ``float32`` ones take ``dtype``.
        device: a CUDA device; in Triton's interpreter the CPU.
        dtype: of planes and weights: ``"float16"``, ``"bfloat16"`` or ``"float32"``.
        precision: of float32 products, one of :data:`PRECISIONS`.
        fuse_tails: run the ends of large bottleneck blocks as one launch.

    Raises:
        BackendError: no Triton kernel can run here, or no kernel computes a step.
        InputError: the device, dtype or precision is not possible.
        ExecutionError: the device has not enough memory.
    """

    def __init__(
        self,
        schedule: Schedule,
        device: torch.device | str = "cuda",
        dtype: str = "float16",
        *,
        precision: str = "tf32x3",
        fuse_tails: bool = True,
    ) -> None:
        gpu.require()
        if dtype not in DTYPES:
            raise InputError(f"dtype {dtype!r} is not known; choose one of {', '.join(DTYPES)}")
        if precision not in PRECISIONS:
            raise InputError(f"precision {precision!r} is not known; choose one of {', '.join(PRECISIONS)}")
        self.device = _checked(torch.device(device))
        self.dtype = DTYPES[dtype]
        self.precision = precision if dtype == "float32" else "tf32x3"  # other dtypes have one way only
        self.fuse_tails = fuse_tails
        self._weights: dict[tuple[object, ...], DeviceWeight] = {}
        self._vectors: dict[str, Tensor] = {}
        self._set_schedule(schedule)

    def at_size(self, schedule: Schedule) -> GpuProgram:
        """The same network at another input size; weights are shared.

        Args:
            schedule: of the same network, with the same names of tensors; their values are not read again.
        """
        twin = object.__new__(GpuProgram)
        twin.__dict__.update(self.__dict__)
        twin.__dict__.pop("full_macs", None)
        twin._set_schedule(replace(schedule, tensors=self.schedule.tensors))
        return twin

    @property
    def on_tensor_cores(self) -> bool:
        """Whether products are formed there: the kernels that know no other way can be used."""
        return self.dtype != torch.float32 or self.precision != "ieee"

    def plane_dtype(self, plane: Plane) -> torch.dtype:
        """Of a plane's elements in memory."""
        return torch.int8 if plane.dtype == "uint8" else self.dtype

    def weight(self, step: Step) -> DeviceWeight:
        """A convolution's packed weight; steps that share a weight share this."""
        _, stride, padding, dilation = window_of(step)
        x = self.schedule.planes[step.inputs[0]]
        dtype = self.plane_dtype(x)
        key = (step.tensors["weight"], stride, padding, dilation, dtype, step.ints.get("groups", 1))
        if key not in self._weights:
            values = torch.from_numpy(np.ascontiguousarray(self.schedule.tensors[step.tensors["weight"]]))
            self._weights[key] = pack_weight(
                values,
                dtype=dtype,
                device=self.device,
                stride=stride,
                padding=padding,
                dilation=dilation,
                groups=step.ints.get("groups", 1),
            )
        return self._weights[key]

    def vector(self, step: Step, attribute: str) -> Tensor | None:
        """A step's ``scale`` or ``bias`` in float32, or None."""
        name = step.tensors.get(attribute)
        if name is None:
            return None
        if name not in self._vectors:
            values = np.ascontiguousarray(self.schedule.tensors[name], np.float32)
            self._vectors[name] = torch.from_numpy(values.copy()).to(self.device)
        return self._vectors[name]

    @property
    def weight_bytes(self) -> int:
        """Bytes of packed weights and vectors in the device's memory."""
        packed = [weight.tensor for weight in self._weights.values()]
        return sum(t.numel() * t.element_size() for t in [*packed, *self._vectors.values()])

    def _set_schedule(self, schedule: Schedule) -> None:
        missing = [step for step in schedule.steps if not has_kernel(step)]
        if missing:
            raise BackendError(
                f"backend 'triton' cannot run this: no kernel computes {missing[0].name!r}; choose 'native', which "
                "computes it, or 'torch'"
            )
        self.schedule = schedule
        self._pack()

    @cached_property
    def full_macs(self) -> int:
        """Multiply-adds of the whole network; mask heads that differ in their upsampling count once."""
        planes = self.schedule.planes
        counted: dict[object, int] = {}
        for step in self.schedule.steps:
            plane = planes[step.output]
            key = (step.op, step.inputs) if step.op == "mask_head" else step.name
            counted[key] = step_macs(self.schedule, step, Window.full(plane.height, plane.width))
        return sum(counted.values())

    def units(self, keep: bool) -> list[Unit]:
        """Steps in launches.

        Args:
            keep: planes are kept between clicks. Then a block's output is computed only where it is missing, which is
                not where the next block reads it, so the next block's first convolution stays a launch of its own.
        """
        if not self.fuse_tails:
            return units(self.schedule)

        def fits(mid: Step, expand: Step, following: Step | None) -> bool:
            return not (keep and following is not None) and self._fits_tail(mid, expand, following)

        return units(self.schedule, fits)

    def _pack(self) -> None:
        """Pack everything now: capturing and replaying must not allocate."""
        with named_out_of_memory(self.device, "the network's weights"):
            for step in self.schedule.steps:
                if "weight" in step.tensors:
                    self.weight(step)
                for attribute in ("scale", "bias"):
                    self.vector(step, attribute)

    def _fits_tail(self, mid: Step, expand: Step, following: Step | None) -> bool:
        planes = self.schedule.planes
        out = planes[expand.output]
        if any(planes[n].dtype != "float32" for s in (mid, expand) for n in (*s.inputs, s.output)):
            return False
        if following is not None and planes[following.output].dtype != "float32":
            return False
        if not self.on_tensor_cores or out.height * out.width < 64 * MIN_TAIL_TILES:
            return False
        after = 0 if following is None else planes[following.output].channels
        return bottleneck_tail.fits(planes[mid.output].channels, out.channels, self.dtype, after)


def _checked(device: torch.device) -> torch.device:
    if device.type == "cuda":
        if not torch.cuda.is_available():
            raise InputError(f"device {device} is asked for, but PyTorch sees no CUDA device")
        return torch.device("cuda", torch.cuda.current_device() if device.index is None else device.index)
    if device.type == "cpu" and gpu.interpreted():
        return device
    raise InputError(f"Triton kernels run on CUDA devices, not on {device}; pass 'cuda'")
