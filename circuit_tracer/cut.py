"""The edges between some nodes, cut from all rows.

What is kept of a graph is decided from a cut: the rows and columns of the nodes under
consideration. Neighbouring blocks of a layer are joined where they fit one strip, because most are
small and every operation has its price.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import torch

from circuit_tracer.edges import Block, EdgeRows, RowBlock
from circuit_tracer.influence import STRIP
from circuit_tracer.shapes import Bool, Int, Tensor

HELD = 2**25
"""Entries of a cut kept between passes (128 MiB in float32)."""


@dataclass(frozen=True, slots=True)
class Part:
    """A block cut to the nodes under consideration, or several of one layer, zeros between.

    Attributes:
        sources: node rows of the columns left.
    """

    cut: Block
    sources: Int[Tensor, " source"]

    def to(self, nodes: Bool[Tensor, " node"]) -> Part | None:
        """What is left of it between `nodes`; None where that is nothing."""
        targets, sources = self.cut.rows, self.sources
        mine, theirs = _among(targets, nodes), _among(sources, nodes)
        if not (len(mine) and len(theirs)):
            return None
        if len(mine) < len(targets):
            values, targets = self.cut.some(mine), targets.index_select(0, mine)
        else:
            values = self.cut.values
        if len(theirs) < len(sources):
            values, sources = values.index_select(1, theirs), sources.index_select(0, theirs)
        return Part(RowBlock(self.cut.layer, self.cut.position, targets, values), sources)


class Cut:
    """All edges between some nodes, from the top layer down.

    Small cuts are held; of large ones each pass gathers every block anew, so that memory stays
    below HELD entries and one block.
    """

    def __init__(self, whole: Whole, nodes: Bool[Tensor, " node"]) -> None:
        self.whole, self.nodes = whole, nodes
        self.held: list[Part] | None = None
        held, size = [], 0
        for part in self._joined():
            held.append(part)
            size += part.cut.values.numel() + 2 * part.sources.numel()
            if size > HELD:
                return
        self.held = held

    def parts(self) -> Iterable[Part]:
        return self._joined() if self.held is None else self.held

    def _joined(self) -> Iterator[Part]:
        """Parts of one layer that together fit one strip, zeros included, become one part."""
        group: list[Part] = []
        n_rows = 0
        for whole in self.whole():
            part = whole.to(self.nodes)
            if part is None:
                continue
            n_rows += len(part.cut.rows)
            if group and (
                group[0].cut.layer != part.cut.layer or n_rows * len(part.sources) > STRIP
            ):
                yield _as_one(group)
                group, n_rows = [], len(part.cut.rows)
            group.append(part)
        if group:
            yield _as_one(group)


def _as_one(parts: list[Part]) -> Part:
    """Parts of one layer as one, over the cone of the last, which holds the others'."""
    last = parts[-1]
    if len(parts) == 1:
        return last
    targets = torch.cat([part.cut.rows for part in parts])
    values, row = last.cut.values.new_zeros(len(targets), len(last.sources)), 0
    place = torch.empty(int(last.sources[-1]) + 1, dtype=torch.long)
    place.index_copy_(0, last.sources, torch.arange(len(last.sources)))
    for part in parts:
        stop = row + len(part.cut.rows)
        columns = place.index_select(0, part.sources)
        values[row:stop].index_copy_(1, columns, part.cut.values)
        row = stop
    return Part(RowBlock(last.cut.layer, last.cut.position, targets, values), last.sources)


Whole = Callable[[], Iterable[Part]]


def whole_of(rows: EdgeRows) -> Iterator[Part]:
    """All blocks as they are, from the top layer down."""
    for block in rows.descending():
        yield Part(block, rows.columns(block))


def _among(rows: Int[Tensor, " some"], nodes: Bool[Tensor, " node"]) -> Int[Tensor, " place"]:
    """Places in `rows` of those that are among `nodes`."""
    return torch.from_numpy(nodes.numpy().take(rows.numpy()).nonzero()[0])
