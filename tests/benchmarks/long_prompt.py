"""A long prompt, start to end, in a process of its own: trace, prune, page.

    python tests/benchmarks/long_prompt.py [--tokens 2000] [--max-features 2000]

A random Llama of 4 layers, d_model 64 and 4 heads, with ReLU transcoders whose biases let about 20
features fire at each (layer, position). All seeded, all made in memory. The result is one JSON
object on standard output: CPU seconds of each part, what the estimate said, and the peak of the
whole process (interpreter, torch and transformers included).
"""

from __future__ import annotations

import argparse
import json
import resource
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from circuit_tracer.models.adapter import Adapter
from circuit_tracer.replacement import ReplacementModel
from circuit_tracer.tracing import estimate_trace, page_circuit, trace
from circuit_tracer.transcoders.base import LayerWeights, TranscoderSet

LAYERS, WIDTH, HEADS, INNER, VOCABULARY = 4, 64, 4, 256, 512
FEATURES, ACTIVE = 1024, 20
SEED = 20


def model_of(tokens: int, layers: int = LAYERS, width: int = WIDTH) -> Any:
    """The random language model, eager, float32."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(SEED)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=width,
        intermediate_size=INNER,
        num_hidden_layers=layers,
        num_attention_heads=HEADS,
        max_position_embeddings=tokens,
        attn_implementation="eager",
    )
    net = LlamaForCausalLM(config).eval().requires_grad_(False)
    for parameter in net.parameters():
        if parameter.ndim == 2:
            parameter.normal_(0, 0.1)
    return net


def replacement(tokens: int) -> tuple[ReplacementModel, list[int]]:
    """The model with transcoders fitted to about `ACTIVE` features a position, and a prompt."""
    net = model_of(tokens)
    ids = torch.randint(4, VOCABULARY, (tokens,), generator=torch.Generator().manual_seed(SEED))
    adapter = Adapter(net, "random Llama", torch.float32)
    layers = [_layer(net, number, ids) for number in range(LAYERS)]
    transcoders = TranscoderSet(
        "plt", "mlp.hook_in", "mlp.hook_out", LAYERS, layers.__getitem__, "random transcoders"
    )
    return ReplacementModel(adapter, _tokenizer(), transcoders), ids.tolist()


def _layer(net: Any, layer: int, ids: torch.Tensor) -> LayerWeights:
    """Random rows; every encoder bias lets its feature fire at `ACTIVE / FEATURES` of the ids."""
    seen: list[torch.Tensor] = []
    mlp = net.model.layers[layer].mlp
    handle = mlp.register_forward_hook(lambda _, given, output: seen.extend([given[0], output]))
    net(ids[None])
    handle.remove()
    draw = torch.Generator().manual_seed(SEED + layer)
    encoder = torch.randn(FEATURES, WIDTH, generator=draw) / WIDTH**0.5
    bias = -(seen[0][0] @ encoder.T).quantile(1 - ACTIVE / FEATURES, dim=0)
    decoder = torch.randn(FEATURES, WIDTH, generator=draw) * seen[1].std() * 0.3
    return LayerWeights(encoder, bias, (decoder,), seen[1][0].mean(0))


def _tokenizer() -> Any:
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    words = {"<unk>": 0, **{f"w{number}": number for number in range(1, VOCABULARY)}}
    tokens = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    return PreTrainedTokenizerFast(tokenizer_object=tokens, unk_token="<unk>")


def measured(tokens: int, max_features: int) -> dict[str, Any]:
    model, ids = replacement(tokens)
    figures: dict[str, Any] = {"tokens": tokens, "max_features": max_features, "loaded": peak()}
    planned = estimate_trace(ids, model, max_features=max_features)
    figures |= {"planned_s": planned.seconds, "planned_mib": planned.peak_bytes / 2**20}
    clock = time.process_time()

    def done(part: str) -> None:
        nonlocal clock
        figures[f"{part}_s"] = time.process_time() - clock
        figures[f"{part}_peak_mib"] = peak()
        clock = time.process_time()

    graph = trace(ids, model, max_features=max_features)
    done("trace")
    circuit = page_circuit(graph)
    done("prune")
    with tempfile.TemporaryDirectory() as folder:
        page = Path(folder) / "page.html"
        circuit.save_html(page)
        figures["page_bytes"] = page.stat().st_size
    done("page")
    stored = sum(block.values.nbytes for block in graph.edges.blocks)
    return figures | {
        "active_features": graph.index.n_features,
        "rows": len(graph.edges.rows),
        "rows_mib": stored / 2**20,
        "nodes_shown": len(circuit.nodes),
        "closure": graph.closure_error,
    }


def peak() -> float:
    """The most memory this process has held so far, MiB."""
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most / 2**20 if sys.platform == "darwin" else most / 2**10


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tokens", type=int, default=2000)
    parser.add_argument("--max-features", type=int, default=2000)
    parser.add_argument("--threads", type=int, default=1)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    print(json.dumps(measured(given.tokens, given.max_features), indent=1))
