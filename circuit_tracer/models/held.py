"""Holding attention patterns at given values.

The counterpart of `attention`: where that one sees patterns, this one sets them. While it lasts,
every attention module mixes its values by the pattern it was given, whatever its queries and keys
say.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from circuit_tracer.errors import ModelError
from circuit_tracer.shapes import Float, Tensor

NAME = "circuit_tracer_held"
_held: Mapping[int, Tensor] | None = None


def _attend(
    module: nn.Module,
    query: Float[Tensor, "batch head position head_dim"],
    key: Float[Tensor, "batch kv_head position head_dim"],
    value: Float[Tensor, "batch kv_head position head_dim"],
    attention_mask: Tensor | None,
    **_: Any,
) -> tuple[Tensor, Tensor]:
    assert _held is not None
    pattern = _held[id(module)].to(value)[None]
    groups = pattern.shape[1] // value.shape[1]
    value = value if groups == 1 else value.repeat_interleave(groups, dim=1)
    return torch.matmul(pattern, value).transpose(1, 2).contiguous(), pattern


@contextmanager
def held(
    model: Any, patterns: Mapping[int, Float[Tensor, "head position position"]]
) -> Iterator[None]:
    """While inside, attention modules use these patterns: id(attention module) → pattern.

    The attention implementation the model had is put back on the way out, also after an error.

    Raises:
        ModelError: patterns are already being held in this process.
    """
    global _held
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS

    if _held is not None:
        raise ModelError("attention is already held in this process; intervene once at a time")
    AttentionInterface.register(NAME, _attend)
    AttentionMaskInterface.register(NAME, ALL_MASK_ATTENTION_FUNCTIONS["eager"])
    before = model.config._attn_implementation
    _held = patterns
    try:
        model.set_attn_implementation(NAME)
        yield
    finally:
        _held = None
        model.set_attn_implementation(before)
