"""A set in training: all layers at once, in scaled units.

One class serves both kinds: a per-layer transcoder (PLT) writes to its own layer, a cross-layer
transcoder (CLT) to its own and every later one. Inputs have unit mean square and outputs zero mean
and unit variance, by layer, so that one learning rate and one penalty suit every layer and model;
`folding` takes the scales out again.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from circuit_tracer.shapes import Bool, Float, Tensor
from circuit_tracer.train.ranks import ALONE, Ranks
from circuit_tracer.train.settings import Function, Kind, Start
from circuit_tracer.train.sparsity import Jump, batch_level, top

MEMORY = 0.02  # of the moving average of BatchTopK's level


class Network(nn.Module):
    """Encoders, decoders and thresholds of every layer.

    Args:
        kind, activation, k, skip, start: as in `Settings`.
        bandwidth: of JumpReLU's straight-through gradient.
        seed: draws the weights.
        ranks: the processes of the training; where they share out features, this one's are here.

    Attributes:
        features: how many of a layer are here, F below.
        w_enc, b_enc: a layer, (F, D) and (F,).
        w_dec: a layer, (F, reach, D): to its own layer, then to those above.
        w_skip: a layer, (D, D), used as x @ w_skip.T; empty without skip connections.
        b_dec: (L, D).
        threshold: (L, F), of BatchTopK, where it stands after training.
        log_threshold: (L, F), of JumpReLU, learned.
        scale_in, scale_out, center: (L,), (L,), (L, D): the units, see `measure_scales`.
    """

    threshold: Tensor
    scale_in: Tensor
    scale_out: Tensor
    center: Tensor

    def __init__(
        self,
        kind: Kind,
        layers: int,
        d_model: int,
        features: int,
        seed: int,
        activation: Function = "batchtopk",
        k: int = 0,
        skip: bool = False,
        start: Start = "small",
        bandwidth: float = 0.5,
        ranks: Ranks = ALONE,
    ) -> None:
        super().__init__()
        self.kind, self.layers, self.ranks = kind, layers, ranks
        here = ranks.features(features)
        self.features = here.stop - here.start
        self.activation, self.k, self.bandwidth = activation, k, bandwidth
        generator = torch.Generator().manual_seed(seed)
        rows = torch.randn(layers, features, d_model, generator=generator)
        rows /= rows.norm(dim=-1, keepdim=True)
        self.w_enc = nn.ParameterList(nn.Parameter(row[here].clone()) for row in rows)
        self.b_enc = nn.ParameterList(nn.Parameter(torch.zeros(self.features)) for _ in rows)
        self.b_dec = nn.Parameter(torch.zeros(layers, d_model))
        self.w_dec = nn.ParameterList()
        for layer in range(layers):
            writes = torch.zeros(features, self.reach(layer), d_model)
            writes += torch.randn(writes.shape, generator=generator) * 0.1 / d_model**0.5
            if start == "tied":
                writes[:, 0] = rows[layer] * 0.1
            self.w_dec.append(nn.Parameter(writes[here].clone()))
        self.w_skip = nn.ParameterList(
            nn.Parameter(torch.zeros(d_model, d_model)) for _ in range(layers if skip else 0)
        )
        if activation == "jumprelu":
            self.log_threshold = nn.Parameter(torch.zeros(layers, self.features))
        self.register_buffer("threshold", torch.ones(layers, self.features))
        self.register_buffer("scale_in", torch.ones(layers))
        self.register_buffer("scale_out", torch.ones(layers))
        self.register_buffer("center", torch.zeros(layers, d_model))

    def reach(self, layer: int) -> int:
        """How many layers a feature of this layer writes to."""
        return self.layers - layer if self.kind == "clt" else 1

    @torch.no_grad()
    def measure_scales(
        self,
        inputs: Float[Tensor, "layer token d_model"],
        outputs: Float[Tensor, "layer token d_model"],
    ) -> None:
        """Set the units from data. A layer that never varies keeps its own."""
        width = inputs.shape[-1]
        self.center.copy_(outputs.mean(1))
        power = inputs.square().mean((1, 2))
        self.scale_in.copy_(torch.where(power > 0, power, torch.ones_like(power)).rsqrt())
        spread = (outputs - self.center[:, None]).square().sum(-1).mean(1)
        spread = torch.where(spread > 0, spread, torch.full_like(spread, width))
        self.scale_out.copy_((spread / width).sqrt())

    @torch.no_grad()
    def start_sparse(self, inputs: Float[Tensor, "layer token d_model"], k: int) -> None:
        """Start JumpReLU and ReLU with `k` features a token on scaled inputs: JumpReLU by its
        thresholds, ReLU by its biases. From there a penalty has only to hold them."""
        for layer, values in enumerate(self.encode(inputs)):
            level = batch_level(values, k, len(values), self.ranks.of_features)
            if self.activation == "jumprelu":
                self.log_threshold[layer] = level.log()
            else:
                self.b_enc[layer] -= level

    def thresholds(self, layer: int) -> Float[Tensor, " feature"]:
        """Above which a feature of BatchTopK or JumpReLU is active."""
        if self.activation == "jumprelu":
            return self.log_threshold[layer].exp()
        return self.threshold[layer]

    def encode(
        self, inputs: Float[Tensor, "layer token d_model"]
    ) -> list[Float[Tensor, "token feature"]]:
        """Pre-activations of scaled inputs, by layer."""
        rows = zip(self.b_enc, inputs, self.w_enc, strict=True)
        return [torch.addmm(bias, x, weight.T) for bias, x, weight in rows]

    def activate(
        self, layer: int, values: Float[Tensor, "... feature"]
    ) -> Float[Tensor, "... feature"]:
        """Activations of a trained set: what its folder computes, too."""
        if self.activation == "relu":
            return values.relu()
        if self.activation == "topk":
            return top(values, self.k, self.ranks)
        return values * (values > self.thresholds(layer))

    def activate_training(
        self, layer: int, values: Float[Tensor, "token feature"], rows: int, first: bool
    ) -> Float[Tensor, "token feature"]:
        """Activations of a batch, with the gradients of training. BatchTopK's level of this batch
        enters its moving average, which it starts on the `first` one."""
        if self.activation == "jumprelu":
            jumped: Tensor = Jump.apply(values, self.thresholds(layer), self.bandwidth)
            return jumped
        if self.activation != "batchtopk":
            return self.activate(layer, values)
        level = batch_level(values.detach(), self.k, rows, self.ranks)
        moving = level.expand(self.features).to(self.threshold)
        self.threshold[layer].lerp_(moving, 1.0 if first else MEMORY)
        return values * (values.detach() >= level)

    def decode(
        self,
        active: Sequence[Float[Tensor, "token feature"]],
        inputs: Float[Tensor, "layer token d_model"] | None = None,
    ) -> list[Float[Tensor, "token d_model"]]:
        """Scaled outputs, by layer. `inputs`, scaled, are for skip connections."""
        tokens = len(active[0])
        outputs: list[Tensor] = [row.expand(tokens, -1) for row in self.b_dec]
        if self.ranks.by_features:
            outputs = [torch.zeros_like(row) for row in outputs]
        for layer, writes in enumerate(self.w_dec):
            written = (active[layer] @ writes.flatten(1)).view(tokens, writes.shape[1], -1)
            for ahead, part in enumerate(written.unbind(1)):
                outputs[layer + ahead] = outputs[layer + ahead] + part
        if self.ranks.by_features:
            outputs = list((self.ranks.total(torch.stack(outputs)) + self.b_dec[:, None]).unbind())
        if inputs is not None:
            for layer, weight in enumerate(self.w_skip):
                outputs[layer] = outputs[layer] + inputs[layer] @ weight.T
        return outputs

    def at(
        self,
        layer: int,
        inputs: Float[Tensor, "... d_model"],
        active: list[Float[Tensor, "... feature"]],
    ) -> Float[Tensor, "... d_model"]:
        """The read site of one layer → the reconstruction, both in the model's own units.

        Appends the layer's activations to `active`, which holds those of the layers below.
        """
        x = inputs * self.scale_in[layer]
        active.append(self.activate(layer, x @ self.w_enc[layer].T + self.b_enc[layer]))
        scaled: Tensor = self.b_dec[layer]
        for source, writes in enumerate(list(self.w_dec)[: layer + 1]):
            if layer - source < writes.shape[1]:
                scaled = scaled + active[source] @ writes[:, layer - source]
        if len(self.w_skip):
            scaled = scaled + x @ self.w_skip[layer].T
        return scaled * self.scale_out[layer] + self.center[layer]

    @staticmethod
    def feature_axis(name: str) -> int | None:
        """The axis of a named parameter or buffer that features are counted along."""
        if name.split(".")[0] in ("w_enc", "b_enc", "w_dec"):
            return 0
        return 1 if name in ("threshold", "log_threshold") else None

    @torch.no_grad()
    def fired(
        self, active: Sequence[Float[Tensor, "token feature"]]
    ) -> Bool[Tensor, "layer feature"]:
        """Which features fired anywhere in a batch."""
        return torch.stack([values.detach().sum(0) > 0 for values in active])
