"""Threshold selection: the fewest entries of highest score that hold a share of all of it.

    score[r, c] = |values[r, c]| · factors[r]

What sorting all scores, adding them up from the highest and cutting where the share is reached
would give (the entry that reaches it is kept, equals are taken in order), without a sort: the bits
of non-negative floats order as the numbers do, so a few passes settle a few bits each, by the sum
of the scores in every bin. Scores are made anew in each pass and never kept. Their sums are in
float64; where the share is reached within rounding of an entry, that entry may fall to either side.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

Blocks = Sequence[tuple[Tensor, Tensor]]
Histogram = Callable[[int, int], tuple[Tensor, Tensor]]
STRIP = 2**20
"""Scores that the reference makes at a time."""
DIGIT = 16
"""Bits of a score that a pass of the reference settles."""


class Selection(NamedTuple):
    """Which entries were selected.

    Attributes:
        threshold: the score of the last one; every higher score is in.
        ties: how many of the scores equal to it are in, the first ones in order.
        kept: how many entries are in.
    """

    threshold: float
    ties: int
    kept: int


def check(blocks: Blocks, share: float) -> None:
    """Raise ValueError unless the shapes belong together; see `threshold_selection`."""
    if not 0 <= share <= 1:
        raise ValueError(f"share must be from 0 to 1, got {share}")
    for values, factors in blocks:
        if values.ndim != 2 or factors.shape != values.shape[:1]:
            raise ValueError(
                "a block must be values (rows, columns) and factors (rows,), got "
                f"{tuple(values.shape)} and {tuple(factors.shape)}"
            )
        if values.dtype != torch.float32 or factors.dtype != torch.float32:
            raise ValueError(
                f"values and factors must be float32, got {values.dtype} and {factors.dtype}"
            )


def threshold_selection(blocks: Blocks, share: float) -> Selection:
    """The smallest set of entries of highest score whose sum reaches a share of the total.

    An entry of score zero is never selected; a share of 1 selects all others.

    Args:
        blocks: (values (rows, columns), factors (rows,)) float32, finite, factors not negative. The
            order of entries is that of blocks, rows and columns.
        share: 0 to 1; 0 selects the highest entry.

    Raises:
        ValueError: shapes that do not belong together, a share outside 0 to 1.
    """
    check(blocks, share)

    def histogram(prefix: int, shift: int) -> tuple[Tensor, Tensor]:
        sums = torch.zeros(1 << DIGIT, dtype=torch.float64)
        counts = torch.zeros(1 << DIGIT, dtype=torch.int64)
        for score in _strips(blocks):
            bits = score.view(torch.int32).long()
            mine = (bits >> (shift + DIGIT) == prefix) & (bits > 0)
            digit = (bits[mine] >> shift & ((1 << DIGIT) - 1)).cpu()
            sums += torch.bincount(digit, score[mine].double().cpu(), minlength=len(sums))
            counts += torch.bincount(digit, minlength=len(counts))
        return sums, counts

    return descend(histogram, DIGIT, share)


def descend(histogram: Histogram, digit: int, share: float) -> Selection:
    """The selection, from histograms of ever lower digits of the scores' bits.

    Args:
        histogram: (prefix, shift) to (float64 sums, int64 counts), on the CPU, of the 2^digit
            values of bits shift to shift + digit, over the scores whose higher bits are `prefix`;
            zero scores left out.
        digit: bits a pass settles, a divisor of 32.
    """
    above, needed, kept, prefix, count = 0.0, 0.0, 0, 0, 0
    for shift in range(32 - digit, -1, -digit):
        sums, counts = histogram(prefix, shift)
        if shift == 32 - digit:
            needed = share * float(sums.sum())
            if share >= 1 or not counts.any():
                return Selection(0.0, 0, int(counts.sum()))
        filled = counts.nonzero()[:, 0].flip(0)
        falling = above + sums[filled].cumsum(0)
        place = min(int((falling < needed).sum()), len(filled) - 1)
        if place:
            above = float(falling[place - 1])
            kept += int(counts[filled[:place]].sum())
        prefix, count = prefix << digit | int(filled[place]), int(counts[filled[place]])
    threshold = float(torch.tensor(prefix, dtype=torch.int32).view(torch.float32))
    ties = min(count, max(1, math.ceil((needed - above) / threshold)))
    return Selection(threshold, ties, kept + ties)


def selected(blocks: Blocks, selection: Selection) -> Iterator[Tensor]:
    """(rows, columns) bool of every block: which of its entries were selected."""
    left = selection.ties
    for values, factors in blocks:
        score = scores(values, factors)
        chosen, equal = score > selection.threshold, score == selection.threshold
        if left and bool(equal.any()):
            first = equal.flatten().nonzero()[:left, 0]
            chosen.view(-1)[first] = True
            left -= len(first)
        yield chosen


def scores(values: Tensor, factors: Tensor) -> Tensor:
    """(rows, columns) float32, the very bits that selection sees."""
    return values.abs() * factors[:, None]


def _strips(blocks: Blocks) -> Iterator[Tensor]:
    for values, factors in blocks:
        step = max(1, STRIP // max(1, values.shape[1]))
        for start in range(0, len(values), step):
            span = slice(start, start + step)
            yield scores(values[span], factors[span])
