"""Encode: which features are active where, and how strongly, without the matrix of all of them.

    pre[p, f] = x[p] · weight[f] + bias[f]        active where pre > threshold and pre != 0

ReLU is threshold 0, JumpReLU a threshold a feature; TopK keeps of the positive ones the k largest
of each position, ties by lowest id. Of positions × features only a few in a thousand are active, so
the reference goes through the features in blocks and keeps what is active of each.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

BLOCK_ELEMENTS = 2**22
"""Pre-activations, or elements of converted encoder rows, that the reference holds at a time."""


class Active(NamedTuple):
    """Active features.

    Attributes:
        cells: (active, 2) int64 rows (position, id), in order.
        values: (active,) their pre-activations, which are their activations.
        finite: whether all pre-activations, of inactive features too, are finite.
    """

    cells: Tensor
    values: Tensor
    finite: bool


def check(x: Tensor, weight: Tensor, bias: Tensor, threshold: Tensor | None, k: int | None) -> None:
    """Raise ValueError unless the shapes belong together; see `encode`."""
    if x.ndim != 2 or weight.ndim != 2 or x.shape[1] != weight.shape[1]:
        raise ValueError(
            "x must be (positions, d_model) and weight (features, d_model), got "
            f"{tuple(x.shape)} and {tuple(weight.shape)}"
        )
    if bias.shape != weight.shape[:1]:
        raise ValueError(f"bias must be {tuple(weight.shape[:1])}, got {tuple(bias.shape)}")
    if threshold is not None and threshold.numel() != 1 and threshold.shape != bias.shape:
        raise ValueError(
            f"threshold must be one number or {tuple(bias.shape)}, got {tuple(threshold.shape)}"
        )
    if k is not None and k < 1:
        raise ValueError(f"k must be 1 or more, got {k}")
    if k is not None and threshold is not None:
        raise ValueError("threshold and k exclude each other")


def encode(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    threshold: Tensor | None = None,
    k: int | None = None,
) -> Active:
    """Active features of every position.

    Args:
        x: (positions, d_model).
        weight: (features, d_model), of any float dtype, on any device: it is read in blocks and
            converted to the dtype and device of x.
        bias: (features,).
        threshold: one number or (features,); None for 0.
        k: for TopK, how many features of a position are active at most; without a threshold.

    Raises:
        ValueError: shapes that do not belong together, k below 1, both a threshold and k.
    """
    check(x, weight, bias, threshold, k)
    found, finite = [], True
    for start, pre in _blocks(x, weight, bias):
        low, high = pre.aminmax()  # NaN shows in both
        finite = finite and bool(torch.isfinite(low) & torch.isfinite(high))
        if threshold is None:
            active = pre > 0
        else:
            part = threshold if threshold.numel() == 1 else threshold[start : start + pre.shape[1]]
            active = (pre > part.to(pre)) & (pre != 0)
        if k is not None and k < pre.shape[1]:
            active &= pre >= pre.topk(k).values[:, -1:]
        cells = active.nonzero()
        found.append((cells[:, 0], cells[:, 1] + start, pre[cells[:, 0], cells[:, 1]]))
    if not found:
        return Active(torch.empty(0, 2, dtype=torch.long, device=x.device), x.new_empty(0), True)
    positions, ids, values = (torch.cat(parts) for parts in zip(*found, strict=True))
    order = (positions * len(weight) + ids).argsort()
    cells, values = torch.stack([positions, ids], dim=1)[order], values[order]
    if k is not None:
        cells, values = largest(cells, values, k)
    return Active(cells, values, finite)


def _blocks(x: Tensor, weight: Tensor, bias: Tensor) -> Iterator[tuple[int, Tensor]]:
    """(first feature, pre-activations) of one block of features after another; one buffer."""
    positions, width = x.shape
    converted = (weight.dtype, weight.device) != (x.dtype, x.device)
    step = max(1, BLOCK_ELEMENTS // max(1, positions, width if converted else 1))
    if positions == 0:
        return
    buffer = x.new_empty(positions * min(step, len(weight)))
    for start in range(0, len(weight), step):
        part, shift = weight[start : start + step].to(x), bias[start : start + step].to(x)
        out = buffer[: positions * len(part)].view(positions, len(part))
        yield start, torch.addmm(shift, x, part.T, out=out)


def largest(cells: Tensor, values: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k largest of each position, in the order they came; ties to the one that came first.

    Args:
        cells: (active, 2) rows (position, id), positions ascending.
        values: (active,).
    """
    order = values.argsort(descending=True, stable=True)
    order = order[cells[order, 0].argsort(stable=True)]
    ranks = torch.arange(len(order), device=cells.device)
    ranked = cells[order, 0].contiguous()
    kept = order[ranks - torch.searchsorted(ranked, ranked) < k].sort().values
    return cells[kept], values[kept]
