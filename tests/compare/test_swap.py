"""Swaps: what is taken and put, at which strength, and the null beside it."""

from __future__ import annotations

import pytest
import tiny
import torch

import circuit_tracer as ct
from circuit_tracer.changes import Clamp, Scale
from circuit_tracer.comparing.alignment import abroad, alignment, differing
from circuit_tracer.comparing.swap import language_features, swap
from circuit_tracer.errors import InputError

RECEIVER, DONOR = "w9 w21 w5 w33", "w9 w12 w5 w33"


@pytest.fixture(scope="module")
def model():
    return tiny.replacement("llama")


@pytest.fixture(scope="module")
def graphs(model):
    return ct.trace(RECEIVER, model), ct.trace(DONOR, model)


def test_positions_are_aligned_by_equal_ends():
    assert alignment([0, 5, 6, 7], [0, 5, 9, 7]) == {1: 1, 2: 2, 3: 3}
    assert alignment([0, 1, 2, 3, 4], [0, 9, 8, 4]) == {1: 2, 2: 3, 3: 4}
    assert alignment([0, 1, 4], [0, 1, 9, 8, 4]) == {1: 1, 4: 2}
    assert alignment([0, 1], [0, 1]) == {1: 1}
    assert differing([0, 7, 8, 5, 9], [0, 7, 6, 6, 5, 9]) == [2]
    assert differing([0, 7], [0, 7]) == [] and differing([0, 7, 8], [0, 7]) == [2]


def test_abroad_what_is_swapped_meets_its_like_and_the_rest_goes_from_the_end():
    assert abroad([4], [1], n_receiver=6, n_donor=5) == {1: 4, 2: 2, 3: 3, 4: 5}
    assert abroad([], [], n_receiver=3, n_donor=5) == {3: 1, 4: 2}
    assert abroad([1, 2], [3], n_receiver=4, n_donor=4) == {2: 3, 3: 2}


def own(one, other):
    """(layer, position, id) → activation of influential features that the other does not have."""
    there = {(layer, number) for layer, _, number in other.index.features.tolist()}
    mine = {(n.layer, n.feature) for n in one.prune(nodes=1.0).nodes if n.kind == "feature"}
    pairs = zip(one.index.features.tolist(), one.activations.tolist(), strict=True)
    return {tuple(place): value for place, value in pairs if (place[0], place[2]) in mine - there}


def test_a_swap_is_the_intervention_it_says(model, graphs):
    """Everything that differs is taken and put, at each strength, up to each end layer."""
    found = swap(*graphs, "w7", model, strengths=(1.0, 3.0), nodes=1.0)
    taken, put = own(*graphs), own(*graphs[::-1])
    assert (found.taken, found.put, found.lost) == (len(taken), len(put), 0)
    token = model.tokenizer("w7", add_special_tokens=False)["input_ids"][0]
    assert [(t.strength, t.end) for t in found.trials] == [
        (strength, end)
        for end in range(min(min(taken)[0], min(put)[0]), tiny.LAYERS)
        for strength in (1.0, 3.0)
    ]
    for trial in found.trials:
        changes = {k: Scale(1 - trial.strength) for k in taken if k[0] <= trial.end}
        changes |= {k: Clamp(trial.strength * a) for k, a in put.items() if k[0] <= trial.end}
        layers = range(trial.end + 1)
        result = model.intervene(RECEIVER, changes, "constrained", layers)
        logits = result.logits_after[-1]
        assert trial.probability == pytest.approx(float(logits.softmax(-1)[token]), abs=1e-9)
        assert trial.success == (int(logits.argmax()) == token)
        assert trial.top == model.token_text(int(logits.argmax()))
    clean = model.run(RECEIVER).logits[-1].softmax(-1)[token]
    assert found.before == pytest.approx(float(clean), abs=1e-9)


def test_the_null_holds_as_much_influence_and_nothing_of_the_swap(model, graphs):
    """Of all that could be drawn one feature was enough, or the sum just reaches the goal."""
    named = {(layer, one) for layer, _, one in [*own(*graphs)][:2]}
    found = swap(*graphs, "w7", model, among=named, nodes=1.0)
    assert found.null_influence >= found.influence > 0
    assert swap(*graphs, "w7", model, among=named, nodes=1.0) == found
    other = swap(*graphs, "w7", model, among=named, nodes=1.0, seed=1)
    assert [t.probability for t in other.trials] == [t.probability for t in found.trials]
    assert [t.null_probability for t in other.trials] != [t.null_probability for t in found.trials]


def test_only_named_features_and_places_are_swapped(model, graphs):
    taken, put = own(*graphs), own(*graphs[::-1])
    named = {(layer, one) for layer, _, one in [*taken][:2]}
    found = swap(*graphs, "w7", model, among=named, nodes=1.0)
    assert found.put == 0 and found.taken == sum((k[0], k[2]) in named for k in taken)
    nowhere = swap(*graphs, "w7", model, places={}, nodes=1.0)
    assert nowhere.put == 0 and nowhere.lost == len(put)


def test_contrasts_say_what_is_a_prompts_own(model, graphs):
    receiver, donor = graphs
    third = ct.trace("w8 w30 w31", model)
    found = swap(receiver, donor, "w7", model, contrasts=(third, third), nodes=1.0)
    assert found.taken == len(own(receiver, third))
    assert found.put + found.lost == len(own(donor, third))


def test_what_cannot_be_swapped_is_refused(model, graphs):
    with pytest.raises(InputError, match="nothing to swap"):
        swap(graphs[0], graphs[0], "w7", model)
    with pytest.raises(InputError, match="no end layer 99"):
        swap(*graphs, "w7", model, ends=[99], nodes=1.0)


def test_features_of_a_language_are_those_that_fire_in_it_alone(toy_activity):
    made = toy_activity(6, ids=3, rate=1.0)
    values = torch.zeros_like(made.values[0])
    values[0, :, 0] = values[1, :, 1] = values[:, :, 2] = 1.0
    values[1, :1, 0] = 0.5
    found = type(made)(made.corpus, made.ids, (values,), made.sizes)
    assert language_features(found, "en") == {(0, 0)}
    assert language_features(found, "fr") == {(0, 1)}
