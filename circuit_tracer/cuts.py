"""What stands in the way: dominators and smallest cuts of a circuit.

A dominator is a node that every path from the starts to the ends passes. A cut is a set of nodes
whose removal leaves no path; a smallest one has as many nodes as there are paths that share none
(Menger), so it is found by finding those: Dinic's algorithm on a graph in which each node is an arc
that carries one path. Shares play no part in either; `Circuit.bottlenecks` is about shares.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

from circuit_tracer.nodes import Node
from circuit_tracer.paths import Wiring
from circuit_tracer.summary import percent


@dataclass(frozen=True, slots=True)
class Cut:
    """A smallest set of nodes that every path with a node between its ends passes.

    Attributes:
        nodes: of the smallest sets, the one nearest the start, in graph order.
        share: summed share of the paths that pass it.
        direct: summed share of the edges that lead straight from start to end: no node cuts those.
    """

    nodes: tuple[Node, ...]
    share: float
    direct: float

    def _repr_pretty_(self, printer: Any, cycle: bool) -> None:
        """In a notebook: without its nodes, which may fill a screen."""
        said = f"{percent(self.share)} passes them, {percent(self.direct)} goes straight"
        printer.text(f"Cut({len(self.nodes)} nodes: {said})")


def dominators(wiring: Wiring, starts: Collection[int], ends: Collection[int]) -> list[int]:
    """Places between them that every path from any start to any end passes, in its direction."""
    inside = wiring.reach(starts) & wiring.reach(ends, down=True)
    root, rank, above = -1, {-1: -1}, {-1: -1}
    starting = set(starts)

    def nearest(one: int, other: int) -> int:
        """The last place that all paths to both pass."""
        while one != other:
            if rank[one] < rank[other]:
                one, other = other, one
            one = above[one]
        return one

    for number, place in enumerate(place for place in wiring.order if place in inside):
        before = [wiring.sources[edge] for edge in wiring.inputs[place]]
        before = [source for source in before if source in inside]
        rank[place] = number
        above[place] = root if place in starting else before[0]
        for source in before:
            above[place] = nearest(above[place], source)
    met = [place for place in ends if place in inside]
    if not met:
        return []
    last, found = met[0], []
    for place in met[1:]:
        last = nearest(last, place)
    while last != root:
        found.append(last)
        last = above[last]
    return [place for place in reversed(found) if place not in starting and place not in set(ends)]


def smallest_cut(wiring: Wiring, starts: Collection[int], ends: Collection[int]) -> list[int]:
    """Places of a smallest cut between starts and ends, ascending; the nearest to the starts.

    Edges that lead straight from a start to an end are left out.
    """
    between = wiring.reach(starts) & wiring.reach(ends, down=True)
    paths = _Disjoint(wiring, between, set(starts), set(ends))
    while paths.level():
        paths.send()
    return sorted(paths.crossed())


class _Disjoint:
    """As many paths as share no node between their ends.

    Place p is an arc from 2p to 2p + 1 that one path may take; edges carry any number. Arcs come in
    pairs, arc ^ 1 is its way back.
    """

    def __init__(self, wiring: Wiring, between: set[int], starts: set[int], ends: set[int]) -> None:
        size = 2 * len(wiring.order)
        self.start, self.end = size, size + 1
        self.arcs: list[list[int]] = [[] for _ in range(size + 2)]
        self.heads: list[int] = []
        self.room: list[int] = []
        self.inner = sorted(between - starts - ends)
        for place in self.inner:
            self._join(2 * place, 2 * place + 1, 1)
        for place in sorted(between - ends):
            tail = self.start if place in starts else 2 * place + 1
            for edge in wiring.outputs[place]:
                target = wiring.targets[edge]
                if target not in between or target in starts:
                    continue
                if target not in ends:
                    self._join(tail, 2 * target, size)
                elif place not in starts:
                    self._join(tail, self.end, size)
        self.levels: list[int] = []

    def _join(self, tail: int, head: int, room: int) -> None:
        for one, other, free in ((tail, head, room), (head, tail, 0)):
            self.arcs[one].append(len(self.heads))
            self.heads.append(other)
            self.room.append(free)

    def level(self) -> bool:
        """Steps of everything from the start; False where the end is out of reach."""
        self.levels = [-1] * len(self.arcs)
        self.levels[self.start] = 0
        queue = [self.start]
        for one in queue:
            for arc in self.arcs[one]:
                head = self.heads[arc]
                if self.room[arc] and self.levels[head] < 0:
                    self.levels[head] = self.levels[one] + 1
                    queue.append(head)
        return self.levels[self.end] >= 0

    def send(self) -> None:
        """Paths along rising levels until there are no more."""
        untried = [iter(arcs) for arcs in self.arcs]
        walked: list[int] = []
        one = self.start
        while True:
            for arc in untried[one]:
                head = self.heads[arc]
                if self.room[arc] and self.levels[head] == self.levels[one] + 1:
                    walked.append(arc)
                    one = head
                    break
            else:
                if not walked:
                    return
                one = self.heads[walked.pop() ^ 1]
                continue
            if one == self.end:
                for arc in walked:
                    self.room[arc] -= 1
                    self.room[arc ^ 1] += 1
                walked, one = [], self.start

    def crossed(self) -> list[int]:
        """Places that can be entered from the start, once all paths are sent, and not passed."""
        return [
            place
            for place in self.inner
            if self.levels[2 * place] >= 0 and self.levels[2 * place + 1] < 0
        ]
