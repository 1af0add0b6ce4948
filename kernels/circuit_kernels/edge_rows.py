"""Edge rows: source vectors against gradients, position by position.

    out[i, t] += vectors[i] · gradient[p(i), :, t]        p(i) = position of source i

Sources come sorted by position, so this is one matrix product a position. It is where most entries
of an attribution matrix come from. `edge_rows` takes the vectors as they are; `gathered_edge_rows`
reads them from a decoder table by feature id and scales them by activations, so that they are never
laid out, takes along what every position has one of (errors, embeddings, constants), and sums up
absolute values while the edges are at hand.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def check_starts(starts: Sequence[int], positions: int) -> None:
    """Raise ValueError unless `starts` are the offsets of so many positions."""
    if len(starts) != positions + 1 or starts[0] != 0 or list(starts) != sorted(starts):
        raise ValueError(f"starts must rise from 0 in {positions + 1} steps, got {list(starts)}")


def check(gradient: Tensor, vectors: Tensor, starts: Sequence[int], out: Tensor) -> None:
    """Raise ValueError unless the shapes belong together; see `edge_rows`."""
    positions, width, targets = gradient.shape
    check_starts(starts, positions)
    if vectors.shape != (starts[-1], width):
        raise ValueError(f"vectors must be {(starts[-1], width)}, got {tuple(vectors.shape)}")
    if out.shape != (starts[-1], targets):
        raise ValueError(f"out must be {(starts[-1], targets)}, got {tuple(out.shape)}")


def check_gathered(
    gradient: Tensor,
    table: Tensor,
    ids: Tensor,
    activations: Tensor,
    starts: Sequence[int],
    out: Tensor,
    beside: Tensor | None,
    beside_out: Tensor | None,
    sums: Tensor | None,
) -> None:
    """Raise ValueError unless the shapes belong together; see `gathered_edge_rows`."""
    positions, width, targets = gradient.shape
    check_starts(starts, positions)
    if table.ndim != 2 or table.shape[1] != width:
        raise ValueError(f"table must be (features, {width}), got {tuple(table.shape)}")
    if (beside is None) != (beside_out is None):
        raise ValueError("beside and beside_out must come together")
    wanted = {
        "ids": (ids, (starts[-1],)),
        "activations": (activations, (starts[-1],)),
        "out": (out, (starts[-1], targets)),
    }
    if beside is not None and beside_out is not None:
        rows = beside.shape[1]
        wanted["beside"] = (beside, (positions, rows, width))
        wanted["beside_out"] = (beside_out, (positions, rows, targets))
    if sums is not None:
        wanted["sums"] = (sums, (targets,))
    for name, (tensor, shape) in wanted.items():
        if tensor.shape != shape:
            raise ValueError(f"{name} must be {shape}, got {tuple(tensor.shape)}")


def edge_rows(gradient: Tensor, vectors: Tensor, starts: Sequence[int], out: Tensor) -> None:
    """Add the edges from `vectors` to every target into `out`, in place.

    Args:
        gradient: (positions, d_model, targets).
        vectors: (sources, d_model), sorted by position.
        starts: positions + 1 offsets; sources of position p are starts[p]:starts[p + 1].
        out: (sources, targets).

    Raises:
        ValueError: shapes that do not belong together.
    """
    check(gradient, vectors, starts, out)
    counts = [stop - first for first, stop in zip(starts, starts[1:], strict=False)]
    here = zip(out.split(counts), vectors.split(counts), gradient.unbind(), strict=True)
    for edges, sources, gradients in here:
        if len(sources):
            edges.addmm_(sources, gradients)


def gathered_edge_rows(
    gradient: Tensor,
    table: Tensor,
    ids: Tensor,
    activations: Tensor,
    starts: Sequence[int],
    out: Tensor,
    beside: Tensor | None = None,
    beside_out: Tensor | None = None,
    counted: int | None = None,
    sums: Tensor | None = None,
) -> None:
    """Add the edges from active features, and from what stands beside them, in place.

        out[i, t]           += activations[i] · table[ids[i]] · gradient[p(i), :, t]
        beside_out[p, j, t] += beside[p, j] · gradient[p, :, t]
        sums[t]             += Σ_i |out[i, t]| + Σ_p Σ_{j < counted} |beside_out[p, j, t]|

    `sums` adds up what stands in the outputs afterwards: pass it with the last contribution to an
    edge, which for a cross-layer transcoder is that of a feature's own layer.

    Args:
        gradient: (positions, d_model, targets).
        table: (features, d_model) decoder rows, of any float dtype.
        ids: (sources,) int64 rows of `table`, sorted by position.
        activations: (sources,).
        starts: positions + 1 offsets; sources of position p are starts[p]:starts[p + 1].
        out: (sources, targets).
        beside: (positions, rows, d_model) vectors that every position has, or None.
        beside_out: (positions, rows, targets), where `beside` is given.
        counted: how many of the rows beside are edges and count in `sums`; None for all.
        sums: (targets,) absolute sums of the edges of each target, or None.

    Raises:
        ValueError: shapes that do not belong together.
    """
    check_gathered(gradient, table, ids, activations, starts, out, beside, beside_out, sums)
    for position, (first, stop) in enumerate(zip(starts, starts[1:], strict=False)):
        if stop > first:
            rows = table.index_select(0, ids[first:stop].to(table.device)).to(gradient)
            rows *= activations[first:stop, None]
            out[first:stop].addmm_(rows, gradient[position])
    if beside is not None and beside_out is not None:
        beside_out.baddbmm_(beside.to(gradient), gradient)
    if sums is not None:
        sums += torch.linalg.vector_norm(out, ord=1, dim=0)
        if beside_out is not None:
            sums += torch.linalg.vector_norm(beside_out[:, :counted], ord=1, dim=(0, 1))
