"""One captured graph for every click of a form, planned on the device.

A click goes in as two integers. The graph's first launch gathers the windows of all steps from tables that hold them
for every position (:mod:`tracenet.engine.click_class`); the host plans nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from tracenet.engine.click_class import AtClick, ClickClass, RequestForm
from tracenet_kernels.errors import RequestError
from tracenet_kernels.triton.launch import Launch
from tracenet_kernels.triton.plan_windows import plan_windows_launches
from tracenet_kernels.window import Window

if TYPE_CHECKING:
    from tracenet.engine.gpu.session import GpuSession


class ClickGraph:
    """Made by :meth:`tracenet.engine.gpu.session.GpuSession.click_graph`.

    Attributes:
        clicks: windows of every click of the form, on the host.
    """

    def __init__(self, session: GpuSession, form: RequestForm) -> None:
        other = [rule for rule in form.rules.values() if not isinstance(rule, AtClick)]
        if other:
            raise RequestError(f"the form asks for {other[0]}, which a click does not decide; use run() for it")
        schedule = session.program.schedule
        self.clicks = ClickClass.of(schedule, form)
        self._session = session
        planes = schedule.planes
        self._read = {
            number: Window.full(planes[number].height, planes[number].width)
            for number in schedule.inputs
            if all(self.clicks.bounds[number])
        }
        self._names = {number: name for name, number in schedule.outputs.items()}
        device = session.program.device
        self._request = torch.zeros(2, dtype=torch.int32, device=device)
        self._host_request = torch.zeros(2, dtype=torch.int32, pin_memory=device.type == "cuda")
        assert self.clicks.click is not None
        tables = [
            tuple(torch.from_numpy(np.ascontiguousarray(edge)).to(device) for edge in (axis.lo, axis.hi))
            for axis in self.clicks.click
        ]
        rows = torch.full((len(schedule.planes),), -1, dtype=torch.int32)
        memory = session.memory
        for number in [*schedule.inputs, *(step.output for step in schedule.steps)]:
            rows[number] = memory.row(number)
        planner = plan_windows_launches(
            self._request,
            tables[0],  # type: ignore[arg-type]
            tables[1],  # type: ignore[arg-type]
            rows.to(device),
            memory.table,
            unit=self.clicks.unit,
            pieces=memory.pieces,
        )
        self.launches: list[Launch] = [*planner, *session.launches_of(form)]
        self._replay = session.capture(self.launches)

    def run(self, click: tuple[float, float], parameters: Mapping[int, Any] | None = None) -> dict[str, Tensor]:
        """Compute what the form asks for at a click, without waiting for the device.

        Args:
            click: x and y in pixels of the network's input.
            parameters: as in :meth:`tracenet.engine.gpu.session.GpuSession.run`.

        Returns:
            Output name -> view ``[1, channels, rows, columns]`` of the session's memory, which the next run changes.

        Raises:
            ClickError: the click is not on the input.
        """
        request = self.clicks.request(click)
        read = self._read
        if not self._session.holds(read):  # inputs that are there in part: what is read of them depends on the click
            windows = self.clicks.windows(click)
            read = {number: windows[number] for number in read}
        with self._session.enqueued(read, parameters):
            self._host_request[0], self._host_request[1] = int(click[0]), int(click[1])
            self._request.copy_(self._host_request, non_blocking=True)
            self._replay.replay()
            return {self._names[number]: self._session.view(number, window) for number, window in request.items()}
