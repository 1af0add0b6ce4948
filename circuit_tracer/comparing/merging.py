"""Merging: many graphs as one, with how sure each node and edge is.

A node is a matched feature. `count` graphs of `n` have it active and `kept` of them in their
circuit; `influence` is its mean share over all graphs, 0 where it is not active, with a 95 %
bootstrap interval over the graphs (`low`, `high`; None for fewer than three graphs, where
resampling says nothing). The language-agnostic core is what every graph has.
"""

from __future__ import annotations

from math import fsum
from typing import TYPE_CHECKING, Any

import torch

from circuit_tracer.comparing.resampling import INTERVAL, drawn_counts

if TYPE_CHECKING:
    import networkx

    from circuit_tracer.comparing.comparison import Comparison, SharedFeature

FEWEST = 3


def merged(comparison: Comparison) -> networkx.DiGraph:
    """A DiGraph with a node a feature, named `L3#417`, or by its id in each graph
    where features were matched by their decoders.

    Node attributes: layer, ids, label, names, count, kept, n, core (active in all), influence, low,
    high, and language (`Spread.verdict`, with the language where it is specific; None without a
    corpus). Edge attributes: names, count, kept, and share (mean over all graphs).
    """
    import networkx

    n, names = len(comparison.sides), sorted(comparison.names)
    graph = networkx.DiGraph(names=list(comparison.names), n=n)
    counts = drawn_counts(n)
    labels = [node_name(feature, comparison.match) for feature in comparison.features]
    for label, feature in zip(labels, comparison.features, strict=True):
        values = torch.tensor(
            [feature.influence.get(name, 0.0) for name in names], dtype=torch.float64
        )
        graph.add_node(
            label,
            layer=feature.layer,
            ids=dict(feature.ids),
            label=feature.label,
            names=feature.names,
            count=len(feature.ids),
            kept=len(feature.kept),
            n=n,
            core=len(feature.ids) == n,
            influence=feature.total / n,
            **_interval(counts @ values / n, n),
            language=_language(feature),
        )
    for edge in comparison.edges:
        graph.add_edge(
            labels[edge.source],
            labels[edge.target],
            names=tuple(edge.shares),
            count=len(edge.shares),
            kept=len(edge.kept),
            share=fsum(edge.shares.values()) / n,
        )
    return graph


def node_name(feature: SharedFeature, match: str) -> str:
    """`L3#417`; with the id in each graph where ids alone say nothing (`L3#new:417,old:80`)."""
    if match == "id":
        return f"L{feature.layer}#{next(iter(feature.ids.values()))}"
    parts = ",".join(f"{name}:{one}" for name, one in sorted(feature.ids.items()))
    return f"L{feature.layer}#{parts}"


def _interval(samples: torch.Tensor, n: int) -> dict[str, Any]:
    if n < FEWEST:
        return {"low": None, "high": None}
    low, high = samples.quantile(torch.tensor(INTERVAL, dtype=torch.float64)).tolist()
    return {"low": low, "high": high}


def _language(feature: SharedFeature) -> str | None:
    if feature.spread is None:
        return None
    verdict = feature.spread.verdict
    return f"{verdict}: {feature.spread.language}" if verdict == "specific" else verdict
