"""Servers that the browser talks to, started as people start them, and a network whose masks are known by hand."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from tracenet import PredictorSettings, create_model
from tracenet.models.weights import save_checkpoint

WORKING_SIZE = 192
REACH = 24
"""Working pixels from the click to the corners of the mask that P3 gives; P4 gives twice as much."""


def save_diamond_network(path: Path) -> None:
    """A network that answers every click with a diamond around it, whatever the photo shows.

    The mask head's filters are constants: the first layer keeps the four half-axes of the distance to the click, the
    last one subtracts them from ``REACH``. The features play no part, but every layer is computed.
    """
    torch.manual_seed(0)
    model = create_model("tracenet_r50_fpn", channels=32, level_head=False, mask_branch="p3").eval()
    first, second, third = torch.zeros(8, 10), torch.zeros(8, 8), torch.zeros(1, 8)
    first[0, 0], first[1, 0], first[2, 1], first[3, 1] = 1, -1, 1, -1
    second[:4, :4] = torch.eye(4)
    third[0, :4] = -8
    bias = torch.cat([torch.zeros(16), torch.tensor([8 * REACH / 64])])
    with torch.no_grad():
        for name in ("logits", "reg", "ctr", "theta"):
            getattr(model.heads, name).weight.zero_()
        model.heads.logits.bias.fill_(1.0)
        model.heads.ctr.bias.fill_(1.0)
        model.heads.reg.bias.fill_(REACH / 8 + 0.5)
        model.heads.scales.fill_(1.0)
        model.heads.theta.bias.copy_(torch.cat([first.flatten(), second.flatten(), third.flatten(), bias]))
    settings = PredictorSettings(working_size=WORKING_SIZE, levels=(3, 5), level_choice="score")
    save_checkpoint(model, path, predictor=settings)


class ViewerProcess:
    """`tracenet viewer` in a process of its own."""

    def __init__(self, arguments: Sequence[str | Path] = ()) -> None:
        self._arguments = [str(argument) for argument in arguments]
        self._process: subprocess.Popen[str] | None = None
        self.port = 0
        self.start()

    def start(self) -> None:
        """Begin; on the same port as before after a stop."""
        command = [sys.executable, "-m", "tracenet.cli", "viewer", *self._arguments, "--port", str(self.port)]
        self._process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)

    @property
    def url(self) -> str:
        """Where it listens; waits until it does."""
        if not self.port:
            self.port = int(self.line().rsplit(":", 1)[1].strip(" /\n"))
        return f"http://127.0.0.1:{self.port}/"

    def line(self) -> str:
        """The line that it prints when it listens."""
        assert self._process is not None and self._process.stdout is not None
        line = self._process.stdout.readline()
        assert line.startswith("TraceNet viewer: http://"), line
        return line

    def stop(self) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        process.send_signal(signal.SIGINT)
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        if process.stdout is not None:
            process.stdout.close()
