"""Annotated images and the clicks drawn from them."""

from tracenet.data.clicks import BandClicks, click_bands, deepest_interior_point, interior_depth, simulate_clicks
from tracenet.data.coco import CocoDataset, ImageRecord, Instance

__all__ = [
    "BandClicks",
    "CocoDataset",
    "ImageRecord",
    "Instance",
    "click_bands",
    "deepest_interior_point",
    "interior_depth",
    "simulate_clicks",
]
