"""A circuit: the part of a graph worth looking at, small enough to be asked anything.

It holds plain nodes and edges, with what the graph knew that they came from: `shares` are shares of
the full row of each target, so nothing looks stronger because its neighbours were pruned, and the
shares of all paths from the embeddings to the targets sum to `scores.replacement`.

Wherever a method takes a node it takes the `Node`, its id (`"3_417_5"`), its name in reports
(`"L3#417@5"`), or the text of a token or label that only one node has. Where it takes several it
takes any collection of these. `source` left out means the embeddings, `target` left out all
targets, each by its weight; in the circuit `between` two ends they mean those.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path as FilePath
from typing import TYPE_CHECKING, Any

from circuit_tracer import cuts, exports, files, flows, lookup, merging
from circuit_tracer.cuts import Cut
from circuit_tracer.errors import InputError
from circuit_tracer.facts import FeatureNote, Provenance
from circuit_tracer.flows import Ancestor, By, Carrier, Contribution
from circuit_tracer.network import Edge, Network, Path, Which
from circuit_tracer.nodes import Kind, Node
from circuit_tracer.summary import about, figures, notices, sentences
from circuit_tracer.supernodes import BAND, SIMILARITY, Supernode, supernodes

if TYPE_CHECKING:
    import networkx
    import pandas

    from circuit_tracer.replacement import ReplacementModel
    from circuit_tracer.view.drawing import Drawing, DrawnGroup
    from circuit_tracer.view.notebook import Shown

FEATURE = re.compile(r"\d+_\d+_\d+")
DETAILED = 400
"""Features of a page that show examples; beyond, a page would grow by megabytes."""

OFFERED = 30
"""Supernodes that a page offers, those that most passes."""

__all__ = ["Circuit", "Edge", "FeatureNote", "Path", "Provenance", "Supernode"]


@dataclass(frozen=True, eq=False)
class Circuit(Network):
    """A pruned graph, to be asked; `Network` says what it holds."""

    def find(
        self,
        kind: Kind | Iterable[Kind] | None = None,
        layer: int | Iterable[int] | None = None,
        position: int | Iterable[int] | None = None,
        token: str | None = None,
        label: str | None = None,
        feature: int | Iterable[int] | None = None,
        text: str | None = None,
    ) -> list[Node]:
        """Nodes that fit everything given, most influential first (targets by weight, at the end).

        Args:
            kind, layer, position, feature: one, or several of which any will do; a negative
                position counts from the end of the prompt.
            token: text of the token, spaces around it aside.
            label: any part of the label, in any case.
            text: any part of the id, label, token, or a token that the feature promotes.

        Raises:
            InputError: a kind or position that does not exist.
        """
        wanted = (kind, layer, position, token, label, feature, text)
        return lookup.find(self.nodes, len(self.tokens), self.notes, *wanted)

    def node(self, node: Node | str) -> Node:
        """The node of this id or name.

        Raises:
            InputError: there is none, with the nearest that are, or several, with their ids.
        """
        return self.nodes[self.place(node)]

    def inputs(self, node: Node | str, k: int = 10) -> list[Edge]:
        """The `k` strongest edges into a node, by share."""
        return [self.edge(number) for number in self.wiring.inputs[self.place(node)][: _some(k)]]

    def outputs(self, node: Node | str, k: int = 10) -> list[Edge]:
        """The `k` strongest edges out of a node, by the influence that passes along each."""
        return [self.edge(number) for number in self.wiring.outputs[self.place(node)][: _some(k)]]

    def paths(
        self, source: Which | None = None, target: Which | None = None, k: int = 5
    ) -> list[Path]:
        """The `k` strongest paths, exactly, strongest first.

        Args:
            source: where they start; default any embedding.
            target: where they end; default all targets, each by its part of the target weights.
                Of several nodes given, each counts for its part: targets by their weights, others
                alike.
            k: how many.
        """
        starts, goals = self.starts(source), self.goals(target)
        found = self.wiring.strongest(starts, goals, _some(k))
        if not found:
            return []
        arriving = self.wiring.arriving(starts)
        everything = sum(
            (arriving[place] - starts.get(place, 0.0)) * part for place, part in goals.items()
        )
        return [self.path(end, edges, share, everything) for share, end, edges in found]

    def flow(self, source: Which | None = None, target: Which | None = None) -> float:
        """Summed share of all paths from `source` to `target`, defaults as in `paths`.

        From the embeddings to the targets this is `scores.replacement` (where no target is left
        without inputs). Of several sources in line, paths are counted from each;
        `influence_of` counts what passes any of them once. From a node to itself it is 1.
        """
        arriving = self.wiring.arriving(self.starts(source))
        return sum(arriving[place] * part for place, part in self.goals(target).items())

    def between(self, source: Which, target: Which) -> Circuit:
        """The circuit of all nodes and edges on paths from one node to another, or among several.

        Scores stay those of the circuit it is taken from. Empty where no path leads there.
        """
        starts, ends = self.places(source), self.places(target)
        inside = self.wiring.reach(starts) & self.wiring.reach(ends, down=True)
        names = [tuple(self.nodes[place].id for place in side) for side in (starts, ends)]
        return replace(merging.cut_to(self, inside), part_of=(names[0], names[1]))

    def carriers(
        self, source: Which, position: int, target: Which | None = None, k: int = 10
    ) -> list[Carrier]:
        """What carries a source to a position: the nodes there that most of its flow passes.

        Args:
            position: negative counts from the end of the prompt.
            target: of the flow; default all targets.

        Returns:
            carriers by falling share of what flows from the source to the target.

        Raises:
            InputError: a position that is not in the prompt.

        Example:
            >>> circuit.carriers("Dallas", position=-1)
        """
        place = lookup.check_position(position, len(self.tokens))
        return flows.carriers(self, source, place, target, _some(k))

    def bottlenecks(self, k: int = 10) -> list[tuple[Node, float]]:
        """Features that most of what is explained passes through.

        Returns:
            (node, share) by falling share: the summed shares of all paths from embeddings to
            targets that pass the node, over those of all such paths.
        """
        return flows.bottlenecks(self, _some(k))

    def dominators(self, source: Which | None = None, target: Which | None = None) -> list[Node]:
        """Nodes that every path passes, in the order it does; defaults as in `paths`.

        The ends themselves are not listed. Empty also where no path leads there.
        """
        found = cuts.dominators(self.wiring, self.starts(source), self.goals(target))
        return [self.nodes[place] for place in found]

    def minimum_cut(self, source: Which | None = None, target: Which | None = None) -> Cut:
        """The fewest nodes whose removal leaves no path, edges straight to the target aside.

        Args:
            source, target: defaults as in `paths`; they are never cut themselves.

        Raises:
            InputError: a node that is on both sides.
        """
        starts, goals = self.starts(source), self.goals(target)
        if both := [self.nodes[place].id for place in goals if place in starts]:
            raise InputError(f"{', '.join(both)}: nothing lies between a node and itself")
        found = cuts.smallest_cut(self.wiring, starts, goals)
        wiring, direct = self.wiring, 0.0
        for end, part in goals.items():
            into = wiring.inputs[end]
            direct += part * sum(wiring.shares[e] for e in into if wiring.sources[e] in starts)
        through = self.flow(source, target) - direct
        return Cut(tuple(self.nodes[place] for place in found), max(0.0, through), direct)

    def common_ancestors(self, *nodes: Which, k: int = 10) -> list[Ancestor]:
        """Nodes with influence on all of two or more others, by the product of their influences."""
        return flows.common_ancestors(self, nodes, _some(k))

    def influence_of(self, nodes: Which, target: Which | None = None) -> float:
        """Share of all that drives the target that passes any of the nodes, each path once.

        For one node this is `flow(node, target)`; for one that is the target itself it is 1.
        """
        return flows.influence_of(self, nodes, target)

    def contributions(self, by: By = "position", target: Which | None = None) -> list[Contribution]:
        """What each layer, position or token adds to a target: what starts there, what passes.

        Args:
            by: "layer", "position" (both in order) or "token" (by what passes; equal tokens are
                one).
        """
        return flows.contributions(self, by, target)

    def subset(self, nodes: Which, ends: bool = True) -> Circuit:
        """The circuit of some nodes and the edges between them.

        Args:
            ends: keep all embeddings and targets too.

        Returns:
            a circuit whose scores count everything else as error (`merging.rescored`).
        """
        return merging.subset(self, nodes, ends)

    def merge(self, groups: Mapping[str, Which]) -> Circuit:
        """Make one node of several, each under its name as id and label.

        Edges are summed, and shares set so that as much arrives everywhere as before; scores
        stay. `members` holds what each was made of.

        Raises:
            InputError: an empty group, a node in two, a name that is taken, nodes of different
                kinds, or a group that would both lead to and come from a node outside it.

        Example:
            >>> circuit.merge({"Texas": ["2_14_5", "3_417_5"], "capital": ["1_7_2", "2_90_2"]})
        """
        return merging.merge(self, groups)

    def merged(self, found: Sequence[Supernode], rest: bool = True) -> Circuit:
        """The circuit with supernodes as nodes.

        Args:
            rest: keep the other features as they are; without them their part is merged into
                the errors, in the scores too.
        """
        groups = {one.name: one.members for one in found}
        if len(groups) < len(found):
            raise InputError("two supernodes have one name; rename one with dataclasses.replace")
        members = [node for one in found for node in one.members]
        errors = [node for node in self.nodes if node.kind == "error"]
        return (self if rest else self.subset([*members, *errors])).merge(groups)

    def rename(self, labels: Mapping[str | Node, str]) -> Circuit:
        """The same circuit with other labels; ids stay."""
        return merging.renamed(self, labels)

    def supernodes(
        self,
        model: ReplacementModel | None = None,
        similarity: float = SIMILARITY,
        band: int = BAND,
        same_position: bool = True,
        min_size: int = 2,
    ) -> list[Supernode]:
        """Features that do the same thing, those that most passes first; always the same ones.

        Args:
            model: whose decoders to compare as well; default edges alone.
            similarity: the least mean cosine of profiles that joins two groups.
            band: members are in so many neighbouring layers at most.
            same_position: members stand at one position.
            min_size: leave out smaller ones.

        Raises:
            InputError: a number that is out of range, or a model that lacks these features.

        Example:
            >>> found = circuit.supernodes()
            >>> smaller = circuit.merged(found, rest=False)
            >>> smaller.scores.replacement
        """
        return supernodes(self, model, similarity, band, same_position, min_size)

    def summary(self) -> str:
        """What the circuit says, in a few sentences that its numbers bear out."""
        return " ".join(sentences(self))

    def to_networkx(self) -> networkx.DiGraph:
        """A DiGraph by node id; nodes carry the fields of `Node`, edges weight and share."""
        return exports.to_networkx(self)

    def to_pandas(self) -> tuple[pandas.DataFrame, pandas.DataFrame]:
        """(nodes, edges): nodes indexed by id, edges with source, target, weight and share."""
        return exports.to_pandas(self)

    def to_graphml(self, path: str | os.PathLike[str]) -> None:
        """Write GraphML. Raises OutputError where it cannot be written, as all of these do."""
        exports.to_graphml(self, path)

    def to_dot(self, path: str | os.PathLike[str]) -> None:
        """Write DOT, for Graphviz."""
        exports.to_dot(self, path)

    def to_csv(self, path: str | os.PathLike[str]) -> tuple[FilePath, FilePath]:
        """Write `NAME.nodes.csv` and `NAME.edges.csv` for `NAME.csv`; returns the two."""
        return exports.to_csv(self, path)

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
                    **exports.fields(node),
                    id=node.id,
                    promoted=note.promoted,
                    suppressed=note.suppressed,
                )
            )
        wiring, ids = self.wiring, [node.id for node in self.nodes]
        edges = tuple(zip(wiring.sources, wiring.targets, self.weights.tolist(), strict=True))
        return Drawing(
            prompt=self.prompt,
            tokens=self.tokens,
            model=self.provenance.model,
            transcoders=self.provenance.transcoders,
            n_layers=self.n_layers,
            nodes=tuple(nodes),
            edges=edges,
            totals={
                target: abs(weight) / share
                for (_, target, weight), share in zip(edges, wiring.shares, strict=True)
                if share > 0
            },
            heads={
                (source, target): self.heads[ids[source], ids[target]]
                for source, target, _ in edges
                if (ids[source], ids[target]) in self.heads
            },
            looks=self.looks,
            names=self._names(set(ids)),
            groups=self._groups(ids),
            details=self._details(),
            scores=figures(self),
            about=about(self),
            notices=notices(self),
            checks=() if self.faithfulness is None else self.faithfulness.section(),
        )

    def _groups(self, ids: Sequence[str]) -> tuple[DrawnGroup, ...]:
        """The supernodes that a page offers."""
        from circuit_tracer.view.drawing import DrawnGroup

        places = {name: place for place, name in enumerate(ids)}
        return tuple(
            DrawnGroup(one.name, tuple(places[node.id] for node in one.members), one.share)
            for one in self.supernodes()[:OFFERED]
        )

    def _names(self, drawn: set[str]) -> dict[str, str]:
        """Labels of features that a head's score speaks of and that are not drawn, by node id."""
        looks = self.looks.values()
        sides = (side for look in looks for side in (look.query_side, look.key_side))
        others = {name for side in sides for name, _ in side} - drawn
        keys = {name: name.split("_")[:2] for name in others if FEATURE.fullmatch(name)}
        notes = {name: self.notes.get((int(a), int(b))) for name, (a, b) in keys.items()}
        return {name: note.label for name, note in notes.items() if note and note.label}

    def _details(self) -> dict[tuple[int, int], Mapping[str, Any]]:
        """What is known of the most influential features besides notes; the first who knows says
        it."""
        ranked = sorted(self.find("feature"), key=lambda node: -node.influence)
        keys = list(dict.fromkeys((node.layer, node.feature) for node in ranked))[:DETAILED]
        found: dict[tuple[int, int], Mapping[str, Any]] = {}
        for known in self.lookups:
            found |= known([key for key in keys if key not in found])
        return found

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

    def show(self, height: int = 720) -> Shown:
        """The interactive page, in a notebook: about two megabytes of it are then saved there.

        Args:
            height: of its frame, in pixels.
        """
        from circuit_tracer.view.notebook import Shown
        from circuit_tracer.view.page import render

        return Shown(lambda: render(self.drawing()), self.prompt, height)

    def __repr__(self) -> str:
        sizes = f"{len(self.nodes):,} nodes, {len(self.weights):,} edges"
        return f"Circuit({self.prompt!r}: {sizes})"

    def _repr_mimebundle_(self, **wanted: Any) -> dict[str, Any]:
        """What a notebook shows: a figure of the strongest edges, and as HTML a picture of it."""
        from circuit_tracer.view.notebook import circuit_bundle

        return circuit_bundle(self.drawing(), self.summary(), repr(self))


def _some(k: int) -> int:
    if k < 1:
        raise InputError(f"k={k} asks for nothing: give at least 1")
    return k
