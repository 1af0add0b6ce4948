"""Attention mix in Triton: half of the reference's operations, and one pass over the output.

A program is one tile of (keys × columns) of one key-value head. It goes through the queries from
its first key on, for each query head of the group in turn, and keeps the sum in float32 (float64
for float64): what lies above the diagonal is never read, and the group is summed as it is made.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from circuit_kernels import launch
from circuit_kernels.attention_mix import check


@triton.jit
def _kernel(
    read, pattern, out, positions, columns, group,
    r_query, r_head, r_column, p_head, p_query, p_key, o_key, o_head, o_column,
    KEYS: tl.constexpr, COLUMNS: tl.constexpr, DEPTH: tl.constexpr,
    PRECISION: tl.constexpr, SUM: tl.constexpr,
):  # fmt: skip
    head, first = tl.program_id(2).to(tl.int64), tl.program_id(1) * KEYS
    keys = first + tl.arange(0, KEYS).to(tl.int64)
    column = tl.program_id(0).to(tl.int64) * COLUMNS + tl.arange(0, COLUMNS).to(tl.int64)
    total = tl.zeros((KEYS, COLUMNS), dtype=SUM)
    for member in range(0, group):
        mine = head * group + member
        for start in range(first, positions, DEPTH):
            query = start + tl.arange(0, DEPTH).to(tl.int64)
            across = query[:, None] * r_query + column[None, :] * r_column
            b = tl.load(
                read + mine * r_head + across,
                mask=(query < positions)[:, None] & (column < columns)[None, :],
                other=0.0,
            )
            a = tl.load(
                pattern + mine * p_head + query[None, :] * p_query + keys[:, None] * p_key,
                mask=(query < positions)[None, :] & (query[None, :] >= keys[:, None]),
                other=0.0,
            ).to(b.dtype)
            total = tl.dot(a, b, total, input_precision=PRECISION)
    tl.store(
        out + keys[:, None] * o_key + head * o_head + column[None, :] * o_column,
        total,
        mask=(keys < positions)[:, None] & (column < columns)[None, :],
    )


def attention_mix(
    read: Tensor,
    pattern: Tensor,
    out: Tensor,
    exact: bool | None = None,
    tiles: launch.Tiles | None = None,
) -> None:
    """As `circuit_kernels.attention_mix.attention_mix`; `exact` as in `launch.precision`."""
    check(read, pattern, out)
    positions, heads, columns = read.shape
    if out.numel() == 0:
        return
    double = read.dtype == torch.float64
    tiles = launch.tiles("attention_mix", out.device, read.dtype, exact) if tiles is None else tiles
    kv = out.shape[1]
    grid = (triton.cdiv(columns, tiles["COLUMNS"]), triton.cdiv(positions, tiles["KEYS"]), kv)
    with launch.on(out.device):
        _kernel[grid](
            read, pattern, out, positions, columns, heads // kv,
            *read.stride(), *pattern.stride(), *out.stride(),
            PRECISION=launch.precision(exact),
            SUM=tl.float64 if double else tl.float32, **tiles,
        )  # fmt: skip
