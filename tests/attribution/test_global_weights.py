"""Global weights in closed form, against edges, and with what chance gives."""

from __future__ import annotations

import pytest
import tiny
import torch

import circuit_tracer as ct
from circuit_tracer.global_weights import coactivation, global_weights, virtual_weight

EXACT = 1e-12
TEXTS = [tiny.PROMPT, [2, 5, 6, 7, 8], [2, 30, 31, 32, 33, 34, 35]]


def firing(model, layer):
    """A feature that fires in the first text."""
    cells, _ = model.transcoders.encode(layer, model.run(TEXTS[0]).mlp_inputs[layer][1:])
    return int(cells[0, 1])


@pytest.mark.parametrize("kind", ["plt", "clt"])
def test_it_is_decoder_times_encoder_where_norms_are_not_in_the_way(kind):
    model = tiny.replacement("llama", kind=kind, read="hook_resid_mid")
    sets = model.transcoders
    reach = 2 if kind == "clt" else 1
    written = sum(sets.layer(0).decoders[k][3] for k in range(reach))
    wanted = float(written @ sets.layer(2).encoder[7])
    assert virtual_weight(model, (0, 3), (2, 7)) == pytest.approx(wanted, abs=EXACT)


def test_norm_weights_are_folded_in_and_denominators_are_not():
    model = tiny.replacement("gemma2", read="mlp.hook_in", write="mlp.hook_out")
    sets, layers = model.transcoders, model.adapter.layers
    post = layers[0].post_feedforward_layernorm.weight + 1
    before = layers[1].pre_feedforward_layernorm.weight + 1
    written, read = sets.layer(0).decoders[0][3] * post, sets.layer(1).encoder[7] * before
    weight = virtual_weight(model, (0, 3), (1, 7))
    assert weight == pytest.approx(float(written @ read), abs=EXACT)


def test_without_attention_an_edge_is_activation_times_weight_over_the_denominator():
    model = tiny.replacement("llama")
    with torch.no_grad():
        for layer in model.adapter.layers:
            layer.self_attn.o_proj.weight.zero_()
    graph = ct.trace(tiny.PROMPT, model)
    index, matrix = graph.index, graph.dense()
    scales = model.run(tiny.PROMPT).scales["mlp_norm"]
    checked = 0
    for row in index.feature_rows(2):
        _, position, feature = index.features[row].tolist()
        for column in index.feature_rows(0, position, position + 1):
            weight = virtual_weight(model, (0, int(index.features[column, 2])), (2, feature))
            wanted = float(graph.activations[column]) * weight * float(scales[2, position])
            assert float(matrix[row, column]) == pytest.approx(wanted, abs=1e-10)
            checked += 1
    assert checked > 20


@pytest.mark.parametrize("side", ["inputs", "outputs"])
def test_the_strongest_are_the_strongest(side):
    model = tiny.replacement("llama", kind="clt")
    found = global_weights(model, (1, 4), side, k=5)
    other = 0 if side == "inputs" else 2
    pairs = [((0, n), (1, 4)) if side == "inputs" else ((1, 4), (2, n)) for n in range(20)]
    every = sorted((abs(virtual_weight(model, *pair)) for pair in pairs), reverse=True)
    assert [abs(one.weight) for one in found] == pytest.approx(every[:5])
    assert {(one.source if side == "inputs" else one.target)[0] for one in found} == {other}
    assert all(one.twera is None and one.warning for one in found)


def test_twera_is_the_mean_of_what_arrives_where_the_target_is_active():
    model = tiny.replacement("llama")
    feature = (2, firing(model, 2))
    seen = coactivation(model, feature, TEXTS)
    assert seen.positions == sum(len(text) - 1 for text in TEXTS)
    below, own = [], []
    for text in TEXTS:
        sites, sets = model.run(text).mlp_inputs, model.transcoders
        pre = [sets.pre_activations(layer, sites[layer]).relu()[1:] for layer in (0, 2)]
        below.append(pre[0])
        own.append(pre[1][:, feature[1]])
    below, own = torch.cat(below), torch.cat(own)
    expected = (below * own[:, None]).mean(0) / own.mean()
    found = {one.source: one for one in global_weights(model, feature, k=40, seen=seen)}
    assert len(found) == 40
    for number in range(20):
        one = found[0, number]
        assert one.twera == pytest.approx(float(expected[number]) * one.weight, abs=EXACT)
        both = ((own > 0) & (below[:, number] > 0)).sum() / (own > 0).sum()
        assert one.together == pytest.approx(float(both))
    sizes = [abs(one.twera) for one in found.values()]
    assert sizes == sorted(sizes, reverse=True)


def test_both_sides_agree_on_a_pair():
    model = tiny.replacement("llama")
    above = coactivation(model, (0, 3), TEXTS)
    outputs = {one.target: one for one in global_weights(model, (0, 3), "outputs", 60, above)}
    target = next(place for place, one in outputs.items() if one.twera)
    inputs = global_weights(model, target, "inputs", 60, coactivation(model, target, TEXTS))
    same = next(one for one in inputs if one.source == (0, 3))
    assert same.twera == pytest.approx(outputs[target].twera)
    assert same.weight == pytest.approx(outputs[target].weight)


def test_interference_is_told():
    model = tiny.replacement("llama")
    encoder, decoder = (model.transcoders.layer(0).decoders[0], model.transcoders.layer(2).encoder)
    decoder[4] = encoder[3] * 10  # no random pair comes near
    planted = global_weights(model, (2, 4), k=1)[0]
    assert planted.source == (0, 3)
    assert planted.chance < 0.01
    ordinary = global_weights(model, (2, 5), k=40)[-1]
    assert ordinary.chance > 0.5
    assert "of random pairs reach this weight" in ordinary.warning
    feature = (2, firing(model, 2))
    seen = coactivation(model, feature, TEXTS)
    apart = [one for one in global_weights(model, feature, k=40, seen=seen) if one.together == 0]
    assert apart and all(one.twera == 0 for one in apart)
    assert all("never active together" in one.warning for one in apart)


def test_bad_words_are_refused():
    model = tiny.replacement("llama")
    for call in (
        lambda: virtual_weight(model, (2, 1), (1, 1)),
        lambda: virtual_weight(model, (0, 99), (1, 1)),
        lambda: global_weights(model, (9, 1)),
        lambda: global_weights(model, (1, 1), k=0),
        lambda: global_weights(model, (1, 1), "above"),
        lambda: global_weights(model, (1, 1), seen=coactivation(model, (1, 2), TEXTS)),
        lambda: coactivation(model, (1, 1), [[2]]),
    ):
        with pytest.raises(ct.CircuitTracerError):
            call()
