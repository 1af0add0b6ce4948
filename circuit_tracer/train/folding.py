"""Folding: the scales of training, taken into the weights, biases and thresholds.

With s_in, s_out and m the units of a layer, h a scaled pre-activation and c the norm of a feature's
decoders in the model's own units, what is written is

    W_dec' = s_out W_dec / c      W_enc' = c s_in W_enc      b_enc' = c b_enc      θ' = c θ
    b_dec' = s_out b_dec + m      W_skip' = s_out W_skip s_in

so that pre-activations become c·h against thresholds c·θ: what is active stays active, and an
activation is the length of what its feature writes. TopK compares features with each other, so
that there c is 1 for all of them.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from circuit_tracer.shapes import Float, Tensor
from circuit_tracer.train.network import Network
from circuit_tracer.transcoders.base import (
    Activation,
    LayerWeights,
    ReadSite,
    TranscoderSet,
    WriteSite,
)

LEAST_NORM = 1e-8


@dataclass(frozen=True, eq=False)
class FoldedLayer:
    """One layer in the model's own units.

    Attributes:
        encoder: (F, D). encoder_bias: (F,). output_bias: (D,).
        decoder: (F, reach, D), of unit norm but for TopK.
        threshold: (F,), or None for ReLU and TopK.
        skip: (D, D), used as x @ skip.T, or None.
    """

    encoder: Float[Tensor, "feature d_model"]
    encoder_bias: Float[Tensor, " feature"]
    decoder: Float[Tensor, "feature reach d_model"]
    output_bias: Float[Tensor, " d_model"]
    threshold: Float[Tensor, " feature"] | None
    skip: Float[Tensor, "d_model d_model"] | None


@torch.no_grad()
def fold_layer(net: Network, layer: int) -> FoldedLayer:
    """One layer of a trained network, in the model's own units."""
    reach = net.reach(layer)
    writes = net.w_dec[layer] * net.scale_out[layer : layer + reach, None]
    norm = writes.flatten(1).norm(dim=1).clamp(min=LEAST_NORM)
    if net.activation == "topk":
        norm = torch.ones_like(norm)
    jumps = net.activation in ("batchtopk", "jumprelu")
    skip = None
    if len(net.w_skip):
        skip = net.w_skip[layer] * (net.scale_out[layer] * net.scale_in[layer])
    return FoldedLayer(
        encoder=net.w_enc[layer] * net.scale_in[layer] * norm[:, None],
        encoder_bias=net.b_enc[layer] * norm,
        decoder=writes / norm[:, None, None],
        output_bias=net.b_dec[layer] * net.scale_out[layer] + net.center[layer],
        threshold=net.thresholds(layer) * norm if jumps else None,
        skip=skip,
    )


def fold(
    net: Network, read: ReadSite, write: WriteSite, name: str, dtype: torch.dtype | None = None
) -> TranscoderSet:
    """A trained network as a set that can be traced with and written.

    Args:
        read, write: the sites it was trained on.
        name: for messages and provenance.
        dtype: to round to; None keeps the network's.
    """
    return TranscoderSet(
        kind=net.kind,
        read=read,
        write=write,
        n_layers=net.layers,
        source=lambda layer: _weights(net, fold_layer(net, layer), dtype),
        name=name,
    )


def _weights(net: Network, layer: FoldedLayer, dtype: torch.dtype | None) -> LayerWeights:
    def rounded(tensor: Tensor) -> Tensor:
        return tensor.detach().to("cpu", dtype or tensor.dtype).contiguous()

    if layer.threshold is not None:
        activation = Activation("jump_relu", rounded(layer.threshold))
    elif net.activation == "topk":
        activation = Activation("topk", k=net.k)
    else:
        activation = Activation("relu")
    return LayerWeights(
        encoder=rounded(layer.encoder),
        encoder_bias=rounded(layer.encoder_bias),
        decoders=tuple(rounded(rows) for rows in layer.decoder.unbind(1)),
        output_bias=rounded(layer.output_bias),
        activation=activation,
        skip=None if layer.skip is None else rounded(layer.skip),
    )
