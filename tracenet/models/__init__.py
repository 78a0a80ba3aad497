"""The networks: backbone, pyramid, heads, mask, and the registry that names them."""

from tracenet.models.registry import create_model, list_models, register_model
from tracenet.models.tracenet import OneClickNet, TraceNet, TraceNetConfig

__all__ = ["OneClickNet", "TraceNet", "TraceNetConfig", "create_model", "list_models", "register_model"]
