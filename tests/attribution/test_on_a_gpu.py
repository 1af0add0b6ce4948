"""On a CUDA device everything gives what it gives on a CPU, wherever the transcoders are."""

from __future__ import annotations

import copy

import pytest
import tiny
import torch

import circuit_tracer as ct
from circuit_tracer.attention import heads
from circuit_tracer.features import build, open_store
from circuit_tracer.models.adapter import Adapter
from circuit_tracer.replacement import ReplacementModel
from circuit_tracer.transcoders import base

pytestmark = pytest.mark.gpu

DEVICE = "cuda"
PROMPT = [2, 5, 9, 4, 11]
SETS = [{"kind": kind, "activation": "jump_relu", "skip": kind == "plt"} for kind in ("plt", "clt")]


@pytest.fixture(params=[(family, of) for family in ("gemma2", "gpt2", "neox") for of in SETS])
def pair(request):
    """The same random model on a CPU and on the device, one set of transcoders in main memory."""
    family, of = request.param
    made = tiny.model(family, torch.float64)
    transcoders = tiny.transcoders(dtype=torch.float64, **of)
    moved = copy.deepcopy(made).to(DEVICE)
    return [
        ReplacementModel(Adapter(one, "tiny", torch.float64), tiny.tokenizer(), transcoders)
        for one in (made, moved)
    ]


def same(ours, theirs):
    torch.testing.assert_close(ours.cpu(), theirs.cpu(), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("how", [{}, {"max_features": 9}, {"keep_edges": 0.9}], ids=str)
def test_graphs_are_the_same(pair, how):
    ours, theirs = (ct.trace(PROMPT, model, **how) for model in pair)
    assert torch.equal(theirs.index.features, ours.index.features)
    same(theirs.dense(), ours.dense())
    same(theirs.influence, ours.influence)
    assert [node.id for node in theirs.prune().nodes] == [node.id for node in ours.prune().nodes]


def test_tests_and_interventions_are_the_same(pair):
    ours, theirs = (ct.trace(PROMPT, model) for model in pair)
    cards = [ct.faithfulness(g, m).table() for g, m in zip((ours, theirs), pair, strict=True)]
    assert cards[1] == cards[0]
    layer, position, feature = ours.index.features[0].tolist()
    for mode in ("direct", "constrained", "free"):
        change = {(layer, position, feature): ct.Scale(-2.0)}
        found = [model.intervene(PROMPT, change, mode=mode) for model in pair]
        same(found[1].logits_after, found[0].logits_after)
        same(found[1].after, found[0].after)


def test_text_with_features_held_is_the_same(pair):
    layer, _, feature = ct.trace(PROMPT, pair[0]).index.features[0].tolist()
    held = {(layer, feature): ct.Clamp(3.0)}
    texts = [model.generate(PROMPT, steer=held, max_new_tokens=4) for model in pair]
    assert str(texts[1]) == str(texts[0])


def test_heads_of_an_edge_are_the_same(pair):
    graphs = [ct.trace(PROMPT, model) for model in pair]
    edge = max(graphs[0].prune().edges, key=lambda edge: abs(edge.weight))
    found = [
        heads(model, graph, edge.source, edge.target).table()
        for graph, model in zip(graphs, pair, strict=True)
    ]
    assert found[1] == found[0]


def test_a_store_of_features_is_the_same(pair, tmp_path):
    texts = ["w5 w9 w4 w11 w20", "w8 w8 w30 w12 w7"]
    for name, model in zip(("ours", "theirs"), pair, strict=True):
        build(model, texts, tmp_path / name)
    ours, theirs = (open_store(tmp_path / name) for name in ("ours", "theirs"))
    assert [row.count for row in theirs] == [row.count for row in ours]


def test_encoders_stay_on_a_device_that_has_room(pair, monkeypatch):
    _, model = pair
    model.transcoders._near.clear()
    monkeypatch.setattr(base, "roomy", lambda device: False)
    ct.trace(PROMPT, model)
    assert not model.transcoders._near
    monkeypatch.undo()
    ct.trace(PROMPT, model)
    assert len(model.transcoders._near) == tiny.LAYERS
