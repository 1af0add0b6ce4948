"""`trace`: what it is asked for, what it refuses, and what it says about itself."""

from __future__ import annotations

from dataclasses import replace

import pytest
import tiny
import torch

import circuit_tracer as ct
from circuit_tracer.errors import InputError, TranscoderError
from circuit_tracer.estimate import rehearse
from circuit_tracer.notes import describe
from circuit_tracer.targets import choose
from circuit_tracer.tracing import estimate_trace, page_circuit


@pytest.fixture(scope="module")
def model():
    return tiny.replacement("gemma2", kind="clt", activation="jump_relu")


def test_targets_are_the_likeliest_tokens_until_their_share(model):
    few = ct.trace(tiny.PROMPT, model, logit_probability=0.3)
    many = ct.trace(tiny.PROMPT, model, logit_probability=1.0, max_logits=1000)
    probabilities = [target.probability for target in many.targets]
    assert len(many.targets) == tiny.VOCABULARY
    assert probabilities == sorted(probabilities, reverse=True)
    assert sum(probabilities) == pytest.approx(1)
    cut = len(few.targets)
    assert sum(probabilities[:cut]) >= 0.3 > sum(probabilities[: cut - 1])


def test_targets_by_name_and_id_and_difference(model):
    graph = ct.trace(tiny.PROMPT, model, targets=["w9", 9, ct.Difference("w9", "w7")])
    assert [t.token_id for t in graph.targets] == [9, 9, None]
    assert graph.targets[2].label == "logit(w9) − logit(w7)"
    assert graph.targets[2].weight == 1.0
    assert len({node.id for node in graph.nodes}) == len(graph.nodes)


@pytest.mark.parametrize(
    ("given", "says"),
    [
        (dict(targets=["w9 w7"]), "one token.*but 2: 'w9', 'w7'"),
        (dict(targets=["w100"]), "not one token.*Did you mean"),
        (dict(targets=[""]), "not one token"),
        (dict(targets=[999]), "no token 999"),
        (dict(targets=[]), "empty"),
        (dict(max_logits=0), "max_logits"),
        (dict(logit_probability=0), "logit_probability"),
        (dict(logit_probability=1.5), "logit_probability"),
        (dict(max_features=-1), "max_features"),
        (dict(ignore_positions="eos"), "ignore_positions"),
        (dict(ignore_positions=[6]), "position 6"),
    ],
)
def test_requests_that_cannot_be_met(model, given, says):
    with pytest.raises(InputError, match=says):
        ct.trace(tiny.PROMPT, model, **given)


def test_the_influence_that_stops_in_unexpanded_features_is_not_called_explained(model):
    whole = ct.trace(tiny.PROMPT, model, max_features=None)
    some = ct.trace(tiny.PROMPT, model, max_features=5)
    assert whole.scores.unexpanded_share == 0
    assert some.scores.unexpanded_share > 0
    assert some.scores.replacement < whole.scores.replacement
    assert some.scores.completeness < whole.scores.completeness
    assert int(some.expanded.sum()) == 5 + len(some.targets)


def test_the_features_expanded_first_are_those_at_the_top_with_most_influence(model):
    whole = ct.trace(tiny.PROMPT, model, max_features=None)
    some = ct.trace(tiny.PROMPT, model, max_features=6)
    expanded = some.expanded[: some.index.n_features]
    top = some.index.feature_rows(tiny.LAYERS - 1)
    inside = whole.influence[top.start : top.stop]
    chosen = expanded[top.start : top.stop]
    if chosen.any() and not chosen.all():
        assert inside[chosen].min() >= inside[~chosen].max()


def test_auto_is_everything_where_that_is_quick_and_a_limit_where_it_is_not(model, monkeypatch):
    forward = model.run(tiny.PROMPT)
    local, named = model.localise(forward), choose(model, forward, [3, 4, 5])
    active = len(local.features)
    assert rehearse(local, named).resolve("auto") == active
    assert rehearse(local, named).resolve(None) == active
    assert rehearse(local, named).resolve(4) == 4
    monkeypatch.setattr("circuit_tracer.estimate.AUTO_SECONDS", 1e-12)
    assert 1 <= rehearse(local, named).resolve("auto") < active


def test_an_estimate_counts_what_a_run_then_does(model):
    planned = estimate_trace(tiny.PROMPT, model)
    graph = ct.trace(tiny.PROMPT, model)
    assert planned.n_active == graph.index.n_features
    assert planned.n_targets == len(graph.edges.rows)
    stored = sum(block.values.numel() * block.values.element_size() for block in graph.edges.blocks)
    assert planned.result_bytes == pytest.approx(stored, rel=0.01)
    assert planned.peak_bytes > planned.result_bytes
    assert "rows" in str(planned)


def test_progress_rises_to_one(model):
    told = []
    ct.trace(tiny.PROMPT, model, progress=lambda done, message: told.append(done))
    assert told == sorted(told) and told[-1] == 1.0


def test_a_graph_says_where_it_comes_from(model):
    graph = ct.trace("w5 w6 w7", model, max_features=9)
    about = graph.provenance
    assert about.prompt == "w5 w6 w7"
    assert about.transcoder_kind == "clt" and about.ignored_positions == (0,)
    assert about.settings["max_features"] == 9 and about.dtype == "float64"
    assert graph.tokens == ("<bos>", "w5", "w6", "w7")
    assert set(graph.timings) == {"forward", "attribution", "describing"}


def test_the_same_prompt_gives_the_same_bits(model):
    first, second = (ct.trace(tiny.PROMPT, model) for _ in range(2))
    assert torch.equal(first.dense(), second.dense())


def test_notes_are_decoders_seen_through_the_unembedding(model):
    """For an RMS norm: (sum of decoders * norm weight) @ demeaned unembedding."""
    notes = describe(model, [(1, 3), (0, 2), (1, 3)], k=3)
    assert set(notes) == {(1, 3), (0, 2)}
    weights = model.transcoders.layer(1)
    write = sum(decoder[3] for decoder in weights.decoders) * model.adapter.final_norm.weight
    logits = model.adapter.unembedding.weight @ write
    logits = logits - logits.mean()
    best = logits.topk(3)
    assert [model.token_text(i) for i in best.indices.tolist()] == [
        token for token, _ in notes[1, 3].promoted
    ]
    assert [v for _, v in notes[1, 3].promoted] == pytest.approx(best.values.tolist(), abs=1e-3)
    assert [v for _, v in notes[1, 3].suppressed] == pytest.approx(
        logits.sort().values[:3].tolist(), abs=1e-3
    )


def test_the_page_holds_more_than_the_circuit(model):
    graph = ct.trace(tiny.PROMPT, model)
    assert len(page_circuit(graph).nodes) >= len(graph.prune().nodes)


@pytest.mark.parametrize("part", ["output_bias", "skip"])
def test_weights_that_are_not_finite_are_refused_by_name(part):
    """Nothing fires on these, so encoders and decoders do not notice."""
    model = tiny.replacement("llama", skip=True)
    layers = [model.transcoders.layer(layer) for layer in range(tiny.LAYERS)]
    broken = getattr(layers[1], part).clone()
    broken.view(-1)[3] = torch.nan
    layers[1] = replace(layers[1], **{part: broken})
    model.transcoders = replace(model.transcoders, source=layers.__getitem__, _open={})
    with pytest.raises(TranscoderError, match="output bias or skip of layer 1 .*NaN"):
        ct.trace(tiny.PROMPT, model)
