"""A profile: a graph without its positions.

What one feature does at several positions is added up, so that graphs of texts of different lengths
can be laid side by side. Influence becomes a share: of what all features of the graph hold.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch

from circuit_tracer.circuit import Circuit
from circuit_tracer.errors import InputError
from circuit_tracer.graph import Graph
from circuit_tracer.influence import LEAST
from circuit_tracer.shapes import Bool, Float, Int, Tensor

Key = tuple[int, int]
"""(layer, id) of a feature."""


@dataclass(frozen=True, eq=False)
class Profile:
    """One graph of a comparison.

    Attributes:
        name: what it is called in the comparison.
        graph: as traced or read.
        circuit: its pruned part.
    """

    name: str
    graph: Graph
    circuit: Circuit

    @classmethod
    def of(cls, name: str, graph: Graph, nodes: float) -> Profile:
        """Raises InputError for a graph whose features have no influence."""
        if not float(graph.influence[: graph.index.n_features].sum()) > 0:
            raise InputError(
                f"the graph of {name!r} is empty: no feature of it is active and influential, so "
                "there is nothing to compare"
            )
        return cls(name, graph, graph.prune(nodes=nodes))

    @cached_property
    def _unique(self) -> tuple[Int[Tensor, "feature 2"], Int[Tensor, " active"]]:
        found = torch.unique(self.graph.index.features[:, [0, 2]], dim=0, return_inverse=True)
        return found[0], found[1]

    @property
    def keys(self) -> Int[Tensor, "feature 2"]:
        """(layer, id) of every active feature, ascending, once each."""
        return self._unique[0]

    @cached_property
    def places(self) -> dict[Key, int]:
        """Row in `keys` by key."""
        return {(layer, one): row for row, (layer, one) in enumerate(self.keys.tolist())}

    @cached_property
    def influence(self) -> Float[Tensor, " feature"]:
        """Share of the influence of all features, float64; sums to 1."""
        total = self._summed(self.graph.influence[: self.graph.index.n_features])
        return total / total.sum().clamp(min=LEAST)

    @cached_property
    def activation(self) -> Float[Tensor, " feature"]:
        """Largest activation anywhere; NaN where unknown."""
        values = self.graph.activations.double()
        most = torch.full((len(self.keys),), -torch.inf, dtype=torch.float64)
        return most.scatter_reduce(0, self._unique[1], values, "amax")

    @cached_property
    def positions(self) -> list[tuple[int, ...]]:
        """Where each feature is active."""
        found: list[list[int]] = [[] for _ in range(len(self.keys))]
        pairs = zip(self._unique[1].tolist(), self.graph.index.features[:, 1].tolist(), strict=True)
        for row, position in pairs:
            found[row].append(position)
        return [tuple(sorted(each)) for each in found]

    @cached_property
    def kept(self) -> Bool[Tensor, " feature"]:
        """True where a feature is in the circuit at any position."""
        mask = torch.zeros(len(self.keys), dtype=torch.bool)
        keys = ((n.layer, n.feature) for n in self.circuit.nodes if n.kind == "feature")
        mask[[self.places[key] for key in keys]] = True
        return mask

    @cached_property
    def kept_edges(self) -> set[tuple[Key, Key]]:
        """(source, target) keys of the circuit's edges between features."""
        nodes, pairs = self.circuit.nodes, set()
        ends = zip(self.circuit.sources.tolist(), self.circuit.targets.tolist(), strict=True)
        for source, target in ((nodes[a], nodes[b]) for a, b in ends):
            if source.kind == target.kind == "feature":
                pairs.add(((source.layer, source.feature), (target.layer, target.feature)))
        return pairs

    def flows(self, rows: Sequence[int], size: int) -> Float[Tensor, "target source"]:
        """What passes between some features, as shares of all target weight.

        Args:
            rows: for each of them its row in `keys`, or -1 where it is not active here.
            size: how many there are.

        Returns:
            (size + 1, size + 3): the last row is the output; the last columns are the words, the
            errors and all other features. Each entry is the influence that passes along all edges
            between the two, at any positions.
        """
        graph, index = self.graph, self.graph.index
        number = torch.full((len(self.keys),), size + 2)
        asked = torch.tensor(rows, dtype=torch.long)
        number[asked[asked >= 0]] = (asked >= 0).nonzero()[:, 0]
        column = torch.full((len(index),), size + 1)
        column[: index.n_features] = number[self._unique[1]]
        column[index.first_embedding : index.first_target] = size
        goal = torch.full((len(index),), -1)
        goal[: index.n_features] = column[: index.n_features].where(
            column[: index.n_features] < size, -1
        )
        goal[index.first_target :] = size
        mass = graph.influence.clone()
        mass[index.first_target :] += graph.weights
        found = torch.zeros(size + 1, size + 3, dtype=torch.float64)
        for block in graph.edges.blocks:
            mine = (goal[block.rows] >= 0).nonzero()[:, 0]
            if not len(mine):
                continue
            targets = block.rows[mine]
            values = block.values[mine].double().abs()
            values *= (mass[targets] / graph.flow.absolute[targets].clamp(min=LEAST))[:, None]
            narrow = torch.zeros(len(mine), size + 3, dtype=torch.float64)
            narrow.index_add_(1, column[graph.edges.columns(block)], values)
            found.index_add_(0, goal[targets], narrow)
        return found / graph.weights.sum().clamp(min=LEAST)

    def _summed(self, values: Float[Tensor, " active"]) -> Float[Tensor, " feature"]:
        total = torch.zeros(len(self.keys), dtype=torch.float64)
        return total.index_add(0, self._unique[1], values.double())
