"""A network: the nodes and edges of a circuit, and the plain numbers behind them.

Everything asked of a circuit is worked out on places in `nodes`, from 0, and on numbers of edges.
Here is what turns nodes, names and defaults into those, and back.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch

from circuit_tracer import lookup
from circuit_tracer.card import Faithfulness
from circuit_tracer.errors import InputError
from circuit_tracer.facts import EdgeHeads, FeatureNote, HeadScore, Lookup, Provenance
from circuit_tracer.influence import Scores
from circuit_tracer.nodes import Kind, Node
from circuit_tracer.paths import Wiring, topological
from circuit_tracer.shapes import Float, Int, Tensor
from circuit_tracer.summary import percent

Which = Node | str | Iterable[Node | str]
"""A node or several."""


@dataclass(frozen=True, slots=True)
class Edge:
    """An edge: `weight` is the signed attribution, `share` its part of the target's full row."""

    source: Node
    target: Node
    weight: float
    share: float

    def _repr_pretty_(self, printer: Any, cycle: bool) -> None:
        """In a notebook: its ends by id and label, because lists of edges are long."""
        ends = (f"{node.id} {node.label!r}" for node in (self.source, self.target))
        said = f"{self.weight:+.4g}, {percent(self.share)}"
        printer.text(f"Edge({' → '.join(ends)}: {said})")


@dataclass(frozen=True, slots=True)
class Path:
    """A path, from where it starts to a target.

    Attributes:
        nodes: in the direction of the flow.
        weights: signed attribution of every edge, one fewer than nodes.
        share: product of the edges' shares, times the target's part of all target weights where
            the path leads to the targets at large.
        part: share of the path in that of all paths it was chosen from.
    """

    nodes: tuple[Node, ...]
    weights: tuple[float, ...]
    share: float
    part: float

    @property
    def sign(self) -> int:
        """+1 where the path raises its end, -1 where it lowers it."""
        return -1 if sum(weight < 0 for weight in self.weights) % 2 else 1

    def __str__(self) -> str:
        steps = [self.nodes[0].label]
        for node, weight in zip(self.nodes[1:], self.weights, strict=True):
            steps.append(f"{'→' if weight >= 0 else '⊣'} {node.label}")
        return f"{' '.join(steps)}  ({percent(self.share)})"

    def _repr_pretty_(self, printer: Any, cycle: bool) -> None:
        """In a notebook: as `print` shows it."""
        printer.text(f"Path({self})")


@dataclass(frozen=True, eq=False)
class Network:
    """What a circuit holds.

    `nodes`, `shares` and `scores` may be given as what makes them (`Later`).

    Attributes:
        nodes: in graph order, with their influence in the full graph.
        sources, targets: (n_edges,) places in `nodes`.
        weights: (n_edges,) signed attribution.
        shares: (n_edges,) |weight| over the absolute sum of the target's full row, float64.
        tokens: the prompt, token by token.
        scores: with everything pruned merged into the errors.
        graph_scores: of the full graph.
        closure_error: of the full graph; NaN where unknown.
        target_weights: how much each target counts, by node id.
        ignored: what features and errors at ignored positions add to each target, by node id.
        thresholds: arguments of the pruning, by name.
        notes: labels and logits of features by (layer, feature).
        part_of: ids of the nodes this is what lies `between`: where it starts, and where it ends;
            None for a whole circuit.
        members: the nodes that were merged into one, by its id.
        faithfulness: how far the graph agrees with its model, where that was measured.
        heads: which heads carry an edge, by the ids of its ends, where that was computed.
        looks: why heads look where they look, by (layer, head, query, key), where computed.
        lookups: who knows more of the features, asked when a page is made.
        n_all_nodes, n_all_edges: size of the full graph (edges: those that are not zero).
    """

    nodes: tuple[Node, ...]
    sources: Int[Tensor, " edge"]
    targets: Int[Tensor, " edge"]
    weights: Float[Tensor, " edge"]
    shares: Float[Tensor, " edge"]
    tokens: tuple[str, ...]
    provenance: Provenance
    scores: Scores
    graph_scores: Scores
    closure_error: float
    target_weights: Mapping[str, float]
    thresholds: Mapping[str, float | int | None]
    n_all_nodes: int
    n_all_edges: int
    n_layers: int
    notes: Mapping[tuple[int, int], FeatureNote] = field(default_factory=dict)
    part_of: tuple[tuple[str, ...], tuple[str, ...]] | None = None
    ignored: Mapping[str, float] = field(default_factory=dict)
    members: Mapping[str, tuple[Node, ...]] = field(default_factory=dict)
    faithfulness: Faithfulness | None = None
    heads: Mapping[tuple[str, str], EdgeHeads] = field(default_factory=dict)
    looks: Mapping[tuple[int, int, int, int], HeadScore] = field(default_factory=dict)
    lookups: Sequence[Lookup] = ()

    @property
    def prompt(self) -> str:
        return self.provenance.prompt

    @property
    def pruned_share(self) -> float:
        """Share of the influence that left along pruned edges, merged into errors in `scores`."""
        return self.scores.pruned_share

    @cached_property
    def edges(self) -> tuple[Edge, ...]:
        """All edges, by target and source."""
        return tuple(self.edge(number) for number in range(len(self.weights)))

    @cached_property
    def wiring(self) -> Wiring:
        """The edges as plain numbers, for what passes over all of them."""
        ends = self.sources.tolist(), self.targets.tolist()
        inputs, outputs = self._by_end(ends[1]), self._by_end(ends[0])
        order = topological([node.layer for node in self.nodes], ends[1], outputs)
        return Wiring(*ends, self.shares.tolist(), inputs, outputs, order)

    def places(self, which: Which) -> tuple[int, ...]:
        """Places in `nodes` of one node or several, ascending. Raises InputError for none."""
        several = [which] if isinstance(which, Node | str) else list(which)
        if not several:
            raise InputError("no node was given where at least one is needed")
        return tuple(sorted({self.place(one) for one in several}))

    def starts(self, source: Which | None) -> dict[int, float]:
        """Places where paths start, each counting 1."""
        if source is not None:
            return dict.fromkeys(self.places(source), 1.0)
        names = self._of_kind("embedding") if self.part_of is None else self.part_of[0]
        return {self._places[name]: 1.0 for name in names if name in self._places}

    def goals(self, target: Which | None) -> dict[int, float]:
        """Places where paths end, and what part each counts for: 1 in all, of those asked for."""
        if target is not None:
            names: Sequence[str] = [self.nodes[place].id for place in self.places(target)]
        else:
            names = self._of_kind("logit") if self.part_of is None else self.part_of[1]
        parts = [self.target_weights.get(name, 0.0) for name in names]
        if not all(name in self.target_weights for name in names) or sum(parts) == 0:
            parts = [1.0] * len(names)
        total, found = sum(parts), zip(names, parts, strict=True)
        return {self._places[name]: part / total for name, part in found if name in self._places}

    @cached_property
    def _places(self) -> dict[str, int]:
        return {node.id: place for place, node in enumerate(self.nodes)}

    def _by_end(self, ends: list[int]) -> list[list[int]]:
        """Numbers of the edges at each node, by falling influence along them."""
        mass = torch.tensor(
            [node.influence + self.target_weights.get(node.id, 0.0) for node in self.nodes],
            dtype=torch.float64,
        )
        order = (self.shares * mass[self.targets]).argsort(descending=True, stable=True)
        lists: list[list[int]] = [[] for _ in self.nodes]
        for number in order.tolist():
            lists[ends[number]].append(number)
        return lists

    def _of_kind(self, kind: Kind) -> list[str]:
        return [node.id for node in self.nodes if node.kind == kind]

    def place(self, node: Node | str) -> int:
        """Place in `nodes`. Raises InputError where none, or more than one, is called so."""
        name = node.id if isinstance(node, Node) else node
        return lookup.named(name, self.nodes, self._places, len(self.tokens))

    def edge(self, number: int) -> Edge:
        """The edge of this number."""
        wiring = self.wiring
        source, target = (self.nodes[ends[number]] for ends in (wiring.sources, wiring.targets))
        return Edge(source, target, self._weights[number], wiring.shares[number])

    @cached_property
    def _weights(self) -> list[float]:
        return self.weights.tolist()

    def path(self, end: int, edges: Sequence[int], share: float, everything: float) -> Path:
        """The path along some edges to its end; `everything` is the share of all it is one of."""
        nodes = [self.nodes[self.wiring.sources[edge]] for edge in edges]
        weights = tuple(self._weights[edge] for edge in edges)
        return Path((*nodes, self.nodes[end]), weights, share, share / everything)


class Later:
    """A field that may be given as what makes it, called without arguments when it is first read.

    To whoever reads it, it is a field like any other. It is put on a class after `dataclass` has
    seen the field, so that neither that nor a checker of types takes it for a default.
    """

    def __init__(self, name: str) -> None:
        self.name = name

    def __get__(self, one: object | None, owner: type) -> Any:
        if one is None:
            return self
        fields = vars(one)
        if callable(fields[self.name]):
            fields[self.name] = fields[self.name]()
        return fields[self.name]

    def __set__(self, one: object, value: Any) -> None:
        vars(one)[self.name] = value


for _name in ("nodes", "shares", "scores"):
    setattr(Network, _name, Later(_name))
