"""Transcoders: what tracing needs of them, whatever file they came from.

A transcoder reads the MLP's input site of its layer and predicts the MLP's output site, through
features few of which are active at once:

    pre = W_enc x + b_enc        a = activation(pre)        y = W_dec^T a + b_dec (+ W_skip x)

Per-layer transcoders (PLT) write to their own layer; a feature of a cross-layer transcoder (CLT)
writes to its own and every later layer. Both are one class here: a set of `LayerWeights`, each
with one decoder a layer it writes to. PLT is a CLT whose decoders stop at the first.

Weights stay where the format put them (memory-mapped files, as a rule): encoders are read whole
when a layer is encoded, of decoders only the rows of active features are ever touched.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal, get_args

import torch

from circuit_tracer.errors import TranscoderError
from circuit_tracer.shapes import Bool, Float, Int, Tensor

ReadSite = Literal["hook_resid_mid", "ln2.hook_normalized", "mlp.hook_in"]
WriteSite = Literal["mlp.hook_out", "hook_mlp_out"]
READ_SITES: tuple[ReadSite, ...] = get_args(ReadSite)
WRITE_SITES: tuple[WriteSite, ...] = get_args(WriteSite)


@dataclass(frozen=True)
class Activation:
    """ReLU, JumpReLU (strict: `x * (x > threshold)`) or TopK (k largest, positive ones only).

    Args:
        kind: "relu", "jump_relu" or "topk".
        threshold: scalar or (F,), for JumpReLU.
        k: for TopK.
    """

    kind: Literal["relu", "jump_relu", "topk"] = "relu"
    threshold: Float[Tensor, "..."] | None = None
    k: int = 0

    def active(self, pre: Float[Tensor, "position feature"]) -> Bool[Tensor, "position feature"]:
        """Which features fire. An active feature's activation is its pre-activation."""
        if self.kind == "jump_relu":
            assert self.threshold is not None
            # A threshold below zero lets negative values through: JumpReLU is x * (x > threshold).
            return (pre > self.threshold.to(pre)) & (pre != 0)
        if self.kind == "relu" or self.k >= pre.shape[-1]:
            return pre > 0
        chosen = pre.topk(self.k, dim=-1).indices
        return torch.zeros_like(pre, dtype=torch.bool).scatter_(-1, chosen, True) & (pre > 0)


@dataclass(frozen=True, eq=False)
class LayerWeights:
    """One layer's transcoder. Tensors may be memory-mapped and of any float dtype.

    Attributes:
        encoder: (F, d_model).
        encoder_bias: (F,).
        decoders: one row-readable tensor (F, d_model) a layer written to, own layer first.
        output_bias: (d_model,), added once to the reconstruction of this layer.
        activation: what makes a feature active.
        skip: (d_model, d_model), used as `x @ skip.T`, or None.
    """

    encoder: Float[Tensor, "feature d_model"]
    encoder_bias: Float[Tensor, " feature"]
    decoders: Sequence[Float[Tensor, "feature d_model"]]
    output_bias: Float[Tensor, " d_model"]
    activation: Activation = field(default_factory=Activation)
    skip: Float[Tensor, "d_model d_model"] | None = None


@dataclass(frozen=True, eq=False)
class TranscoderSet:
    """The transcoders of a model.

    Attributes:
        kind: "plt" or "clt".
        read: TransformerLens name of the site read (`READ_SITES`).
        write: TransformerLens name of the site predicted (`WRITE_SITES`).
        layers: number of layers.
        source: calls up one layer's weights; called once a layer and kept.
        name: where they came from, for provenance.
    """

    kind: Literal["plt", "clt"]
    read: ReadSite
    write: WriteSite
    n_layers: int
    source: Callable[[int], LayerWeights]
    name: str
    _open: dict[int, LayerWeights] = field(default_factory=dict)

    def named(self, name: str) -> TranscoderSet:
        """The same set under another name."""
        return replace(self, name=name)

    def layer(self, layer: int) -> LayerWeights:
        """Weights of one layer, opened on first use."""
        if layer not in self._open:
            self._open[layer] = self.source(layer)
        return self._open[layer]

    def pre_activations(
        self, layer: int, x: Float[Tensor, "position d_model"]
    ) -> Float[Tensor, "position feature"]:
        """`x W_enc^T + b_enc` in the dtype of x."""
        weights = self.layer(layer)
        return torch.addmm(weights.encoder_bias.to(x), x, weights.encoder.to(x).T)

    def encode(
        self, layer: int, x: Float[Tensor, "position d_model"]
    ) -> tuple[Int[Tensor, "active 2"], Float[Tensor, " active"]]:
        """Active features of a layer: (position, id) rows in order, and their activations."""
        pre = self.pre_activations(layer, x)
        if not torch.isfinite(pre).all():
            raise TranscoderError(
                f"layer {layer} of {self.name} gives NaN or infinite pre-activations: its encoder, "
                "or the model's activations, hold values that are not finite. Re-download the "
                "files, or load with dtype='float32'."
            )
        cells = self.layer(layer).activation.active(pre).nonzero()
        return cells, pre[cells[:, 0], cells[:, 1]]

    def writers(self, layer: int) -> range:
        """Layers whose features write to `layer`."""
        return range(layer + 1) if self.kind == "clt" else range(layer, layer + 1)

    def encoder_rows(
        self, layer: int, features: Int[Tensor, " active"], dtype: torch.dtype
    ) -> tuple[Float[Tensor, "active d_model"], Float[Tensor, " active"]]:
        """(encoder rows, encoder biases) of some features."""
        weights = self.layer(layer)
        rows = weights.encoder.index_select(0, features.to(weights.encoder.device))
        return rows.to(dtype), weights.encoder_bias[features].to(dtype)

    def decoder_rows(
        self, layer: int, written: int, features: Int[Tensor, " active"], dtype: torch.dtype
    ) -> Float[Tensor, "active d_model"]:
        """Decoder rows of features of `layer` into layer `written`; only these rows are read."""
        table = self.layer(layer).decoders[written - layer]
        rows = table.index_select(0, features.to(table.device)).to(dtype)
        if not torch.isfinite(rows).all():
            bad = features[~torch.isfinite(rows).all(1)][0].item()
            raise TranscoderError(
                f"the decoder of feature {bad} of layer {layer} in {self.name} holds NaN or "
                "infinite values. Re-download or re-train the transcoders."
            )
        return rows

    def check_fits(self, n_layers: int, d_model: int, model: str) -> None:
        """Raise TranscoderError unless the set has the model's layer count and width."""
        fault = f"{self.name} has {self.n_layers} layers, but {model} has {n_layers}"
        if self.n_layers == n_layers:
            widths = [self.layer(layer).encoder.shape[1] for layer in range(n_layers)]
            wrong = [layer for layer, width in enumerate(widths) if width != d_model]
            if not wrong:
                return
            fault = (
                f"layer {wrong[0]} of {self.name} has width {widths[wrong[0]]}, but {model} has "
                f"width {d_model}"
            )
        raise TranscoderError(
            f"{fault}: these transcoders belong to another model. Pass the set that was trained "
            "on this one (--transcoders)."
        )
