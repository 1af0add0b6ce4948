"""Attribution: which targets get a row, in which order, within which budget.

The sweep goes down the layers. When it reaches one, every row above is complete, so the influence
of that layer's features is exact there, and choosing which of them to expand needs no ranking
rounds. Features that are not expanded stay in the graph as sources; the influence that stops in
them is counted as unexplained by the scores.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from circuit_kernels.choice import Choice
from circuit_tracer.edges import EdgeRows
from circuit_tracer.estimate import MaxFeatures, rehearse
from circuit_tracer.keeping import KeepEdges
from circuit_tracer.local import Local
from circuit_tracer.rows import Progress, feature_groups, target_groups
from circuit_tracer.targets import Readout

__all__ = ["Progress", "attribute"]


def attribute(
    local: Local,
    directions: Sequence[Readout],
    max_features: MaxFeatures = "auto",
    kernels: Choice = "auto",
    progress: Progress | None = None,
    keep_edges: KeepEdges = "auto",
) -> EdgeRows:
    """Edge rows of the targets and of active features.

    Args:
        local: the prompt's local replacement model.
        directions: what to explain, at any positions and layers.
        max_features: how many features get a row: all (None), at most a number, or "auto": all if
            that is estimated to take less than `AUTO_SECONDS`, else as many as fit into it.
        kernels: "auto", "reference" or "triton".
        progress: called with (share done, message).
        keep_edges: share of every row's absolute sum to store, the strongest edges first, or
            "auto": all where they fit into memory.

    Raises:
        InputError: `max_features` below 0, `keep_edges` not a share, kernels that cannot run here.
        MemoryBudgetError: the run would not fit into memory.
    """
    with torch.no_grad():
        plan = rehearse(local, directions, kernels)
        limit = plan.resolve(max_features, keep_edges)
        keep = plan.share(limit, keep_edges)
        plan.check_memory(limit, keep)
        rows = plan.rows
        rows.store(keep)

        def report(expanded: int, layer: int) -> None:
            if progress is not None:
                progress(expanded / max(1, limit), f"layer {layer}")

        for layer in reversed(range(local.n_layers)):
            if rows.wants_all(layer, limit):
                rows.expand_rest(layer, report)
                break
            chosen = rows.choose(layer, limit)
            rows.expand(feature_groups(local, layer, chosen), report)
            rows.expand(target_groups(rows.index, directions, layer))
    return rows.edges()
