"""Threshold selection in Triton: histograms of sixteen bins, four bits a pass, no atomics.

A program takes a run of one row, makes its scores, and compares each with all sixteen digits at
once; what it finds is a line of sums and a line of counts, and the lines are added up in order
afterwards. Four bits a pass because a compare for every bin is cheap next to reading the entry only
while bins are few.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from circuit_kernels import launch
from circuit_kernels.threshold_selection import Blocks, Selection, check, descend

DIGIT = 4
STEPS = 4
"""Tiles of one row that a program goes through."""


@triton.jit(do_not_specialize=["prefix", "shift"])
def _histogram(
    values, factors, sums, counts, prefix, shift, columns, row,
    ENTRIES: tl.constexpr, BINS: tl.constexpr, DIGIT_BITS: tl.constexpr, LENGTH: tl.constexpr,
):  # fmt: skip
    mine = tl.program_id(0).to(tl.int64)
    factor = tl.load(factors + mine)
    bins = tl.arange(0, BINS).to(tl.int64)
    total = tl.zeros((BINS,), dtype=tl.float64)
    number = tl.zeros((BINS,), dtype=tl.int32)
    start = tl.program_id(1).to(tl.int64) * LENGTH * ENTRIES
    for first in range(start, tl.minimum(start + LENGTH * ENTRIES, columns), ENTRIES):
        column = first + tl.arange(0, ENTRIES).to(tl.int64)
        entry = tl.load(values + mine * row + column, mask=column < columns, other=0.0)
        score = tl.abs(entry) * factor
        bits = score.to(tl.int32, bitcast=True).to(tl.int64)
        inside = (bits > 0) & ((bits >> (shift + DIGIT_BITS)) == prefix)
        digit = (bits >> shift) & (BINS - 1)
        match = inside[:, None] & (digit[:, None] == bins[None, :])
        total += tl.sum(tl.where(match, score.to(tl.float64)[:, None], 0.0), axis=0)
        number += tl.sum(match.to(tl.int32), axis=0)
    line = (mine * tl.num_programs(1) + tl.program_id(1)) * BINS
    tl.store(sums + line + bins, total)
    tl.store(counts + line + bins, number)


def threshold_selection(
    blocks: Blocks, share: float, tiles: launch.Tiles | None = None
) -> Selection:
    """As `circuit_kernels.threshold_selection.threshold_selection`."""
    check(blocks, share)
    blocks = [block for block in blocks if block[0].numel()]
    if not blocks:
        return Selection(0.0, 0, 0)
    device = blocks[0][0].device
    tiles = launch.tiles("threshold_selection", device) if tiles is None else tiles

    def histogram(prefix: int, shift: int) -> tuple[Tensor, Tensor]:
        sums = torch.zeros(1 << DIGIT, dtype=torch.float64, device=device)
        counts = torch.zeros(1 << DIGIT, dtype=torch.int64, device=device)
        for values, factors in blocks:
            rows, columns = values.shape
            grid = (rows, triton.cdiv(columns, STEPS * tiles["ENTRIES"]))
            lines = (grid[0] * grid[1], 1 << DIGIT)
            partial = torch.empty(lines, dtype=torch.float64, device=device)
            numbers = torch.empty(lines, dtype=torch.int32, device=device)
            _histogram[grid](
                values, factors, partial, numbers, prefix, shift, columns, values.stride(0),
                BINS=1 << DIGIT, DIGIT_BITS=DIGIT, LENGTH=STEPS, **tiles,
            )  # fmt: skip
            sums += partial.sum(0)
            counts += numbers.sum(0)
        return sums.cpu(), counts.cpu()

    with launch.on(device):
        return descend(histogram, DIGIT, share)
