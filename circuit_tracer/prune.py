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

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch

from circuit_tracer.cut import LARGEST, Cut, Part, Whole, between
from circuit_tracer.edges import EdgeRows
from circuit_tracer.errors import InputError
from circuit_tracer.influence import LEAST, Array, Edges, influence, plain
from circuit_tracer.shapes import Bool, Float, Int, Tensor
from circuit_tracer.threshold import Above, about, cutoff

NODES = 0.8
EDGES = 0.98
TIED = 1 - 1e-12
"""Scores this near a threshold have reached it. What passes along the only edge into a node and
along the only one out of it is the same, but not to the last bit."""

SAMPLE, NEAR = 2**15, 1.05
"""Edges of a sample, and how near to their threshold its own is thought to lie."""


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
    index, threshold = rows.index, TIED * cutoff(found.numpy(), share)
    inner = found.numpy()[: index.first_embedding]
    good = (inner >= threshold) & (inner > 0)
    expanded = np.zeros(index.n_features, dtype=bool)
    expanded[rows.rows.numpy()[: np.searchsorted(rows.rows.numpy(), index.n_features)]] = True
    good[: index.n_features] &= expanded
    chosen = good.nonzero()[0]
    return torch.from_numpy(chosen[(-inner[chosen]).argsort(kind="stable")])


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
    """The edges of a cut along which the most influence passes, renormalised to it.

    A sample of the scores says about where their threshold lies. Whether it was right is checked:
    what is kept does not depend on it. Passing over the cut once more takes less time than holding
    what the pass before has found: fresh memory is slow.
    """
    mass, per_unit = np.zeros((2, len(rows.index)))
    mass[rows.index.first_target :] = weights.numpy()
    every, most = max(1, cut.size // SAMPLE), math.inf if max_edges is None else max_edges
    sample, total = _passed(cut, mass, per_unit, every)
    guess = about(sample, every, share, total, most)
    low, count = _from(cut, per_unit, share * total if share < 1 else math.inf, most, guess)
    edges = _written(cut, _least(low, per_unit, cut.dtype), count)
    return _strongest(edges, per_unit, max_edges)


def _from(cut: Cut, per_unit: Array, wanted: float, most: float, guess: float) -> tuple[float, int]:
    """From which score up edges are kept, and how many there are at most.

    Args:
        wanted: what the scores are to sum to.
        most: how many are enough, whatever they sum to.
        guess: about where that is.
    """
    for low in (guess / NEAR, guess / NEAR**20, 0.0):
        found = _above(cut, per_unit, TIED * low, NEAR * guess)
        if not found.hold(wanted):
            found = _above(cut, per_unit, TIED * low, math.inf)
        score = found.reaching(wanted)
        if score >= low or found.count >= most:
            break
    return TIED * max(score, low), found.count


def _passed(cut: Cut, mass: Array, per_unit: Array, every: int) -> tuple[Array, float]:
    """Let what the targets of a cut count for pass along its edges, renormalised to it.

    Args:
        mass: (n_nodes,) what each node counts by itself; what arrives is added.
        per_unit: (n_nodes,) where is put what passes along an edge of each target by its |value|.
        every: of how many edges to return one.

    Returns:
        What passes along some edges, and along all together.
    """
    sample, total = [mass[:0]], 0.0
    for number, (part, absolute) in enumerate(_magnitudes(cut, np.dtype(np.float64))):
        sums = np.add.reduce(absolute, 1)
        factors = mass.take(part.targets) / np.maximum(sums, LEAST)
        total += float((factors * sums).sum())
        mass[part.sources] += np.einsum("t,ts->s", factors, absolute)
        per_unit[part.targets] = factors
        sample.append((absolute[:, number % every :: every] * factors[:, None]).reshape(-1))
    return np.concatenate(sample), total


def _above(cut: Cut, per_unit: Array, low: float, high: float) -> Above:
    """The scores above zero from one up; those from a higher one up are added, not held."""
    count, total, held = 0, 0.0, [per_unit[:0]]
    least = _least(low, per_unit, cut.dtype)
    for part, absolute in _magnitudes(cut):
        places = (absolute >= least.take(part.targets)[:, None]).reshape(-1).nonzero()[0]
        scores = per_unit.take(part.targets).repeat(part.counts(places))
        scores *= absolute.reshape(-1).take(places)
        count, total = count + len(scores), total + float(scores.sum())
        held.append(scores[scores < high])
    return Above(count, total, np.concatenate(held))


def _magnitudes(cut: Cut, dtype: np.dtype[Any] | None = None) -> Iterator[tuple[Part, Array]]:
    """Parts of a cut with their |values|, of their own type or another, which those of the next
    overwrite."""
    room = np.empty(0)
    for part in cut.parts():
        values = plain(part.values)
        if len(room) < values.size:
            room = np.empty(max(LARGEST, values.size), dtype or values.dtype)
        yield part, np.abs(values, out=room[: values.size].reshape(values.shape))


def _least(score: float, per_unit: Array, dtype: torch.dtype) -> Array:
    """(n_nodes,) the least |value| above zero, of the edges' own type, with which an edge of each
    target has a score: comparing with it picks edges without scoring them."""
    kind = plain(torch.empty(0, dtype=dtype)).dtype
    zero, one, infinity = np.array([0, 1, np.inf], kind)
    with np.errstate(all="ignore"):
        exact = score / per_unit
        rounded = exact.astype(kind)
        least = np.where(rounded < exact, np.nextafter(rounded, infinity), rounded)
    return np.maximum(least, np.nextafter(zero, one))


def _written(cut: Cut, least: Array, most: int) -> Edges:
    """The edges of a cut from some |value| of each target up, by target and source.

    Args:
        most: there are no more.
    """
    room = np.empty(most * (16 + cut.dtype.itemsize), dtype=np.uint8)  # one piece: large pages
    targets, sources = room[: 16 * most].view(np.int64).reshape(2, most)
    raw = room[16 * most :].view(f"i{cut.dtype.itemsize}")
    columns, start, order = (targets, sources, raw), most, []
    for part, absolute in _magnitudes(cut):
        places = (absolute >= least.take(part.targets)[:, None]).reshape(-1).nonzero()[0]
        start, stop = start - len(places), start
        part.write(places, *(column[start:stop] for column in columns))
        order.append(part.targets)
    ends = torch.from_numpy(targets[start:]), torch.from_numpy(sources[start:])
    weights = torch.from_numpy(raw[start:]).view(cut.dtype)
    edges, rows = Edges(*ends, weights), np.concatenate([targets[:0], *order[::-1]])
    if (rows[1:] < rows[:-1]).any():  # targets at several positions take turns
        return _at(edges, edges.targets.argsort(stable=True))
    return edges


def _strongest(edges: Edges, per_unit: Array, most: int | None) -> Edges:
    """At most so many of them, by what passes along each."""
    if most is None or len(edges.weights) <= most:
        return edges
    strength = torch.from_numpy(plain(edges.weights) * per_unit.take(edges.targets.numpy()))
    return _at(edges, strength.abs_().topk(most).indices.sort().values)


def _connected(rows: EdgeRows, nodes: Bool[Tensor, " node"], edges: Edges) -> _Outcome:
    """Drop nodes without an edge on the side they need, and their edges, until nothing changes."""
    index, every = rows.index, np.arange(len(rows.index) + 1)
    while True:
        gives = torch.from_numpy(np.bincount(edges.sources.numpy(), minlength=len(index)) > 0)
        takes = torch.from_numpy(np.diff(edges.targets.numpy().searchsorted(every)) > 0)
        gives[index.first_embedding :] = True
        takes[index.first_error :] = True
        left = nodes & gives & takes
        if torch.equal(left, nodes):
            return nodes, edges
        nodes = left
        ends = nodes.index_select(0, edges.sources), nodes.index_select(0, edges.targets)
        among = ends[0] & ends[1]
        edges = edges if among.all() else _at(edges, _places(among))


def _at(edges: Edges, places: Int[Tensor, " edge"]) -> Edges:
    """Some of the edges, given their places."""
    return Edges(*(a.index_select(0, places) for a in edges))


def _places(mask: Bool[Tensor, " place"]) -> Int[Tensor, " true"]:
    """Where a mask holds; `nonzero`, by numpy at a tenth of the cost."""
    return torch.from_numpy(mask.numpy().nonzero()[0])
