"""A graph: what everything active in a prompt does to what comes after it.

It holds rows of edges, activations, targets, tokens and where they come from; no model. All that is
asked of it (influence, scores, a pruned `Circuit`, files) is worked out from these.

On disk a graph is one safetensors file: tensors, and a JSON header. Nothing in it can run.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property, partial
from typing import cast, overload

import numpy as np
import torch

from circuit_tracer import files, graph_file
from circuit_tracer.card import Faithfulness
from circuit_tracer.circuit import Circuit
from circuit_tracer.description import Describer
from circuit_tracer.edges import EdgeRows
from circuit_tracer.errors import InputError
from circuit_tracer.facts import FeatureNote, Lookup, Provenance, Target
from circuit_tracer.file_kind import file_kind
from circuit_tracer.influence import Flow, Scores, cumulative, flow, scores
from circuit_tracer.nodes import Node, NodeIndex, node_id
from circuit_tracer.prune import EDGES, NODES, Kept, prune
from circuit_tracer.shapes import Bool, Float, Int, Tensor

__all__ = ["FeatureNote", "Graph", "Provenance", "Target"]

CACHED = 2**13
"""Ends of edges that are renumbered at a time (64 KiB)."""


@dataclass(frozen=True, eq=False)
class Graph:
    """An attribution graph.

    Attributes:
        edges: the rows, and the order of nodes (`index`).
        activations: (n_features,) of the active features, in node order; NaN where unknown.
        targets: what is explained, in node order.
        tokens, token_ids: the prompt; an id is -1 where unknown.
        provenance: where the graph comes from.
        notes: labels and logits of features by (layer, feature); may be filled later.
        timings: seconds by phase of the run that made it; not saved.
        lookups: who knows more of its features, asked when a page is made; may be filled later, not
            saved.
        faithfulness: how far it agrees with its model, where that was measured.

    Raises:
        InputError: lengths that do not fit the index.
    """

    edges: EdgeRows
    activations: Float[Tensor, " active"]
    targets: tuple[Target, ...]
    tokens: tuple[str, ...]
    token_ids: tuple[int, ...]
    provenance: Provenance
    notes: dict[tuple[int, int], FeatureNote] = field(default_factory=dict)
    timings: dict[str, float] = field(default_factory=dict)
    faithfulness: Faithfulness | None = None
    lookups: list[Lookup] = field(default_factory=list)

    def __post_init__(self) -> None:
        index = self.edges.index
        sizes = {
            "activations": (len(self.activations), index.n_features),
            "targets": (len(self.targets), index.n_targets),
            "tokens": (len(self.tokens), index.n_positions),
            "token_ids": (len(self.token_ids), index.n_positions),
        }
        for name, (got, wanted) in sizes.items():
            if got != wanted:
                raise InputError(f"a graph of {wanted} {name} was given {got}")
        if [target.position for target in self.targets] != index.target_positions.tolist():
            raise InputError("the targets are read at other positions than their rows say")
        known = range(index.n_layers)
        for target in self.targets:
            if target.feature is not None and target.feature[0] not in known:
                raise InputError(f"target {target.label!r} is not in layers 0 to {known[-1]}")
        for block in self.edges.blocks:
            for row in block.rows[block.rows >= index.first_target].tolist():
                feature = self.targets[row - index.first_target].feature
                if block.layer != index.n_layers and (feature is None or feature[0] != block.layer):
                    raise InputError("the targets are read at other layers than their rows say")

    @property
    def index(self) -> NodeIndex:
        return self.edges.index

    @property
    def nodes(self) -> Nodes:
        """All nodes in matrix order, each made when it is asked for."""
        return Nodes(self)

    @cached_property
    def weights(self) -> Float[Tensor, " target"]:
        """(n_targets,) float64."""
        return torch.tensor([target.weight for target in self.targets], dtype=torch.float64)

    @cached_property
    def flow(self) -> Flow:
        """What one pass over all rows finds; influence, scores and sizes come from it."""
        return flow(self.edges, self.weights)

    @property
    def influence(self) -> Float[Tensor, " node"]:
        """(n_nodes,) float64: influence of every node on the targets, w^T B."""
        return self.flow.arriving

    @cached_property
    def scores(self) -> Scores:
        return scores(self.edges, self.weights, found=self.flow)

    @property
    def n_edges(self) -> int:
        """Edges that are not zero, of those that are stored."""
        return self.flow.n_edges

    @cached_property
    def closure_error(self) -> float:
        """Largest |sum of edges + bias terms - value| over all rows; NaN where unknown."""
        return float(self.edges.residual.abs().max()) if len(self.index) else 0.0

    @property
    def ignored(self) -> Float[Tensor, " node"]:
        """(n_nodes,) what features and errors at ignored positions add to each row."""
        return self.edges.ignored

    @property
    def ignored_sources(self) -> dict[str, float]:
        """What features and errors at ignored positions add to each target's value, by node id.

        Together they are one source that is no node: its edges close the rows and pass no
        influence on. Zero where unknown, in a graph that was read from JSON.
        """
        found = self.edges.ignored[self.index.first_target :].tolist()
        return dict(zip(self._target_rows, found, strict=True))

    @cached_property
    def expanded(self) -> Bool[Tensor, " node"]:
        """(n_nodes,) True where a node has a row; `.sum()` counts them."""
        mask = torch.zeros(len(self.index), dtype=torch.bool)
        mask[self.edges.rows] = True
        return mask

    def dense(self) -> Float[Tensor, "node node"]:
        """The whole matrix, [target, source], zero where edges are not stored (`keep_edges`).
        Quadratic memory: for small graphs and tests."""
        return self.edges.dense()

    def node(self, which: int | str) -> Node:
        """The node of a row number or an id."""
        return self.nodes[which if isinstance(which, int) else self.row(which)]

    def row(self, name: str) -> int:
        """Row number of a node id. Raises InputError where there is none."""
        row = self._target_rows.get(name)
        if row is None:
            row = self._source_row(name)
        if row is None:
            raise InputError(
                f"there is no node {name!r} in this graph; ids look like {self.nodes[0].id!r} and "
                f"{self.nodes[-1].id!r}, see `graph.nodes`"
            )
        return row

    def prune(
        self,
        nodes: float | None = None,
        edges: float = EDGES,
        max_nodes: int | None = None,
        max_edges: int | None = None,
    ) -> Circuit:
        """The part worth looking at; arguments and errors as in `circuit_tracer.prune.prune`."""
        found = self.influence
        return self._circuit(
            prune(self.edges, self.weights, nodes, edges, max_nodes, max_edges, found)
        )

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the graph as one file, whole or not at all.

        Raises:
            OutputError: it could not be written; an older file is untouched.
        """
        header = {
            "targets": [asdict(target) for target in self.targets],
            "tokens": self.tokens,
            "token_ids": self.token_ids,
            "provenance": asdict(self.provenance),
            "notes": [[*key, note.to_plain()] for key, note in self.notes.items()],
        }
        if self.faithfulness is not None:
            header["faithfulness"] = self.faithfulness.to_plain()
        graph_file.write(path, self.edges, self.activations, header)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Graph:
        """Read a graph that `save` wrote.

        Raises:
            InputError: there is no such file.
            GraphFileError: it is damaged, newer than this version, or something else.
        """
        edges, activations, header = graph_file.read(path)
        card = header.get("faithfulness")
        try:
            return cls(
                edges,
                activations,
                tuple(Target.from_plain(target) for target in header["targets"]),
                tuple(header["tokens"]),
                tuple(header["token_ids"]),
                Provenance.from_plain(header["provenance"]),
                {
                    (layer, feature): FeatureNote.from_plain(note)
                    for layer, feature, note in header["notes"]
                },
                faithfulness=None if card is None else Faithfulness.from_plain(card),
            )
        except (InputError, KeyError, TypeError, ValueError) as error:
            raise graph_file.damaged(path, error) from error

    def to_json(
        self,
        path: str | os.PathLike[str],
        node_threshold: float = NODES,
        edge_threshold: float = EDGES,
        slug: str | None = None,
        scan: str | None = None,
    ) -> None:
        """Write the pruned graph in the schema of Neuronpedia and circuit-tracer.

        Args:
            slug: name of the graph; default made from the prompt.
            scan: what the front end looks features up by; default the transcoders' name.

        Raises:
            OutputError: it could not be written; an older file is untouched.
        """
        from circuit_tracer import neuronpedia

        circuit = self.prune(node_threshold, edge_threshold)
        share = cumulative(self.influence).tolist()
        document = neuronpedia.document(
            circuit.nodes,
            [share[self.row(node.id)] for node in circuit.nodes],
            [(edge.source.id, edge.target.id, edge.weight) for edge in circuit.edges],
            neuronpedia.metadata(
                prompt=self.provenance.prompt,
                tokens=self.tokens,
                slug=slug,
                scan=scan or self.provenance.transcoders,
                thresholds=(node_threshold, edge_threshold),
                settings={
                    "provenance": asdict(self.provenance),
                    "token_ids": list(self.token_ids),
                    "target_weights": [target.weight for target in self.targets],
                    "target_features": [target.feature for target in self.targets],
                    "target_differences": [target.difference for target in self.targets],
                },
            ),
        )
        files.write_text(path, document)

    @classmethod
    def from_json(cls, path: str | os.PathLike[str]) -> Graph:
        """Read a graph in that schema, from whichever tool.

        The file holds a pruned graph, so edges that are not in it are zero, features without
        edges in count as not expanded, and `closure_error` is NaN: what the rows should add up to
        is not in the file.

        Raises:
            InputError: there is no such file.
            GraphFileError: it does not follow the schema.
        """
        from circuit_tracer import neuronpedia

        return cls(**neuronpedia.read(path).parts)

    @classmethod
    def read(cls, path: str | os.PathLike[str], tokens: Sequence[str] | None = None) -> Graph:
        """Read any saved graph: ours, Neuronpedia's and the reference tool's JSON (also
        compressed), the reference tool's `.pt`. Its content says which, not its name.

        Args:
            tokens: the prompt's tokens as text, for a `.pt`, which has only their numbers.

        Raises:
            InputError: there is no such file.
            GraphFileError: it is damaged, or none of these, or could run code.
        """
        from circuit_tracer import reference_graph

        kind = file_kind(path)
        if kind == "pickle":
            return cls(**reference_graph.read(path, tokens).parts)
        return cls.from_json(path) if kind == "json" else cls.load(path)

    def __repr__(self) -> str:
        sizes = f"{self.index.n_features:,} features, {self.index.n_targets} targets"
        return f"Graph({self.provenance.prompt!r}: {sizes})"

    def _circuit(self, kept: Kept) -> Circuit:
        """The circuit of what pruning kept, whose edges are used up.

        What can be worked out without the rows is left until somebody asks; the circuit does not
        keep the rows from being freed.
        """
        index, edges, rows = self.index, kept.edges, kept.nodes.nonzero()[:, 0]
        for ends in (edges.targets, edges.sources):
            _renumber(ends, kept.nodes)
        no_rows = replace(self.edges, blocks=())
        describer = replace(self._describer, notes=dict(self.notes))  # as they are now
        return Circuit(
            nodes=cast("tuple[Node, ...]", partial(describer.nodes, rows, self.influence[rows])),
            sources=edges.sources,
            targets=edges.targets,
            weights=edges.weights,
            shares=cast("Tensor", partial(self.flow.shares, edges, rows)),
            tokens=self.tokens,
            provenance=self.provenance,
            scores=cast("Scores", partial(scores, no_rows, self.weights, edges, self.flow, rows)),
            graph_scores=self.scores,
            closure_error=self.closure_error,
            target_weights=dict(zip(self._target_rows, self.weights.tolist(), strict=True)),
            thresholds={
                "node_threshold": kept.node_threshold,
                "edge_threshold": kept.edge_threshold,
                "max_nodes": kept.max_nodes,
                "max_edges": kept.max_edges,
            },
            n_all_nodes=len(index),
            n_all_edges=self.n_edges,
            n_layers=index.n_layers,
            notes=self.notes,
            lookups=self.lookups,
            ignored=self.ignored_sources,
            faithfulness=self.faithfulness,
        )

    @cached_property
    def _target_rows(self) -> dict[str, int]:
        index = self.index
        return {
            node_id("logit", index.n_layers, target.position, number): index.target_row(k)
            for k, (target, number) in enumerate(
                zip(self.targets, self._describer.target_ids, strict=True)
            )
        }

    def _source_row(self, name: str) -> int | None:
        """Row of a feature, error or embedding by id; None where there is none."""
        index, parts = self.index, name.split("_")
        try:
            layer, feature, position = (-1 if part == "E" else int(part) for part in parts)
        except ValueError:
            return None
        if not (0 <= position < index.n_positions and layer < index.n_layers):
            return None
        if parts[0] == "E":
            return index.embedding_row(position) if self.token_ids[position] == feature else None
        if feature == -1 and layer >= 0:
            return index.error_row(layer, position)
        return index.feature_row(layer, position, feature)

    @cached_property
    def _describer(self) -> Describer:
        return Describer(
            self.index, self.activations, self.targets, self.tokens, self.token_ids, self.notes
        )

    def _described(self, rows: Int[Tensor, " some"]) -> tuple[Node, ...]:
        return self._describer.nodes(rows, self.influence[rows])


class Nodes(Sequence[Node]):
    """The nodes of a graph in matrix order; each is made when it is looked at."""

    def __init__(self, graph: Graph) -> None:
        self._graph = graph

    def __len__(self) -> int:
        return len(self._graph.index)

    @overload
    def __getitem__(self, place: int) -> Node: ...
    @overload
    def __getitem__(self, place: slice) -> tuple[Node, ...]: ...
    def __getitem__(self, place: int | slice) -> Node | tuple[Node, ...]:
        if isinstance(place, slice):
            return self._graph._described(torch.tensor(range(len(self))[place], dtype=torch.long))
        return self._graph._described(torch.tensor([range(len(self))[place]]))[0]

    def __iter__(self) -> Iterator[Node]:
        return iter(self[:])

    def __repr__(self) -> str:
        return f"<{len(self):,} nodes>"


def _renumber(rows: Int[Tensor, " end"], kept: Bool[Tensor, " node"]) -> None:
    """Make of rows their places among those kept, in place: fresh memory is slow."""
    places, room = kept.cumsum(0).sub_(1).numpy(), np.empty(CACHED, dtype=np.int64)
    for start in range(0, len(rows), CACHED):
        some = rows.numpy()[start : start + CACHED]
        some[:] = places.take(some, out=room[: len(some)], mode="clip")
