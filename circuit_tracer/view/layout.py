"""Where each node of a drawing stands: columns by token, rows by layer.

A column is as wide as its fullest visible cell needs, so that a quiet token takes little room and
a busy one is not crammed. A cell (one layer at one token) fills up to three sub-rows, most
influential first. The unit of x is one slot; y is the layer. assets/layout.js does the same
sums in the page, where the visible nodes change; a test holds the two together.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from circuit_tracer.view.drawing import Drawing, by_influence
from circuit_tracer.view.wording import visible as visible_token

ROW_GAP = 0.26
"""Distance of two sub-rows of a cell, in layers."""

LEAST_SLOTS = 2.0
SLOTS_A_CHARACTER = 0.42
LONGEST_NAME = 9


@dataclass(frozen=True, slots=True)
class Layout:
    """Positions of the visible nodes.

    Attributes:
        x: by node index, in slots from the left.
        y: by node index, in layers; embeddings near -1, logits near n_layers.
        columns: (left, right) of every token's column, in slots.
    """

    x: dict[int, float]
    y: dict[int, float]
    columns: tuple[tuple[float, float], ...]

    @property
    def width(self) -> float:
        return self.columns[-1][1] if self.columns else 1.0


def rows_of(count: int) -> int:
    """Sub-rows that a cell of `count` nodes takes."""
    return 1 if count <= 3 else 2 if count <= 8 else 3


def layout(drawing: Drawing, visible: Sequence[int]) -> Layout:
    """Positions of the `visible` nodes (indices into `drawing.nodes`) and of all columns."""
    cells: dict[tuple[int, int], list[int]] = defaultdict(list)
    for index in by_influence(drawing.nodes, visible):
        node = drawing.nodes[index]
        cells[node.layer, node.position].append(index)
    columns = _columns(drawing, cells)
    x: dict[int, float] = {}
    y: dict[int, float] = {}
    for (layer, position), members in cells.items():
        left, right = columns[position]
        rows = _rows(drawing, layer, len(members))
        a_row = -(-len(members) // rows)
        for place, index in enumerate(members):
            row, slot = divmod(place, a_row)
            here = min(a_row, len(members) - row * a_row)
            x[index] = (left + right) / 2 + slot - (here - 1) / 2
            y[index] = layer + ((rows - 1) / 2 - row) * ROW_GAP
    return Layout(x, y, columns)


def _rows(drawing: Drawing, layer: int, count: int) -> int:
    """Embeddings and logits stay on one row: their labels and lines need it."""
    return rows_of(count) if 0 <= layer < drawing.n_layers else 1


def _columns(
    drawing: Drawing, cells: dict[tuple[int, int], list[int]]
) -> tuple[tuple[float, float], ...]:
    fullest = [LEAST_SLOTS] * len(drawing.tokens)
    for (layer, position), members in cells.items():
        a_row = -(-len(members) // _rows(drawing, layer, len(members)))
        fullest[position] = max(fullest[position], float(a_row))
    columns, left = [], 0.0
    for token, slots in zip(drawing.tokens, fullest, strict=True):
        name = min(len(visible_token(token)), LONGEST_NAME) * SLOTS_A_CHARACTER
        right = left + max(slots, name) + 1.0
        columns.append((left, right))
        left = right
    return tuple(columns)
