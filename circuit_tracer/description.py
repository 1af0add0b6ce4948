"""What the nodes of a graph are called: from rows to `Node`s.

To write a node's texts takes longer than to find that the node matters, and of a pruned graph
sometimes only the sizes and scores are wanted. So nodes are described when somebody looks at them,
from what is kept here: a few numbers a node, and no edges.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

from circuit_tracer.facts import FeatureNote, Target
from circuit_tracer.nodes import Node, NodeIndex, Place, node_id
from circuit_tracer.shapes import Float, Int, Tensor


@dataclass(frozen=True, eq=False)
class Describer:
    """Makes the nodes of a graph; the attributes are those of `Graph`."""

    index: NodeIndex
    activations: Float[Tensor, " active"]
    targets: tuple[Target, ...]
    tokens: tuple[str, ...]
    token_ids: tuple[int, ...]
    notes: Mapping[tuple[int, int], FeatureNote]

    def nodes(
        self, rows: Int[Tensor, " some"], influence: Float[Tensor, " some"]
    ) -> tuple[Node, ...]:
        """The nodes of some rows, ascending."""
        activations = iter(self.activations[rows[rows < self.index.n_features]].tolist())
        return tuple(
            self._node(place, found, next(activations) if place[0] == "feature" else None)
            for place, found in zip(self.index.locate_all(rows), influence.tolist(), strict=True)
        )

    @cached_property
    def target_ids(self) -> tuple[int, ...]:
        """Feature numbers of the targets: token ids, or -1 - k where none is free to use."""
        seen: set[tuple[int, int]] = set()
        numbers = []
        for k, target in enumerate(self.targets):
            number = -1 - k if target.token_id is None else target.token_id
            if (number, target.position) in seen:
                number = -1 - k
            seen.add((number, target.position))
            numbers.append(number)
        return tuple(numbers)

    def _node(self, place: Place, influence: float, activation: float | None) -> Node:
        kind, layer, position, feature = place
        token, probability = self.tokens[position], None
        if kind == "feature":
            if activation != activation:
                activation = None
            note = self.notes.get((layer, feature))
            label = note.label if note is not None and note.label else f"L{layer}#{feature}"
        elif kind == "error":
            label = f"error L{layer} @{position}"
        elif kind == "embedding":
            feature, label = self.token_ids[position], token
        else:
            target, feature = self.targets[feature], self.target_ids[feature]
            token, probability = target.label, target.probability
            label = token if target.token_id is None else f'Output "{token}"'
        return Node(
            id=node_id(kind, layer, position, feature),
            kind=kind,
            layer=layer,
            position=position,
            feature=feature,
            token=token,
            activation=activation,
            influence=influence,
            label=label,
            probability=probability,
        )
