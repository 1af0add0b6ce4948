"""Nearest features: those whose decoders point the same way."""

from __future__ import annotations

from collections.abc import Collection
from typing import Literal

import torch

from circuit_tracer.notes import writes
from circuit_tracer.replacement import ReplacementModel
from circuit_tracer.shapes import Float, Tensor

Among = Literal["auto", "all", "layer"]
OPERATIONS = 1e13
"""Of comparing all features with all, above which "auto" stays within a layer: a minute or so."""

ROWS = 2**25
"""Cosines that are worked out at once."""


def similar(
    model: ReplacementModel, k: int, among: Among = "auto", wanted: Collection[int] | None = None
) -> dict[int, list[list[list]]]:
    """By layer and feature, its k nearest as [layer, id, cosine], nearest first.

    Decoders are summed over the layers they are written to; one that is zero has no neighbours.

    Args:
        wanted: the layers whose features' neighbours are looked for; all where left out.
    """
    layers = range(model.adapter.n_layers)
    widths = [len(model.transcoders.layer(layer).encoder) for layer in layers]
    total = sum(widths)
    if among == "auto":
        whole = 2.0 * total * total * model.adapter.d_model <= OPERATIONS
        among = "all" if whole else "layer"
    wanted = layers if wanted is None else wanted
    if among == "all":
        where = torch.tensor([(layer, one) for layer in layers for one in range(widths[layer])])
        rows = torch.cat([_directions(model, layer, widths[layer]) for layer in layers])
        ends = {layer: (sum(widths[:layer]), sum(widths[: layer + 1])) for layer in wanted}
        return {layer: _nearest(rows, where, k, *ends[layer]) for layer in wanted}
    out = {}
    for layer in wanted:
        where = torch.tensor([(layer, one) for one in range(widths[layer])])
        rows = _directions(model, layer, widths[layer])
        out[layer] = _nearest(rows, where, k, 0, len(rows))
    return out


def _directions(model: ReplacementModel, layer: int, width: int) -> Float[Tensor, "feature d"]:
    rows = writes(model, layer, torch.arange(width)).float()
    return rows / rows.norm(dim=1, keepdim=True).clamp(min=1e-30)


def _nearest(
    rows: Float[Tensor, "feature d"], where: Tensor, k: int, first: int, last: int
) -> list[list[list]]:
    """Of each row from `first` up to `last`, the k nearest among all."""
    out: list[list[list]] = []
    k = min(k, len(rows) - 1)
    step = max(1, ROWS // max(1, len(rows)))
    for start in range(first, last, step):
        some = rows[start : min(last, start + step)]
        cosines = some @ rows.T
        own = torch.arange(len(some), device=rows.device)
        cosines[own, start + own] = -2
        best = cosines.topk(max(k, 0), dim=1)
        for ids, values in zip(best.indices.cpu(), best.values.cpu().tolist(), strict=True):
            keys = where[ids].tolist()
            pairs = zip(keys, values, strict=True)
            out.append([[*key, round(value, 3)] for key, value in pairs if value > 0])
    return out
