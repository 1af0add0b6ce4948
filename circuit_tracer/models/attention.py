"""Seeing attention patterns without changing them.

Every family that goes through transformers' attention interface calls one function with its
queries, keys, values, mask, scaling and softcap. We register our own under a name of its own: the
eager arithmetic, bit for bit, that also hands the pattern to whoever is watching. The mask function
is registered under the same name; without it sliding-window layers silently get full attention.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from circuit_tracer.errors import ModelError
from circuit_tracer.shapes import Float, Tensor

NAME = "circuit_tracer"
_watcher: dict[int, Tensor] | None = None
_compared: dict[int, Compared] | None = None


@dataclass(frozen=True, eq=False)
class Compared:
    """What the heads of a layer compare: their score is `scaling * query · key`.

    Attributes:
        query: (heads, P, head_dim), rotary positions applied.
        key: (kv_heads, P, head_dim), likewise.
        value: (kv_heads, P, head_dim), what they mix.
        scaling: multiplies their product.
        softcap: squashes the score before the softmax; None for most families.
    """

    query: Float[Tensor, "head position head_dim"]
    key: Float[Tensor, "kv_head position head_dim"]
    value: Float[Tensor, "kv_head position head_dim"]
    scaling: float
    softcap: float | None


def _grouped(x: Tensor, heads: int) -> Tensor:
    """Repeat key/value heads so that there is one a query head."""
    return x if x.shape[1] == heads else x.repeat_interleave(heads // x.shape[1], dim=1)


def _with_sinks(scores: Tensor, sinks: Float[Tensor, " head"]) -> Tensor:
    """Softmax that may also attend to nothing: a learned logit a head, dropped afterwards."""
    column = sinks.reshape(1, -1, 1, 1).expand(*scores.shape[:-1], 1)
    scores = torch.cat([scores, column], dim=-1)
    scores = scores - scores.max(dim=-1, keepdim=True).values
    return torch.softmax(scores, dim=-1, dtype=scores.dtype)[..., :-1]


def _attend(
    module: nn.Module,
    query: Float[Tensor, "1 head position head_dim"],
    key: Float[Tensor, "1 kv_head position head_dim"],
    value: Float[Tensor, "1 kv_head position head_dim"],
    attention_mask: Float[Tensor, "1 1 position position"] | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    softcap: float | None = None,
    s_aux: Float[Tensor, " head"] | None = None,
    **_: Any,
) -> tuple[Tensor, Tensor]:
    """Eager attention of every supported family; keeps the pattern when someone watches."""
    heads = query.shape[1]
    scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
    scores = torch.matmul(query, _grouped(key, heads).transpose(2, 3)) * scaling
    if softcap is not None:
        scores = torch.tanh(scores / softcap) * softcap
    if attention_mask is not None:
        scores = scores + attention_mask[..., : key.shape[-2]]
    if s_aux is None:
        exact = torch.promote_types(query.dtype, torch.float32)
        pattern = torch.softmax(scores, dim=-1, dtype=exact).to(query.dtype)
    else:
        pattern = _with_sinks(scores, s_aux)
    if _watcher is not None:
        _watcher[id(module)] = pattern.flatten(0, 1)
    if _compared is not None:
        _compared[id(module)] = Compared(query[0], key[0], value[0], scaling, softcap)
    mixed = torch.matmul(pattern, _grouped(value, heads))
    return mixed.transpose(1, 2).contiguous(), pattern


def _register() -> None:
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS

    AttentionInterface.register(NAME, _attend)
    AttentionMaskInterface.register(NAME, ALL_MASK_ATTENTION_FUNCTIONS["eager"])


@contextmanager
def watched(
    model: Any, compared: dict[int, Compared] | None = None
) -> Iterator[dict[int, Float[Tensor, "head position position"]]]:
    """While inside, the model's forward fills the mapping: id(attention module) → pattern.

    `compared`, where given, is filled with queries and keys in the same way. The attention
    implementation the model had is put back on the way out, also after an error.
    """
    global _compared, _watcher
    if _watcher is not None:
        raise ModelError("a model is already being watched in this process; trace one at a time")
    _register()
    before = model.config._attn_implementation
    model.set_attn_implementation(NAME)
    _watcher, _compared = {}, compared
    try:
        yield _watcher
    finally:
        _watcher = _compared = None
        model.set_attn_implementation(before)
