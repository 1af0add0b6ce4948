"""What a graph file that another tool wrote says, before it is a graph.

Readers of foreign formats end here, whatever their format calls things.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from circuit_tracer.edges import EdgeRows
from circuit_tracer.facts import FeatureNote, Provenance, Target
from circuit_tracer.nodes import Place
from circuit_tracer.shapes import Float, Tensor

PARTS = ("edges", "activations", "targets", "tokens", "token_ids", "provenance", "notes")
Named: TypeAlias = Mapping[str, Sequence[tuple[Place, int]]]
"""Places and rows of the nodes by the id that a file gives them; one id may name several."""


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


def link_ends(links: Sequence[tuple[str, str]], named: Named) -> list[tuple[int, int]]:
    """Rows (target, source) of links given as ids (source, target).

    Where two nodes share an id, only one of them can be meant, or the order of the links tells: the
    reference tool writes those into a node as their sources stand in the matrix.

    Raises:
        ValueError: a link that is there twice, is impossible, or could be either of two.
    """
    meant = [_meant(source, target, named) for source, target in links]
    ends = [pairs[0] for pairs in meant]
    into: dict[str, list[int]] = {}
    for place, (_, target) in enumerate(links):
        into.setdefault(target, []).append(place)
    for places in into.values():
        shared = [place for place in places if len(meant[place]) > 1]
        if not shared:
            continue
        rising = _rising([meant[place] for place in places])
        if rising is None:
            source, target = links[shared[0]]
            raise ValueError(
                f"the link from {source!r} to {target!r} is ambiguous: two nodes share an id"
            )
        for place, pair in zip(places, rising, strict=True):
            ends[place] = pair
    _check_once(links, ends)
    return ends


def _meant(source: str, target: str, named: Named) -> list[tuple[int, int]]:
    """All pairs of rows that a link can mean."""
    for end in (source, target):
        if end not in named:
            raise ValueError(f"a link names the node {end!r}, which is not there")
    pairs = [
        (target_row, source_row)
        for above, target_row in named[target]
        if above[0] in ("feature", "logit")
        for below, source_row in named[source]
        if below[1] < above[1] and below[2] <= above[2]
    ]
    if not pairs:
        raise ValueError(
            f"the link from {source!r} to {target!r} is impossible: it should lead to a feature or "
            "logit, from a lower layer and no later position"
        )
    return pairs


def _rising(choices: Sequence[Sequence[tuple[int, int]]]) -> list[tuple[int, int]] | None:
    """The one way to take a pair of each such that they rise; None where there is none or more."""
    low: list[tuple[int, int]] = []
    for pairs in choices:
        above = [pair for pair in pairs if not low or pair > low[-1]]
        if not above:
            return None
        low.append(min(above))
    limit = None
    for pairs, least in zip(reversed(choices), reversed(low), strict=True):
        if max(pair for pair in pairs if limit is None or pair < limit) != least:
            return None
        limit = least
    return low


def _check_once(links: Sequence[tuple[str, str]], ends: Sequence[tuple[int, int]]) -> None:
    first: dict[tuple[int, int], int] = {}
    for place, pair in enumerate(ends):
        if first.setdefault(pair, place) != place:
            source, target = links[place]
            raise ValueError(f"the link from {source!r} to {target!r} is there twice")
