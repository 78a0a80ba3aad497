"""The order of steps: producers first, convolutions that share a weight side by side.

Heads that run over the levels of a pyramid share weights between steps that do not depend on each other. Next to each
other they can be one launch, and the weight is read once.
"""

from __future__ import annotations

import heapq
from collections import defaultdict
from collections.abc import Hashable

from tracenet.engine.fuse import Draft
from tracenet.graph.graph import Node

_GEOMETRY = tuple(f"{name}_{axis}" for name in ("kernel", "stride", "pad", "dilation") for axis in "yx") + ("groups",)


def arrange(drafts: list[Draft]) -> list[tuple[Draft, int]]:
    """Drafts in the order in which they run, each with the number of its group (0: none).

    Args:
        drafts: producers before consumers.
    """
    producers = _producers(drafts)
    clusters = _candidates(drafts, producers)
    while True:
        order, stuck = _sort(clusters, producers)
        if not stuck:
            break
        largest = max((clusters[i] for i in stuck), key=len)  # groups that wait for each other cannot all be kept
        clusters.remove(largest)
        clusters.extend([draft] for draft in largest)
    numbered: list[tuple[Draft, int]] = []
    group = 0
    for cluster in order:
        group += len(clusters[cluster]) > 1
        numbered += [(draft, group if len(clusters[cluster]) > 1 else 0) for draft in clusters[cluster]]
    return numbered


def _producers(drafts: list[Draft]) -> dict[Draft, list[Draft]]:
    by_node: dict[Node, Draft] = {draft.output: draft for draft in drafts}
    return {draft: [by_node[x] for x in draft.inputs if x in by_node] for draft in drafts}


def _candidates(drafts: list[Draft], producers: dict[Draft, list[Draft]]) -> list[list[Draft]]:
    """Convolutions of one weight that are equally many uses of it away from the inputs: none depends on another."""
    depths: dict[Draft, dict[Hashable, int]] = {}
    clusters: dict[Hashable, list[Draft]] = defaultdict(list)
    for position, draft in enumerate(drafts):
        depth: dict[Hashable, int] = {}
        for producer in producers[draft]:
            for key, uses in depths[producer].items():
                depth[key] = max(uses, depth.get(key, 0))
        key = _shared_key(draft)
        if key is None:
            clusters[position].append(draft)
        else:
            clusters[key, depth.get(key, 0)].append(draft)
            depth[key] = depth.get(key, 0) + 1
        depths[draft] = depth
    return list(clusters.values())


def _shared_key(draft: Draft) -> Hashable | None:
    if draft.op != "conv2d" or draft.weight is None or draft.weight.name is None:
        return None
    return (draft.weight.name, *(draft.ints[name] for name in _GEOMETRY))


def _sort(clusters: list[list[Draft]], producers: dict[Draft, list[Draft]]) -> tuple[list[int], list[int]]:
    """Cluster numbers in topological order, earliest drafts first, and the numbers of those in or behind a cycle."""
    home = {draft: i for i, cluster in enumerate(clusters) for draft in cluster}
    position = {draft: i for i, draft in enumerate(producers)}
    waits: list[set[int]] = [{home[p] for draft in cluster for p in producers[draft]} for cluster in clusters]
    readers: dict[int, list[int]] = defaultdict(list)
    for i, needed in enumerate(waits):
        for j in needed:
            readers[j].append(i)
    first = [min(position[draft] for draft in cluster) for cluster in clusters]
    ready = [(first[i], i) for i, needed in enumerate(waits) if not needed]
    heapq.heapify(ready)
    order: list[int] = []
    while ready:
        _, i = heapq.heappop(ready)
        order.append(i)
        for j in readers[i]:
            waits[j].discard(i)
            if not waits[j]:
                heapq.heappush(ready, (first[j], j))
    return order, [i for i, needed in enumerate(waits) if needed]
