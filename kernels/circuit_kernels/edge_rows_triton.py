"""Edge rows in Triton: one grouped matrix product for all positions in one launch.

The reference launches one product a position, most of them too small to fill a GPU. Here a
program is one tile of (sources of a position × targets); the host lists the tiles, so ragged
positions cost nothing. Sums are in float32 and in a fixed order: the result is deterministic.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from circuit_kernels.edge_rows import check

BLOCK_SOURCES, BLOCK_TARGETS, BLOCK_WIDTH = 64, 64, 32


@triton.jit
def _kernel(
    gradient, vectors, out, tiles, width, targets, g_position, g_width, v_row, o_row,
    SOURCES: tl.constexpr, TARGETS: tl.constexpr, WIDTH: tl.constexpr, EXACT: tl.constexpr,
):  # fmt: skip
    tile = tl.program_id(0)
    position = tl.load(tiles + 3 * tile).to(tl.int64)
    first = tl.load(tiles + 3 * tile + 1).to(tl.int64)
    stop = tl.load(tiles + 3 * tile + 2).to(tl.int64)
    rows = first + tl.arange(0, SOURCES).to(tl.int64)
    columns = tl.program_id(1).to(tl.int64) * TARGETS + tl.arange(0, TARGETS).to(tl.int64)
    inside = (rows < stop)[:, None] & (columns < targets)[None, :]
    total = tl.zeros((SOURCES, TARGETS), dtype=tl.float32)
    for start in range(0, width, WIDTH):
        depth = start + tl.arange(0, WIDTH).to(tl.int64)
        a = tl.load(
            vectors + rows[:, None] * v_row + depth[None, :],
            mask=(rows < stop)[:, None] & (depth < width)[None, :],
            other=0.0,
        )
        b = tl.load(
            gradient + position * g_position + depth[:, None] * g_width + columns[None, :],
            mask=(depth < width)[:, None] & (columns < targets)[None, :],
            other=0.0,
        )
        total += tl.dot(a, b, input_precision="ieee" if EXACT else "tf32")
    where = out + rows[:, None] * o_row + columns[None, :]
    before = tl.load(where, mask=inside, other=0.0)
    tl.store(where, before + total, mask=inside)


def edge_rows(
    gradient: Tensor, vectors: Tensor, starts: Sequence[int], out: Tensor, exact: bool = True
) -> None:
    """As `circuit_kernels.edge_rows.edge_rows`; `exact=False` allows tf32 products on a GPU."""
    check(gradient, vectors, starts, out)
    if gradient.stride(2) != 1 or vectors.stride(1) != 1 or out.stride(1) != 1:
        raise ValueError("gradient, vectors and out must be contiguous in their last axis")
    tiles = [
        (position, row, stop)
        for position, (first, stop) in enumerate(zip(starts, starts[1:], strict=False))
        for row in range(first, stop, BLOCK_SOURCES)
    ]
    if not tiles or out.shape[1] == 0:
        return
    grid = (len(tiles), triton.cdiv(out.shape[1], BLOCK_TARGETS))
    _kernel[grid](
        gradient, vectors, out,
        torch.tensor(tiles, dtype=torch.int32, device=out.device),
        gradient.shape[1], out.shape[1],
        gradient.stride(0), gradient.stride(1), vectors.stride(0), out.stride(0),
        SOURCES=BLOCK_SOURCES, TARGETS=BLOCK_TARGETS, WIDTH=BLOCK_WIDTH, EXACT=exact,
    )  # fmt: skip
