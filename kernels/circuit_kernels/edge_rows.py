"""Edge rows: source vectors against gradients, position by position.

    out[i, t] += vectors[i] · gradient[p(i), :, t]        p(i) = position of source i

Sources come sorted by position, so this is one matrix product a position. It is where most entries
of an attribution matrix come from.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor


def check(gradient: Tensor, vectors: Tensor, starts: Sequence[int], out: Tensor) -> None:
    """Raise ValueError unless the shapes belong together; see `edge_rows`."""
    positions, width, targets = gradient.shape
    if len(starts) != positions + 1 or starts[0] != 0 or list(starts) != sorted(starts):
        raise ValueError(f"starts must rise from 0 in {positions + 1} steps, got {list(starts)}")
    if vectors.shape != (starts[-1], width):
        raise ValueError(f"vectors must be {(starts[-1], width)}, got {tuple(vectors.shape)}")
    if out.shape != (starts[-1], targets):
        raise ValueError(f"out must be {(starts[-1], targets)}, got {tuple(out.shape)}")


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
    for position, (first, stop) in enumerate(zip(starts, starts[1:], strict=False)):
        if stop > first:
            out[first:stop].addmm_(vectors[first:stop], gradient[position])
