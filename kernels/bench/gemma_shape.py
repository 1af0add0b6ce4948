"""The whole attribution at Gemma 2 2B's shape, with random weights made on the device.

Nothing is downloaded: `Gemma2Config` with the sizes below, random JumpReLU transcoders of 16,384
features a layer at the sites of the public sets, and one threshold a layer set on the very prompt
so that L0 is as asked on average. Per-layer, or cross-layer with a decoder a layer above.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from typing import Any

import torch
from stopwatch import synchronize

BOS = 2


@dataclass(frozen=True)
class Shape:
    layers: int = 26
    width: int = 2304
    heads: int = 8
    kv_heads: int = 4
    head_dim: int = 256
    inner: int = 9216
    vocabulary: int = 256_000
    features: int = 16_384
    active: int = 60
    tokens: int = 64
    kind: str = "plt"


REAL = Shape()
TINY = Shape(2, 24, 2, 1, 12, 32, 50, 40, 3, 4)


class Words:
    """As much of a tokenizer as tracing token ids needs."""

    all_special_ids: tuple[int, ...] = (BOS,)

    def decode(self, ids: Any) -> str:
        return " ".join(f"w{token}" for token in ([ids] if isinstance(ids, int) else ids))


def token_ids(shape: Shape) -> list[int]:
    draw = torch.Generator().manual_seed(1)
    drawn = torch.randint(3, shape.vocabulary, (shape.tokens - 1,), generator=draw)
    return [BOS, *drawn.tolist()]


def network(shape: Shape, device: torch.device) -> Any:
    """A random Gemma 2, bfloat16 on a GPU and float32 on a CPU."""
    from transformers import Gemma2Config, Gemma2ForCausalLM

    config = Gemma2Config(
        vocab_size=shape.vocabulary,
        hidden_size=shape.width,
        intermediate_size=shape.inner,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads,
        head_dim=shape.head_dim,
        query_pre_attn_scalar=shape.head_dim,
        max_position_embeddings=8192,
        attn_implementation="eager",
    )
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16 if device.type == "cuda" else torch.float32)
    try:
        with device:
            torch.manual_seed(0)
            return Gemma2ForCausalLM(config).eval().requires_grad_(False)
    finally:
        torch.set_default_dtype(before)


@torch.no_grad()
def replacement(shape: Shape, device: torch.device, net: Any = None) -> Any:
    """(ReplacementModel, its network); a network may be used again for another kind or prompt."""
    from circuit_tracer.forward import run
    from circuit_tracer.models.adapter import Adapter
    from circuit_tracer.replacement import ReplacementModel
    from circuit_tracer.transcoders.base import Activation, LayerWeights, TranscoderSet

    net = network(shape, device) if net is None else net
    adapter = Adapter(net, "random Gemma 2")
    dtype, made = net.dtype, []
    draw = torch.Generator(device).manual_seed(2)

    def random(spread: float) -> torch.Tensor:
        table = torch.empty(shape.features, shape.width, dtype=dtype, device=device)
        return table.normal_(0, spread, generator=draw)

    for layer in range(shape.layers):
        reach = shape.layers - layer if shape.kind == "clt" else 1
        made.append(
            LayerWeights(
                encoder=random(shape.width**-0.5),
                encoder_bias=torch.zeros(shape.features, dtype=dtype, device=device),
                decoders=tuple(random(0.02) for _ in range(reach)),
                output_bias=torch.zeros(shape.width, dtype=dtype, device=device),
            )
        )
    sites = ("ln2.hook_normalized", "hook_mlp_out", shape.layers, made.__getitem__, "random")
    found = run(adapter, TranscoderSet(shape.kind, *sites), torch.tensor(token_ids(shape)))
    wanted = max(1, shape.active * (shape.tokens - 1))
    for layer, x in enumerate(found.mlp_inputs):
        pre = (x[1:] @ made[layer].encoder.to(x).T).flatten()
        level = pre.topk(wanted + 1).values[-1]
        threshold = level.expand(shape.features).clone()
        made[layer] = replace(made[layer], activation=Activation("jump_relu", threshold))
    return ReplacementModel(adapter, Words(), TranscoderSet(shape.kind, *sites)), net


def attribution(
    model: Any, shape: Shape, device: torch.device, max_features: int | None, kernels: str
) -> dict[str, float]:
    """Seconds, memory, and how well the rows close, of one prompt from token ids to edge rows."""
    from circuit_tracer.attribute import attribute
    from circuit_tracer.estimate import estimate
    from circuit_tracer.targets import choose

    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
        loaded = torch.cuda.memory_allocated(device)
    synchronize(device)
    start = time.perf_counter()
    forward = model.run(token_ids(shape))
    targets = choose(model, forward)
    local = model.localise(forward, owned=True, kernels=kernels)
    synchronize(device)
    prepared = time.perf_counter()
    rows = attribute(local, targets, max_features, kernels)
    synchronize(device)
    done = time.perf_counter()
    peak = torch.cuda.max_memory_allocated(device) if device.type == "cuda" else 0
    figures = {
        "wall_s": done - start,
        "forward_s": prepared - start,
        "sweep_s": done - prepared,
        "active_features": len(local.features),
        "rows": len(rows.rows),
        "gflop": estimate(local, targets, max_features, rate=None).flops / 1e9,
        "closure": float(rows.residual.abs().max()),
        "largest_value": float(rows.value.abs().max()),
    }
    if device.type == "cuda":
        figures["peak_gib"] = peak / 2**30
        figures["above_loading_gib"] = (peak - loaded) / 2**30
    return figures
