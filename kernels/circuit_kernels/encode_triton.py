"""Encode in Triton: the encoder product and the compaction of active features in two passes.

A program computes one tile of (positions × features) and throws it away again. The first pass
counts the active features of every position in every tile; a running sum of the counts says where
each is to stand; the second pass computes the tiles again and writes them there. Positions come
first and tiles second in that sum, so what is written is in (position, id) order without a sort
and without atomics. For TopK a tile hands on no more than its own k largest, ties included, and
the k largest of those are taken afterwards.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from circuit_kernels import launch
from circuit_kernels.encode import Active, check, largest


@triton.jit
def _kernel(
    x, weight, bias, threshold, counts, stops, faults, cells, values,
    positions, features, width, k, x_row, w_row, w_column,
    POSITIONS: tl.constexpr, FEATURES: tl.constexpr, WIDTH: tl.constexpr, PRECISION: tl.constexpr,
    SUM: tl.constexpr, LEVELS: tl.constexpr, TOPK: tl.constexpr, WRITE: tl.constexpr,
):  # fmt: skip
    tile, tiles = tl.program_id(0), tl.num_programs(0)
    rows = tl.program_id(1).to(tl.int64) * POSITIONS + tl.arange(0, POSITIONS).to(tl.int64)
    columns = tile.to(tl.int64) * FEATURES + tl.arange(0, FEATURES).to(tl.int64)
    pre = tl.zeros((POSITIONS, FEATURES), dtype=SUM)
    for start in range(0, width, WIDTH):
        depth = start + tl.arange(0, WIDTH).to(tl.int64)
        a = tl.load(
            x + rows[:, None] * x_row + depth[None, :],
            mask=(rows < positions)[:, None] & (depth < width)[None, :],
            other=0.0,
        )
        b = tl.load(
            weight + columns[None, :] * w_row + depth[:, None] * w_column,
            mask=(columns < features)[None, :] & (depth < width)[:, None],
            other=0.0,
        ).to(a.dtype)
        pre = tl.dot(a, b, pre, input_precision=PRECISION)
    pre += tl.load(bias + columns, mask=columns < features, other=0.0).to(SUM)[None, :]
    inside = (rows < positions)[:, None] & (columns < features)[None, :]
    if LEVELS == 0:
        active = inside & (pre > 0)
    else:
        if LEVELS == 1:
            level = tl.load(threshold).to(SUM)
            active = inside & (pre > level) & (pre != 0)
        else:
            level = tl.load(threshold + columns, mask=columns < features, other=0.0).to(SUM)
            active = inside & (pre > level[None, :]) & (pre != 0)
    if TOPK:
        # The k-th largest of the tile, bit by bit: the bits of positive floats order as they do.
        bits = tl.where(active, pre, 0.0).to(tl.float32).to(tl.int32, bitcast=True)
        kth = tl.zeros((POSITIONS,), dtype=tl.int32)
        for step in range(0, 31):
            trial = kth + (1 << (30 - step))
            enough = tl.sum((bits >= trial[:, None]).to(tl.int32), axis=1) >= k
            kth = tl.where(enough, trial, kth)
        active = active & (bits >= kth[:, None])
    line = rows * tiles + tile
    if WRITE:
        rank = tl.cumsum(active.to(tl.int32), axis=1)
        mine = tl.load(counts + line, mask=rows < positions, other=0)
        before = tl.load(stops + line, mask=rows < positions, other=0) - mine
        where = before[:, None] + rank.to(tl.int64) - 1
        kept = active & (rank <= mine[:, None])  # nothing is ever written outside its place
        tl.store(cells + 2 * where, tl.broadcast_to(rows[:, None], active.shape), mask=kept)
        tl.store(cells + 2 * where + 1, tl.broadcast_to(columns[None, :], active.shape), mask=kept)
        tl.store(values + where, pre, mask=kept)
    else:
        tl.store(counts + line, tl.sum(active.to(tl.int32), axis=1), mask=rows < positions)
        fault = inside & ((pre != pre) | (tl.abs(pre) == float("inf")))
        tl.store(
            faults + tl.program_id(1) * tiles + tile,
            tl.max(tl.max(fault.to(tl.int32), axis=1), axis=0),
        )


def encode(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    threshold: Tensor | None = None,
    k: int | None = None,
    exact: bool | None = None,
    tiles: launch.Tiles | None = None,
) -> Active:
    """As `circuit_kernels.encode.encode`, all on one device; `exact` as in `launch.precision`."""
    check(x, weight, bias, threshold, k)
    (positions, width), features = x.shape, len(weight)
    if positions == 0 or features == 0:
        return Active(torch.empty(0, 2, dtype=torch.long, device=x.device), x.new_empty(0), True)
    x, bias = x.contiguous(), bias.to(x.device).contiguous()
    if weight.device != x.device:
        raise ValueError(f"weight must be on {x.device}, as x is, not on {weight.device}")
    threshold = None if threshold is None else threshold.to(x.device).contiguous()
    double = x.dtype == torch.float64
    tiles = launch.tiles("encode", x.device, x.dtype, exact) if tiles is None else tiles
    grid = (triton.cdiv(features, tiles["FEATURES"]), triton.cdiv(positions, tiles["POSITIONS"]))
    counts = torch.empty(positions, grid[0], dtype=torch.int32, device=x.device)
    faults = torch.empty(grid[::-1], dtype=torch.int32, device=x.device)

    def run(stops: Tensor, cells: Tensor, values: Tensor, write: bool) -> None:
        with launch.on(x.device):
            _kernel[grid](
                x, weight, bias, bias if threshold is None else threshold,
                counts, stops, faults, cells, values,
                positions, features, width, k or 0,
                x.stride(0), weight.stride(0), weight.stride(1),
                PRECISION=launch.precision(exact),
                SUM=tl.float64 if double else tl.float32,
                LEVELS=0 if threshold is None else 1 if threshold.numel() == 1 else 2,
                TOPK=k is not None and k < features, WRITE=write, **tiles,
            )  # fmt: skip

    run(counts, counts, counts, write=False)
    stops = counts.flatten().cumsum(0, dtype=torch.int64)
    active = int(stops[-1])
    cells = torch.empty(active, 2, dtype=torch.int64, device=x.device)
    values = x.new_empty(active)
    if active:
        run(stops, cells, values, write=True)
    if k is not None:
        cells, values = largest(cells, values, k)
    return Active(cells, values, not bool(faults.any()))
