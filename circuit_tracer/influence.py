"""THE MATHS (2): how much of the targets each node accounts for.

Edges are signed; influence is not. Divide every row by the sum of its absolute values and the
row says which *share* of its target each source accounts for. With N that matrix and w the weights
of the targets, the influence of all nodes is

    w^T B,   B = N + N^2 + ... = (I - N)^-1 - I.

The graph is a DAG ordered by layer, so one pass from the targets down gives this exactly: when a
row's turn comes, everything that flows into its target has arrived. No power iteration, no n x n
matrix; a block of rows is read once, in strips, and sums are kept in float64.

The same pass carries the number of edges travelled, and, for a pruned graph, what left along edges
that are no longer shown: that mass belongs to the error node of the same layer and position.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

from circuit_tracer.edges import EdgeRows, RowBlock
from circuit_tracer.errors import InputError
from circuit_tracer.shapes import Bool, Float, Int, Tensor

STRIP = 2**23
"""Entries of a block converted to float64 at a time (64 MiB)."""
ROUNDING = 1e-12
"""What is left of a column after subtracting all of it is at most this part of it."""


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
        pruned_share: share of the influence that left along pruned edges; 0 for a full graph.
        mean_path_length: mean number of edges from where the influence starts to the targets.
    """

    replacement: float
    completeness: float
    completeness_ct: float
    error_share_by_layer: tuple[float, ...]
    unexpanded_share: float
    pruned_share: float
    mean_path_length: float


@dataclass(frozen=True, slots=True)
class _Flow:
    """What one descending pass finds. Row 0 of a pair is mass, row 1 mass x edges travelled."""

    arriving: Float[Tensor, "pair node"]
    hidden: Float[Tensor, "pair node"]
    has_inputs: Bool[Tensor, " node"]
    explained: float


def influence(rows: EdgeRows, weights: Float[Tensor, " target"]) -> Float[Tensor, " node"]:
    """Influence of every node on the targets, w^T B, float64.

    A target's own weight is not part of its influence. Rows that are all zero pass nothing on.

    Args:
        rows: the edges.
        weights: (n_targets,) how much each target counts, usually its probability.
    """
    return _descend(rows, weights).arriving[0]


def scores(
    rows: EdgeRows,
    weights: Float[Tensor, " target"],
    shown: Sequence[Int[Tensor, "2 edge"]] | None = None,
) -> Scores:
    """Scores of the full graph, or of a pruned one.

    Args:
        shown: the edges kept, for every block of `rows` a (2, n) tensor of places in its `values`
            (`Kept.edges`). All other mass is merged into the error at its source's layer and
            position; that of a pruned edge from an embedding into the error of layer 0.
    """
    index, flow = rows.index, _descend(rows, weights, shown)
    arriving, hidden = flow.arriving, flow.hidden
    embeddings = arriving[:, index.first_embedding : index.first_target].sum(1)
    stopped = arriving[:, : index.n_features][:, ~flow.has_inputs[: index.n_features]].sum(1)
    errors = arriving[:, index.first_error : index.first_embedding].reshape(2, index.n_layers, -1)
    by_layer = errors.sum(2)
    by_layer.index_add_(1, index.layers.clamp(0, index.n_layers - 1), hidden)
    ends, length = (embeddings + stopped + by_layer.sum(1)).tolist()
    own = float(weights.double().sum())
    inner = float(arriving[0, : index.n_features].sum()) + own
    everything = float(arriving[0].sum() + hidden[0].sum()) + own
    into_errors = float(by_layer[0].sum())
    return Scores(
        replacement=_share(float(embeddings[0]), ends),
        completeness=_share(flow.explained, inner),
        completeness_ct=1 - _share(into_errors, everything),
        error_share_by_layer=tuple(_share(mass, ends) for mass in by_layer[0].tolist()),
        unexpanded_share=_share(float(stopped[0]), ends),
        pruned_share=_share(float(hidden[0].sum()), ends),
        mean_path_length=_share(length, ends),
    )


def cumulative(influence: Float[Tensor, " node"]) -> Float[Tensor, " node"]:
    """Share of all influence held by the nodes down to each node's rank; small means important."""
    falling, order = influence.double().sort(descending=True, stable=True)
    result = torch.zeros_like(falling)
    result[order] = falling.cumsum(0) / falling.sum().clamp(min=torch.finfo(falling.dtype).tiny)
    return result


def strips(block: RowBlock) -> Iterator[tuple[slice, Float[Tensor, "target source"]]]:
    """|values| of a block in float64, a strip of rows at a time."""
    step = max(1, STRIP // max(1, block.values.shape[1]))
    for start in range(0, len(block.rows), step):
        span = slice(start, start + step)
        yield span, block.values[span].abs().double()


def _descend(
    rows: EdgeRows,
    weights: Float[Tensor, " target"],
    shown: Sequence[Int[Tensor, "2 edge"]] | None = None,
) -> _Flow:
    index = rows.index
    if weights.shape != (index.n_targets,):
        raise InputError(
            f"this graph has {index.n_targets} targets, so as many weights are needed; "
            f"got a tensor of shape {tuple(weights.shape)}"
        )
    arriving = torch.zeros(2, len(index), dtype=torch.float64)
    hidden = torch.zeros_like(arriving)
    own = torch.zeros(len(index), dtype=torch.float64)
    own[index.first_target :] = weights.double()
    has_inputs = torch.zeros(len(index), dtype=torch.bool)
    places = {id(block): places for block, places in zip(rows.blocks, shown or (), strict=False)}
    explained = 0.0
    for block in rows.descending():
        columns = rows.columns(block)
        errors = (columns >= index.first_error) & (columns < index.first_embedding)
        if shown is not None and not (arriving[0, block.rows] + own[block.rows]).any():
            continue  # none of these rows was kept
        for span, absolute in strips(block):
            targets, sums = block.rows[span], absolute.sum(1)
            has_inputs[targets] = sums > 0
            mass = arriving[0, targets] + own[targets]
            per_unit = torch.stack([mass, arriving[1, targets] + mass])
            per_unit = per_unit / sums.where(sums > 0, torch.inf)
            sent = per_unit @ absolute
            if shown is not None:
                edges = places[id(block)]
                row, column = edges[:, (edges[0] >= span.start) & (edges[0] < span.stop)]
                row = row - span.start
                kept = torch.zeros_like(sent)
                kept.index_add_(1, column, per_unit[:, row] * absolute[row, column])
                rest = sent - kept
                hidden[:, columns] += rest.where(rest > ROUNDING * sent, 0.0)
                sent = kept
            arriving[:, columns] += sent
            explained += float(sent[0, ~errors].sum())
    return _Flow(arriving, hidden, has_inputs, explained)


def _share(part: float, whole: float) -> float:
    return part / whole if whole > 0 else 0.0
