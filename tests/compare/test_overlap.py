"""Overlap and its yardsticks, against closed forms; the language of a feature."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from circuit_tracer.comparing.activity import Activity
from circuit_tracer.comparing.corpus import Corpus
from circuit_tracer.comparing.overlap import measure
from circuit_tracer.comparing.resampling import (
    drawn_counts,
    means,
    same_rows,
    unrelated_rows,
)

TIGHT = 1e-12
seeds = st.integers(0, 10_000)


def overlap(weights, layers=None, names=("en", "fr"), sizes=None, corpus=None, traced=None):
    weights = torch.tensor(weights, dtype=torch.float64)
    layers = torch.zeros(len(weights), dtype=torch.long) if layers is None else layers
    n_layers = int(layers.max()) + 1
    return measure(names, layers, weights, (weights > 0).double(), n_layers, sizes, corpus, traced)


def test_one_layer_by_hand():
    """Two texts of four and two features, one in both."""
    layer = overlap([[4, 0], [3, 1], [2, 0], [1, 0], [0, 5]], sizes=[20]).all.layers[0]
    assert layer.sizes == {"en": 4, "fr": 2}
    assert layer.iou == 1 / 5
    assert layer.weighted == pytest.approx(1 / (4 + 3 + 2 + 1 + 5), abs=TIGHT)
    assert layer.equal == 1 / 3  # {0, 1} of the first, {1, 4} of the second
    both = 20 * (4 / 20) * (2 / 20)
    assert layer.expected == pytest.approx(both / (4 + 2 - both), abs=TIGHT)
    assert layer.baseline is None and layer.few


def test_expected_is_what_random_sets_share():
    """Ratio of the mean intersection to the mean union over all sets of the sizes."""
    sets = [[set(each) for each in itertools.combinations(range(6), size)] for size in (3, 2)]
    pairs = [*itertools.product(*sets)]
    wanted = sum(len(a & b) for a, b in pairs) / sum(len(a | b) for a, b in pairs)
    layer = overlap([[1, 1], [1, 1], [1, 0]], sizes=[6]).all.layers[0]
    assert layer.expected == pytest.approx(wanted, abs=TIGHT)


def test_disjoint_and_empty_layers():
    found = overlap([[1, 0], [0, 1]], torch.tensor([0, 2]), sizes=[4, 4, 4]).all.layers
    assert found[0].iou == 0.0 and found[0].sizes == {"en": 1, "fr": 0}
    assert math.isnan(found[1].iou) and math.isnan(found[1].expected)


@settings(max_examples=10, deadline=None)
@given(seeds)
def test_the_baseline_is_the_mean_over_unrelated_rows(toy_activity, seed):
    corpus = toy_activity(5, groups=("x", "x", "y", "y", "z"), seed=seed)
    found = overlap([[1, 1]], corpus=corpus, traced=corpus).all.layers[0].baseline
    on = corpus.values[0] > 0
    ious, shares, same = [], [], []
    for i, j in itertools.product(range(5), repeat=2):
        a, b = on[0, i], on[1, j]
        if not (a | b).any():
            continue
        iou = int((a & b).sum()) / int((a | b).sum())
        if corpus.corpus.groups[i] != corpus.corpus.groups[j]:
            ious.append(iou)
            x, y = corpus.values[0][0, i], corpus.values[0][1, j]
            shares.append(float(torch.minimum(x, y).sum() / torch.maximum(x, y).sum()))
        elif i == j:
            same.append(iou)
    assert found.unrelated.mean == pytest.approx(sum(ious) / len(ious), abs=TIGHT)
    assert found.unrelated_weighted.mean == pytest.approx(sum(shares) / len(shares), abs=TIGHT)
    assert found.parallel.mean == pytest.approx(sum(same) / len(same), abs=TIGHT)
    assert found.unrelated.n == len(ious) and found.parallel.n == len(same)
    below = sum((iou < 1) + (iou == 1) / 2 for iou in ious)
    assert found.above == pytest.approx(below / len(ious), abs=TIGHT)


@settings(max_examples=8, deadline=None)
@given(seeds, st.sampled_from([("en", "fr"), ("en", "fr", "zh")]))
def test_the_baseline_reproduces_itself_under_permutation(toy_activity, seed, languages):
    """Rows in another order, languages in another order: the same numbers, intervals too."""
    made = toy_activity(7, seed=seed, languages=languages)
    names, order = made.corpus.languages, torch.randperm(7).tolist()
    turned = list(reversed(range(len(names))))
    rows = tuple(tuple(made.corpus.rows[k][n] for n in turned) for k in order)
    groups = tuple(made.corpus.groups[k] for k in order)
    again = Corpus(tuple(names[n] for n in turned), rows, groups, "toy")
    assert again == made.corpus
    same = Activity(again, made.ids, made.values, made.sizes)
    weights = [[1.0] * len(names)]
    assert overlap(weights, names=names, corpus=same) == overlap(
        weights, names=tuple(reversed(names)), corpus=made
    )


def test_rows_alike_in_all_languages_share_everything(toy_activity):
    corpus = toy_activity(6, rate=0.6)
    alike = Activity(corpus.corpus, corpus.ids, (corpus.values[0][:1].repeat(2, 1, 1),), (6,))
    found = overlap([[1, 1]], corpus=alike).all.layers[0].baseline
    assert (found.parallel.mean, found.parallel.low, found.parallel.high) == (1, 1, 1)
    assert found.unrelated.mean < 1 and found.unrelated_weighted is None


def test_names_without_a_column_have_no_baseline(toy_activity):
    found = overlap([[1, 1]], names=("en", "xx"), corpus=toy_activity(4))
    assert found.all.layers[0].baseline is None and found.corpus == ""


@pytest.mark.parametrize("languages", [2, 3, 4])
def test_unrelated_rows_are_of_different_groups(languages):
    groups = [str(k % 5) for k in range(12)]
    found = unrelated_rows(groups, languages)
    assert len(found) and len(found.unique(dim=0)) == len(found)
    for row in found.tolist():
        assert len({groups[k] for k in row}) == languages
    assert torch.equal(found, unrelated_rows(groups, languages))


def test_more_languages_than_groups_have_no_unrelated_rows():
    assert unrelated_rows(["a", "b", "a"], 3).shape == (0, 3)


def test_the_interval_is_that_of_the_mean():
    """Of 200 normal draws the 95 % interval is about ±1.96 standard errors."""
    values = torch.randn(200, 1, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    found = means(values, same_rows(200, 2), drawn_counts(200))[0]
    error = float(values.std() / math.sqrt(200))
    assert found.mean == pytest.approx(float(values.mean()), abs=TIGHT)
    assert found.high - found.low == pytest.approx(2 * 1.96 * error, rel=0.15)


def test_undefined_rows_count_for_nothing():
    values = torch.tensor([[1.0, math.nan], [math.nan, math.nan], [3.0, math.nan]]).double()
    first, second = means(values, same_rows(3, 2), drawn_counts(3))
    assert first.mean == 2 and first.n == 2 and second is None


def spread(values):
    """The spread of one feature that fires so in en and fr."""
    table = torch.tensor(values, dtype=torch.float64)[:, :, None]
    rows = tuple((f"a{k}", f"b{k}") for k in range(table.shape[1]))
    groups = tuple(map(str, range(len(rows))))
    corpus = Corpus(("en", "fr"), rows, groups)
    return Activity(corpus, (torch.tensor([7]),), (table,), (9,)).spread((0, 7))


def test_the_language_of_a_feature():
    even = spread([[1, 1, 1, 1], [2, 2, 0, 0]])
    assert even.rates == {"en": 1.0, "fr": 0.5} and even.means == {"en": 1.0, "fr": 1.0}
    assert even.evenness == pytest.approx(1) and even.texts == 6 and even.verdict == "agnostic"
    one = spread([[1, 1, 1, 1, 1], [0, 0, 0, 0, 0]])
    assert one.verdict == "specific" and one.language == "en"
    assert one.largest == 1.0 and one.evenness == 0.0
    between = spread([[3, 3, 3, 3, 3], [1, 1, 1, 1, 1]])
    assert between.largest == 0.75 and between.verdict == "agnostic"
    rare = spread([[1, 0], [0, 0]])
    assert rare.verdict == "unknown" and rare.largest == 1.0


def test_a_feature_that_never_fires_has_no_language(toy_activity):
    found = toy_activity(4).spread((0, 99))
    assert found.language is None and found.texts == 0 and math.isnan(found.evenness)
    assert found.verdict == "unknown"
