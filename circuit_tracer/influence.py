"""THE MATHS (2): how much of the targets each node accounts for.

Edges are signed; influence is not. Divide every row by the sum of its absolute values and the
row says which *share* of its target each source accounts for. With N that matrix and w the weights
of the targets, the influence of all nodes is

    w^T B,   B = N + N^2 + ... = (I - N)^-1 - I.

The graph is a DAG ordered by layer, so one pass from the targets down gives this exactly: when a
row's turn comes, everything that flows into its target has arrived. No power iteration, no n x n
matrix; a block of rows is read once, in strips that stay in the processor's cache, and sums are
kept in float64.

Everything else follows from that pass. A row sends on all that arrives, so the mass that arrives
anywhere, summed, is the mean number of edges travelled. In a pruned graph what left along edges
that are no longer shown belongs to the error node of the same layer and position.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields
from itertools import groupby
from typing import Any, NamedTuple

import numpy as np
import torch

from circuit_tracer.edges import Block, EdgeRows
from circuit_tracer.errors import InputError
from circuit_tracer.nodes import NodeIndex
from circuit_tracer.shapes import Float, Int, Tensor
from circuit_tracer.sparse import SparseBlock

Array = np.ndarray[Any, Any]
STRIP = 2**17
"""Entries of a block converted to float64 at a time (1 MiB)."""
ROUNDING = 1e-12
"""What is left of a node's mass after subtracting all of it is at most this part of it."""
LEAST = 1e-300
"""What a row's sum is taken to be at least, so that rows of zeros pass nothing on."""


@dataclass(frozen=True, slots=True)
class Scores:
    """How much of the targets a graph explains. All are shares between 0 and 1 but the last.

    Influence that stops in a feature without inputs (it was not expanded) counts as error in
    `replacement` and `completeness`: with more rows both can only be found to be higher.

    Attributes:
        replacement: share of the influence on the targets that starts at embeddings.
        completeness: share of the inputs of features and targets, weighted by their influence,
            that does not come from errors.
        completeness_ct: completeness as circuit-tracer computes it, averaged over embeddings and
            errors too, which have no inputs and count as complete. For comparison only.
        error_share_by_layer: share of the influence that starts at the errors of each layer, with
            what was pruned there. The sum over layers, `replacement` and `unexpanded_share` are 1.
        unexpanded_share: share of the influence that stops in features without inputs.
        pruned_share: share of the influence that left along pruned edges; 0 for a full graph. Of a
            graph that was traced with `keep_edges` below 1, what left along the edges that were
            not stored: no node's influence can be short by more.
        mean_path_length: mean number of edges from where the influence starts to the targets.
    """

    replacement: float
    completeness: float
    completeness_ct: float
    error_share_by_layer: tuple[float, ...]
    unexpanded_share: float
    pruned_share: float
    mean_path_length: float

    def _repr_pretty_(self, printer: Any, cycle: bool) -> None:
        """In a notebook: to four digits, which is what anybody reads."""
        errors = ", ".join(f"{share:.4g}" for share in self.error_share_by_layer)
        named = (f"{f.name}={getattr(self, f.name):.4g}" for f in fields(self) if f.type == "float")
        printer.text(f"Scores({', '.join(named)}, error_share_by_layer=({errors}))")


class Edges(NamedTuple):
    """Some edges of a graph: (n,) node rows of their ends, ascending by (target, source), and
    their values."""

    targets: Int[Tensor, " edge"]
    sources: Int[Tensor, " edge"]
    weights: Float[Tensor, " edge"]


@dataclass(frozen=True, eq=False, slots=True)
class Flow:
    """What one descending pass over all rows finds, float64.

    Attributes:
        arriving: (n_nodes,) the influence of every node, w^T B.
        absolute: (n_nodes,) sum of |edges| of every row, dropped ones too; 0 where there is none.
        rows: (n_rows,) every node that has a row.
        by_layer: (n_rows, n_layers) sum of its |edges| by the layer of the source, dropped ones
            too; embeddings count to layer 0.
        dropped: (n_layers,) the influence that left along dropped edges, by the layer of the
            source: it arrives nowhere.
        n_edges: edges that are not zero and were not dropped.
    """

    arriving: Float[Tensor, " node"]
    absolute: Float[Tensor, " node"]
    rows: Int[Tensor, " target"]
    by_layer: Float[Tensor, "target layer"]
    dropped: Float[Tensor, " layer"]
    n_edges: int

    def shares(
        self, edges: Edges, nodes: Int[Tensor, " some"] | None = None
    ) -> Float[Tensor, " edge"]:
        """|weight| over the absolute sum of the target's row, float64.

        Args:
            nodes: the rows that the ends of the edges are places among; default all.
        """
        absolute = self.absolute if nodes is None else self.absolute[nodes]
        shares = np.empty(len(edges.weights))  # and never another as long: fresh memory is slow
        absolute.numpy().take(edges.targets.numpy(), out=shares, mode="clip")
        np.divide(plain(edges.weights), shares, out=shares)
        return torch.from_numpy(np.abs(shares, out=shares))


def flow(rows: EdgeRows, weights: Float[Tensor, " target"]) -> Flow:
    """One pass over all rows.

    A target's own weight is not part of its influence. Rows that are all zero pass nothing on.

    Args:
        rows: the edges.
        weights: (n_targets,) how much each target counts, usually its probability.
    """
    index, blocks = rows.index, rows.descending()
    mass, dropped = _own(rows, weights).numpy(), np.zeros(index.n_layers)
    row = torch.cat([torch.empty(0, dtype=torch.long), *(block.rows for block in blocks)])
    by_layer, sums = np.zeros((len(row), index.n_layers)), np.empty(len(row))
    room, n_edges, stop = np.empty(STRIP), 0, 0
    for layer, group in groupby(blocks, key=lambda block: block.layer):
        together = list(group)
        start, stop = stop, stop + sum(block.shape[0] for block in together)
        own, parts = mass.take(row.numpy()[start:stop]), by_layer[start:stop]
        sparse = _fill_dropped(together, parts)
        whole = parts.sum(1, out=sums[start:stop])
        runs, count = _pass_on(index, together, own, whole, mass, room)
        n_edges += count
        if sparse:
            dropped += (own / np.maximum(whole, LEAST)) @ parts
        parts[:, :layer] += runs[:, :layer] + runs[:, layer:-1]
        parts[:, 0] += runs[:, -1]
    mass[index.first_target :] = 0.0
    absolute = np.zeros(len(index))
    absolute[row.numpy()] = sums
    found = [torch.from_numpy(part) for part in (mass, absolute, by_layer, dropped)]
    return Flow(found[0], found[1], row, found[2], found[3], n_edges)


def influence(rows: EdgeRows, weights: Float[Tensor, " target"]) -> Float[Tensor, " node"]:
    """Influence of every node on the targets, w^T B, float64; arguments as in `flow`."""
    return flow(rows, weights).arriving


def scores(
    rows: EdgeRows,
    weights: Float[Tensor, " target"],
    shown: Edges | None = None,
    found: Flow | None = None,
    nodes: Int[Tensor, " some"] | None = None,
) -> Scores:
    """Scores of the full graph, or of a pruned one.

    Args:
        shown: the edges kept (`Kept.edges`). All other mass is merged into the error at its
            source's layer and position; that of a pruned edge from an embedding into the error of
            layer 0.
        found: the `flow` of all rows, where it is known already; then no row is read.
        nodes: the rows that the ends of the edges kept are places among; default all.
    """
    index = rows.index
    found = flow(rows, weights) if found is None else found
    arriving, hidden = found.arriving, found.dropped
    if shown is not None:
        arriving, hidden = _along(shown, nodes, index, _own(rows, weights), found)
    features, total_hidden = arriving[: index.n_features], float(hidden.sum())
    embeddings = float(arriving[index.first_embedding : index.first_target].sum())
    stopped = float(features[found.absolute[: index.n_features] == 0].sum())
    errors = arriving[index.first_error : index.first_embedding].reshape(index.n_layers, -1)
    by_layer = errors.sum(1) + hidden
    own, inside = float(weights.double().sum()), float(features.sum())
    into_errors, travelled = float(by_layer.sum()), float(arriving.sum()) + total_hidden
    ends = embeddings + stopped + into_errors
    return Scores(
        replacement=_share(embeddings, ends),
        completeness=_share(inside + embeddings, inside + own),
        completeness_ct=1 - _share(into_errors, travelled + own),
        error_share_by_layer=tuple(_share(mass, ends) for mass in by_layer.tolist()),
        unexpanded_share=_share(stopped, ends),
        pruned_share=_share(total_hidden, ends),
        mean_path_length=_share(travelled, ends),
    )


def cumulative(influence: Float[Tensor, " node"]) -> Float[Tensor, " node"]:
    """Share of all influence held by the nodes down to each node's rank; small means important."""
    falling, order = influence.double().sort(descending=True, stable=True)
    result = torch.zeros_like(falling)
    result[order] = falling.cumsum(0) / falling.sum().clamp(min=torch.finfo(falling.dtype).tiny)
    return result


def strips(block: Block, room: Array | None = None) -> Iterator[tuple[slice, Array]]:
    """|values| of a block in float64, a strip of rows at a time; each overwrites the last.

    By numpy: between strips that fill the cache its small steps cost a third of torch's.

    Args:
        room: where to, for many blocks one after the other; used where a row fits.
    """
    n_rows, n_columns = block.shape
    step = max(1, min(n_rows, STRIP // max(1, n_columns)))
    if room is None or len(room) < step * n_columns:
        room = np.empty(step * n_columns)
    room = room[: step * n_columns].reshape(step, n_columns)
    values = None if isinstance(block, SparseBlock) else plain(block.values)
    for start in range(0, n_rows, step):
        span = slice(start, min(start + step, n_rows))
        some = room[: span.stop - start]
        if values is None:
            block.fill(span, torch.from_numpy(some))
            np.abs(some, out=some)
        else:
            np.abs(values[span], out=some)
        yield span, some


def plain(values: Float[Tensor, "..."]) -> Array:
    """As numpy holds them, which knows no bfloat16 and is slow with halves."""
    return (values.float() if values.element_size() < 4 else values).cpu().numpy()


def _own(rows: EdgeRows, weights: Float[Tensor, " target"]) -> Float[Tensor, " node"]:
    """What each node counts by itself: the weights of the targets."""
    index = rows.index
    if weights.shape != (index.n_targets,):
        raise InputError(
            f"this graph has {index.n_targets} targets, so as many weights are needed; "
            f"got a tensor of shape {tuple(weights.shape)}"
        )
    own = torch.zeros(len(index), dtype=torch.float64)
    own[index.first_target :] = weights.double()
    return own


def _fill_dropped(blocks: list[Block], parts: Array) -> bool:
    """Put what was dropped of the rows of some blocks, by layer, where there is zero; whether
    anything may have been."""
    sparse, stop = any(isinstance(block, SparseBlock) for block in blocks), 0
    for block in blocks if sparse else ():
        start, stop = stop, stop + block.shape[0]
        if isinstance(block, SparseBlock):
            parts[start:stop] = block.dropped.numpy()
    return sparse


def _pass_on(
    index: NodeIndex, blocks: list[Block], own: Array, sums: Array, mass: Array, room: Array
) -> tuple[Array, int]:
    """The blocks of one layer: what has arrived at their targets arrives at their sources.

    Args:
        own: (targets,) what has arrived.
        sums: (targets,) what was dropped of each row; the sum of what is there is added.
        mass: (n_nodes,) where what is sent is added.
        room: for `strips`.

    Returns:
        (targets, runs): sums of each row over the runs of its cone (`NodeIndex.runs`); and how
        many edges are not zero.
    """
    layer, n_edges, stop = blocks[0].layer, 0, 0
    runs = index.runs(layer, [block.position for block in blocks])
    parts, empty = np.empty((len(own), 2 * layer + 1)), runs[:, 1:] == runs[:, :-1]
    sources = _Sources(index, layer, mass)
    lacking = empty.any(1).tolist()
    for number, (block, starts) in enumerate(zip(blocks, runs[:, :-1], strict=True)):
        sent = room[:0]
        for span, absolute in strips(block, room):
            start, stop = stop, stop + len(absolute)
            n_edges += _count(absolute)
            here = np.add.reduceat(absolute, starts, axis=1, out=parts[start:stop])
            if lacking[number]:
                here[:, empty[number]] = 0.0  # where `reduceat` has put the entry that follows
            whole = sums[start:stop]
            whole += np.add.reduce(here, 1)
            per_unit = own[start:stop] / np.maximum(whole, LEAST)
            some = np.einsum("t,ts->s", per_unit, absolute)
            sent = sent + some if span.start else some
        sources.add(sent, starts.tolist(), block.position)
    return parts, n_edges


class _Sources:
    """What has arrived at the nodes that targets at a layer receive edges from, run by run: adding
    to views of it costs less than adding by a list of columns."""

    def __init__(self, index: NodeIndex, layer: int, mass: Array) -> None:
        firsts = index.offsets[: layer * index.n_positions : index.n_positions]
        self.features = [mass[first:] for first in firsts.tolist()]
        errors = mass[index.first_error : index.first_embedding]
        self.errors = errors.reshape(index.n_layers, -1)[:layer]
        self.embeddings = mass[index.first_embedding :]

    def add(self, sent: Array, starts: list[int], position: int) -> None:
        """Add what the targets at a position send, given where its runs start."""
        for features, start, stop in zip(self.features, starts, starts[1:], strict=False):
            here = features[: stop - start]
            here += sent[start:stop]
        start, stop = starts[len(self.errors)], starts[-1]
        errors, embeddings = self.errors[:, : position + 1], self.embeddings[: position + 1]
        errors += sent[start:stop].reshape(errors.shape)
        embeddings += sent[stop:]


def _count(absolute: Array) -> int:
    """Entries that are not zero; where none is, the least says so at half the cost of counting."""
    flat = absolute.reshape(-1)
    if len(flat) and np.minimum.reduce(flat) > 0:
        return len(flat)
    return int(np.count_nonzero(flat))


def _along(
    shown: Edges,
    nodes: Int[Tensor, " some"] | None,
    index: NodeIndex,
    own: Float[Tensor, " node"],
    full: Flow,
) -> tuple[Float[Tensor, " node"], Float[Tensor, " layer"]]:
    """Influence along some edges alone, and by the source's layer what left along the others.

    The edges stand in the order of their targets, so those of each layer are one run.
    """
    nodes = torch.arange(len(index)) if nodes is None else nodes
    firsts = [index.feature_rows(layer).start for layer in range(index.n_layers)]
    targets, sources = shown.targets.numpy(), shown.sources.numpy()
    shares = full.shares(shown, nodes).numpy()
    places = nodes.numpy().searchsorted([*firsts, index.first_target])
    starts = targets.searchsorted(places).tolist()
    runs = [*zip(starts, [*starts[1:], len(targets)], strict=True)]
    room = np.empty(max(stop - start for start, stop in runs))
    found = own[nodes].numpy()
    for start, stop in reversed(runs):
        passed = found.take(targets[start:stop], out=room[: stop - start], mode="clip")
        passed *= shares[start:stop]
        found += np.bincount(sources[start:stop], passed, len(found))
    mass = own.index_copy(0, nodes, torch.from_numpy(found))
    per_unit = mass.index_select(0, full.rows)
    per_unit /= full.absolute.index_select(0, full.rows).clamp_(min=LEAST)
    sent, mass = per_unit @ full.by_layer, mass - own
    layers = index.layers.clamp(0, index.n_layers - 1)
    rest = sent - torch.zeros_like(sent).index_add_(0, layers, mass)
    return mass, rest.where(rest > ROUNDING * sent, 0.0)


def _share(part: float, whole: float) -> float:
    return part / whole if whole > 0 else 0.0
