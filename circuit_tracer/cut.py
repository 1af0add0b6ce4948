"""The edges between some nodes, cut from all rows.

What is kept of a graph is decided from a cut: the rows and columns of the nodes under
consideration. Blocks are small and every operation has its price, so small ones of a layer are
joined, and what is cut of many stands in one piece of memory, a sheet: what is asked of each edge
alone is asked of a whole sheet at once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch

from circuit_tracer.edges import Block, EdgeRows, RowBlock
from circuit_tracer.shapes import Bool, Float, Int, Tensor

SHEET = 2**21
"""Entries of a sheet (8 MiB in float32, 16 as scores); a single row may have more."""
JOINED = 2**15
"""Entries of a part that small ones of one layer are joined to, zeros between."""
HELD = 2**25
"""Entries of a cut kept between passes (128 MiB in float32)."""


@dataclass(frozen=True, slots=True)
class Part:
    """A block, or what a cut leaves of some of its rows.

    Attributes:
        sources: node rows of the columns.
    """

    block: Block
    sources: Int[Tensor, " source"]


@dataclass(frozen=True, slots=True)
class Piece:
    """What is to be cut from a part: places of rows and columns in it."""

    part: Part
    rows: Int[Tensor, " target"]
    columns: Int[Tensor, " source"]

    @property
    def size(self) -> int:
        return len(self.rows) * len(self.columns)

    def copied(self, room: Float[Tensor, " entry"]) -> Part:
        """The part that is left, its values in a given place."""
        block, sources = self.part.block, self.part.sources
        values = room.view(len(self.rows), len(self.columns))
        some = block.some(self.rows) if len(self.rows) < len(block.rows) else block.values
        if len(self.columns) < len(sources):
            torch.index_select(some, 1, self.columns, out=values)
            sources = sources.index_select(0, self.columns)
        else:
            values.copy_(some)
        targets = block.rows.index_select(0, self.rows)
        return Part(RowBlock(block.layer, block.position, targets, values), sources)


@dataclass(frozen=True, slots=True)
class Joint:
    """Pieces of one layer as one, positions descending: the cone of the first holds the others'."""

    pieces: list[Piece]

    @property
    def height(self) -> int:
        return sum(len(piece.rows) for piece in self.pieces)

    @property
    def size(self) -> int:
        return self.height * len(self.pieces[0].columns)

    def takes(self, other: Piece) -> bool:
        first = self.pieces[0]
        height = self.height + len(other.rows)
        same = first.part.block.layer == other.part.block.layer
        return same and height * len(first.columns) <= JOINED

    def copied(self, room: Float[Tensor, " entry"]) -> Part:
        """As of a single piece; absent edges are zero."""
        first = self.pieces[0]
        if len(self.pieces) == 1:
            return first.copied(room)
        sources = first.part.sources.index_select(0, first.columns)
        values, targets, row = room.view(-1, len(sources)).zero_(), [], 0
        for piece in reversed(self.pieces):
            part = piece.copied(torch.empty(piece.size, dtype=room.dtype))
            some = values[row : row + len(piece.rows)]
            some.index_copy_(1, torch.searchsorted(sources, part.sources), part.block.values)
            targets.append(part.block.rows)
            row += len(piece.rows)
        block = first.part.block
        return Part(RowBlock(block.layer, block.position, torch.cat(targets), values), sources)


@dataclass(frozen=True, eq=False)
class Sheet:
    """Parts whose values stand one after the other in memory, layers ascending.

    Attributes:
        values: of all parts, row-major.
    """

    parts: list[Part]
    values: Float[Tensor, " entry"]

    @cached_property
    def targets(self) -> Int[Tensor, " target"]:
        """Node rows of the rows of all parts."""
        return torch.cat([part.block.rows for part in self.parts])

    def edges(self, places: np.ndarray[Any, Any]) -> tuple[Tensor, Tensor, Tensor]:
        """Targets, sources and values of the entries at ascending places, which it overwrites."""
        weights = self.values.index_select(0, torch.from_numpy(places))
        widths = [len(part.sources) for part in self.parts]
        heights = [len(part.block.rows) for part in self.parts]
        firsts = np.repeat(np.cumsum([0, *widths[:-1]]), heights)  # of a row's columns, of all
        stops = np.cumsum(np.repeat(widths, heights))  # of a row, among the entries
        counts = np.diff(np.searchsorted(places, stops), prepend=0)
        columns = np.repeat(firsts - np.concatenate([[0], stops[:-1]]), counts)
        columns += places
        sources = torch.cat([part.sources for part in self.parts]).numpy()
        sources.take(columns, out=places, mode="clip")
        targets = np.repeat(self.targets.numpy(), counts)
        return torch.from_numpy(targets), torch.from_numpy(places), weights

    def spread(self, room: Float[Tensor, " entry"]) -> Iterator[tuple[Part, Tensor]]:
        """Parts from the top layer down, each with its place in a copy as large as the sheet."""
        stop = len(self.values)
        for part in reversed(self.parts):
            start = stop - part.block.shape[0] * part.block.shape[1]
            yield part, room[start:stop].view(part.block.shape)
            stop = start


class Cut:
    """All edges between some nodes, in sheets, from the top layer down.

    Small cuts are held; of large ones each pass gathers every sheet anew, so that memory stays
    below HELD entries and one sheet.
    """

    def __init__(self, whole: Whole, nodes: Bool[Tensor, " node"]) -> None:
        self.whole, self.nodes = whole, nodes
        self.held: list[Sheet] | None = None
        held, size = [], 0
        for sheet in self._sheets():
            held.append(sheet)
            size += len(sheet.values) + 2 * sum(len(part.sources) for part in sheet.parts)
            if size > HELD:
                return
        self.held = held

    def sheets(self) -> Iterable[Sheet]:
        return self._sheets() if self.held is None else self.held

    def parts(self) -> Iterator[Part]:
        for sheet in self.sheets():
            yield from reversed(sheet.parts)

    def _sheets(self) -> Iterator[Sheet]:
        joints: list[Joint] = []
        size = 0
        for joint in self._joints():
            if joints and size + joint.size > SHEET:
                yield _as_one(joints)
                joints, size = [], 0
            joints.append(joint)
            size += joint.size
        if joints:
            yield _as_one(joints)

    def _joints(self) -> Iterator[Joint]:
        joint = Joint([])
        for piece in self._pieces():
            if joint.pieces and not joint.takes(piece):
                yield joint
                joint = Joint([])
            joint.pieces.append(piece)
        if joint.pieces:
            yield joint

    def _pieces(self) -> Iterator[Piece]:
        """What is left of each part between the nodes, some rows at a time where it is large."""
        for part in self.whole():
            rows, columns = _among(part.block.rows, self.nodes), _among(part.sources, self.nodes)
            if len(rows) and len(columns):
                for some in reversed(rows.split(max(1, SHEET // len(columns)))):
                    yield Piece(part, some, columns)


def _as_one(joints: list[Joint]) -> Sheet:
    """The sheet of what comes from the top layer down."""
    values = room_for(sum(joint.size for joint in joints), joints[0].pieces[0].part.block.dtype)
    parts, start = [], 0
    for joint in reversed(joints):
        parts.append(joint.copied(values[start : start + joint.size]))
        start += joint.size
    return Sheet(parts, values)


def room_for(size: int, dtype: torch.dtype) -> Float[Tensor, " entry"]:
    """Memory by numpy, which asks for large pages: the first touch of small ones costs more than
    what is done here."""
    return torch.from_numpy(np.empty(size * dtype.itemsize, dtype=np.uint8)).view(dtype)


Whole = Callable[[], Iterable[Part]]


def whole_of(rows: EdgeRows) -> Iterator[Part]:
    """All blocks as they are, from the top layer down, positions descending too."""
    for block in sorted(rows.blocks, key=lambda block: (-block.layer, -block.position)):
        yield Part(block, rows.columns(block))


def _among(rows: Int[Tensor, " some"], nodes: Bool[Tensor, " node"]) -> Int[Tensor, " place"]:
    """Places in `rows` of those that are among `nodes`."""
    return torch.from_numpy(nodes.numpy().take(rows.numpy()).nonzero()[0])
