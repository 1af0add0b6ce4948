"""What keeps few features active, and keeps all of them in use.

TopK and BatchTopK count. JumpReLU learns thresholds through a step, so its gradient is a
straight-through estimate: within half a bandwidth of the threshold, a feature's activation is
taken to fall as the threshold rises (Rajamanoharan et al. 2024). ReLU and JumpReLU are sparse
because activity costs. AuxK lets dead features explain what the living leave over (Gao et al.
2024).
"""

from __future__ import annotations

from typing import Any

import torch

from circuit_tracer.shapes import Float, Int, Tensor
from circuit_tracer.train.ranks import ALONE, Ranks

LEAST = 1e-3
"""No activation is below this, in units of the pre-activations: those would be noise."""


def batch_level(
    values: Float[Tensor, "token feature"], k: int, rows: int, ranks: Ranks = ALONE
) -> Float[Tensor, ""]:
    """The value that `k` activations a token reach, on average over a batch's first `rows`."""
    rows = min(rows, len(values) * (ranks.count if ranks.by_tokens else 1))
    some = values[: ranks.tokens(rows)]
    return ranks.largest(some.flatten(), k * rows).amin().clamp(min=LEAST)


def top(
    values: Float[Tensor, "token feature"], k: int, ranks: Ranks = ALONE
) -> Float[Tensor, "token feature"]:
    """The k largest of each token, positive ones only; all else is zero."""
    positive = values.relu()
    if ranks.by_features:
        return positive * (values >= ranks.largest(values.detach(), k).amin(-1, keepdim=True))
    if k >= values.shape[-1]:
        return positive
    chosen = values.detach().topk(k, dim=-1, sorted=False).indices
    return positive * torch.zeros_like(values).scatter_(-1, chosen, 1.0)


class Jump(torch.autograd.Function):
    """JumpReLU with a straight-through gradient to the threshold."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, threshold: Tensor, bandwidth: float) -> Tensor:
        ctx.save_for_backward(values, threshold)
        ctx.bandwidth = bandwidth
        return values * (values > threshold)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, None]:
        (gradient,) = gradients
        values, threshold = ctx.saved_tensors
        near = (values - threshold).abs() < ctx.bandwidth / 2
        through = -(threshold / ctx.bandwidth) * (gradient * near).sum(0)
        return gradient * (values > threshold), through, None


def activity(
    active: Float[Tensor, "token feature"],
    decoder: Float[Tensor, "feature reach d_model"],
    sharpness: float,
) -> Float[Tensor, ""]:
    """Σ tanh(sharpness · ‖W_dec‖ · a) a token; the norm is over all layers written to, in units
    of an output of unit variance."""
    norms = decoder.flatten(1).norm(dim=1) / decoder.shape[-1] ** 0.5
    return torch.tanh(sharpness * norms * active).sum(-1).mean()


def revival(
    values: Float[Tensor, "token feature"],
    wrong: Float[Tensor, "token d_model"],
    decoder: Float[Tensor, "feature d_model"],
    dead: Int[Tensor, " dead"],
    revived: int,
    ranks: Ranks = ALONE,
) -> Float[Tensor, ""]:
    """AuxK: the error that dead features would leave if they explained what is left over.

    Args:
        values: pre-activations.
        wrong: what the living leave over; gets no gradient.
        revived: dead features a token that take part, the largest.
    """
    hopeful = values[:, dead].relu()
    if ranks.by_features or len(dead) > revived:
        level = ranks.of_features.largest(hopeful.detach(), revived).amin(-1)
        hopeful = hopeful * (hopeful >= level[:, None])
    guess = ranks.total(hopeful @ decoder[dead])
    return (wrong.detach() - guess).square().mean()
