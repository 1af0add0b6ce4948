"""The paths: how deep the graphs of a few prompts are, by a plain and slow exact attribution.

The tracer computes the same far faster; this version is written straight from the definition, with
automatic differentiation through a forward pass whose attention patterns and norm scales are
constants, and serves to judge a training run (a model that looks everything up in its first layer
has short paths) and as a second opinion.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from .folder import Folded
from .language_model import LeanModel, rotate


class Local:
    """The local replacement model of one prompt, ready to be differentiated."""

    def __init__(self, model: LeanModel, folded: Folded, ids: Tensor) -> None:
        """`ids` is (tokens).  Keeps the leaves (embeddings, MLP outputs) and the read sites."""
        self.model, self.folded = model, folded
        x = (F.embedding(ids, model.embedding) * model.shape.d_model**0.5).detach()
        self.embedded = x.requires_grad_()
        self.outs: list[Tensor] = []
        self.reads: list[Tensor] = []
        self.active: list[Tensor] = []
        self.errors: list[Tensor] = []
        x = self.embedded
        for layer, block in enumerate(model.blocks):
            x = x + self._attend(block, x)
            read = self._norm(x, block.pre_mlp)
            out = block.think(read).detach()
            active = folded.encode(layer, read.detach())
            active[0] = 0
            self.reads.append(read)
            self.active.append(active)
            error = out - folded.decode(layer, self.active)
            error[0] = 0
            self.errors.append(error)
            self.outs.append(out.requires_grad_())
            x = x + self.outs[-1]
        self.final = self._norm(x, model.final)[-1]

    def _norm(self, x: Tensor, weight: Tensor) -> Tensor:
        scale = (x.square().mean(-1, keepdim=True) + self.model.shape.eps).rsqrt().detach()
        return x * scale * weight

    def _attend(self, block, x: Tensor) -> Tensor:
        """Attention with its pattern and scales held constant."""
        tokens, d = x.shape
        normed = self._norm(x, block.pre_attn)
        query, key, value = (normed @ block.qkv.T).view(tokens, 3, block.heads, -1).unbind(1)
        cos, sin = self.model.cos[:tokens], self.model.sin[:tokens]
        scores = torch.einsum("qhd,khd->hqk", rotate(query, cos, sin), rotate(key, cos, sin))
        distance = torch.arange(tokens)[:, None] - torch.arange(tokens)
        seen = distance >= 0
        if block.window is not None:
            seen &= distance < block.window
        scores = scores * (d // block.heads) ** -0.5
        pattern = scores.masked_fill(~seen, -1e9).softmax(-1).detach()
        mixed = torch.einsum("hqk,khd->qhd", pattern, value).reshape(tokens, d)
        return self._norm(mixed @ block.out.T, block.post_attn)

    def sources(self) -> list[tuple[int, int, int]]:
        """The active features as (layer, position, feature)."""
        return [
            (layer, position, feature)
            for layer, active in enumerate(self.active)
            for position, feature in active.nonzero().tolist()
        ]

    def edges(self, read: Tensor) -> Tensor:
        """What every source writes into one scalar: features, errors, embeddings, in that order."""
        leaves = [*self.outs, self.embedded]
        found = torch.autograd.grad(read, leaves, retain_graph=True, allow_unused=True)
        grads = [
            torch.zeros_like(t) if g is None else g for g, t in zip(found, leaves, strict=False)
        ]
        parts = []
        for layer, active in enumerate(self.active):
            on = active.nonzero()
            writes = self.folded.w_dec[layer][on[:, 1]]
            reach = torch.stack(grads[layer : layer + writes.shape[1]], 1)[on[:, 0]]
            parts.append(active[on[:, 0], on[:, 1]] * (writes * reach).sum((1, 2)))
        parts += [(grads[i] * error).sum(-1) for i, error in enumerate(self.errors)]
        return torch.cat([*parts, (grads[-1] * self.embedded).sum(-1)]).detach()


def describe(model: LeanModel, tokenizer, folded: Folded, prompt: str) -> dict[str, float]:
    """Scores of one prompt's whole graph: features, replacement, completeness, mean path length.

    Mean path length counts the edges of a path from an embedding to a logit, paths weighted by
    their influence; 1 means that everything goes there directly.
    """
    ids = torch.tensor(tokenizer(prompt)["input_ids"])
    local = Local(model, folded, ids)
    chances = model.logits(local.final).softmax(-1).detach()
    top = chances.topk(10)
    count = min(10, int((top.values.cumsum(0) < 0.95).sum()) + 1)
    sources = local.sources()
    rows = [
        local.edges(local.reads[layer][position] @ folded.w_enc[layer][feature])
        for layer, position, feature in sources
    ]
    mean = model.head.mean(0)
    rows += [local.edges(local.final @ (model.head[t] - mean)) for t in top.indices[:count]]
    return _scores(torch.stack(rows), top.values[:count], len(sources), len(ids))


def _scores(rows: Tensor, chances: Tensor, features: int, tokens: int) -> dict[str, float]:
    """Influence summed over paths of every length, from the edge rows of features and logits."""
    logits, size = len(chances), rows.shape[1] + len(chances)
    weights = torch.zeros(size)
    weights[-logits:] = chances
    share = torch.zeros(size, size)
    magnitude = rows.abs()
    share[:features, :-logits] = magnitude[:features]
    share[size - logits :, :-logits] = magnitude[features:]
    share = share / share.sum(1, keepdim=True).clamp(min=1e-10)
    influence, current, arrivals = torch.zeros(size), weights.clone(), []
    while current.any():
        current = current @ share
        influence += current
        arrivals.append(current[-logits - tokens : -logits].sum().item())
    error = influence[features : -logits - tokens].sum()
    targets = influence + weights
    targets[features : size - logits] = 0
    missing = share[:, features : -logits - tokens].sum(1)
    length = sum((steps + 1) * arrived for steps, arrived in enumerate(arrivals))
    return {
        "features": features,
        "replacement": round((sum(arrivals) / (sum(arrivals) + error)).item(), 4),
        "completeness": round((((1 - missing) * targets).sum() / targets.sum()).item(), 4),
        "mean_path": round(length / max(sum(arrivals), 1e-9), 3),
    }
