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
from typing import Any, NamedTuple

import numpy as np
import torch

from circuit_tracer.edges import Block, EdgeRows
from circuit_tracer.errors import InputError
from circuit_tracer.nodes import NodeIndex
from circuit_tracer.shapes import Float, Int, Tensor
from circuit_tracer.sparse import SparseBlock

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

    def shares(self, edges: Edges) -> Float[Tensor, " edge"]:
        """|weight| over the absolute sum of the target's row, float64."""
        sums = self.absolute.index_select(0, edges.targets)
        return torch.div(edges.weights.abs(), sums, out=sums)


def flow(rows: EdgeRows, weights: Float[Tensor, " target"]) -> Flow:
    """One pass over all rows.

    A target's own weight is not part of its influence. Rows that are all zero pass nothing on.

    Args:
        rows: the edges.
        weights: (n_targets,) how much each target counts, usually its probability.
    """
    index, mass, blocks = rows.index, _own(rows, weights), rows.descending()
    dropped = torch.zeros(index.n_layers, dtype=torch.float64)
    row = torch.cat([torch.empty(0, dtype=torch.long), *(block.rows for block in blocks)])
    by_layer = np.zeros((len(row), index.n_layers))
    sums, n_edges, start = np.empty(len(row)), 0, 0
    room = torch.empty(STRIP, dtype=torch.float64)
    for block in blocks:
        columns, here = rows.columns(block), mass.index_select(0, block.rows).numpy()
        sent = torch.zeros(len(columns), dtype=torch.float64)
        runs = index.runs(block.layer, block.position)
        for span, absolute in strips(block, room):
            whole = slice(start + span.start, start + span.stop)
            n_edges += _count(absolute.numpy())
            parts = np.add.reduceat(absolute.numpy(), runs[1], axis=1)
            parts.sum(1, out=sums[whole])
            _add_by_layer(parts, runs[0], block.layer, by_layer[whole])
            if isinstance(block, SparseBlock):
                by_layer[whole] += block.dropped[span].numpy()
                sums[whole] += block.dropped[span].sum(1).numpy()
            per_unit = torch.from_numpy(here[span] / np.maximum(sums[whole], LEAST))
            sent.addmv_(absolute.T, per_unit)
            if isinstance(block, SparseBlock):
                dropped.addmv_(block.dropped[span].T, per_unit)
        mass.index_add_(0, columns, sent)
        start += len(block.rows)
    mass[index.first_target :] = 0.0
    absolute = torch.zeros_like(mass).index_copy_(0, row, torch.from_numpy(sums))
    return Flow(mass, absolute, row, torch.from_numpy(by_layer), dropped, n_edges)


def influence(rows: EdgeRows, weights: Float[Tensor, " target"]) -> Float[Tensor, " node"]:
    """Influence of every node on the targets, w^T B, float64; arguments as in `flow`."""
    return flow(rows, weights).arriving


def scores(
    rows: EdgeRows,
    weights: Float[Tensor, " target"],
    shown: Edges | None = None,
    found: Flow | None = None,
    shares: Float[Tensor, " edge"] | None = None,
) -> Scores:
    """Scores of the full graph, or of a pruned one.

    Args:
        shown: the edges kept (`Kept.edges`). All other mass is merged into the error at its
            source's layer and position; that of a pruned edge from an embedding into the error of
            layer 0.
        found: the `flow` of all rows, where it is known already.
        shares: of the edges kept (`Flow.shares`), where they are known already.
    """
    index = rows.index
    found = flow(rows, weights) if found is None else found
    arriving, hidden = found.arriving, found.dropped
    if shown is not None:
        shares = found.shares(shown) if shares is None else shares
        arriving, hidden = _along(shown, shares, index, _own(rows, weights), found)
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


def strips(
    block: Block, room: Float[Tensor, " entry"] | None = None
) -> Iterator[tuple[slice, Float[Tensor, "target source"]]]:
    """|values| of a block in float64, a strip of rows at a time; each overwrites the last.

    Args:
        room: where to, for many blocks one after the other; used where a row fits.
    """
    n_rows, n_columns = block.shape
    step = max(1, min(n_rows, STRIP // max(1, n_columns)))
    if room is None or len(room) < step * n_columns:
        room = torch.empty(step * n_columns, dtype=torch.float64)
    room = room[: step * n_columns].view(step, n_columns)
    for start in range(0, n_rows, step):
        span = slice(start, min(start + step, n_rows))
        block.fill(span, room[: span.stop - start])
        yield span, room[: span.stop - start].abs_()


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


def _count(absolute: np.ndarray[Any, Any]) -> int:
    """Entries that are not zero; where none is, the least says so at half the cost of counting."""
    if absolute.size and absolute.min() > 0:
        return absolute.size
    return int(np.count_nonzero(absolute))


def _add_by_layer(
    sums: np.ndarray[Any, Any], layers: list[int], below: int, found: np.ndarray[Any, Any]
) -> None:
    """Sort sums over the runs of a cone (`NodeIndex.runs`) by the layer of the source."""
    found[:, layers] = sums[:, : len(layers)]
    found[:, :below] += sums[:, len(layers) : -1]
    found[:, 0] += sums[:, -1]


def _along(
    shown: Edges,
    shares: Float[Tensor, " edge"],
    index: NodeIndex,
    own: Float[Tensor, " node"],
    full: Flow,
) -> tuple[Float[Tensor, " node"], Float[Tensor, " layer"]]:
    """Influence along some edges alone, and by the source's layer what left along the others.

    The edges stand in the order of their targets, so those of each layer are one run.
    """
    firsts = [index.feature_rows(layer).start for layer in range(index.n_layers)]
    found = torch.searchsorted(shown.targets, torch.tensor([*firsts, index.first_target])).tolist()
    mass = own.clone()
    for start, stop in reversed([*zip(found, [*found[1:], len(shares)], strict=True)]):
        passed = mass.index_select(0, shown.targets[start:stop]).mul_(shares[start:stop])
        mass.scatter_add_(0, shown.sources[start:stop], passed)
    per_unit = mass.index_select(0, full.rows)
    per_unit /= full.absolute.index_select(0, full.rows).clamp_(min=LEAST)
    sent, mass = per_unit @ full.by_layer, mass - own
    layers = index.layers.clamp(0, index.n_layers - 1)
    rest = sent - torch.zeros_like(sent).index_add_(0, layers, mass)
    return mass, rest.where(rest > ROUNDING * sent, 0.0)


def _share(part: float, whole: float) -> float:
    return part / whole if whole > 0 else 0.0
