"""TraceNet: exact receptive-field windows on any ConvNet, and one-click instance segmentation built on them.

Names are imported on first use, so that ``import tracenet`` and the command line's help do not wait for PyTorch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tracenet.global_context import GlobalVectors
    from tracenet.inference import PredictorSettings
    from tracenet.models import create_model, list_models
    from tracenet.onnx_export import export_onnx
    from tracenet.predictor import Predictor
    from tracenet.rft import Demand, Plan, Rule, register_rule
    from tracenet.testing import Exactness, check_exactness
    from tracenet.traced import TracedModel, trace
    from tracenet_kernels.errors import TraceNetError
    from tracenet_kernels.window import Border, Window

__version__ = "0.1.0"

__all__ = [
    "Border",
    "Demand",
    "Exactness",
    "GlobalVectors",
    "Plan",
    "Predictor",
    "PredictorSettings",
    "Rule",
    "TraceNetError",
    "TracedModel",
    "Window",
    "check_exactness",
    "create_model",
    "export_onnx",
    "list_models",
    "register_rule",
    "trace",
]

_HOMES = {
    "tracenet.global_context": ("GlobalVectors",),
    "tracenet.inference": ("PredictorSettings",),
    "tracenet.models": ("create_model", "list_models"),
    "tracenet.onnx_export": ("export_onnx",),
    "tracenet.predictor": ("Predictor",),
    "tracenet.rft": ("Demand", "Plan", "Rule", "register_rule"),
    "tracenet.testing": ("Exactness", "check_exactness"),
    "tracenet.traced": ("TracedModel", "trace"),
    "tracenet_kernels.errors": ("TraceNetError",),
    "tracenet_kernels.window": ("Border", "Window"),
}
_HOME_OF = {name: module for module, names in _HOMES.items() for name in names}


def __getattr__(name: str) -> Any:
    if name not in _HOME_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(_HOME_OF[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
