"""What the comparison page is given to draw."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from circuit_tracer.comparing.overlap import LayerOverlap, SetOverlap
from circuit_tracer.comparing.resampling import Estimate
from circuit_tracer.comparing.shared_supernodes import SharedSupernode
from circuit_tracer.facts import FeatureNote
from circuit_tracer.view.compared import (
    Band,
    ComparedEdge,
    ComparedFeature,
    ComparedGraph,
    ComparedRole,
    ComparedSupernode,
    ComparisonDrawing,
    LayerOverlaps,
)
from circuit_tracer.view.drawing import Drawing, DrawnNode

if TYPE_CHECKING:
    from circuit_tracer.comparing.comparison import Comparison, SharedFeature, Side


def drawing(comparison: Comparison) -> ComparisonDrawing:
    """The comparison as plain data; graphs without a circuit are drawn as prompt and outputs."""
    names, overlap = comparison.names, comparison.overlap
    circuits = comparison.circuits
    drawn = (
        [circuit.drawing() for circuit in circuits]
        if circuits
        else [_bare(side, comparison.n_layers) for side in comparison.sides]
    )
    sets = list(overlap.pairs)
    if len(names) > 2:
        sets.append(overlap.all)
    about: dict[str, str | float | int] = {"matched by": comparison.match}
    if overlap.corpus:
        about |= {
            "corpus": overlap.corpus,
            "rows of it": overlap.rows,
            "rows traced": overlap.traced,
        }
    return ComparisonDrawing(
        graphs=tuple(ComparedGraph(*pair) for pair in zip(names, drawn, strict=True)),
        features=tuple(_feature(comparison, one) for one in comparison.features),
        overlaps=tuple(
            sorted(
                (_overlap(each, names) for each in sets),
                key=lambda one: (len(one.members), one.members),
            )
        ),
        counts=tuple(tuple(layer.sizes[name] for layer in overlap.all.layers) for name in names),
        edges=tuple(
            ComparedEdge(edge.source, edge.target, tuple(edge.shares.get(name) for name in names))
            for edge in comparison.edges
        ),
        roles=_roles(comparison),
        supernodes=tuple(_supernode(one, names) for one in comparison.supernodes()),
        summary=comparison.summary(),
        about=about,
        notices=comparison.notices,
    )


def _bare(side: Side, n_layers: int) -> Drawing:
    last = len(side.tokens) - 1
    nodes = [
        DrawnNode(f"out_{number}", "logit", n_layers, last, number, label, probability=weight)
        for number, (label, weight) in enumerate(side.targets)
    ]
    return Drawing(
        side.prompt, side.tokens, side.model, side.transcoders, n_layers, tuple(nodes), ()
    )


def _feature(comparison: Comparison, feature: SharedFeature) -> ComparedFeature:
    names, spread = comparison.names, feature.spread
    note = _note(comparison, feature)
    means = {} if spread is None else {n: spread.means[n] for n in names if n in spread.means}
    return ComparedFeature(
        feature.layer,
        ids=tuple(feature.ids.get(name) for name in names),
        influence=tuple(feature.influence.get(name, 0.0) for name in names),
        positions=tuple(feature.positions.get(name, ()) for name in names),
        label="" if feature.label.startswith(f"L{feature.layer}#") else feature.label,
        promoted=note.promoted,
        suppressed=note.suppressed,
        spread=means,
        verdict="" if spread is None else spread.said,
        apart=comparison.match != "id",
    )


def _roles(comparison: Comparison) -> tuple[ComparedRole, ...]:
    names, place = comparison.names, comparison.rows
    return tuple(
        ComparedRole(
            tuple(
                place[name, role.members[name]] if name in role.members else None for name in names
            ),
            role.similarity,
        )
        for role in comparison.roles
    )


def _supernode(supernode: SharedSupernode, names: tuple[str, ...]) -> ComparedSupernode:
    found = supernode.members
    return ComparedSupernode(
        tuple(supernode.places.get(name, ()) for name in names),
        supernode.common,
        supernode.overlap,
        tuple(found[name].share if name in found else None for name in names),
    )


def _note(comparison: Comparison, feature: SharedFeature) -> FeatureNote:
    """What is known of it in the first graph that knows anything."""
    for side, circuit in zip(comparison.sides, comparison.circuits, strict=False):
        if side.name in feature.ids:
            note = circuit.notes.get((feature.layer, feature.ids[side.name]))
            if note is not None and note.promoted:
                return note
    return FeatureNote()


def _overlap(overlap: SetOverlap, names: tuple[str, ...]) -> LayerOverlaps:
    def values(read: Callable[[LayerOverlap], float]) -> tuple[float | None, ...]:
        found = (read(layer) for layer in overlap.layers)
        return tuple(None if value != value else value for value in found)

    def bands(name: str) -> tuple[Band | None, ...]:
        bases = (layer.baseline for layer in overlap.layers)
        return tuple(_band(None if base is None else getattr(base, name)) for base in bases)

    return LayerOverlaps(
        tuple(sorted(names.index(name) for name in overlap.names)),
        weighted=values(lambda layer: layer.weighted),
        plain=values(lambda layer: layer.iou),
        weighted_unrelated=bands("unrelated_weighted"),
        plain_unrelated=bands("unrelated"),
        weighted_parallel=bands("parallel_weighted"),
        plain_parallel=bands("parallel"),
    )


def _band(estimate: Estimate | None) -> Band | None:
    if estimate is None or estimate.mean != estimate.mean:
        return None
    return estimate.low, estimate.mean, estimate.high
