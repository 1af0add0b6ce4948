"""Paths through a layered graph of plain edges, numbered 0 to n: the strongest, and all at once.

The share of a path is the product of the shares of its edges. There are far too many to list, but
the k strongest into a node are made of the k strongest into each of its inputs, and the sum of all
of them of the sums there: one pass upward gives either exactly.
"""

from __future__ import annotations

import heapq
from collections.abc import Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Layered:
    """Edges between places, and an order of the places in which every edge leads forward.

    Attributes:
        sources, shares: of every edge, by its number.
        inputs: for every place the numbers of the edges that end there.
        order: all places.
    """

    sources: Sequence[int]
    shares: Sequence[float]
    inputs: Sequence[Sequence[int]]
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
