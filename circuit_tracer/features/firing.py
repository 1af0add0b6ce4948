"""Where features fire in one piece of text."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from circuit_tracer.features.tally import ENTRY, Entries
from circuit_tracer.replacement import ReplacementModel
from circuit_tracer.shapes import Int, Tensor


def firing(
    model: ReplacementModel, ids: Int[Tensor, " position"], layers: int | None = None
) -> Iterator[Entries]:
    """Layer by layer, all places where features fire; the piece of the entries is left 0.

    Args:
        layers: only so many, from the first on.
    """
    forward = model.run(ids)
    for layer, x in enumerate(forward.mlp_inputs[:layers]):
        cells, values = model.transcoders.encode(layer, x)
        found = np.zeros(len(values), ENTRY)
        found["position"], found["feature"] = cells.cpu().numpy().T
        found["value"] = values.cpu().double().numpy()
        yield found
