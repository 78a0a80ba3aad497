"""Every kernel family once on small planes, checked: what memory checkers run, as they slow kernels down a lot."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import tracenet
from bench.gpu.entrants import session_of
from bench.gpu.machine import Machine
from bench.gpu.network import PRECISIONS, DeviceNetwork, compare, tiny_model
from tracenet.engine.gpu.program import GpuProgram
from tracenet.engine.gpu.session import GpuSession
from tracenet.engine.lower import lower
from tracenet_kernels.window import Window

TAIL_SIZE = (512, 384)
"""Large enough for the tails of bottleneck blocks to be fused."""


class Rest(nn.Module):
    """Families that the network does not use: grouped and depthwise convolution, average pooling, resizes, sigmoid."""

    def __init__(self) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(12, 12, 3, padding=1, groups=12)
        self.grouped = nn.Conv2d(12, 24, 3, padding=1, groups=3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(torch.cat([x, x, x, x], 1), 2)
        y = F.relu(self.depthwise(x))
        z = self.grouped(F.avg_pool2d(y, 3, 2, 1))
        z = F.interpolate(z, scale_factor=2.0, mode="bilinear", align_corners=False)
        return torch.sigmoid(z)


def network_error(machine: Machine, precision_name: str, **options: bool) -> float:
    """Of a click on a small network, as a share of what is allowed."""
    precision = PRECISIONS[precision_name]
    network = DeviceNetwork(tiny_model(64), TAIL_SIZE, machine.device)
    session = session_of(network, precision, mode="eager", **options)
    session.set_planar(0, network.image)
    request = network.request(network.centre, (3, 7))
    outputs = session.run_on_device(request, network.parameters(network.centre), form=network.form((3, 7)))
    errors = network.errors(network.centre, outputs, request)
    if not errors.within(precision.tolerance):
        raise AssertionError(f"{precision_name} {options}: {errors}")
    return errors.max_relative


def rest_error(machine: Machine) -> float:
    """Of :class:`Rest` on a window that meets two borders."""
    torch.manual_seed(0)
    model, image = Rest().eval(), torch.randn(1, 3, 24, 36)
    schedule = lower(tracenet.trace(model, image).graph)
    program = GpuProgram(schedule, machine.device, "float32")
    session = GpuSession(program, mode="eager")
    session.set_planar(0, image)
    window = Window(0, 7, 5, 18)
    found = session.run_on_device({0: window})[0]
    with torch.inference_mode():
        whole = model.double()(image.double())
    errors = compare(found.cpu().double(), whole[(..., *window.slices)], whole)
    if not errors.within(PRECISIONS["float32"].tolerance):
        raise AssertionError(f"other families: {errors}")
    return errors.max_relative


def smoke(machine: Machine) -> None:
    """Run and check everything; raises AssertionError where something is wrong."""
    print(f"other families: {rest_error(machine):.1e}")
    for precision in () if machine.dry else ("float16", "bfloat16", "float32"):
        for options in ({}, {"tma": True}, {"pdl": True}) if machine.modern else ({},):
            print(f"network in {precision} {options}: {network_error(machine, precision, **options):.1e}")
    if not machine.dry:
        print(f"network in float16, features kept: {network_error(machine, 'float16', keep=True):.1e}")
