"""Influence: pass the mass that reached some rows on to what they are made of.

    share[r, c]      = |values[r, c]| / Σ_c |values[r, c]|
    out[columns[c]] += Σ_r mass[r] · share[r, c]

One call for each block of rows, from the top layer down, gives the exact influence of every node:
when a block's turn comes, all that flows into its rows has arrived. A row that is all zero passes
nothing on. Sums are in float64, and a block is never converted as a whole.
"""

from __future__ import annotations

import torch
from torch import Tensor

STRIP = 2**20
"""Entries of a block that the reference converts to float64 at a time."""


def check(values: Tensor, mass: Tensor, columns: Tensor, out: Tensor, sums: Tensor | None) -> None:
    """Raise ValueError unless the shapes belong together; see `influence`."""
    if values.ndim != 2 or columns.shape != values.shape[1:]:
        raise ValueError(
            "values must be (rows, columns) and columns as many, got "
            f"{tuple(values.shape)} and {tuple(columns.shape)}"
        )
    for name, tensor in (("mass", mass), ("sums", sums)):
        if tensor is not None and tensor.shape != values.shape[:1]:
            raise ValueError(f"{name} must be {tuple(values.shape[:1])}, got {tuple(tensor.shape)}")
    if out.ndim != 1 or out.dtype != torch.float64:
        raise ValueError(f"out must be (nodes,) float64, got {tuple(out.shape)} {out.dtype}")


def influence(
    values: Tensor, mass: Tensor, columns: Tensor, out: Tensor, sums: Tensor | None = None
) -> None:
    """Add what a block of rows passes on into `out`, in place.

    Args:
        values: (rows, columns) edges, of any float dtype.
        mass: (rows,) float64 influence of the rows and their own weight.
        columns: (columns,) int64 nodes of the columns, no node twice.
        out: (nodes,) float64.
        sums: (rows,) absolute sums of the rows, where they are known.

    Raises:
        ValueError: shapes that do not belong together.
    """
    check(values, mass, columns, out, sums)
    step = max(1, STRIP // max(1, values.shape[1]))
    for start in range(0, len(values), step):
        span = slice(start, start + step)
        absolute = values[span].abs().double()
        totals = absolute.sum(1) if sums is None else sums[span].double()
        out[columns] += factors(mass[span], totals) @ absolute


def factors(mass: Tensor, sums: Tensor) -> Tensor:
    """(rows,) float64 mass per unit of a row; zero for rows that are all zero."""
    sums = sums.double()
    return mass.double() / sums.where(sums > 0, torch.inf)
