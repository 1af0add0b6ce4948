"""The reference tool's transcoder folders: what is read, lazily, and what is refused and how."""

from __future__ import annotations

import shutil
import struct

import pytest
import tiny
import torch
import yaml
from safetensors.torch import load_file, save_file

from circuit_tracer.errors import TranscoderError
from circuit_tracer.transcoders.base import Activation
from circuit_tracer.transcoders.formats.folder import THRESHOLD, open_folder

PLT = dict(
    model_kind="transcoder_set",
    feature_input_hook="mlp.hook_in",
    feature_output_hook="hook_mlp_out",
    model_name="local",
    scan="x/y",
)


def write_plt(folder, layers=2, config=(), **extra):
    """A small per-layer folder; `extra` tensors go into every file."""
    folder.mkdir(exist_ok=True)
    (folder / "config.yaml").write_text(yaml.dump(PLT | dict(config)))
    torch.manual_seed(0)
    for layer in range(layers):
        tensors = dict(
            W_enc=torch.randn(6, 4),
            W_dec=torch.randn(6, 4),
            b_enc=torch.randn(6),
            b_dec=torch.randn(4),
        )
        save_file(tensors | extra, folder / f"layer_{layer}.safetensors")
    return folder


def write_clt(folder, layers=3, **extra):
    folder.mkdir(exist_ok=True)
    config = PLT | {"model_kind": "cross_layer_transcoder"}
    (folder / "config.yaml").write_text(yaml.dump(config))
    torch.manual_seed(0)
    for i in range(layers):
        tensors = {f"W_enc_{i}": torch.randn(6, 4), f"b_enc_{i}": torch.randn(6)}
        tensors |= {f"b_dec_{i}": torch.randn(4)}
        tensors |= {f"{name}_{i}": value for name, value in extra.items()}
        save_file(tensors, folder / f"W_enc_{i}.safetensors")
        save_file({f"W_dec_{i}": torch.randn(6, layers - i, 4)}, folder / f"W_dec_{i}.safetensors")
    return folder


def test_activations_are_what_the_files_say(tmp_path):
    threshold = {"activation_function.threshold": torch.rand(6)}
    cases = [
        ({}, {}, "relu"),
        ({}, threshold, "jump_relu"),
        ({}, {"activation_function.threshold": torch.tensor(0.3)}, "jump_relu"),
        ({"activation": "relu"}, threshold, "relu"),
        ({"activation": "topk", "k": 2}, {}, "topk"),
    ]
    for number, (config, extra, kind) in enumerate(cases):
        found = open_folder(write_plt(tmp_path / str(number), config=config, **extra))
        assert found.layer(1).activation.kind == kind
    assert found.layer(0).activation.k == 2
    assert found.kind == "plt" and found.read == "mlp.hook_in" and found.n_layers == 2


def test_topk_keeps_positive_values_only_and_jump_relu_is_strict():
    pre = torch.tensor([[3.0, -1.0, 2.0, 1.0], [-1.0, -2.0, -3.0, -4.0]])
    assert Activation("topk", k=2).active(pre).nonzero().tolist() == [[0, 0], [0, 2]]
    assert Activation("topk", k=9).active(pre).nonzero().tolist() == [[0, 0], [0, 2], [0, 3]]
    at = Activation("jump_relu", torch.tensor([3.0, 0.0, 1.0, 1.0]))
    assert at.active(pre).nonzero().tolist() == [[0, 2]]


def test_cross_layer_decoders_and_skips(tmp_path):
    skip = torch.randn(4, 4)
    found = open_folder(write_clt(tmp_path / "clt", W_skip=skip, threshold=torch.rand(6)))
    assert found.kind == "clt" and found.n_layers == 3
    assert [len(found.layer(i).decoders) for i in range(3)] == [3, 2, 1]
    raw = load_file(tmp_path / "clt" / "W_dec_0.safetensors")["W_dec_0"]
    rows = found.decoder_rows(0, 2, torch.tensor([4, 1]), torch.float32)
    assert torch.equal(rows, raw[[4, 1], 2])
    assert torch.equal(found.layer(1).skip, skip)
    assert found.layer(2).activation.kind == "jump_relu"


def test_layers_are_opened_when_they_are_used(tmp_path):
    folder = write_plt(tmp_path / "plt", layers=3)
    found = open_folder(folder)
    (folder / "layer_2.safetensors").write_bytes(b"not a tensor file")
    found.layer(0), found.layer(1)
    with pytest.raises(TranscoderError, match=r"layer_2\.safetensors.*damaged"):
        found.layer(2)


def damage_config(text):
    return lambda folder: (folder / "config.yaml").write_text(text)


def damage_file(**tensors):
    def damage(folder):
        path = folder / "layer_0.safetensors"
        save_file({k: v for k, v in (load_file(path) | tensors).items() if v is not None}, path)

    return damage


def oversized(folder):
    path = folder / "layer_0.safetensors"
    path.write_bytes(struct.pack("<Q", 2**62) + path.read_bytes()[8:])


def linked(folder):
    path = folder / "layer_0.safetensors"
    path.rename(folder.parent / "elsewhere.safetensors")
    path.symlink_to(folder.parent / "elsewhere.safetensors")


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (lambda folder: (folder / "config.yaml").unlink(), r"no config\.yaml"),
        (damage_config("a: [b"), "not valid YAML"),
        (damage_config("hello"), "not a transcoder config"),
        (damage_config(yaml.dump(PLT | {"model_kind": "sae"})), "model_kind"),
        (damage_config(yaml.dump(PLT | {"feature_input_hook": "hook_z"})), "feature_input_hook"),
        (damage_config(yaml.dump(PLT | {"activation": "topk"})), "needs k"),
        (damage_config(yaml.dump(PLT | {"activation": "jump_relu"})), "should hold"),
        (damage_config(yaml.dump(PLT | {"transcoders": ["hf://a/b"]})), "hub"),
        (lambda folder: (folder / "layer_0.safetensors").unlink(), "without gaps"),
        (lambda folder: shutil.rmtree(folder) or folder.mkdir(), r"no config\.yaml"),
        (damage_file(W_enc=None), "no tensor 'W_enc'"),
        (damage_file(W_dec=torch.randn(4, 6)), r"W_dec .*shape \(4, 6\); expected \(6, 4\)"),
        (damage_file(b_enc=torch.ones(6, dtype=torch.int64)), "expected a float"),
        (damage_file(b_dec=torch.ones(5)), "b_dec"),
        (damage_file(W_enc=torch.full((6, 4), torch.nan)), "NaN or infinite"),
        (damage_file(W_dec=torch.full((6, 4), torch.nan)), "decoder of feature"),
        (damage_file(**{THRESHOLD: torch.full((6,), torch.nan)}), "could never fire"),
        (damage_file(**{THRESHOLD: torch.ones(4)}), "threshold .*shape"),
        (oversized, "not a readable safetensors"),
        (linked, "leads out of the folder"),
    ],
)
def test_folders_that_lie(tmp_path, damage, says):
    folder = write_plt(tmp_path / "plt")
    damage(folder)
    with pytest.raises(TranscoderError, match=says):
        found = open_folder(folder)
        cells, _ = found.encode(0, torch.randn(3, 4))
        found.decoder_rows(0, 0, torch.arange(6), torch.float32)


def test_every_layer_must_have_the_width_of_the_model(tmp_path):
    folder = write_plt(tmp_path / "plt", layers=3)
    narrow = dict(
        W_enc=torch.randn(6, 5), W_dec=torch.randn(6, 5), b_enc=torch.randn(6), b_dec=torch.ones(5)
    )
    save_file(narrow, folder / "layer_1.safetensors")
    with pytest.raises(TranscoderError, match="layer 1.*width 5"):
        open_folder(folder).check_fits(3, 4, "tiny")


def test_an_encoded_layer_is_its_definition():
    for activation in ("relu", "jump_relu", "topk"):
        sets = tiny.transcoders(activation=activation)
        x = torch.randn(5, tiny.WIDTH, dtype=torch.float64)
        weights = sets.layer(1)
        pre = x @ weights.encoder.T + weights.encoder_bias
        cells, values = sets.encode(1, x)
        dense = torch.zeros_like(pre)
        dense[cells[:, 0], cells[:, 1]] = values
        match activation:
            case "relu":
                expected = pre.relu()
            case "jump_relu":
                expected = pre * (pre > weights.activation.threshold)
            case "topk":
                kept = pre.topk(6).indices
                expected = torch.zeros_like(pre).scatter(1, kept, pre.gather(1, kept)).relu()
        torch.testing.assert_close(dense, expected)
