"""A drawing: everything the viewer may show of one graph, and nothing else.

The viewer is a pure function of this value. It is plain data (strings, numbers, tuples), checked
once on construction, so that a page never has to doubt what it draws, and so that anything that
can name its nodes and edges can be drawn, whatever computed it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from circuit_tracer.errors import InputError
from circuit_tracer.facts import EdgeHeads, HeadScore

KINDS = ("feature", "error", "embedding", "logit")
MOST_NODES = 5_000
MOST_EDGES = 100_000
SMALL = 150
"""A drawing of at most this many nodes opens whole; a larger one with the nodes that hold 80 %."""

START_SHARE = 0.8
START_EDGES = 600


@dataclass(frozen=True, slots=True)
class DrawnNode:
    """One node as it is shown.

    Attributes:
        id: unique in its drawing, and what a link to the node names.
        kind: "feature", "error", "embedding" or "logit".
        layer: 0-based; -1 for embeddings, the number of layers for logits.
        position: 0-based position in the prompt: the column it stands in.
        feature: feature id, or token id for embeddings and logits; -1 for errors.
        token: the token at `position`; for logits the token that is predicted.
        label: what a person calls it; "" where nobody has.
        activation: of a feature, else None.
        influence: on the targets; plain, not cumulative.
        probability: of a logit, else None.
        promoted: (token, logit) that the feature raises most, strongest first.
        suppressed: (token, logit) that it lowers most, strongest first.
    """

    id: str
    kind: str
    layer: int
    position: int
    feature: int
    token: str
    label: str = ""
    activation: float | None = None
    influence: float = 0.0
    probability: float | None = None
    promoted: tuple[tuple[str, float], ...] = ()
    suppressed: tuple[tuple[str, float], ...] = ()


@dataclass(frozen=True, slots=True)
class DrawnGroup:
    """Nodes that belong together, offered as a supernode.

    Attributes:
        name: what it is called.
        members: indices in `Drawing.nodes`, most influential first.
        share: share of what drives the outputs that passes any member.
    """

    name: str
    members: tuple[int, ...]
    share: float


@dataclass(frozen=True, slots=True)
class Drawing:
    """One graph, ready to be shown.

    Attributes:
        prompt: the text as it was asked.
        tokens: its tokens, one column each.
        model: name of the model.
        transcoders: name of the transcoders.
        n_layers: layers of the model; logits stand at this layer.
        nodes: in any order; the order decides nothing but ties.
        edges: (index of the source, index of the target, weight).
        totals: sum of the absolute weights of all edges into a node in the full graph, by its index
            in `nodes`; an edge's share is its part of that. Empty where unknown.
        heads: which attention heads carry an edge, by the indices of its ends, where known.
        looks: why heads look where they look, by (layer, head, query, key), where known.
        names: labels of features that `looks` speaks of and that are not drawn, by node id.
        details: what a feature store says of features, by (layer, id), as plain JSON values.
        groups: supernodes to offer, those that most passes first.
        scores: figures about the graph by name ("replacement", "completeness", ...).
        about: whatever says where the graph comes from (versions, parameters), by name.
        notices: sentences the reader must see before trusting the picture.
        checks: how far the graph agrees with its model: (name, said); empty where unknown.
        links: pages that belong to this one: (what it is called, its relative address).
    """

    prompt: str
    tokens: tuple[str, ...]
    model: str
    transcoders: str
    n_layers: int
    nodes: tuple[DrawnNode, ...]
    edges: tuple[tuple[int, int, float], ...]
    totals: Mapping[int, float] = field(default_factory=dict)
    heads: Mapping[tuple[int, int], EdgeHeads] = field(default_factory=dict)
    looks: Mapping[tuple[int, int, int, int], HeadScore] = field(default_factory=dict)
    names: Mapping[str, str] = field(default_factory=dict)
    details: Mapping[tuple[int, int], Mapping[str, Any]] = field(default_factory=dict)
    groups: tuple[DrawnGroup, ...] = ()
    scores: dict[str, float] = field(default_factory=dict)
    about: dict[str, str | float | int] = field(default_factory=dict)
    notices: tuple[str, ...] = ()
    checks: tuple[tuple[str, str], ...] = ()
    links: tuple[tuple[str, str], ...] = ()

    def __post_init__(self) -> None:
        seen: set[str] = set()
        for node in self.nodes:
            _check_node(node, self.n_layers, len(self.tokens))
            if node.id in seen:
                raise InputError(f"two nodes of the drawing have the id {node.id!r}")
            seen.add(node.id)
        for name, href in self.links:
            if ":" in href or href.startswith("/"):
                raise InputError(f"the link {name!r} leads to {href!r}; give a relative address")
        count = len(self.nodes)
        for source, target, weight in self.edges:
            if not (0 <= source < count and 0 <= target < count):
                raise InputError(f"edge ({source}, {target}) names a node outside 0 to {count - 1}")
            if not math.isfinite(weight):
                raise InputError(f"edge ({source}, {target}) has the weight {weight}")
        for group in self.groups:
            if not group.members or not all(0 <= member < count for member in group.members):
                raise InputError(
                    f"the group {group.name!r} has the members {group.members}; "
                    f"nodes are 0 to {count - 1}, and it needs one"
                )


def _check_node(node: DrawnNode, n_layers: int, n_tokens: int) -> None:
    if node.kind not in KINDS:
        raise InputError(f"node {node.id!r} is a {node.kind!r}; kinds are {', '.join(KINDS)}")
    if not 0 <= node.position < n_tokens:
        raise InputError(
            f"node {node.id!r} stands at position {node.position}; "
            f"the prompt has positions 0 to {n_tokens - 1}"
        )
    if not -1 <= node.layer <= n_layers:
        raise InputError(
            f"node {node.id!r} is at layer {node.layer}; layers are -1 (embeddings) to {n_layers}"
        )
    if not math.isfinite(node.influence):
        raise InputError(f"node {node.id!r} has the influence {node.influence}")


def by_influence(nodes: Sequence[DrawnNode], among: Sequence[int]) -> list[int]:
    """Indices `among`, most influential first; ties by index, so that the order is total."""
    return sorted(among, key=lambda index: (-nodes[index].influence, index))


def strongest_edges(drawing: Drawing, visible: Sequence[int], count: int) -> list[int]:
    """Indices of the `count` edges between `visible` nodes that carry most, strongest first.

    What an edge carries is `carried`. By weight alone, tokens into the first layer would come
    first in every graph: weights there are largest, whatever they lead to. Ties go by weight, so
    that a graph without influences is drawn by its weights.
    """
    sources, targets, weights = _columns(drawing)
    shown = np.zeros(len(drawing.nodes), bool)
    shown[list(visible)] = True
    inside = np.flatnonzero(shown[sources] & shown[targets])
    size, part = np.abs(weights[inside]), carried(drawing)[inside]
    chosen: list[int] = inside[np.lexsort((inside, -size, -part))][:count].tolist()
    return chosen


def carried(drawing: Drawing) -> np.ndarray[Any, np.dtype[np.float64]]:
    """(n_edges,) the influence that passes each edge.

    Its weight as a share of all that enters its target, times the influence of the target (the
    probability of an output). In a graph that was not pruned, what the edges out of a node carry
    is together the node's influence.
    """
    _, targets, weights = _columns(drawing)
    nodes, size = drawing.nodes, np.abs(weights)
    entering = np.bincount(targets, size, len(nodes))
    for index, total in drawing.totals.items():
        entering[index] = total or entering[index]
    weight_of = np.array([_matters(node) for node in nodes])
    shares = np.divide(size, entering[targets], out=np.zeros_like(size), where=size > 0)
    passed: np.ndarray[Any, np.dtype[np.float64]] = shares * weight_of[targets]
    return passed


def _columns(drawing: Drawing) -> tuple[np.ndarray[Any, Any], ...]:
    """Sources, targets and weights of the edges."""
    columns = list(zip(*drawing.edges, strict=True)) or [(), (), ()]
    return tuple(
        np.array(column, kind) for column, kind in zip(columns, (int, int, float), strict=True)
    )


def _matters(node: DrawnNode) -> float:
    if node.kind == "logit":
        return 1.0 if node.probability is None else node.probability
    return max(node.influence, 0.0)


def holding(drawing: Drawing, share: float) -> list[int]:
    """Indices of the nodes to show so that they hold `share` of the influence, ascending.

    The smallest set of most influential features and errors whose share of all their influence
    reaches `share` (the node that crosses it is in); embeddings and logits are always in.
    """
    nodes = drawing.nodes
    always = [i for i, node in enumerate(nodes) if node.kind in ("embedding", "logit")]
    ranked = by_influence(
        nodes, [i for i, node in enumerate(nodes) if node.kind in ("feature", "error")]
    )
    goal = share * sum(max(nodes[i].influence, 0.0) for i in ranked) - 1e-9
    kept, held = [], 0.0
    for index in ranked:
        if share < 1 and held >= goal:
            break
        kept.append(index)
        held += max(nodes[index].influence, 0.0)
    return sorted(always + kept)


def start_share(drawing: Drawing) -> float:
    """Share of the influence a fresh page shows: all of a small graph, 80 % of a large one."""
    return 1.0 if len(drawing.nodes) <= SMALL else START_SHARE


def error_share(drawing: Drawing) -> float | None:
    """Share of the influence that enters through error nodes; None where nothing enters."""
    enters = {"error": 0.0, "embedding": 0.0}
    for node in drawing.nodes:
        if node.kind in enters:
            enters[node.kind] += max(node.influence, 0.0)
    total = sum(enters.values())
    return enters["error"] / total if total > 0 else None


def fitted(drawing: Drawing, nodes: int = MOST_NODES, edges: int = MOST_EDGES) -> Drawing:
    """The drawing itself if a page can carry it, else its strongest part with a notice.

    Logits come first, then embeddings (unless the prompt is so long that they alone would fill
    the page), then features and errors by influence; of the edges between them, those that carry
    most of it.
    """
    if len(drawing.nodes) <= nodes and len(drawing.edges) <= edges:
        return drawing
    everything = drawing.nodes
    rank = {"logit": 0, "embedding": 1 if len(drawing.tokens) <= nodes // 2 else 2}
    order = sorted(
        range(len(everything)),
        key=lambda i: (rank.get(everything[i].kind, 2), -everything[i].influence, i),
    )
    kept = sorted(order[:nodes])
    chosen = sorted(strongest_edges(drawing, kept, edges))
    row = {old: new for new, old in enumerate(kept)}
    triples = [drawing.edges[i] for i in chosen]
    pairs = [(s, t) for s, t, _ in triples if (s, t) in drawing.heads]
    return replace(
        drawing,
        nodes=tuple(everything[i] for i in kept),
        edges=tuple((row[s], row[t], weight) for s, t, weight in triples),
        totals={row[i]: total for i, total in drawing.totals.items() if i in row},
        heads={(row[s], row[t]): drawing.heads[s, t] for s, t in pairs},
        groups=_fitted_groups(drawing.groups, row),
        notices=(*drawing.notices, _dropped(drawing, len(kept), len(chosen))),
    )


def _fitted_groups(groups: Sequence[DrawnGroup], row: Mapping[int, int]) -> tuple[DrawnGroup, ...]:
    """The groups by their members' new indices; one of which fewer than two are left is none."""
    left = [(group, tuple(row[i] for i in group.members if i in row)) for group in groups]
    return tuple(replace(group, members=some) for group, some in left if len(some) > 1)


def _dropped(drawing: Drawing, n_nodes: int, n_edges: int) -> str:
    def part(kept: int, of: int, name: str) -> str:
        return f"all {of:,} {name}" if kept == of else f"{kept:,} of {of:,} {name}"

    return (
        f"Only the strongest part is drawn: {part(n_nodes, len(drawing.nodes), 'nodes')} and "
        f"{part(n_edges, len(drawing.edges), 'edges')}."
    )
