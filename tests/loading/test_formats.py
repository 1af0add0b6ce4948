"""Transcoders as other tools write them: read bit for bit, and refused by name when they lie."""

from __future__ import annotations

import json
import os
import re
import struct
from dataclasses import replace
from fnmatch import fnmatch
from pathlib import Path

import huggingface_hub
import numpy as np
import pytest
import tiny
import torch
import yaml
from safetensors.torch import load_file, save_file

import circuit_tracer as ct
from circuit_tracer.errors import InputError, OutputError, TranscoderError
from circuit_tracer.models.load import fetch_file, open_transcoders
from circuit_tracer.replacement import ReplacementModel
from circuit_tracer.transcoders.formats.config import read_config
from circuit_tracer.transcoders.formats.opening import FORMATS, open_set
from circuit_tracer.transcoders.formats.writing import write_saelens

LISTED = dict(
    model_kind="transcoder_set",
    feature_input_hook="ln2.hook_normalized",
    feature_output_hook="hook_mlp_out",
)


def layers(found):
    return [found.layer(layer) for layer in range(found.n_layers)]


def gemma_scope(folder, found, pattern="layer_{}/width_16k/average_l0_8/params.npz"):
    for i, weights in enumerate(layers(found)):
        path = folder / pattern.format(i)
        path.parent.mkdir(parents=True, exist_ok=True)
        np.savez(
            path,
            W_enc=weights.encoder.T.numpy(),
            W_dec=weights.decoders[0].numpy(),
            b_enc=weights.encoder_bias.numpy(),
            b_dec=weights.output_bias.numpy(),
            threshold=weights.activation.threshold.numpy(),
        )
    return folder


def saelens(folder, found, nested=True):
    for i, weights in enumerate(layers(found)):
        home = folder / f"layer_{i}"
        home.mkdir(parents=True)
        jump, skip = weights.activation.kind == "jump_relu", weights.skip is not None
        names = {
            "hook_name": f"blocks.{i}.{found.read}",
            "hook_name_out": f"blocks.{i}.{found.write}",
        }
        config = {
            "architecture": "jumprelu_" * jump + "skip_" * skip + "transcoder",
            "normalize_activations": "none",
            **({"metadata": names} if nested else names),
        }
        (home / "cfg.json").write_text(json.dumps(config))
        tensors = {
            "W_enc": weights.encoder.T.contiguous(),
            "W_dec": weights.decoders[0],
            "b_enc": weights.encoder_bias,
            "b_dec": weights.output_bias,
        }
        tensors |= {"threshold": weights.activation.threshold} if jump else {}
        tensors |= {"W_skip": weights.skip} if skip else {}
        save_file(tensors, home / "sae_weights.safetensors")
    return folder


def sparsify(folder, found, hookpoint="model.layers.{}.mlp"):
    for i, weights in enumerate(layers(found)):
        home = folder / hookpoint.format(i)
        home.mkdir(parents=True)
        config = {"k": weights.activation.k, "transcode": True, "d_in": tiny.WIDTH}
        (home / "cfg.json").write_text(json.dumps(config))
        tensors = {
            "encoder.weight": weights.encoder,
            "encoder.bias": weights.encoder_bias,
            "W_dec": weights.decoders[0],
            "b_dec": weights.output_bias,
        }
        tensors |= {"W_skip": weights.skip} if weights.skip is not None else {}
        save_file(tensors, home / "sae.safetensors")
    return folder


def gemma_scope_2(folder, found, config=True):
    across = found.kind == "clt"
    for i, weights in enumerate(layers(found)):
        home = folder if across else folder / f"layer_{i}_width_16k_l0_small_affine"
        home.mkdir(parents=True, exist_ok=True)
        block = "model.layers." + ("{layer}" if across else str(i))
        points = {
            "hf_hook_point_in": f"{block}.pre_feedforward_layernorm.output",
            "hf_hook_point_out": f"{block}.post_feedforward_layernorm.output",
        }
        if config:
            (home / "config.json").write_text(json.dumps({"architecture": "jump_relu"} | points))
        decoder = weights.decoders[0]
        if across:
            before = [torch.zeros_like(decoder)] * i
            decoder = torch.stack([*before, *weights.decoders], 1)
        tensors = {
            "w_enc": weights.encoder.T.contiguous(),
            "w_dec": decoder,
            "b_enc": weights.encoder_bias,
            "b_dec": weights.output_bias,
            "threshold": weights.activation.threshold,
        }
        if weights.skip is not None:
            tensors["affine_skip_connection"] = weights.skip.T.contiguous()
        name = f"params_layer_{i}.safetensors" if across else "params.safetensors"
        save_file(tensors, home / name)
    return folder


WRITERS = [
    (gemma_scope, dict(activation="jump_relu", read="ln2.hook_normalized")),
    (saelens, dict(activation="relu", read="hook_resid_mid", write="mlp.hook_out")),
    (saelens, dict(activation="jump_relu", skip=True)),
    (sparsify, dict(activation="topk", skip=True, write="mlp.hook_out")),
    (sparsify, dict(activation="topk", write="mlp.hook_out", dtype=torch.bfloat16)),
    (gemma_scope_2, dict(activation="jump_relu")),
    (gemma_scope_2, dict(activation="jump_relu", skip=True)),
    (gemma_scope_2, dict(kind="clt", activation="jump_relu", skip=True, dtype=torch.float32)),
]


def assert_same(found, wanted):
    """Every number of two sets, and its type."""
    assert (found.kind, found.read, found.write) == (wanted.kind, wanted.read, wanted.write)
    assert found.n_layers == wanted.n_layers
    exactly = dict(rtol=0, atol=0)
    for ours, theirs in zip(layers(found), layers(wanted), strict=True):
        for name in ("encoder", "encoder_bias", "output_bias"):
            torch.testing.assert_close(getattr(ours, name), getattr(theirs, name), **exactly)
        assert len(ours.decoders) == len(theirs.decoders)
        for mine, yours in zip(ours.decoders, theirs.decoders, strict=True):
            torch.testing.assert_close(mine, yours, **exactly)
        assert (ours.skip is None) == (theirs.skip is None)
        if ours.skip is not None:
            torch.testing.assert_close(ours.skip, theirs.skip, **exactly)
        assert (ours.activation.kind, ours.activation.k) == (
            theirs.activation.kind,
            theirs.activation.k,
        )
        if theirs.activation.threshold is not None:
            torch.testing.assert_close(
                ours.activation.threshold, theirs.activation.threshold, **exactly
            )


@pytest.mark.parametrize("write, options", WRITERS)
def test_what_others_write_is_read_bit_for_bit(tmp_path, write, options):
    wanted = tiny.transcoders(**options)
    assert_same(open_transcoders(str(write(tmp_path / "set", wanted))), wanted)


def test_variants_of_names(tmp_path):
    jump = tiny.transcoders(activation="jump_relu", read="ln2.hook_normalized")
    assert_same(open_set(gemma_scope(tmp_path / "flat", jump, "layer_{}.npz")), jump)
    assert_same(open_set(saelens(tmp_path / "old", jump, nested=False)), jump)
    topk = tiny.transcoders(activation="topk", write="mlp.hook_out")
    for hookpoint in ("layers.{}.mlp", "h.{}.mlp", "gpt_neox.layers.{}.mlp"):
        assert_same(open_set(sparsify(tmp_path / hookpoint, topk, hookpoint)), topk)


def test_a_trace_is_the_same_from_files(tmp_path):
    wanted = tiny.replacement(kind="clt", activation="jump_relu", skip=True)
    files = open_set(gemma_scope_2(tmp_path / "set", wanted.transcoders))
    opened = ReplacementModel(wanted.adapter, wanted.tokenizer, files)
    ours, theirs = (ct.trace(tiny.PROMPT, model) for model in (opened, wanted))
    assert ours.closure_error < 1e-12
    torch.testing.assert_close(ours.dense(), theirs.dense(), rtol=0, atol=1e-12)


def test_encoders_are_views_of_mapped_files(tmp_path):
    wanted = tiny.transcoders(activation="jump_relu")
    for write in (gemma_scope_2, saelens):
        layer = open_set(write(tmp_path / write.__name__, wanted)).layer(0)
        assert layer.encoder.stride() == (1, layer.encoder.shape[0])


def test_several_choices_are_listed_and_one_can_be_named(tmp_path):
    wanted = tiny.transcoders(activation="jump_relu", read="ln2.hook_normalized")
    folder = gemma_scope(tmp_path / "set", wanted)
    other = tiny.transcoders(activation="jump_relu", read="ln2.hook_normalized", seed=1)
    gemma_scope(folder, other, "layer_{}/width_16k/average_l0_90/params.npz")
    with pytest.raises(TranscoderError, match=r"(?s)average_l0_8/.*average_l0_90/.*config\.yaml"):
        open_set(folder)
    names = [f"layer_{i}/width_16k/average_l0_90/params.npz" for i in range(tiny.LAYERS)]
    (folder / "config.yaml").write_text(yaml.dump(LISTED | {"transcoders": names}))
    assert_same(open_set(folder), other)


def test_files_on_the_hub_are_fetched_by_name(tmp_path, monkeypatch):
    wanted = tiny.transcoders(activation="jump_relu", read="ln2.hook_normalized")
    hub = gemma_scope(tmp_path / "hub", wanted, "layer_{}.npz")
    asked = []

    def download(repository, path, revision=None):
        asked.append((repository, path, revision))
        return str(hub / path)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    names = ["hf://org/repo/layer_0.npz?revision=v2", "hf://org/repo/layer_1.npz", "layer_2.npz"]
    (hub / "config.yaml").write_text(yaml.dump(LISTED | {"transcoders": names}))
    assert_same(open_transcoders(str(hub)), wanted)
    assert asked == [("org/repo", "layer_0.npz", "v2"), ("org/repo", "layer_1.npz", None)]


def test_listed_cross_layer_files_include_the_last_layer(tmp_path):
    wanted = tiny.transcoders(kind="clt", activation="jump_relu", skip=True)
    folder = gemma_scope_2(tmp_path / "set", wanted, config=False)
    names = [f"params_layer_{i}.safetensors" for i in range(tiny.LAYERS)]
    config = dict(
        model_kind="cross_layer_transcoder",
        feature_input_hook="mlp.hook_in",
        feature_output_hook="hook_mlp_out",
        transcoders=names,
    )
    (folder / "config.yaml").write_text(yaml.dump(config))
    found = open_set(folder)
    assert_same(found, wanted)
    (folder / "config.yaml").write_text(yaml.dump(config | {"transcoders": names[::-1]}))
    with pytest.raises(TranscoderError, match="before its own"):
        open_set(folder).layer(2)


def test_the_hub_cache_is_inside(tmp_path):
    """A snapshot is a folder of links to blobs beside it; links to anywhere else are refused."""
    wanted = tiny.transcoders(activation="jump_relu", read="ln2.hook_normalized")
    blobs = gemma_scope(tmp_path / "models--o--r" / "blobs", wanted, "layer_{}.npz")
    snapshot = tmp_path / "models--o--r" / "snapshots" / "abc"
    snapshot.mkdir(parents=True)
    for path in list(blobs.iterdir()):
        (snapshot / path.name).symlink_to(os.path.relpath(path, snapshot))
    assert_same(open_set(snapshot), wanted)


def test_folders_in_repositories(tmp_path, monkeypatch):
    wanted = tiny.transcoders(activation="topk", write="mlp.hook_out")
    sparsify(tmp_path / "repo" / "runs" / "a", wanted)
    asked = []

    def download(name, revision=None, allow_patterns=None):
        asked.append((name, revision, allow_patterns))
        return str(tmp_path / "repo")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    assert_same(open_transcoders("org/repo/runs/a@v1"), wanted)
    assert asked == [("org/repo", "v1", ["runs/a/*"])]
    with pytest.raises(TranscoderError, match="no folder runs/b"):
        open_transcoders("org/repo/runs/b")
    with pytest.raises(InputError, match=r"\.\."):
        open_transcoders("org/repo/runs/../..")


def test_only_what_is_needed_is_downloaded(tmp_path, monkeypatch):
    wanted = tiny.transcoders(activation="jump_relu", read="ln2.hook_normalized")
    hub = gemma_scope(tmp_path / "hub", wanted, "layer_{}.npz")
    asked = []

    def download(name, revision=None, allow_patterns=None):
        asked.append(allow_patterns)
        return str(hub)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    assert_same(open_transcoders("org/repo"), wanted)
    assert not any(fnmatch("layer_0/width_16k/x/params.npz", p) for p in asked[-1])
    assert not any(fnmatch("layer_0_width_16k/params.safetensors", p) for p in asked[-1])
    names = [f"layer_{i}.npz" for i in range(tiny.LAYERS)]
    (hub / "config.yaml").write_text(yaml.dump(LISTED | {"transcoders": names}))
    assert_same(open_transcoders("org/repo"), wanted)
    assert asked[-2:] == [["*.yaml"], ["*.yaml", *names]]


def test_a_repository_with_choices_lists_them(tmp_path, monkeypatch):
    names = [
        f"layer_{i}/width_16k/average_l0_{l0}/params.npz" for i in range(3) for l0 in range(1, 30)
    ]
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *_, **__: str(tmp_path))
    monkeypatch.setattr(huggingface_hub, "list_repo_files", lambda *_, **__: ["README.md", *names])
    with pytest.raises(TranscoderError, match="87 files in all; of layer 0") as caught:
        open_transcoders("google/gemma-scope-2b-pt-transcoders@main")
    first = "layer_0/width_16k/average_l0_1/params.npz"
    said = f"- hf://google/gemma-scope-2b-pt-transcoders/{first}?revision=main"
    assert said in str(caught.value) and "17 more" in str(caught.value)


def test_a_repository_without_transcoders_says_what_was_looked_for(tmp_path, monkeypatch):
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *_, **__: str(tmp_path))
    monkeypatch.setattr(huggingface_hub, "list_repo_files", lambda *_, **__: ["README.md"])
    with pytest.raises(TranscoderError, match="Looked for"):
        open_transcoders("org/empty")


def test_a_public_set_that_does_not_say_its_k(tmp_path):
    (tmp_path / "config.yaml").write_text(yaml.dump(LISTED | {"activation": "topk"}))
    assert read_config(tmp_path, "facebook/crv-8b-instruct-transcoders@main").k == 128
    with pytest.raises(TranscoderError, match="needs k"):
        read_config(tmp_path, "somebody/else")


@pytest.mark.parametrize(
    "uri", ["hf://org", "hf://org/repo", "hf://o/r/../x", "https://o/r/x", "hf://[/r/x"]
)
def test_hub_names_that_name_no_file(uri):
    with pytest.raises(TranscoderError, match="should read hf://"):
        fetch_file(uri)


@pytest.mark.parametrize(
    "error, says", [("EntryNotFoundError", "no file a"), ("RevisionNotFoundError", "no revision")]
)
def test_files_the_hub_does_not_have(monkeypatch, error, says):
    def download(*args, **kwargs):
        raise type(error, (Exception,), {})()

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    with pytest.raises(TranscoderError, match=says):
        fetch_file("hf://org/repo/a?revision=v9")


def test_an_unknown_folder_says_what_was_looked_for(tmp_path):
    (tmp_path / "model.bin").write_bytes(b"x")
    with pytest.raises(TranscoderError) as caught:
        open_set(tmp_path)
    assert all(known.name in str(caught.value) for known in FORMATS)


class Payload:
    """Leaves a trace if it is ever unpickled."""

    def __reduce__(self):
        return os.mkdir, ("unpickled",)


def arrays(**changed):
    def damage(folder):
        path = folder / "layer_0.npz"
        kept = dict(np.load(path)) | changed
        np.savez(path, **{name: value for name, value in kept.items() if value is not None})

    return damage


def header(text):
    """An archive whose first array has this header and no data."""

    def damage(folder):
        import zipfile

        text_ = text.encode().ljust(117) + b"\n"
        with zipfile.ZipFile(folder / "layer_0.npz", "w") as archive:
            archive.writestr("W_enc.npy", b"\x93NUMPY\x01\x00" + struct.pack("<H", 118) + text_)

    return damage


HUGE = "{'descr': '<f4', 'fortran_order': False, 'shape': (999999999, 9999), }"


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (arrays(W_enc=np.array([Payload()], dtype=object)), "pickled Python objects"),
        (arrays(extra=np.array({"a": Payload()}, dtype=object)), "pickled Python objects"),
        (
            arrays(W_enc=np.zeros((20, tiny.WIDTH))),
            r"W_enc .*shape \(20, 16\); expected \(16, 20\)",
        ),
        (arrays(W_dec=np.zeros((tiny.WIDTH, 20))), "W_dec"),
        (arrays(threshold=None), "no tensor 'threshold'"),
        (arrays(threshold=np.full(20, np.nan)), "threshold .*NaN"),
        (arrays(b_enc=np.zeros(20, dtype=int)), "expected a float"),
        (arrays(b_enc=np.array(["a"] * 20)), "b_enc .*cannot be read"),
        (arrays(W_enc=np.full((tiny.WIDTH, 20), np.nan)), "NaN or infinite"),
        (header(HUGE), "not its size"),
        (header("{'descr': __import__('os').mkdir('unpickled')}"), "not a readable"),
        (lambda folder: (folder / "layer_0.npz").write_bytes(b"\x80\x04."), "not a readable"),
        (
            lambda folder: (folder / "layer_1.npz").rename(folder / f"layer_{10**9}.npz"),
            "no model has",
        ),
    ],
)
def test_archives_that_lie(tmp_path, monkeypatch, damage, says):
    monkeypatch.chdir(tmp_path)
    folder = gemma_scope(tmp_path / "set", tiny.transcoders(activation="jump_relu"), "layer_{}.npz")
    damage(folder)
    with pytest.raises(TranscoderError, match=says):
        open_set(folder).encode(0, torch.ones(2, tiny.WIDTH, dtype=torch.float64))
    assert not (tmp_path / "unpickled").exists()


def settings(path, **changed):
    def damage(folder):
        fields = json.loads((folder / path).read_text()) | changed
        (folder / path).write_text(json.dumps(fields))

    return damage


def tensors(path, **changed):
    def damage(folder):
        kept = load_file(folder / path) | changed
        save_file({name: value for name, value in kept.items() if value is not None}, folder / path)

    return damage


def oversized(path):
    return lambda folder: (folder / path).write_bytes(struct.pack("<Q", 2**62) + b"{}")


S, P, G = "layer_0/", "model.layers.0.mlp/", "layer_0_width_16k_l0_small_affine/"
LIES = [
    (saelens, settings(S + "cfg.json", architecture="gated"), "architecture"),
    (saelens, settings(S + "cfg.json", activation_fn="gelu"), "activation_fn"),
    (saelens, settings(S + "cfg.json", activation_fn_str="topk"), "activation_fn_str"),
    (saelens, settings(S + "cfg.json", normalize_activations="layer_norm"), "normalize"),
    (saelens, settings(S + "cfg.json", metadata={}), "'nothing' is read|nothing"),
    (
        saelens,
        settings(
            S + "cfg.json",
            metadata={
                "hook_name": "blocks.0.hook_mlp_in",
                "hook_name_out": "blocks.0.hook_mlp_out",
            },
        ),
        "hook_mlp_in.*not a place",
    ),
    (
        saelens,
        settings(
            S + "cfg.json",
            metadata={
                "hook_name": "blocks.0.mlp.hook_in",
                "hook_name_out": "blocks.1.hook_mlp_out",
            },
        ),
        "one layer, the same",
    ),
    (saelens, lambda folder: (folder / S / "cfg.json").write_text("{"), "not readable JSON"),
    (saelens, lambda folder: (folder / S / "cfg.json").write_text("[" * 99999), "not readable"),
    (saelens, tensors(S + "sae_weights.safetensors", threshold=None), "no tensor 'threshold'"),
    (saelens, settings(S + "cfg.json", architecture="transcoder"), "has thresholds"),
    (saelens, tensors(S + "sae_weights.safetensors", W_skip=torch.zeros(2, 2)), "has a skip"),
    (saelens, tensors(S + "sae_weights.safetensors", W_enc=torch.ones(20, 16)), r"\(16, 20\)"),
    (saelens, oversized(S + "sae_weights.safetensors"), "not a readable safetensors"),
    (sparsify, settings(P + "cfg.json", transcode=False), "autoencoder"),
    (sparsify, settings(P + "cfg.json", k=0), "k: "),
    (sparsify, settings(P + "cfg.json", activation="groupmax"), "activation"),
    (sparsify, settings(P + "cfg.json", normalize_io=True), "normalize_io"),
    (sparsify, tensors(P + "sae.safetensors", W_dec=torch.ones(16, 20)), "W_dec"),
    (sparsify, oversized(P + "sae.safetensors"), "not a readable safetensors"),
    (
        sparsify,
        lambda folder: (folder / P).rename(folder / "model.layers.0.self_attn"),
        "not a whole MLP",
    ),
    (sparsify, lambda folder: (folder / P / "cfg.json").unlink(), "cfg.json is not readable"),
    (gemma_scope_2, lambda folder: (folder / G / "config.json").unlink(), "config.json is missing"),
    (gemma_scope_2, settings(G + "config.json", hf_hook_point_in="model.layers.0.output"), "read"),
    (gemma_scope_2, settings(G + "config.json", hf_hook_point_in="layers.0.mlp.hook_in.x"), "read"),
    (gemma_scope_2, settings(G + "config.json", hf_hook_point_out="layers.0.mlp.output"), "alike"),
    (gemma_scope_2, tensors(G + "params.safetensors", threshold=None), "no tensor 'threshold'"),
    (gemma_scope_2, tensors(G + "params.safetensors", w_enc=torch.ones(20, 16)), r"\(16, 20\)"),
]


@pytest.mark.parametrize(("write", "damage", "says"), LIES)
def test_folders_of_others_that_lie(tmp_path, write, damage, says):
    kind = "topk" if write is sparsify else "jump_relu"
    folder = write(tmp_path / "set", tiny.transcoders(activation=kind))
    damage(folder)
    with pytest.raises(TranscoderError, match=says):
        open_set(folder).layer(0)


def test_an_ambiguous_hook_is_settled_by_its_module(tmp_path):
    wanted = tiny.transcoders(activation="jump_relu")
    folder = saelens(tmp_path / "set", wanted)
    for i in range(tiny.LAYERS):
        names = {
            "hook_name": f"blocks.{i}.hook_mlp_in",
            "hf_hook_name": f"model.layers.{i}.pre_feedforward_layernorm.output",
            "hook_name_out": f"blocks.{i}.hook_mlp_out",
        }
        settings(f"layer_{i}/cfg.json", metadata=names)(folder)
    assert_same(open_set(folder), wanted)


def test_a_negative_threshold_is_zero_to_saelens(tmp_path):
    wanted = tiny.transcoders(activation="jump_relu")
    folder = saelens(tmp_path / "set", wanted)
    tensors(S + "sae_weights.safetensors", threshold=torch.full((20,), -1.0))(folder)
    x = torch.randn(5, tiny.WIDTH, dtype=torch.float64)
    assert (open_set(folder).encode(0, x)[1] > 0).all()


@pytest.mark.parametrize("activation", ["relu", "jump_relu"])
@pytest.mark.parametrize("skip", [False, True])
def test_what_is_written_for_saelens_is_read_as_it_was(tmp_path, activation, skip):
    wanted = tiny.transcoders(activation=activation, skip=skip)
    write_saelens(wanted, tmp_path / "set", model_name="m")
    assert_same(open_set(tmp_path / "set"), wanted)
    config = json.loads((tmp_path / "set" / "layer_1" / "cfg.json").read_text())
    assert config["metadata"]["model_name"] == "m" and not config["apply_b_dec_to_input"]
    with pytest.raises(OutputError, match="exists"):
        write_saelens(wanted, tmp_path / "set")
    write_saelens(wanted, tmp_path / "set", replace=True)
    (tmp_path / "set" / "notes.txt").write_text("mine")
    with pytest.raises(OutputError, match="is not a folder of transcoders"):
        write_saelens(wanted, tmp_path / "set", replace=True)


@pytest.mark.parametrize(
    "changed, says",
    [
        ({"kind": "clt"}, "no cross-layer"),
        ({"activation": "topk"}, "not TopK"),
        ({"activation": "jump_relu"}, "no threshold is below zero"),
    ],
)
def test_what_saelens_cannot_hold_is_refused(tmp_path, changed, says):
    found = tiny.transcoders(**changed)
    if found.layer(1).activation.threshold is not None:
        weights = found.layer(1)
        lower = replace(weights.activation, threshold=weights.activation.threshold - 9)
        source = {n: found.layer(n) for n in range(found.n_layers)}
        source[1] = replace(weights, activation=lower)
        found = replace(found, source=source.__getitem__, _open={})
    with pytest.raises(OutputError, match=says):
        write_saelens(found, tmp_path / "set")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("entry", ["../secret.safetensors", "link.safetensors", "/etc/hostname"])
def test_entries_may_not_lead_out_of_the_folder(tmp_path, entry):
    folder = tmp_path / "set"
    folder.mkdir()
    save_file({"W_enc": torch.ones(2, 2)}, tmp_path / "secret.safetensors")
    (folder / "link.safetensors").symlink_to(tmp_path / "secret.safetensors")
    (folder / "config.yaml").write_text(yaml.dump(LISTED | {"transcoders": [entry]}))
    with pytest.raises(TranscoderError, match="leads out"):
        open_set(folder)


def test_links_out_of_sets_of_others(tmp_path):
    wanted = tiny.transcoders(activation="jump_relu")
    folder = gemma_scope(tmp_path / "set", wanted, "layer_{}.npz")
    (folder / "layer_0.npz").rename(tmp_path / "elsewhere.npz")
    (folder / "layer_0.npz").symlink_to(tmp_path / "elsewhere.npz")
    with pytest.raises(TranscoderError, match="leads out"):
        open_set(folder)


@pytest.mark.parametrize(
    "change, says",
    [
        ({"transcoders": ["layer_0.npz", "gone.npz"]}, "names gone.npz, which is not there"),
        ({"transcoders": []}, "transcoders"),
        ({"transcoders": ["a\0b"]}, "no name of a file"),
        ({"activation": "topk", "k": 3}, "says topk, but .* is JumpReLU"),
        ({"model_kind": "cross_layer_transcoder"}, "per-layer archive"),
        ({"feature_output_hook": "hook_resid_post"}, "feature_output_hook"),
    ],
)
def test_lists_that_lie(tmp_path, change, says):
    folder = gemma_scope(tmp_path / "set", tiny.transcoders(activation="jump_relu"), "layer_{}.npz")
    config = LISTED | {"transcoders": ["layer_0.npz"]} | change
    (folder / "config.yaml").write_text(yaml.dump(config))
    with pytest.raises(TranscoderError, match=says):
        open_set(folder).layer(0)


def test_autoencoders_are_told_by_their_repositories_name(tmp_path):
    folder = gemma_scope(tmp_path / "set", tiny.transcoders(activation="jump_relu"))
    with pytest.raises(TranscoderError, match="autoencoders"):
        open_set(folder, "google/gemma-scope-2b-pt-res")
    assert open_set(folder, "google/gemma-scope-2b-pt-transcoders").n_layers == tiny.LAYERS


def test_own_topk_files_of_the_reference_tool_are_read(tmp_path):
    """It writes k as a tensor, and then refuses its own files."""
    weights = layers(tiny.transcoders())[0]
    save_file(
        {
            "W_enc": weights.encoder,
            "W_dec": weights.decoders[0],
            "b_enc": weights.encoder_bias,
            "b_dec": weights.output_bias,
            "k": torch.tensor(4),
        },
        tmp_path / "layer_0.safetensors",
    )
    for extra in ({}, {"activation": "topk", "k": 4}):
        (tmp_path / "config.yaml").write_text(yaml.dump(LISTED | extra))
        found = open_set(tmp_path).layer(0).activation
        assert found == replace(found, kind="topk", k=4)
    (tmp_path / "config.yaml").write_text(yaml.dump(LISTED | {"activation": "topk", "k": 5}))
    with pytest.raises(TranscoderError, match="keeps 4 features, its config 5"):
        open_set(tmp_path).layer(0)


def test_the_page_on_transcoders_is_true():
    """Its table has every format, and its example of tensors in memory runs."""
    text = (Path(__file__).parents[2] / "docs" / "transcoders.md").read_text(encoding="utf-8")
    assert all(f"| {known.name} |" in text for known in FORMATS)
    namespace = {}
    for block in re.findall(r"^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL):
        exec(block, namespace)
    assert namespace["graph"].closure_error < 1e-3
