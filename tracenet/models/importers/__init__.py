"""Weights of other projects in our models: every key accounted for, or one error that lists those that are not."""

from tracenet.models.importers.condinst import import_adelaidet_condinst
from tracenet.models.importers.fcos import import_torchvision_fcos
from tracenet.models.importers.resnet import load_backbone

__all__ = ["import_adelaidet_condinst", "import_torchvision_fcos", "load_backbone"]
