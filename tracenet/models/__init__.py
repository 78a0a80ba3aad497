"""The networks: backbone, pyramid, heads, mask, and the registry that names them."""

from tracenet.config import TraceNetConfig
from tracenet.models.registry import create_model, list_models, register_model
from tracenet.models.tracenet import TraceNet

__all__ = ["TraceNet", "TraceNetConfig", "create_model", "list_models", "register_model"]
