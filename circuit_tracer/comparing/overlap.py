"""Overlap: how much texts share, layer by layer.

Of the features active anywhere in each text (ignored positions aside):

    iou         active in all of the texts, over active in any of them
    weighted    Σ min / Σ max of each feature's share of the influence
    equal       iou when each text keeps only as many features, its most influential ones, as the
                text with fewest: longer texts have more features, and that alone lowers iou
    expected    iou of random sets of these sizes (ratio of the expected counts)

Chance is one yardstick, language another. The baseline is what *unrelated* texts of the same
languages share on a parallel corpus, beside what its *parallel* rows share; see `resampling`. On
the corpus, weights are influence where rows were traced.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import combinations
from math import prod

import torch

from circuit_tracer.comparing.activity import Activity
from circuit_tracer.comparing.resampling import (
    Estimate,
    drawn_counts,
    means,
    same_rows,
    unrelated_rows,
)
from circuit_tracer.errors import InputError
from circuit_tracer.shapes import Float, Int, Tensor

Measure = Callable[[Tensor], Tensor]
Estimates = list[Estimate | None]
Yardstick = Callable[[tuple[str, ...], Sequence[float]], list["Baseline | None"]]
STRIP = 500
FEW_FEATURES, FEW_ROWS = 5, 10


@dataclass(frozen=True)
class Baseline:
    """What a corpus says of one layer: unrelated rows, and rows that say the same.

    Attributes:
        unrelated, parallel: of the iou.
        unrelated_weighted, parallel_weighted: of the influence-weighted overlap; None where no
            rows were traced.
        above: share of the unrelated combinations whose iou is below that of the texts compared;
            ties count half.
    """

    unrelated: Estimate
    parallel: Estimate
    unrelated_weighted: Estimate | None
    parallel_weighted: Estimate | None
    above: float


@dataclass(frozen=True)
class LayerOverlap:
    """One layer of some texts; NaN where no feature is active in any of them.

    Attributes:
        sizes: active features of each text, by name.
        iou, weighted, equal: see the module.
        expected: None where it is not known how many features the layer has.
        baseline: None where there is no corpus, or it says nothing of this layer.
    """

    layer: int
    sizes: dict[str, int]
    iou: float
    weighted: float
    equal: float
    expected: float | None
    baseline: Baseline | None

    @property
    def few(self) -> bool:
        """Too few features to say anything."""
        return min(self.sizes.values()) < FEW_FEATURES


@dataclass(frozen=True)
class SetOverlap:
    """Overlap of some of the texts, by layer."""

    names: tuple[str, ...]
    layers: tuple[LayerOverlap, ...]


@dataclass(frozen=True)
class Overlap:
    """Overlap of every pair of texts, and of all of them.

    Attributes:
        pairs: names of a pair ascending.
        all: of all texts at once.
        corpus: name of the corpus of the baseline, "" for none.
        rows, traced: how many of its rows were run, and how many of those traced.
    """

    pairs: tuple[SetOverlap, ...]
    all: SetOverlap
    corpus: str = ""
    rows: int = 0
    traced: int = 0

    def __getitem__(self, names: Sequence[str]) -> SetOverlap:
        """`overlap["en", "fr"]`, in either order. Raises InputError for names it does not have."""
        for found in (*self.pairs, self.all):
            if sorted(found.names) == sorted(names):
                return found
        raise InputError(f"{names!r} are not two of, or all of, {', '.join(self.all.names)}")


def measure(
    names: Sequence[str],
    layers: Int[Tensor, " feature"],
    weights: Float[Tensor, "feature text"],
    active: Float[Tensor, "feature text"],
    n_layers: int,
    sizes: Sequence[int] | None,
    corpus: Activity | None = None,
    traced: Activity | None = None,
    yardstick: Yardstick | None = None,
) -> Overlap:
    """Overlaps of texts whose features are matched.

    Args:
        names: of the texts.
        layers: of each feature.
        weights: influence shares.
        active: 1 where a feature is active, else 0.
        sizes: features of each layer of the transcoders, where known.
        corpus: what fires on unrelated texts; its languages are among the names, others have no
            baseline.
        traced: the same with influence in place of activations, of fewer rows.
        yardstick: says the baselines of some texts in place of `corpus`.
    """
    order = sorted(range(len(names)), key=lambda k: names[k])
    weights, active, names = weights[:, order], active[:, order] > 0, [names[k] for k in order]
    found = []
    wanted = [*combinations(range(len(names)), 2)]
    everything = tuple(range(len(names)))
    for chosen in [*wanted, *([everything] if len(names) > 2 else [])]:
        said = tuple(names[k] for k in chosen)
        rows = []
        ious = []
        for layer in range(n_layers):
            mine = layers == layer
            here, heavy = active[mine][:, chosen], weights[mine][:, chosen]
            rows.append((here, heavy))
            ious.append(float(_iou(here.T[None])))
        bases = (yardstick or partial(_baselines, corpus=corpus, traced=traced))(said, ious)
        parts = tuple(
            _layer(layer, said, *rows[layer], None if sizes is None else sizes[layer], base)
            for layer, base in enumerate(bases)
        )
        found.append(SetOverlap(said, parts))
    used = corpus is not None and any(
        layer.baseline is not None for each in found for layer in each.layers
    )
    pairs = tuple(found[: len(wanted)])
    if not used or corpus is None:
        return Overlap(pairs, found[-1])
    n_traced = 0 if traced is None else len(traced.corpus)
    return Overlap(pairs, found[-1], corpus.corpus.name, len(corpus.corpus), n_traced)


def _layer(
    layer: int,
    names: tuple[str, ...],
    active: Tensor,
    weights: Tensor,
    size: int | None,
    baseline: Baseline | None,
) -> LayerOverlap:
    counts = active.sum(0).tolist()
    ranked = weights.where(active, -1.0).argsort(dim=0, descending=True, stable=True)
    top = torch.zeros_like(active)
    top.scatter_(0, ranked[: min(counts)], True)
    return LayerOverlap(
        layer=layer,
        sizes=dict(zip(names, counts, strict=True)),
        iou=float(_iou(active.T[None])),
        weighted=float(_weighted(weights.T[None])),
        equal=float(_iou(top.T[None])) if min(counts) else float(_iou(active.T[None])),
        expected=None if size is None else _expected(counts, size),
        baseline=baseline,
    )


def _baselines(
    names: tuple[str, ...],
    ious: Sequence[float],
    corpus: Activity | None,
    traced: Activity | None,
) -> list[Baseline | None]:
    """By layer; None throughout where the corpus lacks a language."""
    if corpus is None or not set(names) <= set(corpus.corpus.languages):
        return [None] * len(ious)
    unrelated, same, values = _corpus_means(names, corpus, _iou)
    nothing: Estimates = [None] * len(ious)
    light = nothing, nothing
    if traced is not None:
        light = _corpus_means(names, traced, _weighted)[:2]
    return placed(ious, unrelated, same, values, light)


def placed(
    ious: Sequence[float],
    unrelated: Estimates,
    same: Estimates,
    values: Float[Tensor, "combination layer"],
    light: tuple[Estimates, Estimates],
) -> list[Baseline | None]:
    """Baselines by layer, with the place of each overlap among those of unrelated texts.

    Args:
        unrelated, same: of the iou.
        values: of the unrelated combinations.
        light: the two of the weighted overlap.
    """
    found: list[Baseline | None] = []
    for layer, iou in enumerate(ious):
        one, other = unrelated[layer], same[layer]
        if one is None or other is None:
            found.append(None)
            continue
        known = values[:, layer][~values[:, layer].isnan()]
        below = (known < iou).double() + (known == iou).double() / 2
        pair = light[0][layer], light[1][layer]
        found.append(Baseline(one, other, *pair, float(below.mean())))
    return found


def _corpus_means(
    names: tuple[str, ...], corpus: Activity, measure: Measure
) -> tuple[Estimates, Estimates, Float[Tensor, "combination layer"]]:
    """(unrelated, same) by layer, and the values of the unrelated combinations."""
    rows = len(corpus.corpus)
    languages = [corpus.corpus.languages.index(name) for name in names]
    counts, found = drawn_counts(rows), []
    for picks in (unrelated_rows(corpus.corpus.groups, len(names)), same_rows(rows, len(names))):
        columns = []
        for table in corpus.values:
            strips = picks.split(STRIP) if len(picks) else [picks]
            parts = []
            for strip in strips:
                texts = [table[k, strip[:, n]] for n, k in enumerate(languages)]
                parts.append(measure(torch.stack(texts, 1)))
            columns.append(torch.cat(parts))
        found.append((torch.stack(columns, 1), picks))
    (apart, others), (together, same) = found
    return means(apart, others, counts), means(together, same, counts), apart


def _iou(texts: Tensor) -> Float[Tensor, " n"]:
    """(n, texts, F) → (n,) intersection over union of what is not zero; NaN where nothing is."""
    on = texts > 0
    return on.all(1).sum(1).double() / on.any(1).sum(1)


def _weighted(texts: Tensor) -> Float[Tensor, " n"]:
    """(n, texts, F) → (n,) Σ min / Σ max; NaN where all is zero."""
    return texts.amin(1).double().sum(1) / texts.amax(1).double().sum(1)


def _expected(sizes: Sequence[int], everything: int) -> float:
    shares = [size / everything for size in sizes]
    union = 1 - prod(1 - share for share in shares)
    return prod(shares) / union if union > 0 else float("nan")
