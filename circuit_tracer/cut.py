"""The edges between some nodes, cut from all rows.

What is kept of a graph is decided from a cut: the rows and columns of the nodes under
consideration. Blocks are small and every operation has its price, so what is left of several
positions of a layer is joined to one part; but a part stays so small that whatever is worked out
from its values finds room in the processor's cache.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import groupby

import numpy as np
import torch

from circuit_tracer.edges import Block, EdgeRows
from circuit_tracer.influence import Array
from circuit_tracer.nodes import NodeIndex
from circuit_tracer.shapes import Float, Tensor
from circuit_tracer.sparse import SparseBlock

LARGEST = 2**17
"""Entries of a part (1 MiB in float64); a single row may have more."""
JOINED = 2**16
"""Entries of a part that what is left of small blocks is joined to, zeros between."""
ROOM, ALIGNED = 2**23, 64
"""Bytes that many parts share, and multiples of which they start at."""
HELD = 2**24
"""Entries of a cut kept between passes (64 MiB in float32)."""
RAW = {2: torch.int16, 4: torch.int32, 8: torch.int64}
"""What numbers are moved as, by size: numpy knows no bfloat16."""


def bits(values: Tensor) -> Array:
    """The same memory as whole numbers."""
    return values.view(RAW[values.element_size()]).numpy()


@dataclass(frozen=True, slots=True)
class Part:
    """Some rows of some columns.

    Attributes:
        targets, sources: node rows of the rows and columns.
        values: (targets, sources).
    """

    targets: Array
    sources: Array
    values: Float[Tensor, "target source"]

    def counts(self, places: Array) -> Array:
        """(targets,) how many of some places are in each row."""
        ends = np.arange(1, len(self.targets) + 1) * len(self.sources)
        counts = places.searchsorted(ends)
        counts[1:] -= counts[:-1].copy()
        return counts

    def write(self, places: Array, targets: Array, sources: Array, weights: Array) -> None:
        """Put the edges at some places into other memory.

        Args:
            places: among all entries row by row, ascending.
            weights: for the bits of their values (`bits`).
        """
        counts, width = self.counts(places), len(self.sources)
        targets[:] = self.targets.repeat(counts)
        columns = places - np.arange(0, len(counts) * width, width).repeat(counts)
        self.sources.take(columns, out=sources, mode="clip")
        bits(self.values).reshape(-1).take(places, out=weights, mode="clip")


@dataclass(frozen=True, slots=True)
class Piece:
    """Some rows and columns of a block.

    Attributes:
        values: of the whole block.
        targets: node rows of the rows.
        rows, columns: their places in the block.
        inside: which of the columns it has; None for all. The others are zero.
    """

    values: Tensor | SparseBlock
    targets: Array
    rows: Array
    columns: Array
    inside: Array | None = None

    def put(self, room: Array) -> None:
        """Put the entries into other memory."""
        if isinstance(self.values, SparseBlock):
            some = bits(self.values.some(torch.from_numpy(self.rows)))
        else:
            some = bits(self.values).take(self.rows, axis=0)
        some.take(self.columns, axis=1, out=room, mode="clip")
        if self.inside is not None:
            room &= -self.inside.astype(room.dtype)  # all bits, or none


@dataclass(frozen=True, slots=True)
class Joint:
    """Pieces of one layer as one part, positions descending: the cone of the first holds all."""

    sources: Array
    pieces: list[Piece]

    @property
    def height(self) -> int:
        return sum(len(piece.rows) for piece in self.pieces)

    @property
    def size(self) -> int:
        return self.height * len(self.sources)

    @property
    def dtype(self) -> torch.dtype:
        return self.pieces[0].values.dtype

    def copied(self, room: Array) -> Part:
        """The part, its values in given memory."""
        values = torch.from_numpy(room).view(self.dtype).view(-1, len(self.sources))
        raw, stop, pieces = bits(values), 0, self.pieces[::-1]
        for piece in pieces:
            start, stop = stop, stop + len(piece.rows)
            piece.put(raw[start:stop])
        return Part(np.concatenate([piece.targets for piece in pieces]), self.sources, values)


Whole = Callable[[Array], Iterator[Joint]]
"""What there is between some nodes (a mask), from the top layer down."""


class Cut:
    """All edges between some nodes, in parts, from the top layer down.

    Small cuts are held; of large ones each pass gathers every part anew, so that memory stays
    below HELD entries.
    """

    def __init__(self, whole: Whole, nodes: Array, dtype: torch.dtype) -> None:
        self.whole, self.nodes, self.dtype = whole, nodes, dtype
        self.held: list[Part] | None = None
        held, self.size = [], 0
        for part in self._gathered():
            held.append(part)
            self.size += part.values.numel() + 2 * len(part.sources)
            if self.size > HELD:
                return
        self.held = held

    def parts(self) -> Iterable[Part]:
        return self._gathered() if self.held is None else self.held

    def between(self, nodes: Array) -> Iterator[Joint]:
        """What it has between fewer nodes."""
        for part in self.parts():
            rows, columns = _among(part.targets, nodes), _among(part.sources, nodes)
            if len(rows) and len(columns):
                piece = Piece(part.values, part.targets[rows], rows, columns)
                yield Joint(part.sources[columns], [piece])

    def _gathered(self) -> Iterator[Part]:
        """Parts stand one after the other in pieces of memory that are large enough for numpy to
        ask for large pages: the first touch of small ones costs more than what is done here."""
        room = np.empty(0, dtype=np.uint8)
        for joint in _split(self.whole(self.nodes)):
            size = joint.size * joint.dtype.itemsize
            if size > len(room):
                room = np.empty(max(size, ROOM), dtype=np.uint8)
            yield joint.copied(room[:size])
            room = room[-(-size // ALIGNED) * ALIGNED :]


def _split(joints: Iterable[Joint]) -> Iterator[Joint]:
    """Some rows at a time where there are more than a part may hold, which no two pieces have."""
    for joint in joints:
        step = max(1, LARGEST // len(joint.sources))
        if joint.height <= step or len(joint.pieces) > 1:
            yield joint
            continue
        piece = joint.pieces[0]
        for stop in range(joint.height, 0, -step):
            some = slice(max(0, stop - step), stop)
            part = replace(piece, targets=piece.targets[some], rows=piece.rows[some])
            yield Joint(joint.sources, [part])


def between(rows: EdgeRows, nodes: Array) -> Iterator[Joint]:
    """What rows have between some nodes, small blocks of a layer joined."""
    index = rows.index
    kept = nodes[: index.first_target].nonzero()[0]
    blocks = sorted(rows.blocks, key=lambda block: (-block.layer, -block.position))
    for layer, group in groupby(blocks, key=lambda block: block.layer):
        yield from _joined(index, _Cone.of(index, layer, kept), list(group), nodes)


@dataclass(frozen=True, slots=True)
class _Cone:
    """Nodes that targets at a layer can receive edges from.

    Attributes:
        runs: the run of each in the cones of the layer (`NodeIndex.runs`).
        within: its place in that run.
    """

    sources: Array
    positions: Array
    runs: Array
    within: Array

    @classmethod
    def of(cls, index: NodeIndex, layer: int, kept: Array) -> _Cone:
        """Those of all positions, of some nodes."""
        layers = index.layers.numpy().take(kept)
        below = layers < layer
        sources, layers = kept[below], layers[below]
        positions = index.positions.numpy().take(sources)
        runs = np.where(sources < index.n_features, layers, layer + layers)
        runs[sources >= index.first_embedding] = 2 * layer
        firsts = index.offsets.take(layers * index.n_positions, mode="clip")
        within = np.where(sources < index.n_features, sources - firsts, positions)
        return cls(sources, positions, runs, within)

    def upto(self, position: int) -> _Cone:
        here = (self.positions <= position).nonzero()[0]
        return _Cone(self.sources[here], self.positions[here], self.runs[here], self.within[here])


def _joined(index: NodeIndex, cone: _Cone, blocks: list[Block], nodes: Array) -> Iterator[Joint]:
    """What is left of the blocks of one layer, positions descending."""
    runs = index.runs(blocks[0].layer, [block.position for block in blocks])
    joint, here, height = Joint(cone.sources[:0], []), cone, 0
    for block, starts in zip(blocks, runs, strict=True):
        targets = block.rows.numpy()
        rows = _among(targets, nodes)
        height += len(rows)
        if joint.pieces and height * len(joint.sources) > JOINED:
            yield joint
            joint = Joint(joint.sources, [])
        if not joint.pieces:
            here, height = cone.upto(block.position), len(rows)
            joint = Joint(here.sources, [])
        if len(rows) and len(here.sources):
            inside = here.positions <= block.position if joint.pieces else None
            columns = starts.take(here.runs) + here.within
            values = block if isinstance(block, SparseBlock) else block.values
            joint.pieces.append(Piece(values, targets[rows], rows, columns, inside))
    if joint.pieces:
        yield joint


def _among(rows: Array, nodes: Array) -> Array:
    """Places in `rows` of those that are among `nodes`."""
    return nodes.take(rows).nonzero()[0]
