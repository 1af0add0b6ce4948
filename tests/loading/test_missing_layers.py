"""Layers without a transcoder, and layers of different sizes: error nodes, and rows that close."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import tiny
import torch
import yaml
from click.testing import CliRunner
from frozen import Frozen
from safetensors.torch import load_file, save_file

from circuit_tracer.attribute import attribute
from circuit_tracer.cli import options
from circuit_tracer.cli.main import main
from circuit_tracer.errors import TranscoderError
from circuit_tracer.replacement import ReplacementModel
from circuit_tracer.targets import choose
from circuit_tracer.transcoders.base import LayerWeights, TranscoderSet
from circuit_tracer.transcoders.formats.opening import open_set
from circuit_tracer.transcoders.formats.writing import unlike_reference, write_folder

KINDS = ("plt", "clt")


def uneven(kind):
    """A set with 20, 7 and 13 features."""
    whole = tiny.transcoders(kind)

    def cut(layer):
        count, weights = (20, 7, 13)[layer], whole.layer(layer)
        return replace(
            weights,
            encoder=weights.encoder[:count],
            encoder_bias=weights.encoder_bias[:count],
            decoders=tuple(rows[:count] for rows in weights.decoders),
        )

    return TranscoderSet(kind, whole.read, whole.write, tiny.LAYERS, cut, "uneven")


def without(kind, *missing, **sets):
    whole = tiny.transcoders(kind, **sets)
    covered = tuple(layer for layer in range(tiny.LAYERS) if layer not in missing)

    def source(layer) -> LayerWeights:
        assert layer in covered
        return whole.layer(layer)

    return replace(whole, source=source, covered=covered, _open={})


def replaced(sets, family="gemma2"):
    whole = tiny.replacement(family)
    return ReplacementModel(whole.adapter, whole.tokenizer, sets)


def traced(model, ignored=(0,)):
    forward = model.run(tiny.PROMPT)
    local = model.localise(forward, ignored)
    return local, attribute(local, choose(model, forward), max_features=None)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("missing", [(0,), (1,), (2,), (0, 2), (1, 2)])
def test_a_missing_layer_is_one_error_node_a_position_and_rows_close(kind, missing):
    local, edges = traced(replaced(without(kind, *missing, skip=True)))
    assert edges.residual.abs().max() < 1e-11
    assert not set(local.features[:, 0].tolist()) & set(missing)
    if kind == "plt":
        for layer in missing:
            torch.testing.assert_close(
                local.errors[layer, 1:], local.forward.mlp_outputs[layer][1:]
            )
    last = len(tiny.PROMPT) - 1
    assert all((edges.dense()[:, edges.index.error_row(i, last)] != 0).any() for i in missing)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("sets", [uneven, lambda kind: without(kind, 1)])
def test_edges_are_what_a_change_causes(kind, sets):
    local, edges = traced(replaced(sets(kind), "llama"))
    matrix, index, frozen = edges.dense(), edges.index, Frozen(local)
    assert edges.residual.abs().max() < 1e-11
    for source in (0, index.n_features - 1, index.error_row(1, 3), index.embedding_row(2)):
        reads, _ = frozen.reads(frozen.change_of(index, source, -2.0))
        for target in range(index.n_features):
            layer, position, feature = index.features[target].tolist()
            row = local.transcoders.layer(layer).encoder[feature]
            moved = row @ (reads[layer, position] - local.forward.mlp_inputs[layer][position])
            assert moved == pytest.approx(float(-2.0 * matrix[target, source]), abs=1e-11)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("sets", [uneven, lambda kind: without(kind, 1)])
def test_they_are_converted_and_opened_again(tmp_path, kind, sets):
    wanted = sets(kind)
    write_folder(wanted, tmp_path / "one")
    result = CliRunner().invoke(main, ["convert", str(tmp_path / "one"), str(tmp_path / "two")])
    assert result.exit_code == 0, result.output
    found = open_set(tmp_path / "two")
    assert found.present == wanted.present and found.n_layers == tiny.LAYERS
    for layer in found.present:
        ours, theirs = found.layer(layer), wanted.layer(layer)
        assert torch.equal(ours.encoder, theirs.encoder)
        assert all(map(torch.equal, ours.decoders, theirs.decoders))
    assert unlike_reference(wanted)
    assert traced(replaced(found, "llama"))[1].residual.abs().max() < 1e-11


def test_the_last_layers_may_be_missing_where_layers_are_named(tmp_path):
    write_folder(without("plt", 1, 2), tmp_path / "set")
    found = open_set(tmp_path / "set")
    assert found.n_layers == 1 and found.present == (0,)
    assert found.reaching(tiny.LAYERS).n_layers == tiny.LAYERS
    local, edges = traced(replaced(found.reaching(tiny.LAYERS)))
    assert edges.residual.abs().max() < 1e-11
    with pytest.raises(TranscoderError, match="1 layers, but .* has 3"):
        replaced(found)


def test_a_folder_that_names_no_layers_is_not_stretched(tmp_path):
    write_folder(tiny.transcoders(layers=2), tmp_path / "set")
    with pytest.raises(TranscoderError, match="2 layers, but .* has 3"):
        replaced(open_set(tmp_path / "set").reaching(tiny.LAYERS))


def test_a_cross_layer_set_is_not_stretched(tmp_path):
    write_folder(without("clt", 1), tmp_path / "set")
    with pytest.raises(TranscoderError, match="3 layers, but .* has 4"):
        adapter = tiny.replacement(layers=4).adapter
        ReplacementModel(adapter, tiny.tokenizer(), open_set(tmp_path / "set").reaching(4))


def test_files_named_in_a_config_go_to_the_layers_it_names(tmp_path):
    write_folder(tiny.transcoders(), tmp_path / "set")
    config = yaml.safe_load((tmp_path / "set" / "config.yaml").read_text())
    config |= {"layers": [1], "transcoders": ["layer_2.safetensors"]}
    (tmp_path / "set" / "config.yaml").write_text(yaml.safe_dump(config))
    found = open_set(tmp_path / "set")
    assert found.present == (1,) and found.n_layers == 2
    assert torch.equal(found.layer(1).encoder, tiny.transcoders().layer(2).encoder)


@pytest.mark.parametrize(
    "change, says",
    [
        ({"layers": [0]}, "layer_1.safetensors is there too"),
        ({"layers": [0, 1, 2, 5]}, "layer_5.safetensors is missing"),
        ({"layers": [1, 0, 2]}, "ascending"),
        ({"layers": [0, 1, 1, 2]}, "each once"),
        ({"layers": [-1, 0]}, "from 0 on"),
        ({"layers": []}, "layers"),
        ({"layers": ["all"]}, "layers"),
        ({"layers": [0, 1], "transcoders": ["layer_0.safetensors"]}, "go in pairs"),
    ],
)
def test_lists_of_layers_that_lie(tmp_path, change, says):
    write_folder(tiny.transcoders(), tmp_path / "set")
    config = yaml.safe_load((tmp_path / "set" / "config.yaml").read_text()) | change
    (tmp_path / "set" / "config.yaml").write_text(yaml.safe_dump(config))
    with pytest.raises(TranscoderError, match=says):
        open_set(tmp_path / "set")


def test_cross_layer_decoders_of_two_axes_with_layers_named(tmp_path):
    write_folder(without("clt", 1), tmp_path / "set")
    path = tmp_path / "set" / "W_dec_0.safetensors"
    save_file({"W_dec_0": load_file(path)["W_dec_0"][:, 0].contiguous()}, path)
    with pytest.raises(TranscoderError, match="not three axes"):
        open_set(tmp_path / "set")


def test_folders_that_name_their_layer_may_leave_layers_out(tmp_path):
    """sparsify as an example: one folder a module."""
    home = tmp_path / "layers.1.mlp"
    home.mkdir()
    weights = tiny.transcoders(activation="topk").layer(1)
    (home / "cfg.json").write_text(json.dumps({"k": 6, "transcode": True}))
    tensors = {
        "encoder.weight": weights.encoder,
        "encoder.bias": weights.encoder_bias,
        "W_dec": weights.decoders[0],
        "b_dec": weights.output_bias,
    }
    save_file(tensors, home / "sae.safetensors")
    found = open_set(tmp_path).reaching(tiny.LAYERS)
    assert found.present == (1,)
    assert traced(replaced(found))[1].residual.abs().max() < 1e-11


def test_the_program_says_which_layers_have_none(monkeypatch, capsys):
    given = {"model": None, "transcoders": None}
    monkeypatch.setattr("circuit_tracer.load", lambda **_: replaced(without("plt", 1, 2)))
    options.load(given, lambda *_: None)
    assert "layers 1, 2" in capsys.readouterr().err
    options.load({**given, "quiet": True}, lambda *_: None)
    monkeypatch.setattr("circuit_tracer.load", lambda **_: replaced(tiny.transcoders("plt")))
    options.load(given, lambda *_: None)
    assert not capsys.readouterr().err
