"""Sparse decode in Triton: a program is one position and one strip of d_model.

It reads the decoder rows of its position's features straight from the table, a few at a time, and
adds them up in float32 (float64 for float64) in the order they come: no atomics, no gathered copy.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from circuit_kernels import launch
from circuit_kernels.sparse_decode import check


@triton.jit
def _kernel(
    table, ids, activations, starts, out, width, t_row, o_row,
    ROWS: tl.constexpr, WIDTH: tl.constexpr, SUM: tl.constexpr,
):  # fmt: skip
    position = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1).to(tl.int64) * WIDTH + tl.arange(0, WIDTH).to(tl.int64)
    first, stop = tl.load(starts + position), tl.load(starts + position + 1)
    total = tl.zeros((WIDTH,), dtype=SUM)
    for start in range(first, stop, ROWS):
        place = start + tl.arange(0, ROWS).to(tl.int64)
        row = tl.load(ids + place, mask=place < stop, other=0).to(tl.int64)
        scale = tl.load(activations + place, mask=place < stop, other=0.0).to(SUM)
        part = tl.load(
            table + row[:, None] * t_row + columns[None, :],
            mask=(place < stop)[:, None] & (columns < width)[None, :],
            other=0.0,
        ).to(SUM)
        total += tl.sum(part * scale[:, None], axis=0)
    where = out + position * o_row + columns
    before = tl.load(where, mask=columns < width, other=0.0).to(SUM)
    tl.store(where, before + total, mask=columns < width)


def sparse_decode(
    table: Tensor,
    ids: Tensor,
    activations: Tensor,
    starts: Sequence[int],
    out: Tensor,
    tiles: launch.Tiles | None = None,
) -> None:
    """As `circuit_kernels.sparse_decode.sparse_decode`, all on one device."""
    check(table, ids, activations, starts, out)
    if out.numel() == 0 or starts[-1] == 0:
        return
    if table.stride(1) != 1 or out.stride(1) != 1:
        raise ValueError("table and out must be contiguous in their last axis")
    tiles = launch.tiles("sparse_decode", out.device) if tiles is None else tiles
    with launch.on(out.device):
        _kernel[(len(out), triton.cdiv(out.shape[1], tiles["WIDTH"]))](
            table, ids.contiguous(), activations.contiguous(),
            launch.offsets(tuple(starts), out.device), out,
            out.shape[1], table.stride(0), out.stride(0),
            SUM=tl.float64 if out.dtype == torch.float64 else tl.float32, **tiles,
        )  # fmt: skip
