"""Annotated images and the clicks drawn from them."""

from tracenet.data.clicks import deepest_interior_point, interior_depth
from tracenet.data.coco import CocoDataset, ImageRecord, Instance

__all__ = ["CocoDataset", "ImageRecord", "Instance", "deepest_interior_point", "interior_depth"]
