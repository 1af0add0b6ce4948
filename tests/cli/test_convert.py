"""`circuit-tracer convert`: every number arrives, or nothing is written."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest
import tiny
import torch
import yaml
from click.testing import CliRunner
from safetensors.torch import load_file

from circuit_tracer.cli.main import main
from circuit_tracer.errors import OutputError, TranscoderError
from circuit_tracer.transcoders.base import Activation, LayerWeights, TranscoderSet
from circuit_tracer.transcoders.formats import writing
from circuit_tracer.transcoders.formats.opening import open_set
from circuit_tracer.transcoders.formats.writing import unlike_reference, write_folder

KINDS = list(
    itertools.product(("plt", "clt"), ("relu", "jump_relu", "topk"), (False, True), (0, 1))
)


def same(left, right):
    torch.testing.assert_close(left, right, rtol=0, atol=0)


def assert_same(found, wanted):
    assert (found.kind, found.read, found.write) == (wanted.kind, wanted.read, wanted.write)
    assert found.n_layers == wanted.n_layers
    for layer in range(wanted.n_layers):
        ours, theirs = found.layer(layer), wanted.layer(layer)
        same(ours.encoder, theirs.encoder)
        same(ours.encoder_bias, theirs.encoder_bias)
        same(ours.output_bias, theirs.output_bias)
        same(list(ours.decoders), list(theirs.decoders))
        assert (ours.skip is None) == (theirs.skip is None)
        if theirs.skip is not None:
            same(ours.skip, theirs.skip)
        mine, yours = ours.activation, theirs.activation
        assert (mine.kind, mine.k) == (yours.kind, yours.k)
        if yours.kind == "jump_relu":
            same(mine.threshold, yours.threshold)


def changed(found, edit):
    """A set whose layers went through `edit(layer, weights)`."""
    made = [edit(layer, found.layer(layer)) for layer in range(found.n_layers)]
    return TranscoderSet(
        found.kind, found.read, found.write, found.n_layers, made.__getitem__, found.name
    )


@pytest.mark.parametrize("kind, activation, skip, half", KINDS)
def test_a_folder_gives_back_what_was_written(tmp_path, kind, activation, skip, half):
    dtype = torch.bfloat16 if half else torch.float64
    wanted = tiny.transcoders(kind=kind, activation=activation, skip=skip, dtype=dtype)
    write_folder(wanted, tmp_path / "a")
    assert_same(open_set(tmp_path / "a"), wanted)
    result = CliRunner().invoke(main, ["convert", str(tmp_path / "a"), str(tmp_path / "b")])
    assert result.exit_code == 0, result.output
    assert_same(open_set(tmp_path / "b"), wanted)
    for path in (tmp_path / "a").iterdir():
        assert path.read_bytes() == (tmp_path / "b" / path.name).read_bytes(), path.name


@pytest.mark.parametrize("kind", ["plt", "clt"])
def test_layers_may_differ_in_activation_and_size(tmp_path, kind):
    functions = [Activation("topk", k=3), Activation("topk", k=5), Activation("relu")]
    wanted = changed(
        tiny.transcoders(kind=kind),
        lambda layer, weights: replace(weights, activation=functions[layer]),
    )
    if kind == "plt":
        wanted = changed(wanted, lambda layer, weights: narrowed(weights, 20 - layer))
    write_folder(wanted, tmp_path / "a")
    assert_same(open_set(tmp_path / "a"), wanted)
    assert unlike_reference(wanted)


def narrowed(weights, features):
    return replace(
        weights,
        encoder=weights.encoder[:features],
        encoder_bias=weights.encoder_bias[:features],
        decoders=tuple(rows[:features] for rows in weights.decoders),
    )


def test_a_set_in_memory(tmp_path):
    """A dict of tensors needs no file: `TranscoderSet` takes any function of the layer."""
    tensors = {"W_enc": torch.randn(6, 4), "W_dec": torch.randn(6, 4), "b": torch.zeros(6)}

    def source(layer):
        return LayerWeights(tensors["W_enc"], tensors["b"], (tensors["W_dec"],), torch.zeros(4))

    wanted = TranscoderSet("plt", "mlp.hook_in", "mlp.hook_out", 2, source, "mine")
    write_folder(wanted, tmp_path / "a", model_name="me/model")
    assert_same(open_set(tmp_path / "a"), wanted)
    assert yaml.safe_load((tmp_path / "a" / "config.yaml").read_text())["model_name"] == "me/model"


def gemma_scope(folder):
    wanted = tiny.transcoders(activation="jump_relu", read="ln2.hook_normalized")
    folder.mkdir()
    for layer in range(wanted.n_layers):
        weights = wanted.layer(layer)
        np.savez(
            folder / f"layer_{layer}.npz",
            W_enc=weights.encoder.T.numpy(),
            W_dec=weights.decoders[0].numpy(),
            b_enc=weights.encoder_bias.numpy(),
            b_dec=weights.output_bias.numpy(),
            threshold=weights.activation.threshold.numpy(),
        )
    return wanted


def convert(*arguments):
    return CliRunner().invoke(main, ["convert", *map(str, arguments)])


def test_gemma_scope_becomes_the_reference_tools_folder(tmp_path):
    wanted = gemma_scope(tmp_path / "npz")
    words = ("--to", "reference", "--model-name", "google/gemma-2-2b", "--scan", "x/y")
    result = convert(tmp_path / "npz", tmp_path / "out", *words)
    assert result.exit_code == 0, result.output
    assert f"3 layers, 60 features: {tmp_path / 'out'}" in result.stdout
    assert_same(open_set(tmp_path / "out"), wanted)
    config = yaml.safe_load((tmp_path / "out" / "config.yaml").read_text())
    assert config["model_name"] == "google/gemma-2-2b" and config["scan"] == "x/y"
    assert config["model_kind"] == "transcoder_set"
    assert sorted(load_file(tmp_path / "out" / "layer_2.safetensors")) == [
        "W_dec",
        "W_enc",
        "activation_function.threshold",
        "b_dec",
        "b_enc",
    ]
    result = convert(tmp_path / "out", tmp_path / "again", "-q")
    assert result.exit_code == 0 and result.output == ""
    assert yaml.safe_load((tmp_path / "again" / "config.yaml").read_text()) == config


@pytest.mark.parametrize(
    "options, why",
    [
        (dict(kind="clt", activation="topk"), "TopK as ReLU"),
        (dict(kind="plt", activation="topk"), "TopK as ReLU"),
        (dict(kind="clt", skip=True), "drops the skip"),
    ],
)
def test_what_the_reference_tool_would_misread_is_refused(tmp_path, options, why):
    write_folder(tiny.transcoders(**options), tmp_path / "a")
    result = convert(tmp_path / "a", tmp_path / "b", "--to", "reference")
    assert result.exit_code == 1 and why in result.stderr
    assert not (tmp_path / "b").exists()


def test_a_destination_that_exists_is_kept_unless_forced(tmp_path):
    gemma_scope(tmp_path / "npz")
    write_folder(tiny.transcoders(), tmp_path / "out")
    result = convert(tmp_path / "npz", tmp_path / "out")
    assert result.exit_code == 1 and "--force" in result.stderr
    assert open_set(tmp_path / "out").layer(0).activation.kind == "relu"
    assert convert(tmp_path / "npz", tmp_path / "out", "--force").exit_code == 0
    assert open_set(tmp_path / "out").layer(0).activation.kind == "jump_relu"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["npz", "out"]


def test_force_replaces_folders_of_transcoders_only(tmp_path):
    gemma_scope(tmp_path / "npz")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("…")
    result = convert(tmp_path / "npz", tmp_path / "mine", "--force")
    assert result.exit_code == 1 and "not a folder of transcoders" in result.stderr
    assert (tmp_path / "mine" / "thesis.tex").exists()


def test_a_source_is_not_written_over_itself(tmp_path):
    write_folder(tiny.transcoders(), tmp_path / "a")
    result = convert(tmp_path / "a", tmp_path / "a", "--force")
    assert result.exit_code == 1 and "same folder" in result.stderr


def test_no_folder_to_put_it_in(tmp_path):
    with pytest.raises(OutputError, match="no folder"):
        write_folder(tiny.transcoders(), tmp_path / "a" / "b")


def test_a_damaged_layer_leaves_nothing_behind(tmp_path):
    write_folder(tiny.transcoders(), tmp_path / "a")
    (tmp_path / "a" / "layer_2.safetensors").write_bytes(b"damaged")
    result = convert(tmp_path / "a", tmp_path / "b")
    assert result.exit_code == 1 and "layer_2.safetensors" in result.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


@pytest.mark.parametrize("failing", ["save_file", "_move"])
def test_a_full_disk_leaves_nothing_behind(tmp_path, monkeypatch, failing):
    def full(*arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(writing, failing, full)
    with pytest.raises(OutputError, match="No space left"):
        write_folder(tiny.transcoders(), tmp_path / "a")
    assert list(tmp_path.iterdir()) == []


def test_an_interrupt_leaves_nothing_behind(tmp_path):
    def interrupt(done, message):
        if done:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_folder(tiny.transcoders(), tmp_path / "a", report=interrupt)
    assert list(tmp_path.iterdir()) == []


def test_an_unknown_source(tmp_path):
    (tmp_path / "empty").mkdir()
    result = convert(tmp_path / "empty", tmp_path / "out")
    assert result.exit_code == 1 and "Looked for" in result.stderr
    assert convert(tmp_path / "gone", tmp_path / "out").exit_code == 2


def test_jump_relu_without_thresholds_is_not_written(tmp_path):
    wanted = changed(
        tiny.transcoders(),
        lambda layer, weights: replace(weights, activation=Activation("jump_relu")),
    )
    with pytest.raises(TranscoderError, match="no thresholds"):
        write_folder(wanted, tmp_path / "a")
