"""Families of transformers, one table entry each.

An entry says where the parts of a block are called and which arithmetic its norms use. Nothing
else in the package knows an architecture's name. Paths are attribute paths, relative to the model
for `Family.layers` and its neighbours, relative to a block for the rest.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal

from circuit_tracer.errors import ModelError


@dataclass(frozen=True)
class Family:
    """Where a transformer keeps its parts.

    Attributes:
        name: what the family is called in messages.
        architectures: class names of Hugging Face models that belong here.
        norm: "rms" multiplies by w, "rms_plus_one" by 1 + w, "layer" is LayerNorm.
        positions: module whose output is the learned position embedding, or None (rotary).
        attention_norm, post_attention_norm, mlp_norm, post_mlp_norm: norms of a block; None where
            the block has none there.
        value, output: projections inside `attention`. Where queries, keys and values are one
            projection, `value` names it, and `fused` says how it is laid out.
        query, key: projections inside `attention`; not looked at where `fused`.
        query_norm, key_norm: norms inside `attention` of what those give, before rotary positions:
            of each head, or of all heads at once, as wide as their weight.
        fused: "stacked" is all queries, then all keys, then all values; "by_head" is query, key and
            value of the first head, then of the second, and so on.
        transposed: weights are stored (in, out), as GPT-2's Conv1D.
        parallel: attention and MLP both read the block's input (unless the config's
            `use_parallel_residual` says otherwise).
    """

    name: str
    architectures: tuple[str, ...]
    norm: Literal["rms", "rms_plus_one", "layer"] = "rms"
    layers: str = "model.layers"
    positions: str | None = None
    final_norm: str = "model.norm"
    attention_norm: str | None = "input_layernorm"
    attention: str = "self_attn"
    query: str = "q_proj"
    key: str = "k_proj"
    query_norm: str | None = None
    key_norm: str | None = None
    value: str = "v_proj"
    output: str = "o_proj"
    post_attention_norm: str | None = None
    mlp_norm: str | None = "post_attention_layernorm"
    mlp: str = "mlp"
    post_mlp_norm: str | None = None
    fused: Literal["stacked", "by_head"] | None = None
    transposed: bool = False
    parallel: bool = False


LLAMA = Family("Llama", ("LlamaForCausalLM",))
GEMMA_2 = Family(
    "Gemma 2",
    ("Gemma2ForCausalLM",),
    norm="rms_plus_one",
    post_attention_norm="post_attention_layernorm",
    mlp_norm="pre_feedforward_layernorm",
    post_mlp_norm="post_feedforward_layernorm",
)
GPT_2 = Family(
    "GPT-2",
    ("GPT2LMHeadModel",),
    norm="layer",
    layers="transformer.h",
    positions="transformer.wpe",
    final_norm="transformer.ln_f",
    attention_norm="ln_1",
    attention="attn",
    value="c_attn",
    output="c_proj",
    mlp_norm="ln_2",
    fused="stacked",
    transposed=True,
)
GPT_NEOX = Family(
    "GPT-NeoX",
    ("GPTNeoXForCausalLM",),
    norm="layer",
    layers="gpt_neox.layers",
    final_norm="gpt_neox.final_layer_norm",
    attention="attention",
    value="query_key_value",
    output="dense",
    fused="by_head",
    parallel=True,
)
NORMED: dict[str, Any] = {"query_norm": "q_norm", "key_norm": "k_norm"}
OLMO_2 = replace(
    LLAMA,
    name="OLMo 2",
    **NORMED,
    architectures=("Olmo2ForCausalLM",),
    attention_norm=None,
    post_attention_norm="post_attention_layernorm",
    mlp_norm=None,
    post_mlp_norm="post_feedforward_layernorm",
)
GEMMA_3 = replace(GEMMA_2, name="Gemma 3", architectures=("Gemma3ForCausalLM",), **NORMED)
FAMILIES: tuple[Family, ...] = (
    LLAMA,  # SmolLM and SmolLM 2 too
    replace(LLAMA, name="Mistral", architectures=("MistralForCausalLM",)),
    replace(LLAMA, name="SmolLM 3", architectures=("SmolLM3ForCausalLM",)),
    replace(LLAMA, name="Qwen 2", architectures=("Qwen2ForCausalLM",)),
    replace(LLAMA, name="Qwen 3", architectures=("Qwen3ForCausalLM",), **NORMED),
    replace(LLAMA, name="Qwen 3 MoE", architectures=("Qwen3MoeForCausalLM",), **NORMED),
    replace(LLAMA, name="GPT-OSS", architectures=("GptOssForCausalLM",)),
    replace(
        LLAMA,
        name="Phi-3",
        architectures=("Phi3ForCausalLM",),
        value="qkv_proj",
        fused="stacked",
    ),
    OLMO_2,
    replace(OLMO_2, name="OLMo 3", architectures=("Olmo3ForCausalLM",)),
    replace(LLAMA, name="Gemma", architectures=("GemmaForCausalLM",), norm="rms_plus_one"),
    GEMMA_2,
    GEMMA_3,
    replace(
        GEMMA_3,
        name="Gemma 3 with images",
        architectures=("Gemma3ForConditionalGeneration",),
        layers="model.language_model.layers",
        final_norm="model.language_model.norm",
    ),
    GPT_2,
    GPT_NEOX,
)


def family_of(architecture: str) -> Family:
    """The family of a Hugging Face class name. Raises ModelError that lists what is known."""
    for family in FAMILIES:
        if architecture in family.architectures:
            return family
    known = ", ".join(family.name for family in FAMILIES)
    raise ModelError(
        f"{architecture} is not a family this version has an entry for; it knows {known}. "
        "A family is one entry in circuit_tracer/models/families.py: see docs/add_a_family.md."
    )
