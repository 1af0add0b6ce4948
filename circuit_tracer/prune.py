"""Which nodes and edges are worth looking at.

First the nodes: the most influential ones until they hold a given share of all influence. Then the
edges between them, by the influence that passes along each, until they too hold a given share. Then
whatever hangs loose goes: a feature needs an edge in and an edge out, an error an edge out.
Embeddings and targets stay.

"Until they hold a share" is a threshold on values, so ties are kept together. Edges can be
hundreds of millions, so the threshold is found by selection (`cutoff`): four counting passes over
the bits of the scores give the very value that sorting them would.

A feature that was never expanded has no edges in, so it cannot stay and does not stand for choice;
like everything pruned its mass is merged into the error of its layer and position
(`influence.scores`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import torch

from circuit_tracer.edges import EdgeRows, RowBlock
from circuit_tracer.errors import InputError
from circuit_tracer.influence import influence, strips
from circuit_tracer.shapes import Bool, Float, Int, Tensor

NODES = 0.8
EDGES = 0.98


@dataclass(frozen=True, eq=False)
class Kept:
    """What pruning leaves.

    Attributes:
        nodes: (n_nodes,) True where a node is kept.
        edges: for every block of the rows, a (2, n) tensor of places in its `values`.
        node_threshold, edge_threshold: the shares that were asked for.
        max_nodes, max_edges: the caps that were asked for, None for none.
    """

    nodes: Bool[Tensor, " node"]
    edges: tuple[Int[Tensor, "2 edge"], ...]
    node_threshold: float
    edge_threshold: float
    max_nodes: int | None = None
    max_edges: int | None = None

    @property
    def n_nodes(self) -> int:
        return int(self.nodes.sum())

    @property
    def n_edges(self) -> int:
        return sum(places.shape[1] for places in self.edges)


@dataclass(frozen=True, slots=True)
class _Part:
    """A block cut to the nodes under consideration.

    Attributes:
        number: of the block among the rows' blocks.
        cut: what is left of it (the very values where that is all).
        sources: node rows of the columns left.
        rows, columns: places in the block's values of what is left.
    """

    number: int
    cut: RowBlock
    sources: Int[Tensor, " source"]
    rows: Int[Tensor, " target"]
    columns: Int[Tensor, " source"]


_Outcome = tuple[Bool[Tensor, " node"], tuple[Int[Tensor, "2 edge"], ...]]


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
    ranked = _ranked(rows, found, nodes)

    def keep(count: int) -> _Outcome:
        candidates = torch.zeros(len(rows.index), dtype=torch.bool)
        candidates[ranked[:count]] = True
        candidates[rows.index.first_embedding :] = True
        return _connected(rows, candidates, _strong(rows, weights, candidates, edges, max_edges))

    if max_nodes is None or len(ranked) <= max_nodes:
        kept = keep(len(ranked))
    else:
        kept = _largest(keep, max_nodes, len(ranked), rows.index.first_embedding)
    return Kept(*kept, nodes, edges, max_nodes, max_edges)


def cutoff(chunks: Callable[[], Iterable[Float[Tensor, " score"]]], share: float) -> float:
    """The score at which scores, summed from the largest down, first reach `share` of their sum.

    The value that sorting would give, without a sort: the bits of non-negative doubles order as
    the numbers do, so four passes over `chunks()` settle 16 bits each, by the sum of the scores
    in every bin. At share 1 every score counts: returns 0.

    Args:
        chunks: called for each pass; yields non-negative float64 tensors, the same each time.
        share: 0 to 1.
    """
    if share >= 1:
        return 0.0
    above, needed, prefix = 0.0, 0.0, 0
    for shift in (48, 32, 16, 0):
        bins = torch.zeros(2**16, dtype=torch.float64)
        for chunk in chunks():
            bits = chunk.view(torch.int64)
            if shift < 48:
                mine = (bits >> (shift + 16)) == prefix
                bits, chunk = bits[mine], chunk[mine]
            bins.index_add_(0, (bits >> shift) & 0xFFFF, chunk)
        if shift == 48:
            needed = share * float(bins.sum())
        filled = bins.nonzero()[:, 0].flip(0)
        if len(filled) == 0:
            return 0.0
        falling = above + bins[filled].cumsum(0)
        place = min(int((falling < needed).sum()), len(filled) - 1)
        above = float(falling[place - 1]) if place else above
        prefix = prefix << 16 | int(filled[place])
    return float(torch.tensor(prefix, dtype=torch.int64).view(torch.float64))


def _ranked(rows: EdgeRows, found: Float[Tensor, " node"], share: float) -> Int[Tensor, " node"]:
    """Expanded features and errors above the threshold on nodes, most influential first."""
    index, threshold = rows.index, cutoff(lambda: [found], share)
    inner = found[: index.first_embedding]
    good = (inner >= threshold) & (inner > 0)
    good[: index.n_features] &= torch.isin(torch.arange(index.n_features), rows.rows)
    order = inner.argsort(descending=True, stable=True)
    return order[good[order]]


def _largest(
    keep: Callable[[int], _Outcome], max_nodes: int, most: int, first_embedding: int
) -> _Outcome:
    """The result of `keep(count)` for the largest count, by doubling, then bisection, that fits."""
    low, high, step, best = max_nodes, most + 1, max_nodes, keep(max_nodes)
    while high - low > 1:
        middle = min(low + step, (low + high) // 2)
        tried = keep(middle)
        if int(tried[0][:first_embedding].sum()) <= max_nodes:
            low, best, step = middle, tried, 2 * step
        else:
            high = middle
    return best


def _parts(rows: EdgeRows, nodes: Bool[Tensor, " node"]) -> list[_Part]:
    """All blocks cut to `nodes`, from the top layer down; those with nothing left are left out."""
    parts = []
    numbers = {id(block): number for number, block in enumerate(rows.blocks)}
    for block in rows.descending():
        mine = nodes[block.rows].nonzero()[:, 0]
        if len(mine) == 0:
            continue
        columns = rows.columns(block)
        theirs = nodes[columns].nonzero()[:, 0]
        if len(theirs) == 0:
            continue
        whole = (len(mine), len(theirs)) == block.values.shape
        values = block.values if whole else block.values[mine[:, None], theirs]
        cut = RowBlock(block.layer, block.position, block.rows[mine], values)
        parts.append(_Part(numbers[id(block)], cut, columns[theirs], mine, theirs))
    return parts


def _strong(
    rows: EdgeRows,
    weights: Float[Tensor, " target"],
    nodes: Bool[Tensor, " node"],
    share: float,
    max_edges: int | None,
) -> list[tuple[_Part, Int[Tensor, "2 edge"]]]:
    """The edges between `nodes` along which the most influence passes, renormalised to them."""
    parts = _parts(rows, nodes)
    mass = torch.zeros(len(rows.index), dtype=torch.float64)
    mass[rows.index.first_target :] = weights.double()
    factors = []
    for part in parts:
        for span, absolute in strips(part.cut):
            sums = absolute.sum(1)
            factor = mass[part.cut.rows[span]] / sums.where(sums > 0, torch.inf)
            factors.append(factor)
            mass[part.sources] += factor @ absolute

    def scored() -> Iterator[tuple[int, slice, Float[Tensor, "target source"]]]:
        factor = iter(factors)
        for place, part in enumerate(parts):
            for span, absolute in strips(part.cut):
                yield place, span, absolute.mul_(next(factor)[:, None])

    threshold = cutoff(lambda: (scores.flatten() for _, _, scores in scored()), share)
    strong, strength = [], []
    for place, span, scores in scored():
        row, column = ((scores >= threshold) & (scores > 0)).nonzero(as_tuple=True)
        strong.append((parts[place], torch.stack([row + span.start, column])))
        strength.append(scores[row, column])
    if max_edges is None or sum(map(len, strength)) <= max_edges:
        return strong
    keep = torch.zeros(sum(map(len, strength)), dtype=torch.bool)
    keep[torch.cat(strength).topk(max_edges).indices] = True
    split = keep.split([len(scores) for scores in strength])
    return [(part, edges[:, mine]) for (part, edges), mine in zip(strong, split, strict=True)]


def _connected(
    rows: EdgeRows,
    nodes: Bool[Tensor, " node"],
    strong: list[tuple[_Part, Int[Tensor, "2 edge"]]],
) -> _Outcome:
    """Drop nodes without an edge on the side they need, and their edges, until nothing changes."""
    index = rows.index
    empty = [torch.empty(0, dtype=torch.long)]
    targets = torch.cat(empty + [part.cut.rows[edges[0]] for part, edges in strong])
    sources = torch.cat(empty + [part.sources[edges[1]] for part, edges in strong])
    alive = torch.ones_like(targets, dtype=torch.bool)
    while True:
        gives, takes = torch.zeros_like(nodes), torch.zeros_like(nodes)
        gives[sources[alive]] = True
        takes[targets[alive]] = True
        gives[index.first_embedding :] = True
        takes[index.first_error :] = True
        left = nodes & gives & takes
        if bool((left == nodes).all()):
            break
        nodes = left
        alive = alive & nodes[sources] & nodes[targets]
    places: list[list[Tensor]] = [[torch.empty(2, 0, dtype=torch.long)] for _ in rows.blocks]
    lengths = [edges.shape[1] for _, edges in strong]
    for (part, edges), mine in zip(strong, alive.split(lengths) if strong else (), strict=True):
        row, column = edges[:, mine]
        places[part.number].append(torch.stack([part.rows[row], part.columns[column]]))
    return nodes, tuple(torch.cat(pieces, 1) for pieces in places)
