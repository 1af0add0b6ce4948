"""Prompts side by side: the graphs of each alone, to rounding."""

from __future__ import annotations

import pytest
import torch

import circuit_tracer as ct
from circuit_tracer import abreast, memory
from circuit_tracer.errors import InputError
from circuit_tracer.question import Question
from circuit_tracer.tracing import trace_abreast
from tests import tiny

PROMPTS = [[2, 9, 21, 5, 33, 9], [2, 5, 7, 5, 3, 11], [2, 30, 31, 1, 3, 8]]
WANTED = [ct.At("w7", 2), "w30", (1, 4, 3), (0, 5, 2), (2, 3, 0), ct.Difference("w5", "w6")]
TERMS = ("bias", "positional", "ignored", "value")


def agree(side_by_side, alone):
    """Same nodes, same sites, and the same numbers."""
    assert torch.equal(side_by_side.index.features, alone.index.features)
    assert side_by_side.token_ids == alone.token_ids and side_by_side.notes == alone.notes
    assert side_by_side.provenance == alone.provenance
    ours, theirs = side_by_side.edges, alone.edges
    assert [(b.layer, b.position) for b in ours.blocks] == [
        (b.layer, b.position) for b in theirs.blocks
    ]
    for a, b in zip(ours.blocks, theirs.blocks, strict=True):
        assert torch.equal(a.rows, b.rows)
        torch.testing.assert_close(a.values, b.values, rtol=0, atol=1e-10)
    for name in TERMS:
        ours_of, theirs_of = getattr(ours, name), getattr(theirs, name)
        torch.testing.assert_close(ours_of, theirs_of, rtol=0, atol=1e-10)
    torch.testing.assert_close(side_by_side.activations, alone.activations, rtol=0, atol=1e-10)
    assert side_by_side.closure_error < 1e-10


@pytest.fixture
def swept(monkeypatch):
    """How often prompts were swept side by side."""
    calls = []
    original = abreast.attribute_abreast

    def counted(*given):
        calls.append(len(given[1]))
        return original(*given)

    monkeypatch.setattr("circuit_tracer.tracing.attribute_abreast", counted)
    return calls


@pytest.mark.parametrize("kind", ["plt", "clt"])
@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_prompts_side_by_side_have_the_graphs_of_each_alone(family, kind, swept):
    model = tiny.replacement(family, kind=kind)
    found = trace_abreast([Question(prompt) for prompt in PROMPTS], model)
    assert swept == [3]
    for prompt, graph in zip(PROMPTS, found, strict=True):
        agree(graph, ct.trace(prompt, model))


@pytest.mark.parametrize("family", ["llama", "gemma2", "neox", "gpt2"])
@pytest.mark.parametrize(
    "sites", [("mlp.hook_in", "mlp.hook_out"), ("ln2.hook_normalized", "hook_mlp_out")]
)
def test_skips_and_every_site_go_side_by_side(family, sites, swept):
    model = tiny.replacement(family, read=sites[0], write=sites[1], skip=True)
    found = trace_abreast([Question(prompt) for prompt in PROMPTS], model)
    assert swept == [3]
    for prompt, graph in zip(PROMPTS, found, strict=True):
        agree(graph, ct.trace(prompt, model))


@pytest.mark.parametrize("family", ["llama", "neox"])
def test_each_prompt_is_asked_its_own_in_chunks_of_any_size(family, swept, monkeypatch):
    monkeypatch.setitem(abreast.COLUMNS, "cpu", 5)
    model = tiny.replacement(family, kind="clt")
    asked = [
        {"prompt": PROMPTS[0], "targets": WANTED, "ignore_positions": "none"},
        {"prompt": PROMPTS[1], "positions": [1, 5], "ignore_positions": [0, 3]},
        {"prompt": PROMPTS[2][:4], "answer": [5, 6, 7]},
    ]
    found = trace_abreast([Question(**one) for one in asked], model)
    assert swept == [3]
    for one, graph in zip(asked, found, strict=True):
        agree(graph, ct.trace(model=model, **one))


def test_one_prompt_and_prompts_without_features_go_too(swept):
    model = tiny.replacement("qwen3")
    (found,) = trace_abreast([Question(PROMPTS[0])], model)
    agree(found, ct.trace(PROMPTS[0], model))
    ids = [[2], [5]]  # their one position is ignored
    for prompt, graph in zip(
        ids, trace_abreast([Question(one) for one in ids], model), strict=True
    ):
        assert graph.index.n_features == 0
        agree(graph, ct.trace(prompt, model))
    assert swept == [1, 2]


@pytest.mark.parametrize("limit", [{"max_features": 9}, {"keep_edges": 0.9}])
def test_where_less_is_asked_for_each_is_traced_by_itself(limit, swept):
    model = tiny.replacement("llama")
    found = trace_abreast([Question(prompt, **limit) for prompt in PROMPTS[:2]], model)
    assert swept == []
    for prompt, graph in zip(PROMPTS, found, strict=False):
        alone = ct.trace(prompt, model, **limit)
        assert graph.dense().equal(alone.dense())


@pytest.mark.parametrize("free", [0, 300_000])
def test_what_does_not_fit_side_by_side_is_traced_by_itself(free, swept, monkeypatch):
    model = tiny.replacement("llama")
    asked, tried = [Question(prompt) for prompt in PROMPTS], []
    with monkeypatch.context() as patch:
        patch.setattr(memory, "free", lambda device: float(free))
        patch.setattr("circuit_tracer.tracing._alone", lambda one, _: tried.append(one))
        trace_abreast(asked, model)
    assert tried == asked and swept == []


def test_prompts_of_different_lengths_are_refused():
    with pytest.raises(InputError, match=r"of one length, not of \[3, 6\] tokens"):
        trace_abreast([Question(PROMPTS[0]), Question([2, 5, 7])], tiny.replacement("llama"))
