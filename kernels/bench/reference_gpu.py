"""The reference tool (circuit-tracer 0.5.0) at the same shape, in its own environment.

    REFERENCE_PYTHON reference_gpu.py --device cuda [--tiny] [--max-features 7500] [--rounds 2]

Random weights of its own, made on the device, as `gemma_shape.py` makes ours: same sizes, same L0.
Loading is not measured. The result is one JSON object on standard output.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "1"  # before transformers is imported
import torch
from gemma_shape import REAL, TINY, Shape, token_ids
from stopwatch import synchronize

READ, WRITE = "ln2.hook_normalized", "hook_mlp_out"


def tokenizer(words: int, folder: str) -> Any:
    """Words w4, w5 ..., by way of a folder: TransformerLens opens it again from there."""
    from tokenizers import AddedToken, Tokenizer, models
    from transformers import AutoTokenizer

    special = ["<pad>", "<eos>", "<bos>", "<unk>"]
    names = special + [f"w{number}" for number in range(len(special), words)]
    known = {name: number for number, name in enumerate(names)}
    found = Tokenizer(models.WordLevel(known, unk_token="<unk>"))
    found.add_special_tokens([AddedToken(name, special=True) for name in special])
    found.save(f"{folder}/tokenizer.json")
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        **{f"{name[1:-1]}_token": name for name in special},
    }
    Path(folder, "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
    return AutoTokenizer.from_pretrained(folder)


def load(shape: Shape, device: torch.device) -> Any:
    """The reference tool's replacement model of a random Gemma 2."""
    from transformer_lens import HookedTransformerConfig

    from circuit_tracer.replacement_model.replacement_model_transformerlens import (
        TransformerLensReplacementModel,
    )

    config = HookedTransformerConfig(
        n_layers=shape.layers,
        d_model=shape.width,
        n_ctx=max(64, shape.tokens),
        d_head=shape.head_dim,
        n_heads=shape.heads,
        n_key_value_heads=shape.kv_heads,
        d_mlp=shape.inner,
        d_vocab=shape.vocabulary,
        act_fn="gelu_pytorch_tanh",
        eps=1e-6,
        normalization_type="RMS",
        final_rms=True,
        gated_mlp=True,
        positional_embedding_type="rotary",
        rotary_dim=shape.head_dim,
        rotary_base=10000,
        use_attn_scale=True,
        attn_scores_soft_cap=50.0,
        output_logits_soft_cap=30.0,
        use_normalization_before_and_after=True,
        initializer_range=0.02,
        init_weights=True,
        device=str(device),
        dtype=torch.bfloat16 if device.type == "cuda" else torch.float32,
        tokenizer_name="random",
        model_name="random",
        original_architecture="Gemma2ForCausalLM",
        default_prepend_bos=True,
        n_devices=1,
        seed=0,
    )
    with tempfile.TemporaryDirectory() as folder:
        words = tokenizer(shape.vocabulary, folder)
        model = TransformerLensReplacementModel(config, tokenizer=words, move_to_device=True)
    model._configure_replacement_model(transcoders(model, shape, device, config.dtype))
    return model


@torch.no_grad()
def transcoders(model: Any, shape: Shape, device: torch.device, dtype: torch.dtype) -> Any:
    """Random JumpReLU transcoders with one threshold a layer, set on the prompt for its L0."""
    from circuit_tracer.transcoder.activation_functions import JumpReLU
    from circuit_tracer.transcoder.single_layer_transcoder import (
        SingleLayerTranscoder,
        TranscoderSet,
    )

    ids = torch.tensor(token_ids(shape), device=device)
    _, cache = model.run_with_cache(ids[None], names_filter=lambda name: name.endswith(READ))
    made = {}
    for layer in range(shape.layers):
        one = SingleLayerTranscoder(
            shape.width, shape.features, JumpReLU(0.0), layer, device=device, dtype=dtype
        )
        one.W_enc.normal_(0, shape.width**-0.5)
        one.W_dec.normal_(0, 0.02)
        pre = (cache[f"blocks.{layer}.{READ}"][0, 1:].to(dtype) @ one.W_enc.T).flatten()
        wanted = max(1, shape.active * (shape.tokens - 1))
        one.activation_function = JumpReLU(pre.topk(wanted + 1).values[-1].detach().clone())
        made[layer] = one
    return TranscoderSet(made, READ, WRITE, scan="random")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--max-features", type=int, default=7500)
    parser.add_argument("--rounds", type=int, default=1)
    given = parser.parse_args()
    device, shape = torch.device(given.device), TINY if given.tiny else REAL
    from circuit_tracer.attribution.attribute import attribute

    model, ids = load(shape, device), torch.tensor(token_ids(shape), device=device)
    attribute(ids, model, batch_size=256, max_feature_nodes=min(64, given.max_features))
    names = ("circuit-tracer", "torch", "transformers", "transformer-lens")
    versions = {f"reference {name}": version(name) for name in names}
    found: dict[str, list[float]] = {"wall_s": [], "active_features": [], "peak_gib": []}
    for _ in range(given.rounds):
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        synchronize(device)
        start = time.perf_counter()
        graph = attribute(
            ids, model, batch_size=256, max_feature_nodes=given.max_features, verbose=False
        )
        synchronize(device)
        found["wall_s"].append(time.perf_counter() - start)
        found["active_features"].append(len(graph.active_features))
        peak = torch.cuda.max_memory_allocated(device) if device.type == "cuda" else 0
        found["peak_gib"].append(peak / 2**30)
    print(json.dumps({"versions": versions, "figures": found}))


if __name__ == "__main__":
    main()
