"""Grafts: against interventions written out by hand, and with the answer that they move."""

from __future__ import annotations

import json

import pytest
import tiny
import torch

import circuit_tracer as ct
from circuit_tracer.changes import Clean

EXACT = 1e-12
DONOR = [2, 7, 14, 30, 33, 9, 11]


def active(model, ids, layer, position):
    """The feature that is most active at a place, and its activation."""
    values = Clean(model.transcoders, model.run(ids)).activations(layer)[position]
    return int(values.argmax()), float(values.max())


@pytest.mark.parametrize("kind", ["plt", "clt"])
@pytest.mark.parametrize("end", [None, 1, 2])
def test_a_graft_is_a_clamp_at_the_donors_activation_times_the_strength(kind, end):
    model = tiny.replacement("llama", kind=kind)
    taken, value = active(model, DONOR, 1, 4)
    removed, _ = active(model, tiny.PROMPT, 0, 2)
    found = model.graft(
        tiny.PROMPT,
        DONOR,
        take=[(1, 4, taken)],
        remove=[(0, 2, removed)],
        strengths=[0.5, 6.0],
        end_layers=[end],
        tokens=[3],
    )
    assert [one.removal for one in found.trials] == [0.5, -5.0]
    mode, layers = ("free", None) if end is None else ("constrained", range(end + 1))
    for trial in found.trials:
        changes = {
            (1, 3, taken): ct.Clamp(trial.strength * value),  # 4 of 7 is 3 of 6 from the end
            (0, 2, removed): ct.Scale(trial.removal),
        }
        alone = model.intervene(tiny.PROMPT, changes, mode, layers)
        shares = alone.logits_after[-1].softmax(-1)
        assert trial.top_probability == pytest.approx(float(shares.max()), abs=EXACT)
        assert trial.probabilities[-1] == pytest.approx(float(shares[3]), abs=EXACT)
        assert trial.end_layer == end


def test_strength_one_of_the_prompt_itself_changes_nothing():
    model = tiny.replacement("gemma2")
    take = [(layer, None, active(model, tiny.PROMPT, layer, 4)[0]) for layer in range(3)]
    found = model.graft(tiny.PROMPT, tiny.PROMPT, take, end_layers=[None, 2])
    for trial in found.trials:
        assert trial.probabilities == pytest.approx(found.before, abs=EXACT)
    forward = model.run(tiny.PROMPT)
    for one in found.taken:
        values = Clean(model.transcoders, forward).activations(one.layer)
        assert one.activation == float(values[one.position, one.feature]) != 0


def test_what_is_put_counts_where_something_is_removed_as_well():
    model = tiny.replacement("llama")
    feature, value = active(model, tiny.PROMPT, 1, 4)
    both = model.graft(tiny.PROMPT, tiny.PROMPT, [(1, 4, feature)], [(1, 4, feature)], [2.0])
    assert both.removed == () and both.taken[0].activation == value
    alone = model.graft(tiny.PROMPT, tiny.PROMPT, [(1, 4, feature)], strengths=[2.0])
    assert both.trials[0].probabilities == alone.trials[0].probabilities


def test_positions_are_a_number_or_a_mapping():
    model = tiny.replacement("llama")
    take = [(1, 4, active(model, DONOR, 1, 4)[0])]
    places = [
        model.graft(tiny.PROMPT, DONOR, take, at=at).taken[0].position
        for at in (None, 5, -1, {4: 2}, {4: -2})
    ]
    assert places == [3, 5, 5, 2, 4]


def test_the_sweep_as_a_table_as_values_and_as_a_figure():
    model = tiny.replacement("llama")
    take = [(1, 4, active(model, DONOR, 1, 4)[0])]
    found = model.graft(tiny.PROMPT, DONOR, take, strengths=[1, 2, 4], end_layers=[1, None])
    assert [(one.end_layer, one.strength) for one in found.trials] == [
        (end, strength) for end in (1, None) for strength in (1, 2, 4)
    ]
    lines = str(found).splitlines()
    assert len(lines) == 2 + 6 and "nothing changed" in lines[1] and "free" in lines[-1]
    plain = json.loads(json.dumps(found.to_plain()))
    assert plain["trials"][0]["strength"] == 1 and plain["taken"][0]["position"] == 3
    drawn = found.figure()
    assert len(drawn.data) == 2 * len(found.tokens)
    for number, curve in enumerate(drawn.data):
        token, end = divmod(number, 2)
        trials = found.trials[3 * end : 3 * end + 3]
        assert list(curve.y) == [one.probabilities[token] for one in trials]
    assert [curve.showlegend for curve in drawn.data][:3] == [True, True, False]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (dict(take=[]), "take is empty"),
        (dict(strengths=[]), "strengths is empty"),
        (dict(end_layers=[]), "end_layers is empty"),
        (dict(end_layers=[3]), "no end layer 3; layers are 0 to 2"),
        (dict(end_layers=[0]), "writes to none of the held layers"),
        (dict(at=6), "positions 0 to 5"),
        (dict(at={1: 2}), "does not say where position 4 of the donor goes"),
        (dict(tokens=[40]), "no token 40"),
        (dict(strengths=[float("nan")]), "finite"),
        (dict(take=[(1, 9, 0)]), "no position 9"),
        (dict(take=[(7, 4, 0)]), "layers 0 to 2"),
    ],
)
def test_what_cannot_be_grafted_is_refused(given, message):
    model = tiny.replacement("llama")
    take = [(1, 4, active(model, DONOR, 1, 4)[0])]
    with pytest.raises(ct.CircuitTracerError, match=message):
        model.graft(tiny.PROMPT, DONOR, **{"take": take, **given})


def test_positions_that_the_receiver_does_not_have_are_refused():
    model = tiny.replacement("llama")
    first = [(1, 0, active(model, DONOR, 1, 0)[0])]
    with pytest.raises(ct.CircuitTracerError, match="counted from the end, is not in the receiver"):
        model.graft(tiny.PROMPT, DONOR, first)


def test_two_features_for_one_place_are_refused():
    model = tiny.replacement("llama")
    values = Clean(model.transcoders, model.run(DONOR)).activations(1)
    feature = next(k for k in range(values.shape[1]) if torch.count_nonzero(values[1:, k]) > 1)
    with pytest.raises(ct.CircuitTracerError, match="go to one place"):
        model.graft(tiny.PROMPT, DONOR, [(1, range(1, 7), feature)], at=2)


def test_a_feature_that_the_donor_does_not_have_is_refused():
    model = tiny.replacement("llama")
    values = Clean(model.transcoders, model.run(DONOR)).activations(1)[4]
    silent = int((values == 0).nonzero()[0])
    with pytest.raises(ct.CircuitTracerError, match="not active at position 4"):
        model.graft(tiny.PROMPT, DONOR, [(1, 4, silent)])
