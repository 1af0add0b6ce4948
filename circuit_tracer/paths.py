"""Paths through a graph of plain edges without loops, places numbered 0 to n.

The share of a path is the product of the shares of its edges. There are far too many to list, but
the k strongest into a node are made of the k strongest into each of its inputs, and the sum of all
of them of the sums there: one pass along the order of the places gives either exactly. So does the
share that passes any of several places: what is counted at the first of them on the way down goes
no further, so that nothing counts twice.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np


@dataclass(frozen=True, eq=False)
class Wiring:
    """Edges between places, and an order of the places in which every edge leads forward.

    Attributes:
        sources, targets, shares: of every edge, by its number.
        inputs, outputs: for every place the numbers of the edges that end there, and start there.
        order: all places.
    """

    sources: Sequence[int]
    targets: Sequence[int]
    shares: Sequence[float]
    inputs: Sequence[Sequence[int]]
    outputs: Sequence[Sequence[int]]
    order: Sequence[int]

    def strongest(
        self, starts: Mapping[int, float], ends: Mapping[int, float], k: int
    ) -> list[tuple[float, int, list[int]]]:
        """The k strongest paths from any start to any end: (share, end, edges in order).

        Args:
            starts, ends: places and the factors by which they multiply a path's share.
        """
        ways = self._ways(starts, k)
        found = [
            (share * factor, end, rank)
            for end, factor in ends.items()
            for rank, (share, edge, _) in enumerate(ways.get(end, ()))
            if edge >= 0 and share * factor > 0
        ]
        chosen = heapq.nsmallest(k, found, key=lambda way: (-way[0], way[1], way[2]))
        return [(share, end, self._edges(ways, end, rank)) for share, end, rank in chosen]

    def arriving(self, starts: Mapping[int, float]) -> list[float]:
        """For every place the summed shares of all paths that lead there from the starts."""
        sums = [0.0] * len(self.inputs)
        for place in self.order:
            sums[place] = starts.get(place, 0.0) + sum(
                sums[self.sources[edge]] * self.shares[edge] for edge in self.inputs[place]
            )
        return sums

    def leaving(self, ends: Mapping[int, float]) -> list[float]:
        """For every place the summed shares of all paths that lead from there to the ends."""
        sums = [0.0] * len(self.outputs)
        for place in reversed(self.order):
            sums[place] = ends.get(place, 0.0) + sum(
                sums[self.targets[edge]] * self.shares[edge] for edge in self.outputs[place]
            )
        return sums

    def passing(self, ends: Mapping[int, float], groups: Sequence[int], count: int) -> list[float]:
        """For each group of places, the share of what drives the ends that passes any of them.

        Args:
            groups: for every place the number of its group, below `count`, or -1 for none.
        """
        reached = np.zeros((len(self.order), count))
        passed = [0.0] * count
        for place, factor in ends.items():
            reached[place] = factor
        for place in reversed(self.order):
            here, group = reached[place], groups[place]
            if group >= 0:
                passed[group] += float(here[group])
                here[group] = 0.0
            sources, shares = self._incoming[place]
            if len(sources):
                reached[sources] += shares * here
        return passed

    def reach(self, starts: Iterable[int], down: bool = False) -> set[int]:
        """All places that paths lead to from the starts, they included; `down`: come from."""
        edges_at, far = (self.inputs, self.sources) if down else (self.outputs, self.targets)
        seen = set(starts)
        waiting = list(seen)
        while waiting:
            for edge in edges_at[waiting.pop()]:
                if far[edge] not in seen:
                    seen.add(far[edge])
                    waiting.append(far[edge])
        return seen

    @cached_property
    def _incoming(self) -> list[tuple[np.ndarray, np.ndarray]]:
        """For every place (sources, shares as a column) of the edges that end there."""
        sources, shares = np.array(self.sources, dtype=np.int64), np.array(self.shares)
        numbers = [np.array(edges, dtype=np.int64) for edges in self.inputs]
        return [(sources[edges], shares[edges, None]) for edges in numbers]

    def _ways(self, starts: Mapping[int, float], k: int) -> dict[int, list[tuple[float, int, int]]]:
        """For every place its k best ways from the starts: (share, last edge or -1, rank before).

        The ways over each edge are sorted already, so they are merged lazily: no more than k are
        looked at beyond the first of each.
        """
        ways: dict[int, list[tuple[float, int, int]]] = {}
        for place in self.order:
            heap = [
                (-ways[self.sources[edge]][0][0] * self.shares[edge], edge, 0)
                for edge in self.inputs[place]
                if self.sources[edge] in ways
            ]
            if place in starts:
                heap.append((-starts[place], -1, 0))
            if not heap:
                continue
            heapq.heapify(heap)
            best: list[tuple[float, int, int]] = []
            while heap and len(best) < k:
                share, edge, rank = heapq.heappop(heap)
                best.append((-share, edge, rank))
                before = ways[self.sources[edge]] if edge >= 0 else []
                if rank + 1 < len(before):
                    heapq.heappush(heap, (-before[rank + 1][0] * self.shares[edge], edge, rank + 1))
            ways[place] = best
        return ways

    def _edges(
        self, ways: Mapping[int, list[tuple[float, int, int]]], place: int, rank: int
    ) -> list[int]:
        edges = []
        while (way := ways[place][rank])[1] >= 0:
            _, edge, rank = way
            edges.append(edge)
            place = self.sources[edge]
        return edges[::-1]


def topological(
    layers: Sequence[int], targets: Sequence[int], outputs: Sequence[Sequence[int]]
) -> list[int]:
    """All places so that every edge leads forward, lower layers first where that leaves a choice.

    Places on a loop, and what comes after it, are missing.

    Args:
        layers: of every place.
        targets: of every edge.
        outputs: for every place the numbers of the edges that start there.
    """
    waiting = [0] * len(layers)
    for target in targets:
        waiting[target] += 1
    ready = [(layer, place) for place, layer in enumerate(layers) if not waiting[place]]
    heapq.heapify(ready)
    order = []
    while ready:
        _, place = heapq.heappop(ready)
        order.append(place)
        for edge in outputs[place]:
            waiting[targets[edge]] -= 1
            if not waiting[targets[edge]]:
                heapq.heappush(ready, (layers[targets[edge]], targets[edge]))
    return order
