"""MLP neurons as features: they sum to the MLP, rows close, and edges are what changes cause."""

from __future__ import annotations

import pytest
import tiny
import torch
from frozen import Frozen

import circuit_tracer as ct
from circuit_tracer.attribute import attribute
from circuit_tracer.errors import InputError, ModelError, TranscoderError
from circuit_tracer.models.adapter import Adapter
from circuit_tracer.neurons import LIMIT, neurons
from circuit_tracer.replacement import ReplacementModel
from circuit_tracer.targets import choose
from circuit_tracer.transcoders.formats.writing import write_folder

MIXTURES = ("qwen3_moe", "gpt_oss")
DENSE = tuple(family for family in tiny.FAMILIES if family not in MIXTURES)
PLAIN = ("gpt2", "neox", "neox_sequential")


def with_neurons(family, reference="neurons:all"):
    adapter = Adapter(tiny.model(family), family, torch.float64)
    return ReplacementModel(adapter, tiny.tokenizer(), neurons(adapter, reference))


@pytest.mark.parametrize("family", DENSE)
def test_all_neurons_leave_no_error_and_rows_close(family):
    model = with_neurons(family)
    forward = model.run(tiny.PROMPT)
    local = model.localise(forward)
    scale = max(output.abs().max() for output in forward.mlp_outputs)
    assert local.errors.abs().max() < 1e-12 * scale
    edges = attribute(local, choose(model, forward), max_features=None)
    assert edges.residual.abs().max() < 1e-11


@pytest.mark.parametrize("family", DENSE)
def test_few_neurons_leave_an_error_and_rows_close_all_the_same(family):
    model = with_neurons(family, "neurons:5")
    forward = model.run(tiny.PROMPT)
    local = model.localise(forward, ignored=())
    assert len(local.features) == 5 * len(tiny.PROMPT) * tiny.LAYERS
    assert local.errors.abs().max() > 1e-3
    edges = attribute(local, choose(model, forward), max_features=None)
    assert edges.residual.abs().max() < 1e-11


@pytest.mark.parametrize("family", ["gpt2", "neox", "llama", "gemma2", "phi3", "olmo2"])
def test_edges_are_what_a_change_of_the_neuron_causes(family):
    model = with_neurons(family, "neurons:4")
    forward = model.run(tiny.PROMPT)
    local = model.localise(forward)
    edges = attribute(local, choose(model, forward), max_features=None)
    matrix, index, frozen = edges.dense(), edges.index, Frozen(local)
    sources = [0, 1, index.n_features // 2, index.error_row(1, 3), index.embedding_row(2)]
    for source in sources:
        reads, _ = frozen.reads(frozen.change_of(index, source, -2.0))
        for target in range(index.n_features):
            layer, position, neuron = index.features[target].tolist()
            x = forward.mlp_inputs[layer][position][None]
            vector, _ = model.transcoders.read_rows(layer, torch.tensor([neuron]), x)
            moved = vector[0] @ (reads[layer, position] - x[0])
            assert moved == pytest.approx(float(-2.0 * matrix[target, source]), abs=1e-11)


@pytest.mark.parametrize("family", DENSE)
def test_a_gated_row_adds_up_to_the_activation_and_a_plain_one_to_what_goes_into_act(family):
    model = with_neurons(family, "neurons:3")
    local = model.localise(model.run(tiny.PROMPT))
    function = getattr(model.adapter.blocks[0].mlp, "act", None) or torch.nn.Identity()
    for layer in range(tiny.LAYERS):
        rows = torch.tensor(local.index.feature_rows(layer))
        _, _, value = local.read_vectors(layer, rows)
        given = function(value) if family in PLAIN else value
        torch.testing.assert_close(given, local.activations[rows], atol=1e-12, rtol=1e-12)


def test_those_that_write_most_are_kept():
    model = with_neurons("llama", "neurons:2")
    mlp = model.adapter.blocks[1].mlp
    x = torch.randn(3, tiny.WIDTH, dtype=torch.float64)
    activations = mlp.act_fn(mlp.gate_proj(x)) * mlp.up_proj(x)
    strength = activations.abs() * mlp.down_proj.weight.norm(dim=0)
    cells, values = model.transcoders.encode(1, x)
    assert cells.tolist() == [
        [p, i] for p in range(3) for i in sorted(strength[p].topk(2).indices.tolist())
    ]
    torch.testing.assert_close(values, activations[cells[:, 0], cells[:, 1]])


@pytest.mark.parametrize("family", MIXTURES)
def test_mixtures_of_experts_are_refused_with_the_reason(family):
    with pytest.raises(ModelError, match="experts of a mixture"):
        with_neurons(family)


def test_a_dense_layer_among_mixtures_is_traced_and_the_others_are_error():
    net = tiny.model("qwen3_moe")
    net.model.layers[1].mlp = tiny.model("qwen3").model.layers[1].mlp
    adapter = Adapter(net, "mixed", torch.float64)
    model = ReplacementModel(adapter, tiny.tokenizer(), neurons(adapter))
    forward = model.run(tiny.PROMPT)
    local = model.localise(forward)
    assert set(local.features[:, 0].tolist()) == {1}
    torch.testing.assert_close(local.errors[0, 1:], forward.mlp_outputs[0][1:])
    edges = attribute(local, choose(model, forward), max_features=None)
    assert edges.residual.abs().max() < 1e-11


@pytest.mark.parametrize("reference", ["neurons:", "neurons:0", "neurons:-1", "neurons:x"])
def test_limits_that_are_no_numbers(reference):
    with pytest.raises(InputError, match="neurons:N"):
        with_neurons("llama", reference)


def test_the_bundled_model_is_traced_by_its_neurons():
    model = ct.load(transcoders="neurons")
    assert model.transcoders.name == "neurons"
    graph = ct.trace("The opposite of small is", model, max_features=50)
    assert graph.closure_error < 1e-3
    counts = graph.index.features[:, :2].unique(dim=0, return_counts=True)[1]
    assert counts.max() == LIMIT


def test_neurons_are_not_written_to_files(tmp_path):
    with pytest.raises(TranscoderError, match="the model's own"):
        write_folder(with_neurons("llama").transcoders, tmp_path / "new")
    assert not any(tmp_path.iterdir())
