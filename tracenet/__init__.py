"""TraceNet: exact receptive-field windows on any ConvNet, and one-click instance segmentation built on them."""

from tracenet.models import create_model, list_models
from tracenet.rft import Demand, Plan, Rule, register_rule
from tracenet.traced import TracedModel, trace
from tracenet_kernels.errors import TraceNetError
from tracenet_kernels.window import Border, Window

__version__ = "0.1.0"

__all__ = [
    "Border",
    "Demand",
    "Plan",
    "Rule",
    "TraceNetError",
    "TracedModel",
    "Window",
    "create_model",
    "list_models",
    "register_rule",
    "trace",
]
