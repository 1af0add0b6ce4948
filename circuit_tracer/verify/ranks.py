"""Rank correlation, with what chance alone would give.

A correlation comes with two guards. Its interval is a bootstrap: the pairs drawn again, with
replacement. Its null shuffles one side among pairs of the same group, so that what the groups alone
explain (a position that matters more than another) is not taken for agreement.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from circuit_tracer.card import Correlation

DRAWS, SHUFFLES, SEED = 400, 200, 0


def spearman(a: np.ndarray, b: np.ndarray) -> float:
    """Spearman's rank correlation, ties at their mean rank; 0 where either side is constant.

    >>> round(spearman(np.array([1.0, 2, 3]), np.array([10.0, 30, 20])), 6)
    0.5
    """
    x, y = _ranks(a), _ranks(b)
    x, y = x - x.mean(), y - y.mean()
    spread = float(np.sqrt((x @ x) * (y @ y)))
    return float(x @ y) / spread if spread > 0 else 0.0


def correlation(
    measured: str, a: Sequence[float], b: Sequence[float], groups: Sequence[int]
) -> Correlation:
    """Spearman of two lists with its 95 % bootstrap interval and its null; the same every time.

    Args:
        measured: what it is a correlation with.
        groups: of each pair; the null shuffles `a` inside groups.
    """
    x, y, group = np.asarray(a, float), np.asarray(b, float), np.asarray(groups)
    draw = np.random.default_rng(SEED)
    picks = draw.integers(0, len(x), (DRAWS, len(x)))
    found = [spearman(x[pick], y[pick]) for pick in picks]
    low, high = np.quantile(found, [0.025, 0.975])
    null = [spearman(x[_within(group, draw)], y) for _ in range(SHUFFLES)]
    return Correlation(
        measured, len(x), spearman(x, y), float(low), float(high), float(np.quantile(null, 0.975))
    )


def _ranks(values: np.ndarray) -> np.ndarray:
    _, place, counts = np.unique(values, return_inverse=True, return_counts=True)
    return (counts.cumsum() - (counts - 1) / 2)[place]


def _within(group: np.ndarray, draw: np.random.Generator) -> np.ndarray:
    """A permutation that leaves every place in its group."""
    order = np.arange(len(group))
    for value in np.unique(group):
        mine = (group == value).nonzero()[0]
        order[mine] = draw.permutation(mine)
    return order
