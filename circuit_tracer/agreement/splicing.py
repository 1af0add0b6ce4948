"""The replacement model run forwards: every MLP output is its reconstruction, attention is live.

Nothing is frozen and no error is put back: later layers read what earlier reconstructions made of
the residual stream. A cross-layer feature is encoded once, at its own layer, and written to every
later one. Layers without a transcoder keep their MLP. Hooks are gone when the block is left, also
after an error.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import nn

from circuit_tracer.models.adapter import Adapter, Block
from circuit_tracer.shapes import Bool, Float, Int, Tensor
from circuit_tracer.transcoders.base import TranscoderSet

Encoded = Mapping[int, tuple[Int[Tensor, "active 2"], Float[Tensor, " active"]]]
"""By layer, what `TranscoderSet.encode` gives."""


def reconstruct(
    transcoders: TranscoderSet, layer: int, encoded: Encoded, x: Float[Tensor, "position d_model"]
) -> Float[Tensor, "position d_model"]:
    """What a set says the MLP of a layer gives: decoded features, bias and skip.

    Args:
        encoded: active features of every layer that writes to this one.
        x: the layer's read site.
    """
    weights = transcoders.layer(layer)
    output = weights.output_bias.to(x).repeat(len(x), 1)
    if weights.skip is not None:
        output += x @ weights.skip.to(x).T
    for source in transcoders.writers(layer):
        cells, values = encoded[source]
        cells = cells.to(x.device)
        rows = transcoders.decoder_rows(source, layer, cells[:, 1], x.dtype).to(x.device)
        output.index_add_(0, cells[:, 0], rows * values[:, None])
    return output


@contextmanager
def spliced(
    adapter: Adapter,
    transcoders: TranscoderSet,
    kept: Bool[Tensor, " position"],
    allowed: Sequence[Bool[Tensor, "position feature"]] | None = None,
    added: Sequence[Float[Tensor, "position d_model"]] | None = None,
) -> Iterator[dict[int, Tensor]]:
    """While inside, the model's forward passes (of one copy) are the replacement model's.

    Args:
        kept: positions whose MLP outputs stay the model's own.
        allowed: of every layer, which features may fire where; None for all.
        added: of every layer, what is added to its reconstruction, such as an error.

    Yields:
        layer → (P, d_model) at the read site, filled by each pass.
    """
    sites: dict[int, Tensor] = {}
    encoded: dict[int, tuple[Tensor, Tensor]] = {}

    def reader(layer: int, block: Block) -> Callable:
        def hook(_module: nn.Module, args: tuple, kwargs: dict) -> None:
            x = (args[0] if args else kwargs["hidden_states"])[0].to(adapter.device)
            if transcoders.read == "ln2.hook_normalized" and block.mlp_norm is not None:
                scale = block.mlp_norm.scale(x)
                x = block.mlp_norm.centre(x.to(scale.dtype)) * scale[:, None]
            sites[layer] = x.to(adapter.dtype)
            cells, values = transcoders.encode(layer, sites[layer])
            if allowed is not None:
                good = allowed[layer].to(cells.device)[cells[:, 0], cells[:, 1]]
                cells, values = cells[good], values[good]
            encoded[layer] = cells, values

        return hook

    def writer(layer: int) -> Callable:
        def hook(_module: nn.Module, _args: tuple, output: Any) -> Any:
            real = output[0] if isinstance(output, tuple) else output
            made = reconstruct(transcoders, layer, encoded, sites[layer])
            made = (made if added is None else made + added[layer]).to(real)
            made = torch.where(kept.to(real.device)[:, None], real[0], made)[None]
            made = made.view_as(real)
            return (made, *output[1:]) if isinstance(output, tuple) else made

        return hook

    with ExitStack() as stack:
        for layer, block in enumerate(adapter.blocks):
            norm = block.mlp_norm if transcoders.read != "mlp.hook_in" else None
            read = block.mlp if norm is None else norm.module
            hook = read.register_forward_pre_hook(reader(layer, block), with_kwargs=True)
            stack.callback(hook.remove)
            if layer in transcoders.present or transcoders.kind == "clt":
                post = block.post_mlp_norm if transcoders.write == "hook_mlp_out" else None
                site = block.mlp if post is None else post.module
                stack.callback(site.register_forward_hook(writer(layer)).remove)
        yield sites
