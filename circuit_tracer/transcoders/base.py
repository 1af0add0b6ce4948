"""Transcoders: what tracing needs of them, whatever file they came from.

A transcoder reads the MLP's input site of its layer and predicts the MLP's output site, through
features few of which are active at once:

    pre = W_enc x + b_enc        a = activation(pre)        y = W_dec^T a + b_dec (+ W_skip x)

Per-layer transcoders (PLT) write to their own layer; a feature of a cross-layer transcoder (CLT)
writes to its own and every later layer. Both are one class here: a set of `LayerWeights`, each
with one decoder a layer it writes to. PLT is a CLT whose decoders stop at the first.

A set need not cover every layer: one without a transcoder has no features, and its whole MLP output
is one error node a position.

Weights stay where the format put them (memory-mapped files, as a rule): encoders are read whole
when a layer is encoded, and stay on a GPU that has room for them; of decoders only the rows of
active features are ever touched.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal, get_args

import torch

from circuit_kernels.choice import Choice, kernel
from circuit_tracer.errors import InputError, TranscoderError
from circuit_tracer.shapes import Bool, Float, Int, Tensor

ReadSite = Literal["hook_resid_mid", "ln2.hook_normalized", "mlp.hook_in"]
WriteSite = Literal["mlp.hook_out", "hook_mlp_out"]
READ_SITES: tuple[ReadSite, ...] = get_args(ReadSite)
WRITE_SITES: tuple[WriteSite, ...] = get_args(WriteSite)


@dataclass(frozen=True)
class Activation:
    """ReLU, JumpReLU (strict: `x * (x > threshold)`) or TopK (k largest, positive ones only).

    Args:
        kind: "relu", "jump_relu" or "topk"; "mlp" for the model's own neurons (`neurons`), whose
            set encodes by itself and cannot be written to files.
        threshold: scalar or (F,), for JumpReLU.
        k: for TopK.
    """

    kind: Literal["relu", "jump_relu", "topk", "mlp"] = "relu"
    threshold: Float[Tensor, "..."] | None = None
    k: int = 0

    def active(self, pre: Float[Tensor, "position feature"]) -> Bool[Tensor, "position feature"]:
        """Which features fire. An active feature's activation is its pre-activation."""
        if self.kind == "jump_relu":
            assert self.threshold is not None
            # A threshold below zero lets negative values through: JumpReLU is x * (x > threshold).
            return (pre > self.threshold.to(pre)) & (pre != 0)
        if self.kind == "mlp":
            raise TranscoderError("neurons fire by the model's own MLP; ask their set to encode")
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
        covered: the layers that have a transcoder, ascending; None for all. `source` is never
            asked for others.
    """

    kind: Literal["plt", "clt"]
    read: ReadSite
    write: WriteSite
    n_layers: int
    source: Callable[[int], LayerWeights]
    name: str
    covered: tuple[int, ...] | None = None
    _open: dict[int, LayerWeights] = field(default_factory=dict, repr=False)
    _near: dict[tuple[int, torch.device], Tensor] = field(default_factory=dict, repr=False)

    @property
    def present(self) -> tuple[int, ...]:
        """The layers that have a transcoder, ascending."""
        return tuple(range(self.n_layers)) if self.covered is None else self.covered

    def named(self, name: str) -> TranscoderSet:
        """The same set under another name."""
        return replace(self, name=name)

    def reaching(self, n_layers: int) -> TranscoderSet:
        """The same set for a model of `n_layers`: a per-layer set that names its layers may leave
        out the last ones, which its files cannot know of."""
        if self.covered is None or self.kind == "clt" or n_layers <= self.n_layers:
            return self
        return replace(self, n_layers=n_layers, _open={}, _near={})

    def layer(self, layer: int) -> LayerWeights:
        """Weights of one layer, opened on first use; no features where it has no transcoder."""
        if layer not in self._open:
            present = self.present
            self._open[layer] = self.source(layer) if layer in present else self._absent(layer)
        return self._open[layer]

    def _absent(self, layer: int) -> LayerWeights:
        """A layer without a transcoder: nothing fires, nothing is added, all of it is error."""
        like = self.layer(self.present[0])
        rows = like.encoder.new_empty(0, like.encoder.shape[1])
        return LayerWeights(
            encoder=rows,
            encoder_bias=rows.new_empty(0),
            decoders=(rows,) * (self.n_layers - layer if self.kind == "clt" else 1),
            output_bias=rows.new_zeros(rows.shape[1]),
        )

    def pre_activations(
        self, layer: int, x: Float[Tensor, "position d_model"]
    ) -> Float[Tensor, "position feature"]:
        """`x W_enc^T + b_enc` in the dtype of x."""
        weights = self.layer(layer)
        return torch.addmm(weights.encoder_bias.to(x), x, weights.encoder.to(x).T)

    def encode(
        self, layer: int, x: Float[Tensor, "position d_model"], kernels: Choice = "auto"
    ) -> tuple[Int[Tensor, "active 2"], Float[Tensor, " active"]]:
        """Active features of a layer: (position, id) rows in order, and their activations.

        The matrix of all pre-activations is never laid out.

        Args:
            kernels: "auto", "reference" or "triton".

        Raises:
            TranscoderError: a pre-activation that is not finite.
            InputError: kernels that cannot run here.
        """
        weights, activation = self.layer(layer), self.layer(layer).activation
        try:
            encode = kernel("encode", kernels, x.device)
        except ValueError as error:
            raise InputError(str(error)) from error
        with torch.no_grad():
            found = encode(
                x,
                self._encoder(layer, x.device),
                weights.encoder_bias,
                activation.threshold,
                activation.k if activation.kind == "topk" else None,
            )
        if not found.finite:
            raise TranscoderError(
                f"layer {layer} of {self.name} gives NaN or infinite pre-activations: its encoder, "
                "or the model's activations, hold values that are not finite. Re-download the "
                "files, or load with dtype='float32'."
            )
        return found.cells, found.values

    def _encoder(self, layer: int, device: torch.device) -> Float[Tensor, "feature d_model"]:
        """The encoder on a device. A GPU with room for it keeps it for the next prompt."""
        encoder = self.layer(layer).encoder
        if device.type != "cuda" or encoder.device == device:
            return encoder.to(device)
        if (layer, device) not in self._near:
            near = encoder.to(device)
            if not roomy(device):
                return near
            self._near[layer, device] = near
        return self._near[layer, device]

    def writers(self, layer: int) -> range:
        """Layers whose features write to `layer`."""
        return range(layer + 1) if self.kind == "clt" else range(layer, layer + 1)

    def encoder_rows(
        self, layer: int, features: Int[Tensor, " active"], dtype: torch.dtype
    ) -> tuple[Float[Tensor, "active d_model"], Float[Tensor, " active"]]:
        """(encoder rows, encoder biases) of some features."""
        weights = self.layer(layer)
        rows = weights.encoder.index_select(0, features.to(weights.encoder.device))
        biases = weights.encoder_bias[features.to(weights.encoder_bias.device)]
        return rows.to(dtype), biases.to(dtype)

    def read_rows(
        self,
        layer: int,
        features: Int[Tensor, " active"],
        x: Float[Tensor, "active d_model"],
    ) -> tuple[Float[Tensor, "active d_model"], Float[Tensor, " active"]]:
        """How active features read their site, linearly: (vectors, biases) in the dtype of x.

        Args:
            x: what each of them reads, (active, d_model). Transcoders read alike everywhere and
                do not need it; a gated neuron's vector holds its gate at x.
        """
        encoder, bias = self.encoder_rows(layer, features, x.dtype)
        return encoder.to(x.device), bias.to(x.device)

    def decoder_rows(
        self,
        layer: int,
        written: int,
        features: Int[Tensor, " active"],
        dtype: torch.dtype | None = None,
    ) -> Float[Tensor, "active d_model"]:
        """Decoder rows of features of `layer` into layer `written`; only these rows are read.

        Args:
            dtype: of the rows; None for the one they are stored in.
        """
        table = self.layer(layer).decoders[written - layer]
        rows = table.index_select(0, features.to(table.device))
        rows = rows if dtype is None else rows.to(dtype)
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


def roomy(device: torch.device) -> bool:
    """Whether more than half of a GPU's memory is free, so that something may stay there."""
    free, total = torch.cuda.mem_get_info(device)
    return free > total // 2
