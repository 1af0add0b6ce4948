"""The lean network and the Hugging Face model that ships compute the same."""

from __future__ import annotations

import json

import pytest
import torch

from circuit_tracer.bundled.language_model import LeanModel, Shape, export, read

TINY = Shape(vocab=96, d_model=16, d_mlp=24, heads=2, layers=4)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    model = LeanModel(TINY, seed=3)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=torch.Generator()) * 0.1)
    target = tmp_path_factory.mktemp("tiny")
    export(model, target)
    return target


@pytest.fixture(scope="module")
def hf(folder):
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager"
    )


def test_loads_as_gemma_2(hf):
    assert type(hf).__name__ == "Gemma2ForCausalLM"
    assert hf.config.layer_types[:3] == ["sliding_attention"] * 2 + ["full_attention"]


def test_logits_equal(folder, hf):
    lean = read(folder)
    ids = torch.randint(4, 96, (5, 14), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        wanted = hf(ids).logits
    torch.testing.assert_close(lean.logits(lean(ids)), wanted, atol=2e-5, rtol=1e-5)


def test_sites_equal_the_modules(folder, hf):
    lean, ids, seen = read(folder), torch.tensor([[1, 7, 8, 9, 10]]), {}

    def note(name):
        return lambda module, given, out: seen.__setitem__(name, (given[0], out))

    hooks = [
        hf.model.layers[2].mlp.register_forward_hook(note("mlp")),
        hf.model.layers[2].post_feedforward_layernorm.register_forward_hook(note("post")),
    ]
    with torch.no_grad():
        hf(ids)
    for hook in hooks:
        hook.remove()
    inputs, outputs = lean.sites(ids)
    torch.testing.assert_close(inputs[2], seen["mlp"][0], atol=2e-5, rtol=1e-5)
    torch.testing.assert_close(outputs[2], seen["post"][1], atol=2e-5, rtol=1e-5)


def test_embeddings_are_frozen_and_seeded():
    one, same, other = (LeanModel(TINY, seed=seed) for seed in (3, 3, 4))
    assert "embedding" not in dict(one.named_parameters())
    assert torch.equal(one.embedding, same.embedding)
    assert not torch.equal(one.embedding, other.embedding)
    assert torch.equal(one.embedding, one.embedding.bfloat16().float())


def test_rotary_base_stands_where_every_release_looks(folder):
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    assert config["rope_theta"] == config["rope_parameters"]["rope_theta"] == 1000.0
    assert not list(folder.glob("*.bin")) and not list(folder.glob("*.pt"))


def test_local_layers_see_two_tokens(folder):
    model = read(folder)
    ids = torch.tensor([[1, 7, 8, 9, 10, 11]])
    changed = ids.clone()
    changed[0, 1] = 20
    first, second = model.residuals(ids), model.residuals(changed)
    moved = (first - second).abs().amax(-1)[:, 0] > 1e-6
    assert moved[0].tolist() == [False, True, True, False, False, False]
    assert moved[1].tolist() == [False, True, True, True, False, False]
    assert moved[2, -1]
