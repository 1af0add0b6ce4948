"""Edges: closure, the shape of the DAG, and every single one of them against an intervention."""

from __future__ import annotations

import pytest
import tiny
import torch
from frozen import Frozen

from circuit_tracer.attribute import attribute
from circuit_tracer.sweep import Sweep
from circuit_tracer.targets import Difference, choose

CLOSES = 1e-12  # float64
SITES = [
    ("hook_resid_mid", "hook_mlp_out"),
    ("ln2.hook_normalized", "hook_mlp_out"),
    ("mlp.hook_in", "mlp.hook_out"),
]
SETS = [
    dict(kind="plt", activation="relu"),
    dict(kind="plt", activation="jump_relu", skip=True),
    dict(kind="plt", activation="topk"),
    dict(kind="clt", activation="jump_relu"),
    dict(kind="clt", activation="relu", skip=True),
]


def rows_of(model, prompt=tiny.PROMPT, ignored=(0,), **options):
    forward = model.run(prompt)
    local = model.localise(forward, ignored)
    directions = choose(model, forward, max_logits=4)
    return local, attribute(local, directions, **options)


def every():
    """All kinds of sets on two families, all sites on two sets, every family on one set."""
    for name in ("gemma2", "gpt2", "neox"):
        for given in SETS:
            yield pytest.param(name, given, id=f"{name}-{'-'.join(map(str, given.values()))}")
        for read, write in SITES:
            for skip in (False, True):
                yield pytest.param(
                    name, dict(read=read, write=write, skip=skip), id=f"{name}-{read}-{skip}"
                )
    for name in tiny.FAMILIES:
        yield pytest.param(name, {}, id=name)


@pytest.mark.parametrize(("family", "given"), list(every()))
def test_rows_close_and_every_edge_is_the_effect_of_an_intervention(family, given):
    model = tiny.replacement(family, **given)
    local, rows = rows_of(model)
    assert len(local.features) > 10
    assert rows.residual.abs().max() < CLOSES
    matrix, index = rows.dense(), rows.index
    frozen = Frozen(local)
    clean_sites, clean_final = frozen.reads({})
    for layer in range(local.n_layers):
        torch.testing.assert_close(clean_sites[layer], local.forward.mlp_inputs[layer])
    weights = torch.zeros_like(matrix)
    unembedding = model.adapter.unembedding.weight
    tokens = [d.token_id for d in choose(model, local.forward, max_logits=4)]
    for source in range(index.first_target):
        factor = -1.7 if source % 2 else 0.6
        sites, final = frozen.reads(frozen.change_of(index, source, factor))
        moved, moved_final = sites - clean_sites, (final - clean_final)[-1]
        for row, (layer, position, feature) in enumerate(index.features.tolist()):
            encoder = model.transcoders.layer(layer).encoder[feature]
            weights[row, source] = encoder @ moved[layer, position] / factor
        columns = unembedding[tokens] - unembedding.mean(0)
        weights[index.first_target :, source] = columns @ moved_final / factor
    torch.testing.assert_close(matrix, weights, atol=1e-10, rtol=1e-9)


@pytest.mark.parametrize("given", SETS, ids=lambda given: "-".join(map(str, given.values())))
def test_no_edge_comes_from_the_same_or_a_later_layer_nor_from_a_later_position(given):
    _, rows = rows_of(tiny.replacement("llama", **given))
    matrix, index = rows.dense(), rows.index
    layers, positions = index.layers, index.positions
    allowed = (layers[None] < layers[:, None]) & (positions[None] <= positions[:, None])
    assert (matrix[~allowed] == 0).all()
    assert (matrix[:, index.first_target :] == 0).all()
    power = torch.linalg.matrix_power(matrix.abs().sign(), tiny.LAYERS + 2)
    assert not power.any()


@pytest.mark.parametrize("ignored", [(), (0,), (0, 2)])
def test_ignored_positions_have_no_features_or_errors_and_rows_still_close(ignored):
    local, rows = rows_of(tiny.replacement("gemma2", kind="clt"), ignored=ignored)
    assert not set(local.features[:, 1].tolist()) & set(ignored)
    assert (local.errors[:, list(ignored)] == 0).all()
    assert rows.residual.abs().max() < CLOSES
    assert bool(rows.ignored.any()) == bool(ignored)


def test_each_closing_term_is_needed():
    """GPT-2 has biases, learned positions and an ignored position: dropping any breaks closure."""
    _, rows = rows_of(tiny.replacement("gpt2"))
    assert rows.residual.abs().max() < CLOSES
    for term in (rows.bias, rows.positional, rows.ignored):
        assert (rows.residual - term).abs().max() > 1e-3


def test_plt_is_a_clt_that_writes_to_its_own_layer_alone():
    plt = tiny.replacement("llama", kind="plt")
    clt = tiny.replacement("llama", kind="clt")
    zeros = [torch.zeros(20, tiny.WIDTH, dtype=torch.float64)] * tiny.LAYERS
    for layer in range(tiny.LAYERS):
        weights = plt.transcoders.layer(layer)
        padded = (*weights.decoders, *zeros[: tiny.LAYERS - layer - 1])
        clt.transcoders._open[layer] = type(weights)(
            weights.encoder, weights.encoder_bias, padded, weights.output_bias, weights.activation
        )
    torch.testing.assert_close(rows_of(plt)[1].dense(), rows_of(clt)[1].dense(), atol=1e-12, rtol=0)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
@pytest.mark.parametrize("given", SETS, ids=lambda given: "-".join(map(str, given.values())))
def test_chunking_and_carrying_embeddings_up_change_nothing(family, given, monkeypatch):
    model = tiny.replacement(family, **given)
    _, usual = rows_of(model)
    for apart, joined in (((1, 1), (1, 1)), ((7, 7), (2, 5)), ((10**6,) * 2, (10**6,) * 2)):
        monkeypatch.setattr("circuit_tracer.rows.COLUMNS", {False: apart, True: joined})
        _, other = rows_of(model)
        sites = [
            [(block.layer, block.position) for block in rows.blocks] for rows in (usual, other)
        ]
        assert sites[0] == sites[1]  # one block each, whatever it came in
        torch.testing.assert_close(other.dense(), usual.dense(), atol=1e-12, rtol=0)
        torch.testing.assert_close(other.bias, usual.bias, atol=1e-12, rtol=0)
    monkeypatch.setattr("circuit_tracer.sweep.CARRY_UP_ELEMENTS", 0)
    _, other = rows_of(model)
    torch.testing.assert_close(other.dense(), usual.dense(), atol=1e-12, rtol=0)
    torch.testing.assert_close(other.positional, usual.positional, atol=1e-12, rtol=0)


@pytest.mark.parametrize("tokens", [[2], [2, 7], [7]])
def test_the_shortest_prompts(tokens):
    for given in SETS:
        local, rows = rows_of(tiny.replacement("gemma2", **given), prompt=tokens, ignored=())
        assert rows.residual.abs().max() < CLOSES
        _, bare = rows_of(tiny.replacement("gemma2", **given), prompt=tokens)
        assert bare.residual.abs().max() < CLOSES


@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize("given", SETS, ids=lambda given: "-".join(map(str, given.values())))
def test_the_shallowest_models(layers, given):
    local, rows = rows_of(tiny.replacement("gpt2", layers=layers, **given))
    assert rows.residual.abs().max() < CLOSES
    assert local.n_layers == layers


def test_limited_rows_are_rows_of_the_whole_and_the_most_influential():
    model = tiny.replacement("llama", kind="clt")
    _, whole = rows_of(model, max_features=None)
    for limit in (0, 1, 7, 20, 10**6):
        local, some = rows_of(model, max_features=limit)
        expanded = some.rows[some.rows < some.index.n_features]
        assert len(expanded) == min(limit, len(local.features))
        torch.testing.assert_close(
            some.dense()[some.rows], whole.dense()[some.rows], atol=1e-12, rtol=0
        )
        assert some.residual[some.rows].abs().max() < CLOSES


def test_a_difference_is_the_difference_of_rows():
    model = tiny.replacement("gemma2")
    forward = model.run(tiny.PROMPT)
    local = model.localise(forward)
    directions = choose(model, forward, targets=["w9", 12, Difference("w9", 12)])
    assert directions[2].value == pytest.approx(directions[0].value - directions[1].value)
    rows = attribute(local, directions)
    nine, twelve, apart = rows.dense()[-3:]
    torch.testing.assert_close(apart, nine - twelve, atol=1e-12, rtol=0)
    assert rows.residual.abs().max() < CLOSES


def test_write_vectors_rebuild_the_mlp_output():
    """Features + error + constants = what the MLP adds to the residual stream, also ignored."""
    for write in ("mlp.hook_out", "hook_mlp_out"):
        model = tiny.replacement("gemma2", kind="clt", write=write)
        local = model.localise(model.run(tiny.PROMPT))
        for layer in range(local.n_layers):
            total = local.errors[layer] + local.ignored[layer] + local.constants[layer]
            for source in model.transcoders.writers(layer):
                rows = local.index.feature_rows(source)
                total.index_add_(
                    0, local.features[rows.start : rows.stop, 1], local.writes(source, layer)
                )
            everywhere = torch.arange(local.n_positions)
            truth = local._to_residual(layer, local.forward.mlp_outputs[layer], everywhere)
            torch.testing.assert_close(total, truth, atol=1e-12, rtol=0)


def test_the_sweep_reuses_its_buffers():
    model = tiny.replacement("llama")
    local = model.localise(model.run(tiny.PROMPT))
    sweep = Sweep(local, local.index)
    first = sweep.buffer("x", 3, 4)
    assert sweep.buffer("x", 2, 5).data_ptr() == first.data_ptr()
    assert sweep.buffer("x", 4, 5).numel() == 20
