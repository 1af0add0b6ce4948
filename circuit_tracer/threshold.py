"""Thresholds on scores, by selection.

"The largest scores until they hold a share of the sum" is a threshold on values, so ties are kept
together. Edges can be hundreds of millions: one counting pass over the leading bits of the scores
(`bracketed`) tells between which two values the threshold lies, and of all scores only those
between the two are ever sorted.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from circuit_tracer.influence import STRIP
from circuit_tracer.shapes import Float, Tensor

BITS, BINS = 48, 2**15
"""Bits of a double that are not counted, and bins of those that are, the sign aside."""


def cutoff(chunks: Callable[[], Iterable[Float[Tensor, " score"]]], share: float) -> float:
    """The score at which scores, summed from the largest down, first reach `share` of their sum.

    At share 1 every score counts: returns 0.

    Args:
        chunks: called twice; yields non-negative float64 tensors, the same each time.
        share: 0 to 1.
    """
    if share >= 1:
        return 0.0
    bracket = bracketed(chunks(), share)
    return bracket.settle(torch.cat([bracket.within(chunk) for chunk in chunks()]))


@dataclass(frozen=True, slots=True)
class Bracket:
    """Between which two scores a threshold lies: low ≤ threshold < high.

    Attributes:
        above: sum of the scores from `high` up.
        needed: the sum to reach.
        capped: a score that at least as many scores reach as may be kept; 0 where all may be.
    """

    low: float
    high: float
    above: float
    needed: float
    capped: float

    def within(self, scores: Float[Tensor, " score"]) -> Float[Tensor, " score"]:
        """The scores that the bracket holds, few of all."""
        found = [some[(some >= self.low) & (some < self.high)] for some in _strips(scores)]
        return torch.from_numpy(np.concatenate(found)) if found else scores[:0]

    def settle(self, scores: Float[Tensor, " score"]) -> float:
        """The threshold, given all scores that the bracket holds."""
        if not len(scores):
            return self.low
        falling = np.sort(scores.numpy())[::-1]
        reached = self.above + falling.cumsum()
        return float(falling[min(int((reached < self.needed).sum()), len(falling) - 1)])


def bracketed(
    chunks: Iterable[Float[Tensor, "..."]], share: float, most: int | None = None
) -> Bracket:
    """One counting pass. The bits of non-negative doubles order as the numbers do: the leading 16
    bins them to a sixteenth of a power of two."""
    sums, counts = np.zeros(BINS), np.zeros(BINS, dtype=np.int64)
    for chunk in chunks:
        for some in _strips(chunk):
            bits = some.view(np.int64) >> BITS
            sums += np.bincount(bits, some, BINS)
            if most is not None:
                counts += np.bincount(bits, minlength=BINS)
    needed, capped = share * float(sums.sum()), 0.0
    filled = sums.nonzero()[0][::-1]
    if most is not None and counts[filled].sum() > most:
        capped = _score(filled[int((counts[filled].cumsum() < most).sum())])
    if share >= 1 or not len(filled):
        return Bracket(0.0, 0.0, needed, needed, capped)
    falling = sums[filled].cumsum()
    place = min(int((falling < needed).sum()), len(filled) - 1)
    above = float(falling[place - 1]) if place else 0.0
    low, high = _score(filled[place]), _score(filled[place] + 1)
    return Bracket(low, high, above, needed, capped)


def _strips(scores: Float[Tensor, "..."]) -> Iterator[np.ndarray[Any, Any]]:
    """As much at a time as stays in the processor's cache."""
    flat = scores.flatten().numpy()
    return (flat[start : start + STRIP] for start in range(0, len(flat), STRIP))


def _score(bin_number: int) -> float:
    """The least score in a bin."""
    return float(torch.tensor(int(bin_number) << BITS).view(torch.float64))
