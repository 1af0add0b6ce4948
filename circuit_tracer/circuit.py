"""A circuit: the part of a graph worth looking at, small enough to be asked anything.

It holds plain nodes and edges, with what the graph knew that they came from: `shares` are shares of
the full row of each target, so nothing looks stronger because its neighbours were pruned, and the
shares of all paths from the embeddings to the targets sum to `scores.replacement`.

Wherever a method takes a node it takes the `Node` or its id.
"""

from __future__ import annotations

import difflib
import heapq
import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch

from circuit_tracer import files
from circuit_tracer.errors import InputError
from circuit_tracer.facts import FeatureNote, Provenance
from circuit_tracer.influence import Scores
from circuit_tracer.nodes import KINDS, Kind, Node
from circuit_tracer.paths import Layered
from circuit_tracer.shapes import Float, Int, Tensor
from circuit_tracer.summary import about, figures, notices, percent, sentences

if TYPE_CHECKING:
    import networkx
    import pandas

    from circuit_tracer.view.drawing import Drawing


@dataclass(frozen=True, slots=True)
class Edge:
    """An edge: `weight` is the signed attribution, `share` its part of the target's full row."""

    source: Node
    target: Node
    weight: float
    share: float


@dataclass(frozen=True, slots=True)
class Path:
    """A path, from where it starts to a target.

    Attributes:
        nodes: in the direction of the flow.
        weights: signed attribution of every edge, one fewer than nodes.
        share: product of the edges' shares, times the target's part of all target weights where
            the path leads to the targets at large.
    """

    nodes: tuple[Node, ...]
    weights: tuple[float, ...]
    share: float

    @property
    def sign(self) -> int:
        """+1 where the path raises its end, -1 where it lowers it."""
        return -1 if sum(weight < 0 for weight in self.weights) % 2 else 1

    def __str__(self) -> str:
        steps = [self.nodes[0].label]
        for node, weight in zip(self.nodes[1:], self.weights, strict=True):
            steps.append(f"{'→' if weight >= 0 else '⊣'} {node.label}")
        return f"{' '.join(steps)}  ({percent(self.share)})"


@dataclass(frozen=True, eq=False)
class Circuit:
    """A pruned graph.

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
        thresholds: arguments of the pruning, by name.
        notes: labels and logits of features by (layer, feature).
        part_of: ids of the two nodes this is what lies `between`; None for a whole circuit.
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
    part_of: tuple[str, str] | None = None

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
        return tuple(self._edge(number) for number in range(len(self.weights)))

    def find(
        self,
        kind: Kind | None = None,
        layer: int | None = None,
        position: int | None = None,
        token: str | None = None,
        label: str | None = None,
        feature: int | None = None,
    ) -> list[Node]:
        """Nodes that fit everything given, most influential first (targets by weight, at the end).

        Args:
            position: negative counts from the end of the prompt.
            token: text of the token, spaces around it aside.
            label: any part of the label, in any case.

        Raises:
            InputError: a kind or position that does not exist.
        """
        if kind is not None and kind not in KINDS:
            raise InputError(f"there are no {kind!r} nodes; kinds are {', '.join(KINDS)}")
        if position is not None:
            if not -len(self.tokens) <= position < len(self.tokens):
                raise InputError(
                    f"the prompt has {len(self.tokens)} tokens: position {position} is outside"
                )
            position %= len(self.tokens)
        found = [
            node
            for node in self.nodes
            if (kind is None or node.kind == kind)
            and (layer is None or node.layer == layer)
            and (position is None or node.position == position)
            and (token is None or node.token.strip() == token.strip())
            and (label is None or label.casefold() in node.label.casefold())
            and (feature is None or node.feature == feature)
        ]
        return sorted(found, key=lambda node: (node.kind == "logit", -node.influence))

    def node(self, node: Node | str) -> Node:
        """The node of this id. Raises InputError naming the ids closest to it if there is none."""
        return self.nodes[self._place(node)]

    def inputs(self, node: Node | str, k: int = 10) -> list[Edge]:
        """The `k` strongest edges into a node, by share."""
        return [self._edge(number) for number in self._inputs[self._place(node)][:k]]

    def outputs(self, node: Node | str, k: int = 10) -> list[Edge]:
        """The `k` strongest edges out of a node, by the influence that passes along each."""
        return [self._edge(number) for number in self._outputs[self._place(node)][:k]]

    def paths(
        self,
        source: Node | str | None = None,
        target: Node | str | None = None,
        k: int = 5,
    ) -> list[Path]:
        """The `k` strongest paths, exactly, strongest first.

        Args:
            source: where they start; default any embedding.
            target: where they end; default all targets, each by its part of the target weights.
            k: how many.
        """
        if k < 1:
            raise InputError(f"k={k} asks for no path: give at least 1")
        found = self._layered.strongest(self._starts(source), self._goals(target), k)
        return [self._path(end, edges, share) for share, end, edges in found]

    def flow(self, source: Node | str | None = None, target: Node | str | None = None) -> float:
        """Summed share of all paths from `source` to `target`, defaults as in `paths`.

        From the embeddings to the targets this is `scores.replacement` (where no target is left
        without inputs).
        """
        arriving = self._layered.arriving(self._starts(source))
        return sum(arriving[place] * part for place, part in self._goals(target).items())

    def between(self, source: Node | str, target: Node | str) -> Circuit:
        """The circuit of all nodes and edges on paths from one node to another.

        Scores stay those of the circuit it is taken from. Empty where no path leads there.
        """
        start, end = self._place(source), self._place(target)
        down = self._reach(start, self._outputs, self._ends[1])
        kept = torch.zeros(len(self.nodes), dtype=torch.bool)
        kept[list(down & self._reach(end, self._inputs, self._ends[0]))] = True
        edges = kept[self.sources] & kept[self.targets]
        renumber = kept.cumsum(0) - 1
        return replace(
            self,
            nodes=tuple(self.nodes[place] for place in kept.nonzero()[:, 0].tolist()),
            sources=renumber[self.sources[edges]],
            targets=renumber[self.targets[edges]],
            weights=self.weights[edges],
            shares=self.shares[edges],
            part_of=(self.nodes[start].id, self.nodes[end].id),
        )

    def bottlenecks(self, k: int = 10) -> list[tuple[Node, float]]:
        """Features that most of what is explained passes through.

        Returns:
            (node, share) by falling share: the summed shares of all paths from embeddings to
            targets that pass the node, over those of all such paths.
        """
        goals = self._goals(None)
        into = self._layered.arriving(self._starts(None))
        down = Layered(self._ends[1], self._layered.shares, self._outputs, self._order[::-1])
        out = down.arriving(goals)
        everything = sum(into[place] * part for place, part in goals.items())
        through = [
            (self.nodes[place], into[place] * out[place] / everything if everything > 0 else 0.0)
            for place in self._of_kind("feature")
        ]
        return heapq.nsmallest(k, through, key=lambda pair: -pair[1])

    def summary(self) -> str:
        """What the circuit says, in a few sentences that its numbers bear out."""
        return " ".join(sentences(self))

    def to_networkx(self) -> networkx.DiGraph:
        """A DiGraph by node id; nodes carry the fields of `Node`, edges weight and share."""
        import networkx

        graph = networkx.DiGraph(prompt=self.prompt)
        graph.add_nodes_from((node.id, _fields(node)) for node in self.nodes)
        names = [node.id for node in self.nodes]
        graph.add_edges_from(
            (names[source], names[target], {"weight": weight, "share": share})
            for source, target, weight, share in zip(*self._ends, *self._values, strict=True)
        )
        return graph

    def to_pandas(self) -> tuple[pandas.DataFrame, pandas.DataFrame]:
        """(nodes, edges): nodes indexed by id, edges with source, target, weight and share."""
        try:
            import pandas
        except ModuleNotFoundError as error:
            missing = "to_pandas needs pandas: pip install 'trace-circuits[pandas]'"
            raise InputError(missing) from error

        columns = list(Node.__dataclass_fields__)
        nodes = pandas.DataFrame(
            [{"id": node.id, **_fields(node)} for node in self.nodes], columns=columns
        ).set_index("id")
        edges = pandas.DataFrame(
            {
                "source": [self.nodes[place].id for place in self._ends[0]],
                "target": [self.nodes[place].id for place in self._ends[1]],
                "weight": self._values[0],
                "share": self._values[1],
            }
        )
        return nodes, edges

    def drawing(self) -> Drawing:
        """What the viewer is given to draw."""
        from circuit_tracer.view.drawing import Drawing, DrawnNode

        blank = FeatureNote()
        nodes = []
        for node in self.nodes:
            note = self.notes.get((node.layer, node.feature), blank)
            note = note if node.kind == "feature" else blank
            nodes.append(
                DrawnNode(
                    **_fields(node),
                    id=node.id,
                    promoted=note.promoted,
                    suppressed=note.suppressed,
                )
            )
        edges = zip(*self._ends, self._values[0], strict=True)
        return Drawing(
            prompt=self.prompt,
            tokens=self.tokens,
            model=self.provenance.model,
            transcoders=self.provenance.transcoders,
            n_layers=self.n_layers,
            nodes=tuple(nodes),
            edges=tuple(edges),
            scores=figures(self),
            about=about(self),
            notices=notices(self),
        )

    def figure(self) -> Any:
        """The circuit as a plotly Figure."""
        from circuit_tracer.view.figure import figure

        return figure(self.drawing())

    def save_html(self, path: str | os.PathLike[str]) -> None:
        """Write the circuit as one HTML page that needs no network.

        Raises:
            OutputError: it could not be written; an older file is untouched.
        """
        from circuit_tracer.view.page import render

        files.write_text(path, render(self.drawing()))

    @cached_property
    def _places(self) -> dict[str, int]:
        return {node.id: place for place, node in enumerate(self.nodes)}

    @cached_property
    def _ends(self) -> tuple[list[int], list[int]]:
        return self.sources.tolist(), self.targets.tolist()

    @cached_property
    def _values(self) -> tuple[list[float], list[float]]:
        """(weights, shares)"""
        return self.weights.tolist(), self.shares.tolist()

    @cached_property
    def _inputs(self) -> list[list[int]]:
        return self._by_end(self._ends[1])

    @cached_property
    def _outputs(self) -> list[list[int]]:
        return self._by_end(self._ends[0])

    @cached_property
    def _order(self) -> list[int]:
        """Places from the embeddings to the targets: every edge leads forward in this order."""
        return sorted(range(len(self.nodes)), key=lambda place: self.nodes[place].layer)

    @cached_property
    def _layered(self) -> Layered:
        return Layered(self._ends[0], self._values[1], self._inputs, self._order)

    def _starts(self, source: Node | str | None) -> dict[int, float]:
        places = self._of_kind("embedding") if source is None else [self._place(source)]
        return dict.fromkeys(places, 1.0)

    def _goals(self, target: Node | str | None) -> dict[int, float]:
        """Where paths end, and what each end counts."""
        if target is not None:
            return {self._place(target): 1.0}
        total = sum(self.target_weights.values())
        return {
            place: self.target_weights[self.nodes[place].id] / total
            for place in self._of_kind("logit")
            if total > 0
        }

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

    def _of_kind(self, kind: Kind) -> list[int]:
        return [place for place, node in enumerate(self.nodes) if node.kind == kind]

    def _place(self, node: Node | str) -> int:
        name = node.id if isinstance(node, Node) else node
        place = self._places.get(name)
        if place is None:
            near = difflib.get_close_matches(str(name), list(self._places), n=5, cutoff=0.0)
            raise InputError(
                f"there is no node {name!r} in this circuit; the nearest are {', '.join(near)}"
                if near
                else f"there is no node {name!r}: this circuit is empty"
            )
        return place

    def _edge(self, number: int) -> Edge:
        return Edge(
            self.nodes[self._ends[0][number]],
            self.nodes[self._ends[1][number]],
            self._values[0][number],
            self._values[1][number],
        )

    def _path(self, end: int, edges: list[int], share: float) -> Path:
        nodes = [self.nodes[self._ends[0][edge]] for edge in edges]
        weights = tuple(self._values[0][edge] for edge in edges)
        return Path((*nodes, self.nodes[end]), weights, share)

    def _reach(self, start: int, edges_at: list[list[int]], far: list[int]) -> set[int]:
        seen, waiting = {start}, [start]
        while waiting:
            for number in edges_at[waiting.pop()]:
                if far[number] not in seen:
                    seen.add(far[number])
                    waiting.append(far[number])
        return seen


def _fields(node: Node) -> dict[str, Any]:
    return {name: getattr(node, name) for name in Node.__dataclass_fields__ if name != "id"}
