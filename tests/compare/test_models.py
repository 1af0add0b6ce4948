"""Comparisons that run models: tiny ones, with features permuted between sets."""

from __future__ import annotations

from dataclasses import replace

import pytest
import tiny
import torch

import circuit_tracer as ct
from circuit_tracer.comparing.activity import activity, language_of
from circuit_tracer.comparing.corpus import Corpus
from circuit_tracer.comparing.matching import joined
from circuit_tracer.errors import InputError
from circuit_tracer.replacement import ReplacementModel

TEXTS = {"en": "w9 w21 w5 w33", "fr": "w7 w9 w33 w12 w5"}
ROWS = {
    "en": ["w4 w5 w6", "w8 w9", "w20 w21 w22", "w11 w31"],
    "fr": ["w14 w5 w16", "w18 w19 w9", "w20 w31", "w21 w30"],
}


@pytest.fixture(scope="module")
def model():
    return tiny.replacement("llama")


def permuted(model, seed=3):
    """The same model with the features of every layer in another order."""
    draw = torch.Generator().manual_seed(seed)
    orders, layers = [], []
    for number in range(tiny.LAYERS):
        old = model.transcoders.layer(number)
        order = torch.randperm(len(old.encoder), generator=draw)
        layers.append(
            replace(
                old,
                encoder=old.encoder[order],
                encoder_bias=old.encoder_bias[order],
                decoders=tuple(table[order] for table in old.decoders),
            )
        )
        orders.append(order)
    made = replace(model.transcoders, source=layers.__getitem__, name="permuted", _open={})
    return ReplacementModel(model.adapter, model.tokenizer, made), orders


def test_prompts_are_traced_as_trace_does(model):
    found = ct.compare(TEXTS, model, max_logits=3)
    graphs = {name: ct.trace(text, model, max_logits=3) for name, text in TEXTS.items()}
    again = ct.compare(graphs, model)
    assert found.payload() == again.payload()
    assert [side.prompt for side in found.sides] == list(TEXTS.values())


def test_a_setting_may_be_one_for_each_name(model):
    targets, limits = {"en": ["w30"], "fr": ["w8", "w20"]}, {"fr": 5}
    found = ct.compare(TEXTS, model, targets=targets, max_features=limits, max_logits=3)
    graphs = {
        name: ct.trace(
            text, model, targets=targets[name], max_features=limits.get(name, "auto"), max_logits=3
        )
        for name, text in TEXTS.items()
    }
    assert found.payload() == ct.compare(graphs, model).payload()
    with pytest.raises(InputError, match="targets= is given for 'de'.*names are en, fr"):
        ct.compare(TEXTS, model, targets={"de": ["w30"]})
    with pytest.raises(InputError, match="'en', which is a graph"):
        ct.compare({**TEXTS, "en": graphs["en"]}, model, chat={"en": True})
    with pytest.raises(InputError, match="all of these are traced already"):
        ct.compare(graphs, model, targets=["w30"])


@pytest.mark.parametrize("kind", ["plt", "clt"])
def test_decoders_find_a_permutation_exactly(kind):
    model = tiny.replacement("llama", kind=kind)
    other, orders = permuted(model)
    text = TEXTS["en"]
    found = ct.compare({"a": text, "b": text}, {"a": model, "b": other}, match="decoder", nodes=1.0)
    assert found.features == found.shared and len(found.features) > 10
    for feature in found.features:
        assert int(orders[feature.layer][feature.ids["b"]]) == feature.ids["a"]
    assert not found.only("a") and not found.only("b")
    assert all(layer.iou == 1 for layer in found.overlap.all.layers)
    back = ct.compare({"b": text, "a": text}, {"a": model, "b": other}, match="decoder", nodes=1.0)
    assert [f.ids for f in back.features] == [f.ids for f in found.features]


def bases(found):
    return [layer.baseline for layer in found.overlap["a", "b"].layers]


def test_decoders_are_measured_against_unrelated_texts(model):
    """A permuted set shares all of a text with itself, and of two texts what one model shares."""
    other, _ = permuted(model)
    prompts, models = {"a": TEXTS["en"], "b": TEXTS["en"]}, {"a": model, "b": other}
    found = ct.compare(prompts, models, match="decoder", baseline=ROWS)
    plain = ct.compare(prompts, {"a": model, "b": model}, match="decoder", baseline=ROWS)
    assert found.overlap.rows == 8
    for layer, wanted in zip(bases(found), bases(plain), strict=True):
        assert layer.unrelated.mean == pytest.approx(wanted.unrelated.mean, abs=1e-12)
    columns = {"x": ROWS["en"], "y": ROWS["fr"]}
    assert bases(ct.compare(prompts, models, match="decoder", baseline=columns)) == bases(found)
    for layer in bases(found):
        assert layer.parallel.mean == 1 and layer.parallel.n == 8
        assert layer.unrelated.mean < 1 and layer.unrelated.n == 48 and layer.above > 0.5
    assert not any("no baseline" in said for said in found.notices)
    with pytest.raises(InputError, match="has columns"):
        ct.compare(prompts, model, baseline=ROWS)


def test_ids_of_different_sets_are_not_taken_for_the_same(model):
    other, _ = permuted(model)
    text = TEXTS["en"]
    with pytest.raises(InputError, match="match=.decoder"):
        ct.compare({"a": text, "b": text}, {"a": model, "b": other})
    with pytest.raises(InputError, match="models are given for"):
        ct.compare({"a": text, "b": text}, {"a": model})


def test_a_baseline_of_the_user(model):
    found = ct.compare(TEXTS, model, baseline=ROWS, traced=2)
    layers = found.overlap["fr", "en"].layers
    assert found.overlap.rows == 4 and found.overlap.traced == 2
    assert all(layer.baseline.unrelated.n == 12 for layer in layers)
    assert all(layer.baseline.unrelated_weighted.n == 2 for layer in layers)
    assert any("4 rows only" in said for said in found.notices)
    assert all(feature.spread is not None for feature in found.features)
    assert all(layer.expected is not None for layer in layers)
    plain = ct.compare(TEXTS, model, baseline=ROWS, traced=0)
    assert plain.overlap.pairs[0].layers[0].baseline.unrelated_weighted is None
    with pytest.raises(InputError, match="traced must be"):
        ct.compare(TEXTS, model, baseline=ROWS, traced=1)


def test_activity_is_what_graphs_say_is_active(model):
    """Of each text the same features as its graph, with their largest activation."""
    corpus = Corpus(tuple(ROWS), tuple(zip(*ROWS.values(), strict=True)), tuple("abcd"))
    found = activity(model, corpus)
    for column, code in enumerate(corpus.languages):
        for row, text in enumerate(corpus.texts(code)):
            graph = ct.trace(text, model)
            wanted: dict[tuple[int, int], float] = {}
            for (layer, _, one), value in zip(
                graph.index.features.tolist(), graph.activations.tolist(), strict=True
            ):
                wanted[layer, one] = max(value, wanted.get((layer, one), 0.0))
            seen = {
                (layer, one): value
                for layer in range(tiny.LAYERS)
                for one, value in zip(
                    found.ids[layer].tolist(),
                    found.values[layer][column, row].tolist(),
                    strict=True,
                )
                if value
            }
            assert seen == pytest.approx(wanted)


def test_the_language_of_features_by_name(model):
    corpus = Corpus(tuple(ROWS), tuple(zip(*ROWS.values(), strict=True)), tuple("abcd"))
    found = language_of([(0, 1), (2, 3)], corpus, model)
    assert list(found) == [(0, 1), (2, 3)]
    assert found[0, 1] == activity(model, corpus).spread((0, 1))
    with pytest.raises(InputError, match="no feature 999 in layer 0"):
        language_of([(0, 999)], corpus, model)


def test_joining_never_puts_two_of_one_graph_together():
    pairs = [
        (0.9, ("a", 1), ("b", 1)),
        (0.8, ("b", 1), ("c", 1)),
        (0.7, ("a", 2), ("c", 1)),
        (0.6, ("a", 2), ("b", 2)),
    ]
    members = [("a", 1), ("a", 2), ("b", 1), ("b", 2), ("c", 1), ("c", 3)]
    wanted = [{"a": 1, "b": 1, "c": 1}, {"a": 2, "b": 2}, {"c": 3}]
    assert joined(pairs, members) == wanted
    turned = [(value, other, one) for value, one, other in reversed(pairs)]
    assert joined(turned, members[::-1]) == wanted
