"""Sparse decode: what the active features of each position write.

    out[p] += Σ_{i at p} activations[i] · table[ids[i]]

Only the decoder rows of active features are read, and each position's sum is made in the order in
which its features come: the same bits every time, unlike a scattered addition on a GPU.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from circuit_kernels.edge_rows import check_starts


def check(
    table: Tensor, ids: Tensor, activations: Tensor, starts: Sequence[int], out: Tensor
) -> None:
    """Raise ValueError unless the shapes belong together; see `sparse_decode`."""
    if out.ndim != 2 or table.ndim != 2 or table.shape[1] != out.shape[1]:
        raise ValueError(
            "table must be (features, d_model) and out (positions, d_model), got "
            f"{tuple(table.shape)} and {tuple(out.shape)}"
        )
    check_starts(starts, len(out))
    for name, tensor in (("ids", ids), ("activations", activations)):
        if tensor.shape != (starts[-1],):
            raise ValueError(f"{name} must be {(starts[-1],)}, got {tuple(tensor.shape)}")


def sparse_decode(
    table: Tensor, ids: Tensor, activations: Tensor, starts: Sequence[int], out: Tensor
) -> None:
    """Add what active features write into `out`, in place; once for each layer written to.

    Args:
        table: (features, d_model) decoder rows, of any float dtype; sums are in the dtype of out,
            float32 at least in the Triton form.
        ids: (active,) int64 rows of `table`, sorted by position.
        activations: (active,).
        starts: positions + 1 offsets; features of position p are starts[p]:starts[p + 1].
        out: (positions, d_model).

    Raises:
        ValueError: shapes that do not belong together.
    """
    check(table, ids, activations, starts, out)
    for position, (first, stop) in enumerate(zip(starts, starts[1:], strict=False)):
        if stop > first:
            rows = table.index_select(0, ids[first:stop].to(table.device)).to(out)
            out[position].addmv_(rows.T, activations[first:stop].to(out))
