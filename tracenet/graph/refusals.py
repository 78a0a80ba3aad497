"""What keeps a model from being captured, in words: the cause, the line of the model's own code, and what to do."""

from __future__ import annotations

import contextlib
import io
import logging
import os
import re
import sys
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn

from tracenet_kernels.errors import InputError

_LIBRARIES = (
    str(Path(torch.__file__).parent) + os.sep,
    str(Path(__file__).parent) + os.sep,
    str(Path(__file__).parents[1] / "traced.py"),
    "<eval_with_key>",
)
"""Where code lies that is not the model's own."""

_CONTROL_FLOW = (
    "Control flow that depends on tensor values cannot be captured; compute both ways and choose with torch.where, or "
    "wrap the convolutional part in a module of its own and trace that"
)
_CAUSES = (
    (r"data-dependent|Could not guard|unbacked|\bu\d+\b", _CONTROL_FLOW),
    (r"not a known type|register a pytree", "Return tensors, lists, tuples and dicts, or register the output's class "
     "with torch.export.register_dataclass or torch.utils._pytree.register_pytree_node"),
    (r"PackedParams|quantized::|__obj_flatten__", "Modules of torch.ao.quantization hold their weights in a form that "
     "cannot be captured; trace the float model (tracenet.engine.quantise makes 8 bits of it)"),
    (r"uninitialized parameter", "The model has lazy layers; run it once on an image before tracing"),
    (r"Input type .* should be the same|same dtype|expected .* dtype|expected scalar type",
     "Pass example inputs of the dtype and on the device of the model's weights, or convert the model"),
    (r"on the same device|Expected all tensors|different devices", "Move the model and the inputs to one device"),
    (r"inference tensor|InferenceMode", "The weights were made under torch.inference_mode(); build or load the model "
     "outside of it"),
    (r"\.numpy\(\)", "Values leave PyTorch there; stay in tensors"),
)  # fmt: skip


def check_state(model: nn.Module) -> None:
    """Refuse what is known not to be captured before ``torch.export`` is asked.

    Raises:
        InputError: a scripted model, or autocast is on.
    """
    if isinstance(model, torch.jit.ScriptModule):
        raise InputError(
            f"trace got a scripted model ({type(model).__name__}), which holds no Python to follow; pass the "
            "module that it was made of"
        )
    if torch.is_autocast_enabled("cpu") or torch.is_autocast_enabled("cuda"):
        raise InputError(
            "trace was called inside torch.autocast, whose casts are no part of the model; leave it, and trace "
            "model.half() or model.bfloat16() for lower precision"
        )


def explain(error: Exception, model: nn.Module) -> str:
    """Why ``torch.export`` failed: its first line, where in the model's code, and what to do."""
    text = str(error).strip()
    first = text.splitlines()[0].rstrip(". ") if text else type(error).__name__
    advice = next((advice for pattern, advice in _CAUSES if re.search(pattern, text)), None)
    if advice is None:
        advice = "Check that model(*example_inputs) runs; if it does, " + _CONTROL_FLOW[0].lower() + _CONTROL_FLOW[1:]
    return f"torch.export could not capture {type(model).__name__}: {first}{_where(own_line(error))}. {advice}."


def _where(line: str) -> str:
    return f" (at {line})" if line else ""


def own_line(error: BaseException) -> str:
    """``file:line: code`` of the innermost frame of an exception that is neither PyTorch's nor this package's."""
    frames = [
        frame
        for cause in _chain(error)
        for frame in traceback.extract_tb(cause.__traceback__)
        if frame.line and not frame.filename.startswith(_LIBRARIES) and frame.filename != contextlib.__file__
    ]
    return _line(frames[-1].filename, frames[-1].lineno or 0, frames[-1].line or "") if frames else ""


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__


def line_of(meta: dict[str, Any]) -> str:
    """The same for a node of an exported graph: which line of the model's code it comes from."""
    found = re.findall(r'File "([^"]+)", line (\d+), in .*\n\s*(.*)', meta.get("stack_trace") or "")
    own = [(name, number, code) for name, number, code in found if not name.startswith(_LIBRARIES)]
    return _line(own[-1][0], int(own[-1][1]), own[-1][2]) if own else ""


def _line(name: str, number: int, code: str) -> str:
    return f"{Path(name).name}:{number}: {code.strip()}" if code.strip() else f"{Path(name).name}:{number}"


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """While ``torch.export`` runs: a failure's partial graph is not printed, an error that explains it follows."""
    logger = logging.getLogger("torch.fx.experimental.symbolic_shapes")
    level, held = logger.level, io.StringIO()
    logger.setLevel(logging.ERROR)
    try:
        with contextlib.redirect_stderr(held):
            yield
        sys.stderr.write(held.getvalue())
    finally:
        logger.setLevel(level)


def numbers_of(model: nn.Module) -> dict[tuple[str, str], Any]:
    """Plain numbers that modules hold as attributes, by module and name: counters, and sizes that are remembered."""
    return {
        (path, name): value
        for path, module in model.named_modules()
        for name, value in vars(module).items()
        if isinstance(value, (int, float)) and not name.startswith("_")
    }


def changed_number(before: dict[tuple[str, str], Any], after: dict[tuple[str, str], Any]) -> str:
    """An attribute that was made or whose value changed while the model ran, in words; empty where none did."""
    for (path, name), now in after.items():
        value = before.get((path, name))
        if now != value and now == now:
            return f"{f'{path}.{name}' if path else name} (from {value} to {now})"
    return ""
