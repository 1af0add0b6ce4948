"""Tiny random models and transcoders, exact enough for float64: what most tests run on.

`model(family)` is a Hugging Face model of that family with every bias and norm weight away from its
trivial value. `transcoders(...)` fits it with random sets of any kind, activation and site. In
float64 the RMS norms of transformers would still compute in float32, so they are replaced by norms
of the same formula in the model's own dtype.
"""

from __future__ import annotations

from types import MethodType
from typing import Any

import torch
import transformers
from transformers import PreTrainedTokenizerFast

from circuit_tracer.models.adapter import Adapter
from circuit_tracer.replacement import ReplacementModel
from circuit_tracer.transcoders.base import Activation, LayerWeights, TranscoderSet

LAYERS, WIDTH, HEADS, VOCABULARY = 3, 16, 4, 40
FAMILIES = (
    "llama",
    "mistral",
    "qwen2",
    "qwen3",
    "qwen3_moe",
    "gpt_oss",
    "phi3",
    "olmo2",
    "gemma2",
    "gemma3",
    "gpt2",
    "neox",
    "neox_sequential",
)
PROMPT = [2, 9, 21, 5, 33, 9]


def config(family: str, layers: int = LAYERS) -> Any:
    """A Hugging Face config, as small as it goes."""
    ids = dict(bos_token_id=2, eos_token_id=1, pad_token_id=0)
    if family == "gpt2":
        return transformers.GPT2Config(
            vocab_size=VOCABULARY, n_positions=32, n_embd=WIDTH, n_layer=layers, n_head=HEADS, **ids
        )
    if family.startswith("neox"):
        return transformers.GPTNeoXConfig(
            vocab_size=VOCABULARY,
            hidden_size=WIDTH,
            intermediate_size=24,
            num_hidden_layers=layers,
            num_attention_heads=HEADS,
            max_position_embeddings=32,
            rotary_pct=0.5,
            use_parallel_residual=family == "neox",
            **ids,
        )
    common = dict(
        vocab_size=VOCABULARY,
        hidden_size=WIDTH,
        intermediate_size=24,
        num_hidden_layers=layers,
        num_attention_heads=HEADS,
        num_key_value_heads=2,
        max_position_embeddings=32,
        **ids,
    )
    match family:
        case "llama":
            return transformers.LlamaConfig(**common, attention_bias=True)
        case "mistral":
            return transformers.MistralConfig(**common, sliding_window=3)
        case "qwen2":
            return transformers.Qwen2Config(**common)
        case "qwen3":
            return transformers.Qwen3Config(**common, head_dim=6)
        case "gemma2":
            return transformers.Gemma2Config(
                **common,
                head_dim=6,
                query_pre_attn_scalar=6,
                sliding_window=3,
                attn_logit_softcapping=20.0,
                final_logit_softcapping=10.0,
            )
        case "phi3":
            return transformers.Phi3Config(**common)
        case "olmo2":
            return transformers.Olmo2Config(**common)
        case "qwen3_moe":
            return transformers.Qwen3MoeConfig(
                **common,
                head_dim=6,
                num_experts=4,
                num_experts_per_tok=2,
                moe_intermediate_size=12,
                decoder_sparse_step=1,
            )
        case "gpt_oss":
            return transformers.GptOssConfig(
                **common,
                head_dim=8,
                num_local_experts=4,
                num_experts_per_tok=2,
                sliding_window=3,
                layer_types=(["sliding_attention", "full_attention"] * layers)[:layers],
            )
        case "gemma3":
            return transformers.Gemma3TextConfig(
                **common, head_dim=6, query_pre_attn_scalar=6, sliding_window=3
            )
    raise ValueError(family)


CLASSES = {
    "llama": "LlamaForCausalLM",
    "mistral": "MistralForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
    "gemma2": "Gemma2ForCausalLM",
    "gemma3": "Gemma3ForCausalLM",
    "gpt2": "GPT2LMHeadModel",
    "neox": "GPTNeoXForCausalLM",
    "neox_sequential": "GPTNeoXForCausalLM",
    "phi3": "Phi3ForCausalLM",
    "olmo2": "Olmo2ForCausalLM",
    "qwen3_moe": "Qwen3MoeForCausalLM",
    "gpt_oss": "GptOssForCausalLM",
}


def model(family: str, dtype: torch.dtype = torch.float64, seed: int = 0, layers: int = LAYERS):
    """A random model of a family, in eval mode."""
    torch.manual_seed(seed)
    settings = config(family, layers)
    settings._attn_implementation = settings._experts_implementation = "eager"
    net = getattr(transformers, CLASSES[family])(settings)
    draw = torch.Generator().manual_seed(seed + 1)
    with torch.no_grad():
        for name, parameter in net.named_parameters():
            spread = 0.5 if parameter.ndim == 1 or "embed" in name or "wte" in name else 0.25
            parameter.copy_(torch.randn(parameter.shape, generator=draw) * spread)
    return exact(net.to(dtype).eval().requires_grad_(False))


def exact(net: Any) -> Any:
    """The same model with RMS norms computed in its own dtype."""
    for module in net.modules():
        if "RMSNorm" in type(module).__name__:
            module.forward = MethodType(_exact_norm, module)
    return net


def _exact_norm(self: Any, x: torch.Tensor) -> torch.Tensor:
    eps = getattr(self, "variance_epsilon", None) or self.eps
    weight = self.weight + 1 if "Gemma" in type(self).__name__ else self.weight
    return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + eps) * weight


def tokenizer() -> PreTrainedTokenizerFast:
    """Words w4, w5 … by white space, as many as the vocabulary."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    special = ["<pad>", "<eos>", "<bos>", "<unk>"]
    words = special + [f"w{i}" for i in range(len(special), VOCABULARY)]
    tokens = Tokenizer(
        models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>")
    )
    tokens.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokens,
        bos_token="<bos>",
        eos_token="<eos>",
        pad_token="<pad>",
        unk_token="<unk>",
    )


def transcoders(
    kind: str = "plt",
    activation: str = "relu",
    read: str = "mlp.hook_in",
    write: str = "hook_mlp_out",
    skip: bool = False,
    dtype: torch.dtype = torch.float64,
    seed: int = 7,
    layers: int = LAYERS,
    features: int = 20,
    width: int = WIDTH,
) -> TranscoderSet:
    """A random set, about a third of whose features fire."""
    draw = torch.Generator().manual_seed(seed)

    def random(*shape: int, spread: float = 1.0) -> torch.Tensor:
        return (torch.randn(shape, generator=draw, dtype=torch.float64) * spread).to(dtype)

    made = []
    for layer in range(layers):
        reach = layers - layer if kind == "clt" else 1
        functions = {
            "relu": Activation("relu"),
            "jump_relu": Activation("jump_relu", random(features, spread=0.3).abs()),
            "topk": Activation("topk", k=6),
        }
        made.append(
            LayerWeights(
                encoder=random(features, width, spread=width**-0.5),
                encoder_bias=random(features, spread=0.3) - 0.3,
                decoders=tuple(random(features, width, spread=0.3) for _ in range(reach)),
                output_bias=random(width, spread=0.3),
                activation=functions[activation],
                skip=random(width, width, spread=0.2) if skip else None,
            )
        )
    return TranscoderSet(kind, read, write, layers, made.__getitem__, "random transcoders")


def replacement(family: str = "llama", dtype: torch.dtype = torch.float64, **sets: Any):
    """A ReplacementModel of a random model and random transcoders."""
    layers = sets.get("layers", LAYERS)
    adapter = Adapter(model(family, dtype, layers=layers), f"tiny {family}", dtype)
    return ReplacementModel(adapter, tokenizer(), transcoders(dtype=dtype, **sets))
