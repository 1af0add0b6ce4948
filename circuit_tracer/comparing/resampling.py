"""Resampling: same rows, unrelated rows, and how far chance moves their means.

Means over a parallel corpus are taken twice: over rows that say the same in each language, and over
combinations of rows that have nothing to do with each other. Both get bootstrap intervals over the
rows; a combination counts by the product of how often its rows were drawn.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

import torch

from circuit_tracer.shapes import Float, Int, Tensor

DRAWS, COMBINATIONS, TRIES, INTERVAL = 400, 4_000, 20, (0.025, 0.975)


@dataclass(frozen=True, slots=True)
class Estimate:
    """A mean over rows of a corpus with its 95 % bootstrap interval; `n` combinations of rows."""

    mean: float
    low: float
    high: float
    n: int


def same_rows(rows: int, languages: int) -> Int[Tensor, "row language"]:
    """Row numbers (n, languages) that say the same in each."""
    return torch.arange(rows)[:, None].expand(rows, languages)


def unrelated_rows(
    groups: Sequence[str], languages: int, seed: int = 0
) -> Int[Tensor, "combination language"]:
    """Combinations of rows of different groups, one row a language.

    All of them where they are few, else so many drawn; the same ones for the same rows. May be
    empty, where there are fewer groups than languages.
    """
    n, draw = len(groups), random.Random(seed)
    tried: list[tuple[int, ...]]
    if languages == 2 and n * n <= COMBINATIONS:
        tried = [*product(range(n), repeat=2)]
    else:
        wanted = COMBINATIONS if languages == 2 else min(COMBINATIONS, TRIES * n)
        tried = [tuple(draw.choices(range(n), k=languages)) for _ in range(TRIES * wanted)]
    good = [each for each in tried if len({groups[row] for row in each}) == languages]
    found = list(dict.fromkeys(good))[:COMBINATIONS]
    return torch.tensor(found, dtype=torch.long).reshape(-1, languages)


def drawn_counts(rows: int, seed: int = 0) -> Float[Tensor, "draw row"]:
    """How often each row is drawn in each bootstrap sample."""
    generator = torch.Generator().manual_seed(seed)
    picks = torch.randint(rows, (DRAWS, rows), generator=generator)
    ones = torch.ones(picks.shape, dtype=torch.float64)
    return torch.zeros(DRAWS, rows, dtype=torch.float64).scatter_add(1, picks, ones)


def means(
    values: Float[Tensor, "combination layer"],
    combinations: Int[Tensor, "combination language"],
    counts: Float[Tensor, "draw row"],
) -> list[Estimate | None]:
    """The mean of each column with its interval; None where nothing is defined.

    NaN values (no feature active in any of the texts) count for nothing.
    """
    distinct = (combinations[:, :1] == combinations).all(1)
    weight = counts[:, combinations].prod(2)
    weight[:, distinct] = counts[:, combinations[distinct, 0]]
    known = ~values.isnan()
    filled = values.nan_to_num(0.0)
    total = weight @ known.double()
    samples = (weight @ filled) / total
    found: list[Estimate | None] = []
    for layer in range(values.shape[1]):
        n = int(known[:, layer].sum())
        if not n:
            found.append(None)
            continue
        mean = float(filled[:, layer].sum() / n)
        drawn = samples[total[:, layer] > 0, layer]
        low, high = drawn.quantile(torch.tensor(INTERVAL, dtype=torch.float64)).tolist()
        found.append(Estimate(mean, low, high, n))
    return found
