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

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch

from circuit_tracer.cut import LARGEST, Cut, Part, Whole, between, bits
from circuit_tracer.edges import EdgeRows
from circuit_tracer.errors import InputError
from circuit_tracer.influence import LEAST, Array, Edges, influence, plain
from circuit_tracer.shapes import Bool, Float, Int, Tensor
from circuit_tracer.threshold import bracketed, cutoff

NODES = 0.8
EDGES = 0.98
SMALLEST = 5e-324
"""The smallest score that is not zero."""
TIED = 1 - 1e-12
"""Scores this near a threshold have reached it. What passes along the only edge into a node and
along the only one out of it is the same, but not to the last bit."""


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
        cut = Cut(whole, candidates.numpy(), dtype)
        strong = _strong(rows, weights, cut, edges, max_edges)
        return _connected(rows, candidates, strong), cut

    whole, dtype = partial(between, rows), rows.blocks[0].dtype if rows.blocks else torch.float32
    if max_nodes is None or len(ranked) <= max_nodes:
        kept = keep(len(ranked), whole)[0]
    else:
        kept = _largest(keep, whole, max_nodes, len(ranked), inner)
    return Kept(*kept, nodes, edges, max_nodes, max_edges)


def _ranked(rows: EdgeRows, found: Float[Tensor, " node"], share: float) -> Int[Tensor, " node"]:
    """Expanded features and errors above the threshold on nodes, most influential first."""
    index, threshold = rows.index, TIED * cutoff(lambda: [found], share)
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
            whole = whole if cut.held is None else cut.between
    return best


def _strong(
    rows: EdgeRows,
    weights: Float[Tensor, " target"],
    cut: Cut,
    share: float,
    max_edges: int | None,
) -> Edges:
    """The edges of a cut along which the most influence passes, renormalised to it."""
    mass, per_unit = np.zeros((2, len(rows.index)))
    mass[rows.index.first_target :] = weights.numpy()
    bracket = bracketed(_passing(cut, mass, per_unit), share, max_edges)
    low, picked, undecided = max(TIED * bracket.low, bracket.capped, SMALLEST), [], []
    for part, scores in _magnitudes(cut):
        scores *= per_unit.take(part.targets)[:, None]
        places = (scores.reshape(-1) >= low).nonzero()[0]
        found = scores.take(places)
        some = (found < bracket.high).nonzero()[0]
        picked.append(places)
        undecided.append((some, found[some]))
    if bracket.capped <= bracket.low:
        low = TIED * bracket.settle(
            torch.from_numpy(np.concatenate([mass[:0], *(s for _, s in undecided)]))
        )
        for number, (some, found) in enumerate(undecided):
            picked[number] = np.delete(picked[number], some[found < low])
    return _strongest(_written(cut, picked), per_unit, max_edges)


def _magnitudes(cut: Cut) -> Iterator[tuple[Part, Array]]:
    """Parts of a cut with their |values| in float64, which those of the next overwrite."""
    room = np.empty(LARGEST)
    for part in cut.parts():
        size = part.values.numel()
        if size > len(room):
            room = np.empty(size)
        absolute = room[:size].reshape(part.values.shape)
        yield part, np.abs(plain(part.values), out=absolute)


def _passing(cut: Cut, mass: Array, per_unit: Array) -> Iterator[Float[Tensor, " entry"]]:
    """What passes along the edges of a cut, renormalised to it, a part at a time.

    Args:
        mass: (n_nodes,) what each node counts by itself; what arrives is added.
        per_unit: (n_nodes,) where is put what passes along an edge of each target by its |value|.
    """
    for part, scores in _magnitudes(cut):
        factors = mass.take(part.targets) / np.maximum(scores.sum(1), LEAST)
        mass[part.sources] += np.einsum("t,ts->s", factors, scores)
        per_unit[part.targets] = factors
        scores *= factors[:, None]
        yield torch.from_numpy(scores)


def _written(cut: Cut, picked: list[Array]) -> Edges:
    """The edges at some places of each part, by target and source."""
    stop = sum(map(len, picked))
    ends, weights = np.empty((2, stop), dtype=np.int64), torch.empty(stop, dtype=cut.dtype)
    columns = *ends, bits(weights)
    for part, places in zip(cut.parts(), picked, strict=True):
        start = stop - len(places)
        part.write(places, *(column[start:stop] for column in columns))
        stop = start
    targets, sources = torch.from_numpy(ends)
    if (targets[1:] < targets[:-1]).any():  # targets at several positions take turns
        order = targets.argsort(stable=True)
        targets, sources, weights = (a[order] for a in (targets, sources, weights))
    return Edges(targets, sources, weights)


def _strongest(edges: Edges, per_unit: Array, most: int | None) -> Edges:
    """At most so many of them, by what passes along each."""
    if most is None or len(edges.weights) <= most:
        return edges
    strength = torch.from_numpy(plain(edges.weights) * per_unit.take(edges.targets.numpy()))
    return _at(edges, strength.abs_().topk(most).indices.sort().values)


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
