"""Families: entries held against their models, and architectures nobody entered."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest
import tiny
import torch
import transformers
from frozen import Frozen

from circuit_tracer.attribute import attribute
from circuit_tracer.errors import ModelError
from circuit_tracer.models import families
from circuit_tracer.models.adapter import Adapter, epsilon
from circuit_tracer.models.check import TOLERANCE, check, measure
from circuit_tracer.models.inference import adapt, infer
from circuit_tracer.replacement import ReplacementModel
from circuit_tracer.targets import choose

SHAPE = dict(
    vocab_size=tiny.VOCABULARY,
    hidden_size=tiny.WIDTH,
    intermediate_size=24,
    num_hidden_layers=tiny.LAYERS,
    num_attention_heads=tiny.HEADS,
    max_position_embeddings=32,
    bos_token_id=2,
    eos_token_id=1,
    pad_token_id=0,
)
GROUPED = dict(num_key_value_heads=2)
EXPERTS = dict(num_local_experts=4, num_experts_per_tok=2)
UNKNOWN = {
    "StableLm": GROUPED,
    "Starcoder2": GROUPED,
    "Phi": {},
    "Olmo": GROUPED,
    "Cohere": GROUPED | dict(logit_scale=1.0),
    "Granite": GROUPED,
    "Mixtral": GROUPED | EXPERTS,
    "Glm4": GROUPED | dict(head_dim=4),
    "Persimmon": {},
    "Ernie4_5": GROUPED,
}
REFUSED = {
    "Granite residual": ("Granite", dict(residual_multiplier=0.22), "residual before the MLP"),
    "Granite logits": ("Granite", dict(logits_scaling=6.0), "logits = unembedding"),
    "Cohere": ("Cohere", GROUPED, "logits = unembedding"),
    "Olmo": ("Olmo", dict(clip_qkv=0.1), "clip_qkv"),
    "Falcon": ("Falcon", {}, "no attention pattern of layer 0"),
    "Mamba": ("Mamba", {}, "no attention pattern of layer 0"),
    "OPT": ("OPT", dict(ffn_dim=24, word_embed_proj_dim=tiny.WIDTH), "MLP as one module"),
    "BitNet": ("BitNet", GROUPED, "attention as pattern, value and output"),
    "Doge": ("Doge", GROUPED, "projections"),
}


def random_model(name, dtype=torch.float32, base=None, **given):
    """A random model of an architecture, norm weights and biases away from trivial values."""
    torch.manual_seed(0)
    config = getattr(transformers, f"{name}Config")(**SHAPE | given)
    config._attn_implementation = config._experts_implementation = "eager"
    model = (base or getattr(transformers, f"{name}ForCausalLM"))(config)
    draw = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for path, parameter in model.named_parameters():
            spread = 0.5 if parameter.ndim == 1 or "embed" in path else 0.25
            parameter.copy_(torch.randn(parameter.shape, generator=draw) * spread)
    return tiny.exact(model.to(dtype).eval().requires_grad_(False))


class RenamedForCausalLM(transformers.LlamaForCausalLM):
    """Llama under a name that no entry has."""


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_every_claim_of_every_family_holds(family, dtype):
    model = tiny.model(family, dtype)
    before = {name: (p.dtype, p.clone()) for name, p in model.named_parameters()}
    claims = check(Adapter(model, family))
    assert len(claims) >= 10
    assert max(claim.error for claim in claims) < TOLERANCE / 50
    for name, parameter in model.named_parameters():
        kind, values = before[name]
        assert parameter.dtype == kind
        assert torch.equal(parameter, values)


@pytest.mark.parametrize("name", ["Gemma", "SmolLM3", "Olmo3", "Gemma3"])
def test_every_claim_of_entries_that_differ_by_name_holds(name):
    if not hasattr(transformers, f"{name}Config"):
        pytest.skip(f"transformers {transformers.__version__} has no {name}")
    if name == "Gemma3":
        model = with_images()
    else:
        model = random_model(name, **GROUPED | dict(head_dim=4))
    adapter = adapt(model, name, torch.float32)
    assert not adapter.family.name.startswith("inferred")
    check(adapter)


def with_images():
    """Gemma 3 with its image half, whose blocks are as many as those that read text."""
    picture = dict(hidden_size=16, intermediate_size=24, num_attention_heads=4, patch_size=4)
    config = transformers.Gemma3Config(
        text_config=SHAPE | GROUPED | dict(head_dim=4, sliding_window=3),
        vision_config=picture | dict(image_size=8, num_hidden_layers=tiny.LAYERS),
        mm_tokens_per_image=1,
    )
    config._attn_implementation = "eager"
    return transformers.Gemma3ForConditionalGeneration(config).eval().requires_grad_(False)


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_what_is_inferred_of_a_known_family_is_its_entry(family):
    model = tiny.model(family, torch.float32)
    known = families.family_of(type(model).__name__)
    found = infer(model, family)
    assert found == replace(
        known, name=found.name, architectures=found.architectures, parallel=found.parallel
    )


def test_images_do_not_confuse_what_is_inferred():
    found = infer(with_images(), "gemma 3")
    assert found.layers == "model.language_model.layers"


def test_a_renamed_class_is_inferred_and_gives_the_same_graph():
    known = random_model("Llama", torch.float64, **GROUPED)
    renamed = random_model("Llama", torch.float64, RenamedForCausalLM, **GROUPED)
    dense = []
    for model in (known, renamed):
        traced = ReplacementModel(
            adapt(model, "m", torch.float64), tiny.tokenizer(), tiny.transcoders()
        )
        dense.append(rows_of(traced)[1].dense())
    assert traced.adapter.family.name == "inferred: RenamedForCausalLM"
    assert torch.equal(*dense)


def rows_of(model):
    forward = model.run(tiny.PROMPT)
    local = model.localise(forward)
    return local, attribute(local, choose(model, forward, max_logits=2))


@pytest.mark.parametrize("name", UNKNOWN)
def test_an_unknown_architecture_is_inferred_and_its_edges_are_true(name):
    if not hasattr(transformers, f"{name}Config"):
        pytest.skip(f"transformers {transformers.__version__} has no {name}")
    if name == "StableLm" and transformers.__version__.startswith("4."):
        pytest.skip("its attention goes through the interface from transformers 5 on")
    adapter = adapt(random_model(name, torch.float64, **UNKNOWN[name]), name, torch.float64)
    assert adapter.family.name == f"inferred: {name}ForCausalLM"
    model = ReplacementModel(adapter, tiny.tokenizer(), tiny.transcoders())
    local, rows = rows_of(model)
    # Some norms compute in float32 whatever the model's dtype: their rounding is the allowance.
    assert rows.residual.abs().max() < 2e-5
    matrix, index, frozen = rows.dense(), rows.index, Frozen(local)
    clean, _ = frozen.reads({})
    sources = range(0, index.first_target, 5)
    assert len(local.features) > 10
    for source in sources:
        sites, _ = frozen.reads(frozen.change_of(index, source, 0.6))
        for row, (layer, position, feature) in enumerate(index.features.tolist()):
            encoder = model.transcoders.layer(layer).encoder[feature]
            effect = encoder @ (sites - clean)[layer, position] / 0.6
            assert abs(float(effect) - float(matrix[row, source])) < 2e-5


@pytest.mark.parametrize("case", REFUSED)
def test_what_a_family_cannot_say_is_refused_with_what_failed(case):
    name, given, why = REFUSED[case]
    if not hasattr(transformers, f"{name}Config"):
        pytest.skip(f"transformers {transformers.__version__} has no {name}")
    model = random_model(name, **given)
    with pytest.raises(ModelError, match=why) as refusal:
        adapt(model, "a model", torch.float32)
    assert "docs/add_a_family.md" in str(refusal.value)
    assert model.config._attn_implementation == "eager"
    assert not any(module._forward_hooks for module in model.modules())


def test_a_refusal_says_how_far_off():
    model = random_model("Granite", residual_multiplier=0.22)
    with pytest.raises(ModelError, match=r"at layer \d \(off by 0?\.?\d.* of its length"):
        adapt(model, "granite", torch.float32)


def test_a_residual_factor_close_to_one_is_still_found():
    model = random_model("Granite", torch.bfloat16, residual_multiplier=0.99)
    with pytest.raises(ModelError, match="residual before the MLP"):
        adapt(model, "granite", torch.float32)


@pytest.mark.parametrize(
    ("family", "wrong", "claim"),
    [
        ("gemma2", dict(norm="rms"), "norm's formula"),
        ("llama", dict(parallel=True), "MLP reads the block's input"),
        ("neox", dict(fused="stacked"), "attention as pattern"),
        ("gemma2", dict(post_mlp_norm=None), "residual = before"),
        ("gpt2", dict(positions=None), "depends on its token alone"),
        ("llama", dict(final_norm="model.layers.0.input_layernorm"), "final norm reads"),
    ],
)
def test_an_entry_that_is_wrong_in_one_thing_fails_that_claim(family, wrong, claim):
    model = tiny.model(family, torch.float32)
    entry = replace(families.family_of(type(model).__name__), **wrong)
    failed = [c.name for c in measure(Adapter(model, family, family=entry)) if not c.ok]
    assert any(claim in name for name in failed), failed


def test_weights_that_are_not_numbers_are_named():
    model = tiny.model("llama", torch.float32)
    model.model.layers[1].mlp.up_proj.weight[0, 0] = torch.nan
    with pytest.raises(ModelError, match=r"layers\.1\.mlp\.up_proj\.weight is not finite"):
        check(Adapter(model, "llama"))


def test_a_norm_without_an_epsilon_attribute_has_its_epsilon_measured():
    class Bare(torch.nn.Module):
        def forward(self, x):
            return torch.nn.functional.layer_norm(x, x.shape[-1:], eps=3e-5)

    assert epsilon(Bare()) == pytest.approx(3e-5, rel=1e-3)


def test_the_worked_example_of_the_guide_runs_and_is_short():
    page = Path(__file__).parents[2] / "docs" / "add_a_family.md"
    blocks = re.findall(r"```python\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)
    assert len(blocks) == 2
    assert sum(len(block.splitlines()) for block in blocks) < 30
    told: list[str] = []
    given = {"print": told.append}
    for block in blocks:
        exec(block, given)
    assert len(told) >= 10
    assert infer(given["model"], "phi") == replace(
        given["PHI"],
        name="inferred: PhiForCausalLM",
        parallel=False,  # which is told by the check, not by the flow
    )


def test_smol_models_are_llamas_with_tied_embeddings():
    model = random_model("Llama", torch.float64, tie_word_embeddings=True, **GROUPED)
    adapter = adapt(model, "smol", torch.float64)
    assert adapter.family.name == "Llama"
    assert adapter.unembedding.weight is model.get_input_embeddings().weight
    check(adapter)
    traced = ReplacementModel(adapter, tiny.tokenizer(), tiny.transcoders())
    assert rows_of(traced)[1].residual.abs().max() < 1e-12
