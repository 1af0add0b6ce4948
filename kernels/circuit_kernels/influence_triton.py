"""Influence in Triton: absolute sums of the rows, then one pass down every strip of columns.

The first kernel adds up each row, strip by strip in order. In the second a program owns a strip of
columns and goes down the rows in order, so no two programs add to the same node and no atomics are
needed. Both sum in float64: the work is reading the block, not adding.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from circuit_kernels import launch
from circuit_kernels.influence import check, factors


@triton.jit
def _sum_rows(values, sums, rows, columns, row, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    mine = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS).to(tl.int64)
    total = tl.zeros((ROWS, COLUMNS), dtype=tl.float64)
    for start in range(0, columns, COLUMNS):
        column = start + tl.arange(0, COLUMNS).to(tl.int64)
        part = tl.load(
            values + mine[:, None] * row + column[None, :],
            mask=(mine < rows)[:, None] & (column < columns)[None, :],
            other=0.0,
        )
        total += tl.abs(part.to(tl.float64))
    tl.store(sums + mine, tl.sum(total, axis=1), mask=mine < rows)


@triton.jit
def _pass_on(
    values, factor, nodes, out, rows, columns, row, ROWS: tl.constexpr, COLUMNS: tl.constexpr
):
    column = tl.program_id(0).to(tl.int64) * COLUMNS + tl.arange(0, COLUMNS).to(tl.int64)
    total = tl.zeros((COLUMNS,), dtype=tl.float64)
    for start in range(0, rows, ROWS):
        mine = start + tl.arange(0, ROWS).to(tl.int64)
        part = tl.load(
            values + mine[:, None] * row + column[None, :],
            mask=(mine < rows)[:, None] & (column < columns)[None, :],
            other=0.0,
        )
        scale = tl.load(factor + mine, mask=mine < rows, other=0.0)
        total += tl.sum(tl.abs(part.to(tl.float64)) * scale[:, None], axis=0)
    node = tl.load(nodes + column, mask=column < columns, other=0).to(tl.int64)
    before = tl.load(out + node, mask=column < columns, other=0.0)
    tl.store(out + node, before + total, mask=column < columns)


def influence(
    values: Tensor,
    mass: Tensor,
    columns: Tensor,
    out: Tensor,
    sums: Tensor | None = None,
    tiles: launch.Tiles | None = None,
) -> None:
    """As `circuit_kernels.influence.influence`, all on one device."""
    check(values, mass, columns, out, sums)
    rows, width = values.shape
    if values.numel() == 0:
        return
    if values.stride(1) != 1 or out.stride(0) != 1:
        raise ValueError("values and out must be contiguous in their last axis")
    tiles = launch.tiles("influence", out.device) if tiles is None else tiles
    with launch.on(out.device):
        if sums is None:
            sums = torch.empty(rows, dtype=torch.float64, device=out.device)
            _sum_rows[(triton.cdiv(rows, tiles["ROWS"]),)](
                values, sums, rows, width, values.stride(0), **tiles
            )
        _pass_on[(triton.cdiv(width, tiles["COLUMNS"]),)](
            values, factors(mass, sums), columns.contiguous(), out,
            rows, width, values.stride(0), **tiles,
        )  # fmt: skip
