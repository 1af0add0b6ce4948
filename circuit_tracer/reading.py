"""What a graph file that another tool wrote says, before it is a graph.

Readers of foreign formats end here, whatever their format calls things.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from circuit_tracer.edges import EdgeRows
from circuit_tracer.facts import FeatureNote, Provenance, Target
from circuit_tracer.shapes import Float, Tensor

PARTS = ("edges", "activations", "targets", "tokens", "token_ids", "provenance", "notes")


@dataclass(frozen=True, slots=True)
class Reading:
    """What a file says.

    Attributes:
        edges: rows of the edges it holds; what closes them is unknown.
        activations: (n_features,), NaN where it does not say.
        targets, tokens, token_ids, provenance: as in `Graph`.
        notes: labels of features by (layer, feature), where it has any.
        pinned: rows of the nodes that its makers pinned.
        supernodes: (name, rows) of the nodes that they grouped.
        lost: ids that were pinned or grouped and are no node of the file.
    """

    edges: EdgeRows
    activations: Float[Tensor, " active"]
    targets: tuple[Target, ...]
    tokens: tuple[str, ...]
    token_ids: tuple[int, ...]
    provenance: Provenance
    notes: dict[tuple[int, int], FeatureNote]
    pinned: tuple[int, ...] = ()
    supernodes: tuple[tuple[str, tuple[int, ...]], ...] = ()
    lost: tuple[str, ...] = ()

    @property
    def parts(self) -> dict[str, Any]:
        """The arguments of `Graph`, by name."""
        return {name: getattr(self, name) for name in PARTS}
