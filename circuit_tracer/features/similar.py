"""Nearest features: those whose decoders point the same way."""

from __future__ import annotations

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


def similar(model: ReplacementModel, k: int, among: Among = "auto") -> list[list[list[list]]]:
    """By layer and feature, its k nearest as [layer, id, cosine], nearest first.

    Decoders are summed over the layers they are written to; one that is zero has no neighbours.
    """
    layers = range(model.adapter.n_layers)
    widths = [len(model.transcoders.layer(layer).encoder) for layer in layers]
    total = sum(widths)
    if among == "auto":
        whole = 2.0 * total * total * model.adapter.d_model <= OPERATIONS
        among = "all" if whole else "layer"
    if among == "all":
        where = torch.tensor([(layer, one) for layer in layers for one in range(widths[layer])])
        rows = torch.cat([_directions(model, layer, widths[layer]) for layer in layers])
        flat = _nearest(rows, where, k)
        return [flat[sum(widths[:layer]) : sum(widths[: layer + 1])] for layer in layers]
    out = []
    for layer in layers:
        where = torch.tensor([(layer, one) for one in range(widths[layer])])
        out.append(_nearest(_directions(model, layer, widths[layer]), where, k))
    return out


def _directions(model: ReplacementModel, layer: int, width: int) -> Float[Tensor, "feature d"]:
    rows = writes(model, layer, torch.arange(width)).float()
    return rows / rows.norm(dim=1, keepdim=True).clamp(min=1e-30)


def _nearest(rows: Float[Tensor, "feature d"], where: Tensor, k: int) -> list[list[list]]:
    out: list[list[list]] = []
    k = min(k, len(rows) - 1)
    for start in range(0, len(rows), max(1, ROWS // max(1, len(rows)))):
        some = rows[start : start + max(1, ROWS // len(rows))]
        cosines = some @ rows.T
        own = torch.arange(len(some), device=rows.device)
        cosines[own, start + own] = -2
        best = cosines.topk(max(k, 0), dim=1)
        for ids, values in zip(best.indices.cpu(), best.values.cpu().tolist(), strict=True):
            keys = where[ids].tolist()
            pairs = zip(keys, values, strict=True)
            out.append([[*key, round(value, 3)] for key, value in pairs if value > 0])
    return out
