"""The store of kept features: what is kept, what is dropped, and its bound."""

from __future__ import annotations

from types import SimpleNamespace

import torch

from tracenet.crop_pad import Patch
from tracenet.graph.graph import INPUT
from tracenet.kept import MAX_PATCHES, FeatureStore, kept_names
from tracenet_kernels.window import Window


def patch(window: Window, channels: int = 2) -> list[Patch]:
    return [Patch(window, torch.zeros(1, channels, window.height, window.width))]


def test_patches_that_cover_one_another() -> None:
    store = FeatureStore()
    small, large, other = Window(2, 4, 2, 4), Window(0, 8, 0, 8), Window(6, 10, 0, 3)
    store.add({"a": patch(small)})
    store.add({"a": patch(large)})
    assert store.windows() == {"a": [large]}
    store.add({"a": patch(small), "b": patch(small)})
    assert store.windows() == {"a": [large], "b": [small]}
    store.add({"a": patch(other)})
    assert store.windows() == {"a": [large, other], "b": [small]}


def test_of_many_patches_the_oldest_go() -> None:
    store = FeatureStore()
    windows = [Window(i, i + 1, 0, 1) for i in range(MAX_PATCHES + 3)]
    store.add({"a": [patch(window)[0] for window in windows]})
    assert store.windows() == {"a": windows[3:]}


def test_bytes_are_counted_and_bounded() -> None:
    window = Window(0, 4, 0, 4)
    size = 2 * 16 * 4
    store = FeatureStore(max_bytes=2 * size)
    store.add({"a": patch(window)})
    assert store.bytes == size
    store.add({"b": patch(window)})
    assert store.bytes == 2 * size
    store.add({"c": patch(window)})
    assert store.bytes == 0
    assert store.windows() == {}


def test_a_crop_of_a_larger_tensor_does_not_hold_it() -> None:
    whole = torch.zeros(1, 8, 100, 100)
    store = FeatureStore()
    store.add({"a": [Patch(Window(0, 2, 0, 2), whole[:, :, :2, :2])]})
    held = store.patches["a"][0].tensor
    assert held.untyped_storage().nbytes() == store.bytes == 8 * 4 * 4


def test_forgetting_some_nodes_or_all() -> None:
    store = FeatureStore()
    store.add({name: patch(Window(0, 2, 0, 2)) for name in "abc"})
    store.clear(["a", "absent"])
    assert set(store.windows()) == {"b", "c"}
    store.clear()
    assert store.windows() == {}


def test_only_block_outputs_laterals_levels_and_mask_features_are_kept() -> None:
    def node(name: str, module: str, op: str = "conv2d", layout: object = "spatial") -> SimpleNamespace:
        return SimpleNamespace(name=name, module=module, op=op, layout=layout)

    add = node("fpn.add", "fpn")
    nodes = [
        node("image", "", op=INPUT),
        node("backbone.conv1", "backbone.conv1"),
        node("backbone.maxpool", "backbone.maxpool"),
        node("backbone.layer1.0.conv1", "backbone.layer1.0.conv1"),
        node("backbone.layer1.0.add", "backbone.layer1.0"),
        node("backbone.layer1.0.relu", "backbone.layer1.0"),
        node("fpn.lateral3", "fpn.lateral3"),
        add,
        node("fpn.p6", "fpn.p6"),
        node("heads.cls_tower.0.conv", "heads.cls_tower.0.conv"),
        node("mask_branch.out", "mask_branch.out"),
        node("mask_branch.out.bias", "mask_branch.out", layout=None),
    ]
    graph = SimpleNamespace(nodes=nodes, outputs={"inner3": add, "logits3": nodes[-3]})
    assert kept_names(graph) == [
        "backbone.layer1.0.relu",
        "backbone.maxpool",
        "fpn.add",
        "fpn.lateral3",
        "fpn.p6",
        "mask_branch.out",
    ]
