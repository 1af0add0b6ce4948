"""The benchmark case: a random Llama and random transcoders with a realistic number of features.

    python tests/benchmarks/case.py DIR      writes DIR/{model,transcoders,prompt.json}

8 layers, d_model 512, 8 heads, 2,048 words; per-layer ReLU transcoders of 4,096 features a layer
that read the normalised residual stream and write the MLP's output, with encoder biases set on
random text so that about 20 features are active at each (layer, position); random decoders; a
prompt of 24 tokens. All seeded. The files are what both tools read: Hugging Face's format with a
word-level tokenizer, and the reference tool's transcoder folder.

`dag` makes the random graphs on which pruning is measured. This module needs torch, transformers,
tokenizers, safetensors and pyyaml only, so that either tool's environment can import it.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

LAYERS, WIDTH, HEADS, INNER, VOCABULARY, CONTEXT = 8, 512, 8, 1408, 2048, 256
FEATURES, ACTIVE, TOKENS = 4096, 20, 24
SPECIAL = {"pad_token": "<pad>", "eos_token": "<eos>", "bos_token": "<bos>", "unk_token": "<unk>"}
BOS = 2
SEED = 4242
SHAPES = {
    "layers": LAYERS,
    "d_model": WIDTH,
    "heads": HEADS,
    "vocabulary": VOCABULARY,
    "features_per_layer": FEATURES,
    "tokens": TOKENS,
}


def build(folder: Path) -> Path:
    """The case in a folder; built once, all of it or nothing."""
    if (folder / "prompt.json").exists():
        return folder
    model = make_model()
    model.save_pretrained(folder / "model")
    write_tokenizer(folder / "model")
    write_transcoders(model, folder / "transcoders")
    ids = torch.randint(4, VOCABULARY, (TOKENS - 1,), generator=_seeded(SEED + 2)).tolist()
    (folder / "prompt.json").write_text(json.dumps({"token_ids": [BOS, *ids]}))
    return folder


def prompt(folder: Path) -> list[int]:
    return json.loads((folder / "prompt.json").read_text())["token_ids"]


def make_model() -> Any:
    from transformers import LlamaConfig, LlamaForCausalLM

    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=VOCABULARY,
            hidden_size=WIDTH,
            intermediate_size=INNER,
            num_hidden_layers=LAYERS,
            num_attention_heads=HEADS,
            num_key_value_heads=HEADS,
            max_position_embeddings=CONTEXT,
            rms_norm_eps=1e-5,
            tie_word_embeddings=False,
            bos_token_id=BOS,
            eos_token_id=1,
            pad_token_id=0,
            attn_implementation="eager",
        )
    )
    generator, scale = _seeded(SEED + 1), (64 / WIDTH) ** 0.5
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim == 1:
                parameter.uniform_(0.6, 1.4, generator=generator)
            elif "embed_tokens" in name:
                parameter.normal_(0, 1, generator=generator)
            else:
                spread = 0.35 if "lm_head" in name else 0.15
                parameter.normal_(0, spread * scale, generator=generator)
    return model.eval().float().requires_grad_(False)


def write_tokenizer(folder: Path) -> None:
    """A word-level tokenizer, described so that transformers 4 and 5 both read it."""
    from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers

    words = [*SPECIAL.values(), *(f"w{i}" for i in range(len(SPECIAL), VOCABULARY))]
    vocabulary = {word: number for number, word in enumerate(words)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.add_special_tokens([AddedToken(word, special=True) for word in SPECIAL.values()])
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {"tokenizer_class": "PreTrainedTokenizerFast", **SPECIAL}
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2))


@torch.no_grad()
def write_transcoders(model: Any, folder: Path) -> None:
    """Per-layer ReLU transcoders whose biases make about `ACTIVE` features fire at a position."""
    import yaml
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    text = torch.randint(4, VOCABULARY, (96, TOKENS), generator=_seeded(7))
    text[:, 0] = BOS
    generator, sites = _seeded(SEED + 1), _mlp_sites(model, text)
    encoders, biases = [], []
    for read, _ in sites:
        encoder = torch.randn(FEATURES, WIDTH, generator=generator) / WIDTH**0.5
        encoder = encoder / read.pow(2).mean().sqrt()
        jitter = 1 + 0.5 * (torch.rand(FEATURES, generator=generator) - 0.5)
        rank = len(read) - 1 - ((1 - ACTIVE / FEATURES * jitter) * (len(read) - 1)).long()
        highest = (encoder @ read.T).topk(int(rank.max()) + 1).values
        encoders.append(encoder)
        biases.append(-highest[torch.arange(FEATURES), rank])
    for layer, (_, written) in enumerate(sites):
        decoder = torch.randn(FEATURES, WIDTH, generator=generator) * written.std() * 0.3
        save_file(
            {
                "W_enc": encoders[layer],
                "b_enc": biases[layer],
                "W_dec": decoder,
                "b_dec": written.mean(0),
            },
            folder / f"layer_{layer}.safetensors",
        )
    config = {
        "model_name": "local",
        "model_kind": "transcoder_set",
        "feature_input_hook": "mlp.hook_in",
        "feature_output_hook": "mlp.hook_out",
        "activation": "relu",
        "scan": "local/benchmark",
    }
    (folder / "config.yaml").write_text(yaml.dump(config))


def _mlp_sites(model: Any, text: Tensor) -> list[tuple[Tensor, Tensor]]:
    """Inputs and outputs of every MLP at all positions but the first."""
    seen: dict[int, tuple[Tensor, Tensor]] = {}
    handles = [
        block.mlp.register_forward_hook(
            lambda _module, given, output, layer=layer: seen.__setitem__(
                layer, (given[0][:, 1:].flatten(0, 1), output[:, 1:].flatten(0, 1))
            )
        )
        for layer, block in enumerate(model.model.layers)
    ]
    model(text)
    for handle in handles:
        handle.remove()
    return [seen[layer] for layer in range(LAYERS)]


class Dag(NamedTuple):
    """A random layered graph with the statistics of a real one, [target, source]."""

    features: Tensor  # (n, 3) rows (layer, position, id), sorted
    matrix: Tensor  # features, errors, embeddings, logits
    probabilities: Tensor


def dag(nodes: int, logits: int = 10) -> Dag:
    generator = _seeded(0)
    features = nodes - LAYERS * TOKENS - TOKENS - logits
    cells = torch.randint(0, LAYERS * (TOKENS - 1), (features,), generator=generator).sort().values
    layers, positions = cells // (TOKENS - 1), cells % (TOKENS - 1) + 1
    errors = torch.arange(LAYERS).repeat_interleave(TOKENS)
    steps = torch.arange(TOKENS)
    source_layers = torch.cat([layers, errors, torch.full((TOKENS,), -1)])
    source_positions = torch.cat([positions, steps.repeat(LAYERS), steps])
    below = source_layers < layers[:, None]
    below &= source_positions <= positions[:, None]
    sources = nodes - logits
    matrix = torch.zeros(nodes, nodes)
    matrix[:features, :sources] = torch.randn(features, sources, generator=generator) ** 3 * below
    matrix[sources:, :sources] = torch.randn(logits, sources, generator=generator) ** 3
    chances = torch.rand(logits, generator=generator)
    found = torch.stack([layers, positions, torch.arange(features)], dim=1)
    return Dag(found, matrix, chances / chances.sum() * 0.9)


def _seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


if __name__ == "__main__":
    print(build(Path(sys.argv[1])))
