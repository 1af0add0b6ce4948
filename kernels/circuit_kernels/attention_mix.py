"""Attention mix: the causal middle of one frozen attention step on gradients.

    out[k, j, :] = Σ_{h in group j} Σ_{q ≥ k} pattern[h, q, k] · read[q, h, :]

`read` is what each head's output projection makes of the gradient at its queries; the pattern, with
the norms' scales folded in, carries it to the keys, and the query heads that share a key-value head
are summed. The projections before and after are plain products. What is special here is that half
of the pattern is above the diagonal, and that a group's sum needs no place in between.
"""

from __future__ import annotations

import torch
from torch import Tensor


def check(read: Tensor, pattern: Tensor, out: Tensor) -> None:
    """Raise ValueError unless the shapes belong together; see `attention_mix`."""
    if read.ndim != 3 or out.ndim != 3 or out.shape[0] != read.shape[0]:
        raise ValueError(
            "read must be (positions, heads, columns) and out (positions, kv_heads, columns), "
            f"got {tuple(read.shape)} and {tuple(out.shape)}"
        )
    positions, heads, columns = read.shape
    if out.shape[2] != columns or out.shape[1] < 1 or heads % out.shape[1]:
        raise ValueError(
            f"out must be ({positions}, a divisor of {heads}, {columns}), got {tuple(out.shape)}"
        )
    if pattern.shape[0] != heads or min(pattern.shape[1:]) < positions:
        raise ValueError(
            f"pattern must be ({heads}, {positions} or more, the same), got {tuple(pattern.shape)}"
        )


def attention_mix(read: Tensor, pattern: Tensor, out: Tensor) -> None:
    """Carry gradients from queries to keys, in every head; overwrites `out`.

    Args:
        read: (positions, heads, columns), columns = head_dim × targets.
        pattern: (heads, P, P), P ≥ positions, [query, key]; zero where key > query.
        out: (positions, kv_heads, columns); query heads j · heads / kv_heads and those after it
            belong to key-value head j.

    Raises:
        ValueError: shapes that do not belong together.
    """
    check(read, pattern, out)
    positions, heads, columns = read.shape
    kv = out.shape[1]
    by_group = read.view(positions, kv, heads // kv, columns)
    turned = pattern[:, :positions, :positions].transpose(1, 2)
    turned = turned.view(kv, heads // kv, positions, positions)
    into = out.transpose(0, 1)
    positions_last = into.mT.is_contiguous()  # the result is written as it lies in memory
    for member in range(heads // kv):
        part, weights = by_group[:, :, member].transpose(0, 1), turned[:, member]
        beta = float(member > 0)
        if positions_last:
            torch.baddbmm(into.mT, part.mT, weights.mT, beta=beta, out=into.mT)
        else:
            torch.baddbmm(into, weights, part, beta=beta, out=into)
