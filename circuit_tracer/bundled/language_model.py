"""The language model: a Gemma-2 decoder small enough to train on a laptop, written out plainly.

`LeanModel` computes exactly what `transformers.Gemma2ForCausalLM` computes with the weights that
`export` writes (a test holds the two together); it is here because it trains several times faster
on a CPU and shows every site a measurement needs.  Three choices make the model worth tracing:

- the first layers attend to two tokens only and every block's output is normalised, so that a fact
  cannot be looked up in layer 0 and the answer forms over several layers;
- input embeddings are random and frozen, so that what a word means must be computed;
- the output head is separate from them.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Replace = Callable[[int, Tensor, Tensor], Tensor]  # (layer, mlp.hook_in, hook_mlp_out) -> new out
Patch = Callable[[int, Tensor], Tensor]  # (layer, residual after it) -> new residual


@dataclass(frozen=True)
class Shape:
    """The sizes of a model; `local_layers` layers at the bottom see `window` tokens only."""

    vocab: int
    d_model: int = 128
    d_mlp: int = 256
    heads: int = 4
    layers: int = 8
    local_layers: int = 2
    window: int = 2
    max_positions: int = 128
    rope_theta: float = 1000.0
    eps: float = 1e-5
    embedding_scale: float = 0.3


class Block(nn.Module):
    """One decoder layer: attention and MLP, each between two norms."""

    def __init__(self, shape: Shape, local: bool) -> None:
        super().__init__()
        d, self.heads, self.eps = shape.d_model, shape.heads, shape.eps
        self.window = shape.window if local else None
        self.qkv = nn.Parameter(torch.randn(3 * d, d) / d**0.5)
        self.out = nn.Parameter(torch.randn(d, d) * 0.3 / d**0.5)
        self.gate_up = nn.Parameter(torch.randn(2 * shape.d_mlp, d) / d**0.5)
        self.down = nn.Parameter(torch.randn(d, shape.d_mlp) * 0.3 / d**0.5)
        for name, start in (("pre_attn", 1.0), ("post_attn", 0.5), ("pre_mlp", 1.0)):
            setattr(self, name, nn.Parameter(torch.full((d,), start)))
        self.post_mlp = nn.Parameter(torch.full((d,), 0.5))

    def attend(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """Residual (batch, tokens, d_model) -> what attention adds to it."""
        batch, tokens, d = x.shape
        normed = rms_norm(x, self.pre_attn, self.eps)
        query, key, value = (normed @ self.qkv.T).view(batch, tokens, 3, self.heads, -1).unbind(2)
        query = rotate(query, cos[:tokens], sin[:tokens]).transpose(1, 2)
        key = rotate(key, cos[:tokens], sin[:tokens]).transpose(1, 2)
        ahead = torch.arange(tokens, device=x.device)
        distance = ahead[:, None] - ahead[None, :]
        seen = distance >= 0 if self.window is None else (distance >= 0) & (distance < self.window)
        scores = query @ key.transpose(2, 3) * (d // self.heads) ** -0.5
        pattern = scores.masked_fill(~seen, -1e9).softmax(-1)
        mixed = (pattern @ value.transpose(1, 2)).transpose(1, 2).reshape(batch, tokens, d)
        return rms_norm(mixed @ self.out.T, self.post_attn, self.eps)

    def think(self, normed: Tensor) -> Tensor:
        """`mlp.hook_in` -> `hook_mlp_out`: the MLP and the norm after it."""
        gate, up = (normed @ self.gate_up.T).chunk(2, -1)
        return rms_norm((F.silu(gate) * up) @ self.down.T, self.post_mlp, self.eps)


class LeanModel(nn.Module):
    """The whole decoder.  Token ids are (batch, tokens); residuals (batch, tokens, d_model)."""

    def __init__(self, shape: Shape, seed: int = 0) -> None:
        super().__init__()
        self.shape = shape
        generator = torch.Generator().manual_seed(seed)
        rows = torch.randn(shape.vocab, shape.d_model, generator=generator)
        rows *= shape.embedding_scale / shape.d_model**0.5
        self.register_buffer("embedding", rows.bfloat16().float())
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            count, local = shape.layers, shape.local_layers
            self.blocks = nn.ModuleList([Block(shape, layer < local) for layer in range(count)])
            self.head = nn.Parameter(torch.randn(shape.vocab, shape.d_model) / shape.d_model**0.5)
        self.final = nn.Parameter(torch.ones(shape.d_model))
        size = shape.d_model // shape.heads
        rates = shape.rope_theta ** (-torch.arange(0, size, 2).float() / size)
        angles = torch.outer(torch.arange(shape.max_positions).float(), rates)
        self.register_buffer("cos", torch.cat((angles, angles), -1).cos(), persistent=False)
        self.register_buffer("sin", torch.cat((angles, angles), -1).sin(), persistent=False)

    def forward(
        self, ids: Tensor, replace: Replace | None = None, patch: Patch | None = None
    ) -> Tensor:
        """The final normed residual; `replace` and `patch` may change what happens on the way."""
        x = F.embedding(ids, self.embedding) * self.shape.d_model**0.5
        for layer, block in enumerate(self.blocks):
            x = x + block.attend(x, self.cos, self.sin)
            normed = rms_norm(x, block.pre_mlp, self.shape.eps)
            out = block.think(normed)
            x = x + (out if replace is None else replace(layer, normed, out))
            if patch is not None:
                x = patch(layer, x)
        return rms_norm(x, self.final, self.shape.eps)

    def logits(self, final: Tensor) -> Tensor:
        """Final normed residual -> logits (…, vocab)."""
        return final @ self.head.T

    def sites(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        """`mlp.hook_in` and `hook_mlp_out` of every layer, (layers, batch, tokens, d_model)."""
        inputs, outputs = [], []

        def note(layer: int, normed: Tensor, out: Tensor) -> Tensor:
            inputs.append(normed)
            outputs.append(out)
            return out

        self(ids, replace=note)
        return torch.stack(inputs), torch.stack(outputs)

    def residuals(self, ids: Tensor) -> Tensor:
        """The residual after every layer, (layers, batch, tokens, d_model)."""
        found = []

        def note(layer: int, x: Tensor) -> Tensor:
            found.append(x)
            return x

        self(ids, patch=note)
        return torch.stack(found)


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """x over its root mean square, times the weight."""
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + eps) * weight


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary position embedding of (batch, tokens, heads, size)."""
    half = x.shape[-1] // 2
    turned = torch.cat((-x[..., half:], x[..., :half]), -1)
    return x * cos[:, None] + turned * sin[:, None]


def hf_weights(model: LeanModel) -> dict[str, Tensor]:
    """The weights under the names Gemma 2 gives them (its norms store weight − 1)."""
    found = {
        "model.embed_tokens.weight": model.embedding,
        "lm_head.weight": model.head,
        "model.norm.weight": model.final - 1,
    }
    for layer, block in enumerate(model.blocks):
        query, key, value = block.qkv.chunk(3)
        gate, up = block.gate_up.chunk(2)
        named = {
            "self_attn.q_proj": query,
            "self_attn.k_proj": key,
            "self_attn.v_proj": value,
            "self_attn.o_proj": block.out,
            "mlp.gate_proj": gate,
            "mlp.up_proj": up,
            "mlp.down_proj": block.down,
            "input_layernorm": block.pre_attn - 1,
            "post_attention_layernorm": block.post_attn - 1,
            "pre_feedforward_layernorm": block.pre_mlp - 1,
            "post_feedforward_layernorm": block.post_mlp - 1,
        }
        found |= {f"model.layers.{layer}.{name}.weight": w for name, w in named.items()}
    return {name: weight.detach().to(torch.bfloat16).contiguous() for name, weight in found.items()}


def hf_config(shape: Shape) -> dict[str, object]:
    """`config.json`; the rotary base stands in both places where releases look for it."""
    local = ["sliding_attention"] * shape.local_layers
    return {
        "architectures": ["Gemma2ForCausalLM"],
        "model_type": "gemma2",
        "vocab_size": shape.vocab,
        "hidden_size": shape.d_model,
        "intermediate_size": shape.d_mlp,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.heads,
        "head_dim": shape.d_model // shape.heads,
        "query_pre_attn_scalar": shape.d_model // shape.heads,
        "max_position_embeddings": shape.max_positions,
        "layer_types": local + ["full_attention"] * (shape.layers - shape.local_layers),
        "sliding_window": shape.window,
        "hidden_activation": "silu",
        "rms_norm_eps": shape.eps,
        "rope_theta": shape.rope_theta,
        "rope_parameters": {"rope_type": "default", "rope_theta": shape.rope_theta},
        "attention_bias": False,
        "attention_dropout": 0.0,
        "attn_logit_softcapping": None,
        "final_logit_softcapping": None,
        "tie_word_embeddings": False,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 3,
        "torch_dtype": "float32",
        "embedding_scale": shape.embedding_scale,
    }


def export(model: LeanModel, folder: Path) -> None:
    """Write the model as a Hugging Face folder: bfloat16 weights in two files of safetensors."""
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    weights = hf_weights(model)
    tables = {name: w for name, w in weights.items() if ".layers." not in name}
    shards = [tables, {name: w for name, w in weights.items() if ".layers." in name}]
    where: dict[str, str] = {}
    for number, shard in enumerate(shards, start=1):
        name = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        save_file(shard, folder / name, metadata={"format": "pt"})
        where |= dict.fromkeys(shard, name)
    total = sum(w.numel() * w.element_size() for w in weights.values())
    listing = {"metadata": {"total_size": total}, "weight_map": where}
    write_json(folder / "model.safetensors.index.json", listing)
    write_json(folder / "config.json", hf_config(model.shape))
    write_json(folder / "generation_config.json", {"bos_token_id": 1, "eos_token_id": 2})


def read(folder: Path) -> LeanModel:
    """The lean model with exactly the weights that a folder written by `export` ships."""
    from safetensors.torch import load_file

    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    shape = Shape(
        vocab=config["vocab_size"],
        d_model=config["hidden_size"],
        d_mlp=config["intermediate_size"],
        heads=config["num_attention_heads"],
        layers=config["num_hidden_layers"],
        local_layers=config["layer_types"].count("sliding_attention"),
        window=config["sliding_window"],
        max_positions=config["max_position_embeddings"],
        rope_theta=config["rope_theta"],
        eps=config["rms_norm_eps"],
        embedding_scale=config["embedding_scale"],
    )
    weights: dict[str, Tensor] = {}
    for path in sorted(folder.glob("*.safetensors")):
        weights |= {name: w.float() for name, w in load_file(path).items()}
    model = LeanModel(shape)
    with torch.no_grad():
        _load(model, weights)
    return model.requires_grad_(False).eval()


def _load(model: LeanModel, weights: dict[str, Tensor]) -> None:
    """Put weights under Gemma's names into the lean model."""
    model.embedding.copy_(weights["model.embed_tokens.weight"])
    model.head.copy_(weights["lm_head.weight"])
    model.final.copy_(weights["model.norm.weight"] + 1)
    for layer, block in enumerate(model.blocks):
        at = {
            name.removeprefix(f"model.layers.{layer}.").removesuffix(".weight"): weight
            for name, weight in weights.items()
            if name.startswith(f"model.layers.{layer}.")
        }
        block.qkv.copy_(torch.cat([at[f"self_attn.{x}_proj"] for x in "qkv"]))
        block.out.copy_(at["self_attn.o_proj"])
        block.gate_up.copy_(torch.cat([at["mlp.gate_proj"], at["mlp.up_proj"]]))
        block.down.copy_(at["mlp.down_proj"])
        block.pre_attn.copy_(at["input_layernorm"] + 1)
        block.post_attn.copy_(at["post_attention_layernorm"] + 1)
        block.pre_mlp.copy_(at["pre_feedforward_layernorm"] + 1)
        block.post_mlp.copy_(at["post_feedforward_layernorm"] + 1)


def write_json(path: Path, data: object) -> None:
    """Write JSON the way every file of the bundle is written."""
    text = json.dumps(data, indent=2, ensure_ascii=False)
    path.write_text(text + "\n", encoding="utf-8")


def shape_dict(shape: Shape) -> dict[str, object]:
    """The sizes, for the model card."""
    return asdict(shape)
