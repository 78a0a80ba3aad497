"""Annotated images, augmented views of them as training samples, and simulated clicks.

``coco`` reads and checks annotations, ``augment`` draws and renders views, ``samples`` turns one photo into tensors,
``mixture`` and ``loader`` make many of them, ``clicks`` says where a person would click.
"""

from tracenet.data.augment import Augmentation
from tracenet.data.clicks import (
    BandClicks,
    click_bands,
    deepest_interior_point,
    interior_depth,
    simulate_clicks,
    training_clicks,
)
from tracenet.data.coco import CocoDataset, ImageRecord, Instance, Problem
from tracenet.data.loader import SampleLoader
from tracenet.data.mixture import Mixture, Source, class_names
from tracenet.data.samples import TrainingSample, make_sample, padded_batch, zoom_pair

__all__ = [
    "Augmentation",
    "BandClicks",
    "CocoDataset",
    "ImageRecord",
    "Instance",
    "Mixture",
    "Problem",
    "SampleLoader",
    "Source",
    "TrainingSample",
    "class_names",
    "click_bands",
    "deepest_interior_point",
    "interior_depth",
    "make_sample",
    "padded_batch",
    "simulate_clicks",
    "training_clicks",
    "zoom_pair",
]
