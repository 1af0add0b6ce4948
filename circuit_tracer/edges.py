"""Edge rows, block-sparse: for targets only, and over their causal cone only.

A `RowBlock` holds the rows of targets that share (layer, position), and so share a cone: a dense
(targets × cone) tensor without the three quarters of exact zeros that an n × n matrix would keep.
Where memory is short a `SparseBlock` stands for it, without the row's weakest edges (`sparse`).
`EdgeRows` is all blocks of a graph with what closes each row: bias, positional and ignored-position
terms, and the value they add up to.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property

import torch

from circuit_tracer.errors import InputError
from circuit_tracer.nodes import NodeIndex
from circuit_tracer.shapes import Float, Int, Tensor
from circuit_tracer.sparse import SparseBlock


@dataclass(frozen=True, eq=False)
class RowBlock:
    """Rows of the targets at one (layer, position).

    Attributes:
        layer: where the targets read; `n_layers` for what is read after the last layer.
        position: their position.
        rows: (targets,) int64 node rows, ascending.
        values: (targets, cone) edges, columns as `NodeIndex.cone(layer, position)`.
    """

    layer: int
    position: int
    rows: Int[Tensor, " target"]
    values: Float[Tensor, "target source"]

    @property
    def shape(self) -> tuple[int, int]:
        return self.values.shape[0], self.values.shape[1]

    @property
    def dtype(self) -> torch.dtype:
        return self.values.dtype

    @property
    def nbytes(self) -> int:
        return self.values.nbytes

    def some(self, which: Int[Tensor, " some"]) -> Float[Tensor, "some source"]:
        """Some of the rows."""
        return self.values.index_select(0, which)

    def fill(self, which: slice, room: Float[Tensor, "some source"]) -> None:
        """Put some of the rows into other memory of any real type."""
        room.copy_(self.values[which])


Block = RowBlock | SparseBlock


@dataclass(frozen=True, eq=False)
class EdgeRows:
    """All attributed rows of a graph.

    The four closing terms are (n_nodes,) tensors, zero where a node has no row:
    for every row r, sum of edges + bias[r] + positional[r] + ignored[r] = value[r], where the sum
    of edges includes those that a sparse block dropped (`SparseBlock.remainder`).

    Attributes:
        blocks: rows of one site may stand in several sparse blocks, one after the other.
        keep: share of each row's absolute sum that its edges hold at the least; 1 for all edges.
    """

    index: NodeIndex
    blocks: tuple[Block, ...]
    bias: Float[Tensor, " node"]
    positional: Float[Tensor, " node"]
    ignored: Float[Tensor, " node"]
    value: Float[Tensor, " node"]
    keep: float = field(default=1.0, kw_only=True)

    def __repr__(self) -> str:
        return f"EdgeRows({len(self.rows):,} rows over {len(self.index):,} nodes)"

    @classmethod
    def from_edges(
        cls,
        index: NodeIndex,
        targets: Int[Tensor, " edge"],
        sources: Int[Tensor, " edge"],
        values: Float[Tensor, " edge"],
        rows: Int[Tensor, " target"] | None = None,
    ) -> EdgeRows:
        """Rows from a plain list of edges, such as a file holds; absent edges are zero.

        What closes the rows is not known from edges alone: `value` is NaN, the terms are zero.

        Args:
            rows: nodes that have a row; default every node with an incoming edge and all logits.

        Raises:
            InputError: an edge that comes from outside its target's causal cone.
        """
        logits = torch.arange(index.first_target, len(index))
        rows = torch.cat([targets, logits] if rows is None else [rows, targets]).unique()
        cells = index.layers * index.n_positions + index.positions
        cell_of_edge = cells[targets]
        blocks = []
        for cell in cells[rows].unique().tolist():
            layer, position = divmod(cell, index.n_positions)
            mine, inside = rows[cells[rows] == cell], (cell_of_edge == cell).nonzero()[:, 0]
            cone = index.cone(layer, position)
            places = torch.searchsorted(cone, sources[inside])
            known = places < len(cone)
            known &= cone[places.clamp(max=max(len(cone) - 1, 0))] == sources[inside]
            if not known.all():
                edge = inside[~known][0]
                raise InputError(
                    f"an edge leads from node {int(sources[edge])} to node {int(targets[edge])}, "
                    "which is not at a higher layer and an equal or later position"
                )
            block = torch.zeros(len(mine), len(cone), dtype=values.dtype)
            block[torch.searchsorted(mine, targets[inside]), places] = values[inside]
            blocks.append(RowBlock(layer, position, mine, block))
        zero = torch.zeros(len(index), dtype=values.dtype)
        return cls(index, tuple(blocks), zero, zero, zero, torch.full_like(zero, torch.nan))

    @cached_property
    def rows(self) -> Int[Tensor, " target"]:
        """Every node that has a row (was expanded), ascending."""
        if not self.blocks:
            return torch.empty(0, dtype=torch.long)
        return torch.cat([block.rows for block in self.blocks]).sort().values

    def columns(self, block: Block) -> Int[Tensor, " source"]:
        return self.index.cone(block.layer, block.position)

    def descending(self) -> list[Block]:
        """Blocks from the top layer down: when a block comes, all blocks above it have been."""
        return sorted(self.blocks, key=lambda block: (-block.layer, block.position))

    def dense(self) -> Float[Tensor, "node node"]:
        """The whole matrix, [target, source], zero where edges were dropped. Quadratic memory: for
        small graphs and tests."""
        dtype = self.blocks[0].dtype if self.blocks else torch.float32
        matrix = torch.zeros(len(self.index), len(self.index), dtype=dtype)
        for block in self.blocks:
            matrix[block.rows[:, None], self.columns(block)[None]] = block.values
        return matrix

    @cached_property
    def signed(self) -> Float[Tensor, " node"]:
        """Sum of the edges of every row, dropped ones too, float64; zero where there is no row."""
        total = torch.zeros(len(self.index), dtype=torch.float64)
        for block in self.blocks:
            total[block.rows] += block.values.sum(1, dtype=torch.float64)
            if isinstance(block, SparseBlock):
                total[block.rows] += block.remainder
        return total

    @cached_property
    def residual(self) -> Float[Tensor, " node"]:
        """Closure residual of every row: edges + terms − value; zero where there is no row.

        Where nothing is known of what the rows add up to (`from_edges`) no row is read.
        """
        terms = (self.bias + self.positional + self.ignored - self.value).double()
        return terms if terms.isnan().all() else self.signed + terms
