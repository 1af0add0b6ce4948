"""What the MLPs of a model read and wrote, for many pieces of text in one forward pass.

Pieces are padded on the right, where a causal model's earlier positions cannot see; padding and
first positions are dropped as the hooks fire. Hooks are gone when the pass is over.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import nn

from circuit_tracer.errors import ModelError
from circuit_tracer.models.adapter import Adapter, Block
from circuit_tracer.models.check import not_finite
from circuit_tracer.shapes import Float, Int, Tensor
from circuit_tracer.transcoders.base import ReadSite, WriteSite

Activations = tuple[Float[Tensor, "token layer d_model"], Float[Tensor, "token layer d_model"]]
"""(what the MLPs read, what they wrote)."""


def activations(
    adapter: Adapter, read: ReadSite, write: WriteSite, pieces: Sequence[Int[Tensor, " position"]]
) -> Activations:
    """Both sites of every layer at every token but the first of each piece.

    Args:
        pieces: token ids; rows come piece by piece, in order.

    Raises:
        ModelError: the model gives NaN or infinite activations.
    """
    longest = max(len(piece) for piece in pieces)
    ids = torch.zeros(len(pieces), longest, dtype=torch.long)
    kept = torch.zeros(len(pieces), longest, dtype=torch.bool)
    for row, piece in enumerate(pieces):
        ids[row, : len(piece)] = piece
        kept[row, 1 : len(piece)] = True
    seen: dict[tuple[str, int], Tensor] = {}
    with torch.no_grad(), ExitStack() as stack:
        for layer, block in enumerate(adapter.blocks):
            for handle in _hooks(block, layer, read, write, kept, seen, adapter.dtype):
                stack.callback(handle.remove)
        adapter.model(input_ids=ids.to(adapter.device), use_cache=False)
    layers = range(adapter.n_layers)
    found = [torch.stack([seen[site, layer] for layer in layers], 1) for site in ("in", "out")]
    if not all(bool(torch.isfinite(tensor).all()) for tensor in found):
        raise ModelError(not_finite(adapter))
    return found[0], found[1]


def _hooks(
    block: Block,
    layer: int,
    read: ReadSite,
    write: WriteSite,
    kept: Tensor,
    seen: dict[tuple[str, int], Tensor],
    dtype: torch.dtype,
) -> list[Any]:
    """Hooks on the two sites of a block."""

    def rows(x: Tensor) -> Tensor:
        return x.view(*kept.shape, -1)[kept.to(x.device)]

    def reader(_module: nn.Module, args: tuple, kwargs: dict) -> None:
        x = rows(args[0] if args else kwargs["hidden_states"])
        if read == "ln2.hook_normalized" and block.mlp_norm is not None:
            scale = block.mlp_norm.scale(x)
            x = block.mlp_norm.centre(x.to(scale.dtype)) * scale[:, None]
        seen["in", layer] = x.to("cpu", dtype)

    def writer(_module: nn.Module, _args: tuple, output: Any) -> None:
        seen["out", layer] = rows(output[0] if isinstance(output, tuple) else output).to(
            "cpu", dtype
        )

    norm = block.mlp_norm if read != "mlp.hook_in" else None
    post = block.post_mlp_norm if write == "hook_mlp_out" else None
    first = block.mlp if norm is None else norm.module
    last = block.mlp if post is None else post.module
    hook: Callable[..., None] = reader
    return [
        first.register_forward_pre_hook(hook, with_kwargs=True),
        last.register_forward_hook(writer),
    ]
