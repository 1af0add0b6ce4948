"""Error nodes taken apart, against the graph's own sums and an independent removal."""

from __future__ import annotations

import pytest
import tiny
import torch

import circuit_tracer as ct
from circuit_tracer.error_nodes import error_sizes, explain_error
from circuit_tracer.models.attention import watched

EXACT = 1e-12


def traced(**given):
    model = tiny.replacement("gemma2", **given)
    return model, ct.trace(tiny.PROMPT, model)


@pytest.mark.parametrize("write", ["hook_mlp_out", "mlp.hook_out"])
def test_sizes_are_what_the_reconstruction_misses(write):
    model, graph = traced(write=write)
    forward, sets = model.run(tiny.PROMPT), model.transcoders
    sizes = error_sizes(graph, model)
    for layer in range(3):
        x, output = forward.mlp_inputs[layer], forward.mlp_outputs[layer]
        weights = sets.layer(layer)
        made = (x @ weights.encoder.T + weights.encoder_bias).relu() @ weights.decoders[0]
        wanted = (output - made - weights.output_bias).norm(dim=1) / output.norm(dim=1)
        torch.testing.assert_close(sizes[layer], wanted, atol=EXACT, rtol=0)


def test_influence_of_an_error_goes_where_its_edges_go():
    _, graph = traced()
    model = traced()[0]
    node = max((n for n in graph.nodes if n.kind == "error"), key=lambda n: n.influence)
    found = explain_error(graph, model, node)
    assert sum(one.share for one in found.heard) == pytest.approx(1)
    row, matrix = graph.row(node.id), graph.dense().double().abs()
    mass = graph.influence.clone()
    mass[graph.index.first_target :] += graph.weights
    passed = matrix[:, row] / matrix.sum(1).clamp(min=1e-300) * mass
    assert float(passed.sum()) == pytest.approx(node.influence)
    best = found.heard[0]
    here = (graph.index.layers == best.layer) & (graph.index.positions == best.position)
    assert best.share == pytest.approx(float(passed[here].sum() / passed.sum()))


def test_removing_an_error_is_subtracting_it_from_the_mlp():
    model, graph = traced()
    found = explain_error(graph, model, "1_-1_4", k=3)
    error = model.localise(model.run(tiny.PROMPT)).errors[1, 4]
    module = model.adapter.layers[1].post_feedforward_layernorm

    def without(_module, _args, output):
        output = output.clone()
        output[0, 4] -= error
        return output

    handle = module.register_forward_hook(without)
    with watched(model.adapter.model):  # else attention is float32 in any model
        logits = model.adapter.model(torch.tensor([tiny.PROMPT])).logits[0, -1]
    handle.remove()
    shares = logits.softmax(-1)
    for change in found.tokens:
        assert change.after == pytest.approx(float(shares[change.token_id]), abs=EXACT)
    assert found.before != found.after


def test_the_set_itself_reads_the_error_as_it_is_and_a_perfect_one_leaves_nothing():
    model, graph = traced(kind="clt")
    other = tiny.transcoders(kind="plt", seed=9)
    found = explain_error(graph, model, "2_-1_5", [model.transcoders, other], k=100)
    same, different = found.others
    assert same.explained == pytest.approx(0, abs=EXACT)
    assert same.size == pytest.approx(found.size)
    assert different.explained != 0
    assert {speaker.layer for speaker in different.features} == {2}
    assert {speaker.layer for speaker in same.features} == {0, 1, 2}
    sizes = [abs(speaker.share) for speaker in same.features]
    assert sizes == sorted(sizes, reverse=True)


def test_what_is_no_error_node_is_refused():
    model, graph = traced()
    with pytest.raises(ct.CircuitTracerError, match="is of kind 'embedding'"):
        explain_error(graph, model, "E_9_1")
    elsewhere = tiny.transcoders(write="mlp.hook_out")
    with pytest.raises(ct.CircuitTracerError, match="not of the same thing"):
        explain_error(graph, model, "1_-1_4", [elsewhere])


def test_the_bundled_sets_read_each_other():
    model, other = ct.load(), ct.load(transcoders="clt").transcoders
    graph = ct.trace("The opposite of small is", model)
    errors = [node for node in graph.nodes if node.kind == "error"]
    found = explain_error(graph, model, max(errors, key=lambda node: node.influence), [other])
    assert 0 < found.size < 1
    assert found.others[0].features
    assert len(found.promoted) == len(found.suppressed) == 8
