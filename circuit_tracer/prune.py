"""Which nodes and edges are worth looking at.

First the nodes: the most influential ones until they hold a given share of all influence. Then the
edges between them, by the influence that passes along each, until they too hold a given share. Then
whatever hangs loose goes: a feature needs an edge in and an edge out, an error an edge out.
Embeddings and targets stay.

A feature that was never expanded has no edges in, so it cannot stay and does not stand for choice;
like everything pruned its mass is merged into the error of its layer and position
(`influence.scores`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial

import torch

from circuit_tracer.cut import Cut, Sheet, Whole, room_for, whole_of
from circuit_tracer.edges import EdgeRows
from circuit_tracer.errors import InputError
from circuit_tracer.influence import LEAST, Edges, influence
from circuit_tracer.shapes import Bool, Float, Int, Tensor
from circuit_tracer.threshold import bracketed, cutoff

NODES = 0.8
EDGES = 0.98
SMALLEST = 5e-324
"""The smallest score that is not zero."""


@dataclass(frozen=True, eq=False)
class Kept:
    """What pruning leaves.

    Attributes:
        nodes: (n_nodes,) True where a node is kept.
        edges: the edges kept.
        node_threshold, edge_threshold: the shares that were asked for.
        max_nodes, max_edges: the caps that were asked for, None for none.
    """

    nodes: Bool[Tensor, " node"]
    edges: Edges
    node_threshold: float
    edge_threshold: float
    max_nodes: int | None = None
    max_edges: int | None = None

    @property
    def n_nodes(self) -> int:
        return int(self.nodes.sum())

    @property
    def n_edges(self) -> int:
        return len(self.edges.weights)


_Outcome = tuple[Bool[Tensor, " node"], Edges]


def prune(
    rows: EdgeRows,
    weights: Float[Tensor, " target"],
    nodes: float | None = None,
    edges: float = EDGES,
    max_nodes: int | None = None,
    max_edges: int | None = None,
    found: Float[Tensor, " node"] | None = None,
) -> Kept:
    """Keep the nodes and edges that matter most (docs/maths.md; as circuit-tracer's `prune_graph`).

    Args:
        rows: the edges.
        weights: (n_targets,) how much each target counts.
        nodes: share of influence that the kept nodes hold; 0.8, or 1 where `max_nodes` is given.
        edges: share of the influence among them that the kept edges hold.
        max_nodes: the largest circuit with at most so many features and errors, taken in order
            of influence (ties in node order). With `nodes` given too, both hold.
        max_edges: at most so many edges, the strongest.
        found: the influence of all nodes, where it is known already.

    Raises:
        InputError: a share outside 0 to 1, or a cap below 1.
    """
    nodes = (NODES if max_nodes is None else 1.0) if nodes is None else nodes
    for name, share in (("nodes", nodes), ("edges", edges)):
        if not 0 <= share <= 1:
            raise InputError(f"{name}={share} is not a share: give a number from 0 to 1")
    for name, cap in (("max_nodes", max_nodes), ("max_edges", max_edges)):
        if cap is not None and cap < 1:
            raise InputError(f"{name}={cap} keeps nothing: give at least 1")
    found = influence(rows, weights) if found is None else found
    ranked, inner = _ranked(rows, found, nodes), rows.index.first_embedding

    def keep(count: int, whole: Whole) -> tuple[_Outcome, Cut]:
        candidates = torch.zeros(len(rows.index), dtype=torch.bool)
        candidates[ranked[:count]] = True
        candidates[inner:] = True
        cut = Cut(whole, candidates)
        strong = _strong(rows, weights, cut, edges, max_edges)
        return _connected(rows, candidates, strong), cut

    whole = partial(whole_of, rows)
    if max_nodes is None or len(ranked) <= max_nodes:
        kept = keep(len(ranked), whole)[0]
    else:
        kept = _largest(keep, whole, max_nodes, len(ranked), inner)
    return Kept(*kept, nodes, edges, max_nodes, max_edges)


def _ranked(rows: EdgeRows, found: Float[Tensor, " node"], share: float) -> Int[Tensor, " node"]:
    """Expanded features and errors above the threshold on nodes, most influential first."""
    index, threshold = rows.index, cutoff(lambda: [found], share)
    inner = found[: index.first_embedding]
    good = (inner >= threshold) & (inner > 0)
    expanded = torch.zeros(len(index), dtype=torch.bool)
    expanded[rows.rows] = True
    good[: index.n_features] &= expanded[: index.n_features]
    chosen = _places(good)
    return chosen[inner[chosen].argsort(descending=True, stable=True)]


def _largest(
    keep: Callable[[int, Whole], tuple[_Outcome, Cut]],
    whole: Whole,
    max_nodes: int,
    most: int,
    first_embedding: int,
) -> _Outcome:
    """The result of `keep` for the largest count, by doubling, then bisection, that fits.

    What is kept of fewer nodes is cut from what was tried of more, not from the rows again.
    """
    low, high, step = max_nodes, most + 1, max_nodes
    best, _ = keep(max_nodes, whole)
    while high - low > 1:
        middle = min(low + step, (low + high) // 2)
        tried, cut = keep(middle, whole)
        if int(tried[0][:first_embedding].sum()) <= max_nodes:
            low, best, step = middle, tried, 2 * step
        else:
            high = middle
            whole = whole if cut.held is None else cut.parts
    return best


def _strong(
    rows: EdgeRows,
    weights: Float[Tensor, " target"],
    cut: Cut,
    share: float,
    max_edges: int | None,
) -> Edges:
    """The edges of a cut along which the most influence passes, renormalised to it."""
    mass = torch.zeros(len(rows.index), dtype=torch.float64)
    mass[rows.index.first_target :] = weights.double()
    scored = _scored(cut, mass)
    bracket = bracketed((scores for _, scores in scored()), share, max_edges)
    low = bracket.capped
    if low <= bracket.low:
        low = bracket.settle(torch.cat([mass[:0], *(bracket.within(s) for _, s in scored())]))
    strong, strength = _at_least(max(low, SMALLEST), scored(), max_edges is not None)
    if max_edges is not None and len(strength) > max_edges:
        strong = _at(strong, strength.topk(max_edges).indices.sort().values)
    return strong


def _scored(
    cut: Cut, mass: Float[Tensor, " node"]
) -> Callable[[], Iterable[tuple[Sheet, Float[Tensor, " entry"]]]]:
    """What passes along the edges of a cut, renormalised to it, a sheet at a time.

    Args:
        mass: (n_nodes,) what each node counts by itself; what arrives is added.

    Returns:
        a pass over the sheets, from the top layer down; scores of a sheet that is not the only
        one are overwritten by those of the next.
    """
    factors: list[Tensor] = []
    room, n_sheets = torch.empty(0, dtype=torch.float64), 0
    for sheet in cut.sheets():
        if len(sheet.values) > len(room):
            room = room_for(len(sheet.values), torch.float64)
        for part, scores in sheet.spread(room):
            scores.copy_(part.block.values).abs_()
            factor = mass.index_select(0, part.block.rows)
            factor.div_(scores.sum(1).clamp_(min=LEAST))
            mass.index_add_(0, part.sources, torch.mv(scores.T, factor))
            factors.append(factor[:, None])
            scores.mul_(factors[-1])
        n_sheets += 1
    if n_sheets == 1:
        only = [(sheet, room)]
        return lambda: only

    def again() -> Iterator[tuple[Sheet, Float[Tensor, " entry"]]]:
        known = iter(factors)
        for sheet in cut.sheets():
            for part, scores in sheet.spread(room):
                scores.copy_(part.block.values).abs_().mul_(next(known))
            yield sheet, room[: len(sheet.values)]

    return again


def _at_least(
    low: float, scored: Iterable[tuple[Sheet, Float[Tensor, " entry"]]], telling: bool
) -> tuple[Edges, Float[Tensor, " edge"]]:
    """Edges with a score from `low` up, by target and source; and their scores where `telling`."""
    pieces = []
    for sheet, scores in scored:
        places = (scores.numpy() >= low).nonzero()[0]
        strength = torch.from_numpy(scores.numpy().take(places if telling else places[:0]))
        pieces.append((*sheet.edges(places), strength))
    if not pieces:
        none = torch.empty(0, dtype=torch.long)
        return Edges(none, none, none.float()), none.double()
    columns = zip(*reversed(pieces), strict=True)
    targets, sources, weights, strength = pieces[0] if len(pieces) == 1 else map(torch.cat, columns)
    if (targets[1:] < targets[:-1]).any():  # targets at several positions take turns
        order = targets.argsort(stable=True)
        targets, sources, weights = (a[order] for a in (targets, sources, weights))
        strength = strength[order] if telling else strength
    return Edges(targets, sources, weights), strength


def _connected(rows: EdgeRows, nodes: Bool[Tensor, " node"], edges: Edges) -> _Outcome:
    """Drop nodes without an edge on the side they need, and their edges, until nothing changes."""
    index = rows.index
    while True:
        gives, takes = torch.zeros(2, len(index), dtype=torch.bool)
        gives.numpy()[edges.sources.numpy()] = True
        takes[edges.targets.unique_consecutive()] = True
        gives[index.first_embedding :] = True
        takes[index.first_error :] = True
        left = nodes & gives & takes
        if torch.equal(left, nodes):
            return nodes, edges
        nodes = left
        ends = nodes.index_select(0, edges.sources), nodes.index_select(0, edges.targets)
        edges = _at(edges, _places(ends[0] & ends[1]))


def _at(edges: Edges, places: Int[Tensor, " edge"]) -> Edges:
    """Some of the edges, given their places in ascending order."""
    if len(places) == len(edges.weights):
        return edges
    return Edges(*(a.index_select(0, places) for a in edges))


def _places(mask: Bool[Tensor, " place"]) -> Int[Tensor, " true"]:
    """Where a mask holds; `nonzero`, by numpy at a tenth of the cost."""
    return torch.from_numpy(mask.numpy().nonzero()[0])
