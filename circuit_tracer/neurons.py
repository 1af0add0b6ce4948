"""The model's own MLP neurons as features, for models that nobody trained transcoders for.

An MLP is a sum over its neurons, each with an activation and a row it writes:

    plain (GPT-2, GPT-NeoX)      a_i = act(w_i x + b_i)              y = Σ a_i down_i + b_down
    gated (Llama, Gemma, Phi-3)  a_i = act(gate_i x) · (up_i x)

So neurons are transcoder features that need no training and leave no error, except that all of them
are active. The `limit` that write most, by |a_i| ‖down_i‖, are kept at each layer and position; the
rest of the MLP's output is in the error node, so the graph is as exact as any.

What a neuron reads must be linear in its input. A plain neuron reads its row: an edge is a part of
its pre-activation, as for any feature, though its activation is act of that. A gated neuron reads
act(gate_i x) · up_i with the gate frozen at its value, as attention patterns are: its row adds up
to the activation itself, and what moves the gate is no edge.

Layers whose MLP is a mixture of experts are left out (all of them is error), and a model of
nothing else is refused.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from circuit_kernels.choice import Choice
from circuit_tracer.errors import InputError, ModelError, TranscoderError
from circuit_tracer.models.adapter import Adapter, present
from circuit_tracer.shapes import Float, Int, Tensor
from circuit_tracer.transcoders.base import Activation, LayerWeights, TranscoderSet

NAME = "neurons"
LIMIT = 32
"""Neurons kept at each layer and position where the user does not say: `neurons:64`."""

GATED = (("gate_proj", "up_proj", "down_proj"),)
FUSED = (("gate_up_proj", "down_proj"),)
PLAIN = (("c_fc", "c_proj"), ("dense_h_to_4h", "dense_4h_to_h"), ("fc1", "fc2"))
FUNCTIONS = ("act_fn", "activation_fn", "act", "activation")


@dataclass(frozen=True, eq=False)
class Perceptron:
    """An MLP as matrices: (F, d_model) inputs, (F, d_model) written rows.

    Attributes:
        up, up_bias: what a neuron reads linearly.
        gate, gate_bias: what `function` is applied to; None where that is `up` itself.
        down, down_bias: what neurons write, and the output's bias.
        function: the nonlinearity.
    """

    up: Float[Tensor, "feature d_model"]
    up_bias: Float[Tensor, " feature"]
    gate: Float[Tensor, "feature d_model"] | None
    gate_bias: Float[Tensor, " feature"]
    down: Float[Tensor, "feature d_model"]
    down_bias: Float[Tensor, " d_model"]
    function: Callable[[Tensor], Tensor]

    def activations(
        self, x: Float[Tensor, "position d_model"]
    ) -> Float[Tensor, "position feature"]:
        """What every neuron gives, in the dtype of x."""
        up = torch.addmm(self.up_bias.to(x), x, self.up.to(x).T)
        if self.gate is None:
            return self.function(up)
        return self.function(torch.addmm(self.gate_bias.to(x), x, self.gate.to(x).T)) * up


@dataclass(frozen=True, eq=False, kw_only=True)
class Neurons(TranscoderSet):
    """The neurons of a model as a per-layer set. Made by `neurons`; read-only like any set.

    `decoders` of its layers are the written rows, `encoder` the rows of `up`; what of them is read
    depends on the input (`read_rows`), and which are active is decided by `encode`.

    Attributes:
        limit: neurons kept at each layer and position; None for all.
        perceptron: the matrices of a covered layer's MLP.
    """

    limit: int | None
    perceptron: Callable[[int], Perceptron]

    def encode(
        self, layer: int, x: Float[Tensor, "position d_model"], kernels: Choice = "auto"
    ) -> tuple[Int[Tensor, "active 2"], Float[Tensor, " active"]]:
        """The neurons that write most at each position, and their activations."""
        if layer not in self.present:
            return super().encode(layer, x, kernels)
        found = self.perceptron(layer)
        activations = found.activations(x)
        if not torch.isfinite(activations).all():
            raise TranscoderError(
                f"the neurons of layer {layer} are NaN or infinite; load with dtype='float32'."
            )
        strength = activations.abs() * found.down.to(x).norm(dim=1)
        if self.limit is not None and self.limit < strength.shape[1]:
            kept = strength.topk(self.limit, dim=1).indices
            chosen = torch.zeros_like(strength, dtype=torch.bool).scatter_(1, kept, True)
            strength = strength.where(chosen, 0)
        cells = strength.nonzero()
        return cells, activations[cells[:, 0], cells[:, 1]]

    def read_rows(
        self, layer: int, features: Int[Tensor, " active"], x: Float[Tensor, "active d_model"]
    ) -> tuple[Float[Tensor, "active d_model"], Float[Tensor, " active"]]:
        """Rows of `up`, times the gate at x where there is one."""
        rows, bias = super().read_rows(layer, features, x)
        if layer not in self.present or (found := self.perceptron(layer)).gate is None:
            return rows, bias
        at = features.to(found.gate.device)
        gate = (found.gate[at].to(x) * x).sum(1) + found.gate_bias[at].to(x)
        gate = found.function(gate)
        return rows * gate[:, None], bias * gate


def named(reference: object) -> bool:
    """Whether a reference asks for neurons: `neurons`, `neurons:64`, `neurons:all`."""
    return isinstance(reference, str) and reference.partition(":")[0] == NAME


def neurons(adapter: Adapter, reference: str = NAME) -> TranscoderSet:
    """The neurons of a model as its transcoders.

    Args:
        reference: `neurons`, `neurons:N` for the N that write most at each layer and position, or
            `neurons:all`.

    Raises:
        InputError: a limit that is no number. ModelError: no MLP whose neurons can be found.
    """
    limit = _limit(reference)
    mlps = [block.mlp for block in adapter.blocks]
    covered = tuple(layer for layer, mlp in enumerate(mlps) if _weights(mlp) is not None)
    if not covered:
        raise ModelError(
            f"{adapter.name} has no MLP with neurons to trace ({type(mlps[0]).__name__}): which "
            "experts of a mixture answer depends on the input, and other layouts are not known. "
            "Pass transcoders that were trained on it (--transcoders)."
        )

    def perceptron(layer: int) -> Perceptron:
        return _perceptron(mlps[layer], adapter.family.transposed)

    def source(layer: int) -> LayerWeights:
        found = perceptron(layer)
        return LayerWeights(
            encoder=found.up,
            encoder_bias=found.up_bias,
            decoders=(found.down,),
            output_bias=found.down_bias,
            activation=Activation("mlp"),
        )

    name = NAME if limit == LIMIT else f"{NAME}:{'all' if limit is None else limit}"
    return Neurons(
        kind="plt",
        read="mlp.hook_in",
        write="mlp.hook_out",
        n_layers=len(mlps),
        source=source,
        name=name,
        covered=covered if len(covered) < len(mlps) else None,
        limit=limit,
        perceptron=perceptron,
    )


def _limit(reference: str) -> int | None:
    _, colon, asked = reference.partition(":")
    if not colon:
        return LIMIT
    if asked == "all":
        return None
    if not (asked.isascii() and asked.isdecimal() and int(asked) > 0):
        raise InputError(
            f"{reference!r} should be neurons, neurons:N for the N that write most at each layer "
            "and position, or neurons:all"
        )
    return int(asked)


def _weights(mlp: nn.Module) -> tuple[str, ...] | None:
    """Names of the projections of an MLP, two or three; None where there are no such."""
    for names in (*GATED, *FUSED, *PLAIN):
        found = [getattr(mlp, name, None) for name in names]
        if all(isinstance(getattr(part, "weight", None), torch.Tensor) for part in found):
            return names
    return None


def _perceptron(mlp: Any, transposed: bool) -> Perceptron:
    """An MLP's matrices, as views of its weights."""
    names = _weights(mlp)
    assert names is not None
    parts = [_projection(getattr(mlp, name), transposed) for name in names]
    down, down_bias = parts[-1]
    function = next(getattr(mlp, name) for name in FUNCTIONS if hasattr(mlp, name))
    up, up_bias = parts[-2]
    gate, gate_bias = (None, up_bias) if names in PLAIN else parts[0]
    if names in FUSED:
        (gate, up), (gate_bias, up_bias) = up.chunk(2), up_bias.chunk(2)
    return Perceptron(up, up_bias, gate, gate_bias, down.T, down_bias, function)


def _projection(module: Any, transposed: bool) -> tuple[Tensor, Tensor]:
    """(weight as (out, in), bias or zeros)."""
    with present(module):
        weight, bias = module.weight.detach(), getattr(module, "bias", None)
        if not weight.is_floating_point():
            raise ModelError(
                f"the MLP's weights are {weight.dtype}: neurons of a quantised model cannot be "
                "read. Load the model unquantised."
            )
        weight = weight.T if transposed else weight
        return weight, weight.new_zeros(len(weight)) if bias is None else bias.detach()
