"""Nodes of a graph, and the only arithmetic between (kind, layer, position, id) and row numbers.

Rows and columns of every matrix in the package follow one order: features by (layer, position,
id), errors by (layer, position), embeddings by position, targets (logits) by falling probability.
`NodeIndex` is that order. Because features are sorted by (layer, position), everything a target
at (layer, position) can receive, its *causal cone*, is one contiguous run of columns per source
layer; `NodeIndex.cone` spells it out, and rows are stored over their cone alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import numpy as np
import torch

from circuit_tracer.errors import InputError
from circuit_tracer.shapes import Int, Tensor

Kind = Literal["feature", "error", "embedding", "logit"]
Place = tuple[Kind, int, int, int]
"""(kind, layer, position, id) of a node, as `NodeIndex.locate` gives it."""

KINDS: tuple[Kind, ...] = ("feature", "error", "embedding", "logit")


@dataclass(frozen=True, slots=True)
class Node:
    """One node of a graph.

    Attributes:
        id: unique text id, stable across runs (the Neuronpedia form: `"3_417_5"` for feature 417
            of layer 3 at position 5, `"3_-1_5"` for its error, `"E_91_5"`, `"9_91_5"` for logits).
        kind: "feature", "error", "embedding" or "logit".
        layer: 0-based; -1 for embeddings, the number of layers for logits.
        position: 0-based position in the prompt.
        feature: feature id, or token id for embeddings and logits; -1 for errors, and -1 - k for
            the k-th target where that is a direction without a token of its own.
        token: text of the token at `position`; for logits the text of the target.
        activation: activation of a feature; None otherwise.
        influence: influence on the targets (`w^T B`, docs/maths.md), not cumulative.
        label: what the node is called on screen.
        probability: of a logit target, else None.
    """

    id: str
    kind: Kind
    layer: int
    position: int
    feature: int
    token: str
    activation: float | None = None
    influence: float = 0.0
    label: str = ""
    probability: float | None = None


def node_id(kind: Kind, layer: int, position: int, feature: int) -> str:
    """The text id of a node, arguments as in `Node`. Logits are written one layer further up.

    >>> node_id("feature", 3, 5, 417), node_id("error", 3, 5, -1), node_id("logit", 8, 5, 91)
    ('3_417_5', '3_-1_5', '9_91_5')
    """
    if kind == "embedding":
        return f"E_{feature}_{position}"
    return f"{layer + 1 if kind == 'logit' else layer}_{feature}_{position}"


@dataclass(frozen=True, eq=False)
class NodeIndex:
    """The order of nodes in every matrix.

    Args:
        features: (n_features, 3) int64, rows (layer, position, id), sorted lexicographically.
        n_layers: layers of the model.
        n_positions: tokens of the prompt.
        target_positions: (n_targets,) int64, the position each target is read at.
    """

    features: Int[Tensor, "active 3"]
    n_layers: int
    n_positions: int
    target_positions: Int[Tensor, " target"]

    @cached_property
    def n_features(self) -> int:
        return len(self.features)

    @cached_property
    def n_targets(self) -> int:
        return len(self.target_positions)

    @property
    def first_error(self) -> int:
        return self.n_features

    @property
    def first_embedding(self) -> int:
        return self.n_features + self.n_layers * self.n_positions

    @property
    def first_target(self) -> int:
        return self.first_embedding + self.n_positions

    def __len__(self) -> int:
        return self.first_target + self.n_targets

    @cached_property
    def _starts(self) -> list[int]:
        """Row of the first feature at or after (layer, position); one past the end is last."""
        cells = self.features[:, 0] * self.n_positions + self.features[:, 1]
        wanted = torch.arange(self.n_layers * self.n_positions + 1)
        return torch.searchsorted(cells.contiguous(), wanted).tolist()

    @cached_property
    def offsets(self) -> np.ndarray[Any, Any]:
        """Row of the first feature at or after layer * n_positions + position; the end is last."""
        return np.array(self._starts)

    def feature_rows(self, layer: int, first: int = 0, stop: int | None = None) -> range:
        """Rows of the features of `layer` at positions first ≤ position < stop (default: all)."""
        stop = self.n_positions if stop is None else stop
        base = layer * self.n_positions
        return range(self._starts[base + first], self._starts[base + stop])

    def starts(self, layer: int) -> list[int]:
        """Offsets, within a layer's features, of the first one at each position, and the end."""
        base = layer * self.n_positions
        found = self._starts[base : base + self.n_positions + 1]
        return [start - found[0] for start in found]

    def feature_row(self, layer: int, position: int, feature: int) -> int | None:
        """Row of one feature, None where it is not active."""
        if not (0 <= layer < self.n_layers and 0 <= position < self.n_positions):
            return None
        run = self.feature_rows(layer, position, position + 1)
        found = (self.features[run.start : run.stop, 2] == feature).nonzero()
        return run.start + int(found[0]) if len(found) else None

    def error_row(self, layer: int, position: int) -> int:
        return self.first_error + layer * self.n_positions + position

    def embedding_row(self, position: int) -> int:
        return self.first_embedding + position

    def target_row(self, number: int) -> int:
        return self.first_target + number

    def locate(self, row: int) -> Place:
        """(kind, layer, position, id) of a row; id is the feature id, -1 for errors and
        embeddings, and the target's number for logits."""
        if not 0 <= row < len(self):
            raise InputError(f"there is no node {row}; this graph has nodes 0 to {len(self) - 1}")
        if row < self.first_error:
            layer, position, feature = self.features[row].tolist()
            return "feature", layer, position, feature
        if row < self.first_embedding:
            layer, position = divmod(row - self.first_error, self.n_positions)
            return "error", layer, position, -1
        if row < self.first_target:
            return "embedding", -1, row - self.first_embedding, -1
        number = row - self.first_target
        return "logit", self.n_layers, int(self.target_positions[number]), number

    def locate_all(self, rows: Int[Tensor, " some"]) -> list[Place]:
        """`locate` of many rows, at a tenth of the cost."""
        features = iter(self.features[rows[rows < self.first_error]].tolist())
        return [
            ("feature", *next(features)) if row < self.first_error else self.locate(row)
            for row in rows.tolist()
        ]

    @cached_property
    def layers(self) -> Int[Tensor, " node"]:
        """Layer of every node: -1 for embeddings, `n_layers` for targets."""
        errors = torch.arange(self.n_layers).repeat_interleave(self.n_positions)
        return torch.cat(
            [
                self.features[:, 0],
                errors,
                torch.full((self.n_positions,), -1),
                torch.full((self.n_targets,), self.n_layers),
            ]
        )

    @cached_property
    def positions(self) -> Int[Tensor, " node"]:
        """Position of every node."""
        steps = torch.arange(self.n_positions)
        return torch.cat(
            [self.features[:, 1], steps.repeat(self.n_layers), steps, self.target_positions]
        )

    def cone(self, layer: int, position: int) -> Int[Tensor, " source"]:
        """Columns that a target at (layer, position) can receive edges from, ascending.

        Features and errors of lower layers and embeddings, at positions ≤ `position`: no edge
        ever comes from the same or a later layer, nor from a later position.
        """
        starts, rows, stop = self._starts, self._rows, position + 1
        firsts = range(0, layer * self.n_positions, self.n_positions)
        errors = rows[self.first_error : self.first_embedding].reshape(self.n_layers, -1)
        embeddings = rows[self.first_embedding : self.first_embedding + stop]
        runs = [rows[starts[first] : starts[first + stop]] for first in firsts]
        runs += [errors[:layer, :stop].ravel(), embeddings]
        return torch.from_numpy(np.concatenate(runs))

    def runs(self, layer: int, positions: Sequence[int]) -> np.ndarray[Any, Any]:
        """Where the contiguous runs of cones start among their columns; a run may be empty.

        Returns:
            (positions, 2 * layer + 2): starts of the features of every layer below, of the errors
            of every layer below, of the embeddings; and the end.
        """
        firsts = np.arange(0, layer * self.n_positions, self.n_positions)
        stops = np.array(positions)[:, None] + 1
        found = np.zeros((len(positions), 2 * layer + 2), dtype=np.int64)
        found[:, 1 : layer + 1] = self.offsets[firsts + stops] - self.offsets[firsts]
        found[:, layer + 1 :] = stops
        return found.cumsum(axis=1, out=found)

    @cached_property
    def _rows(self) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
        """All row numbers; numpy cuts and joins them at a fifth of the cost of torch."""
        return np.arange(self.first_target)
