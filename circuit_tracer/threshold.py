"""Thresholds on scores.

"The largest scores until they hold a share of the sum" is a threshold on values, so ties are kept
together. Edges can be hundreds of millions: a sample says about where their threshold lies, and of
all scores only those around it are ever sorted.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from circuit_tracer.influence import Array


def cutoff(scores: Array, share: float) -> float:
    """The score at which scores, summed from the largest down, first reach `share` of their sum.

    At share 1 every score counts: returns 0.

    Args:
        scores: non-negative, float64.
        share: 0 to 1.
    """
    return 0.0 if share >= 1 else _reaching(scores, share * float(scores.sum()))


@dataclass(frozen=True, slots=True)
class Above:
    """Scores from one up, of which those from a higher one up were counted and added only.

    Attributes:
        count, total: how many there are, and their sum.
        held: those below the higher one.
    """

    count: int
    total: float
    held: Array

    def hold(self, wanted: float) -> bool:
        """Whether the score at which they reach a sum is held, if they do."""
        return len(self.held) == self.count or self._above < wanted

    def reaching(self, wanted: float) -> float:
        """The score at which they, summed from the largest down, first reach a sum; 0 for none."""
        return _reaching(self.held, wanted, self._above) if self.total >= wanted else 0.0

    @property
    def _above(self) -> float:
        """The sum of those that are not held."""
        whole = len(self.held) == self.count
        return 0.0 if whole else self.total - float(self.held.sum())


def about(sample: Array, every: int, share: float, total: float, most: float) -> float:
    """About the score from which on scores hold a share of their sum, or are as many as may be.

    Args:
        sample: one score of `every` so many.
        total: the sum of all.
    """
    rising, place = np.sort(sample), len(sample) - most / every
    if share < 1:  # from below: what a sample has of the few largest is mostly chance
        lost = every * rising.cumsum()
        place = max(place, int(lost.searchsorted((1 - share) * total)))
    return float(rising[min(int(place), len(rising) - 1)]) if place > 0 else 0.0


def _reaching(scores: Array, wanted: float, above: float = 0.0) -> float:
    """The score at which scores, summed from the largest down, reach a sum together with others."""
    if not len(scores):
        return 0.0
    falling = np.sort(scores)[::-1]
    reached = above + falling.cumsum()
    return float(falling[min(int((reached < wanted).sum()), len(falling) - 1)])
