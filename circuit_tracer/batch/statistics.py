"""Statistics of a graph: what a table says of it.

Figures are those of the whole graph but for `kept_…`, which are of the circuit that pruning leaves.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

import torch

from circuit_tracer.circuit import Circuit
from circuit_tracer.graph import Graph
from circuit_tracer.influence import LEAST

COLUMNS: dict[str, type | tuple[type]] = {
    "tokens": int,
    "target": str,
    "probability": float,
    "targets": int,
    "features": int,
    "expanded": int,
    "edges": int,
    "replacement": float,
    "completeness": float,
    "mean_path_length": float,
    "error_share": float,
    "unexpanded_share": float,
    "closure_error": float,
    "kept_nodes": int,
    "kept_features": int,
    "kept_errors": int,
    "kept_tokens": int,
    "kept_edges": int,
    "kept_replacement": float,
    "kept_completeness": float,
    "kept_mean_path_length": float,
    "seconds": float,
    "error_share_by_layer": (float,),
    "influence_by_layer": (float,),
    "features_by_layer": (int,),
    "kept_features_by_layer": (int,),
    "kept_path_share_by_length": (float,),
}
"""Every figure and its type, in the order of tables; (type,) is a list.

`influence_by_layer` is each layer's share of the influence of all features; entry k of
`kept_path_share_by_length` is the summed share of the paths of k + 1 edges that lead from the
embeddings to the targets, so that its sum is what the circuit replaces without its errors.
"""


def statistics(graph: Graph, circuit: Circuit | None = None) -> dict[str, Any]:
    """Figures of a graph, by the names of `COLUMNS`.

    Args:
        circuit: its pruned part; None prunes with the usual thresholds.
    """
    circuit = graph.prune() if circuit is None else circuit
    index, scores, first = graph.index, graph.scores, graph.targets[0]
    layers, influence = index.features[:, 0], graph.influence[: index.n_features]
    by_layer = torch.zeros(index.n_layers, dtype=torch.float64).index_add(0, layers, influence)
    active = torch.bincount(layers, minlength=index.n_layers)
    kinds = Counter(node.kind for node in circuit.nodes)
    kept = Counter(node.layer for node in circuit.nodes if node.kind == "feature")
    return {
        "tokens": len(graph.tokens),
        "target": first.label,
        "probability": first.probability,
        "targets": len(graph.targets),
        "features": index.n_features,
        "expanded": int(graph.expanded[: index.n_features].sum()),
        "edges": graph.n_edges,
        "replacement": scores.replacement,
        "completeness": scores.completeness,
        "mean_path_length": scores.mean_path_length,
        "error_share": sum(scores.error_share_by_layer),
        "unexpanded_share": scores.unexpanded_share,
        "closure_error": graph.closure_error,
        "kept_nodes": len(circuit.nodes),
        "kept_features": kinds["feature"],
        "kept_errors": kinds["error"],
        "kept_tokens": kinds["embedding"],
        "kept_edges": len(circuit.weights),
        "kept_replacement": circuit.scores.replacement,
        "kept_completeness": circuit.scores.completeness,
        "kept_mean_path_length": circuit.scores.mean_path_length,
        "seconds": sum(graph.timings.values()),
        "error_share_by_layer": list(scores.error_share_by_layer),
        "influence_by_layer": (by_layer / by_layer.sum().clamp(min=LEAST)).tolist(),
        "features_by_layer": active.tolist(),
        "kept_features_by_layer": [kept[layer] for layer in range(index.n_layers)],
        "kept_path_share_by_length": path_shares(circuit),
    }


def path_shares(circuit: Circuit) -> list[float]:
    """Summed share of the paths from embeddings to targets, by their number of edges, from 1."""
    kinds = [node.kind for node in circuit.nodes]
    starts = torch.tensor([kind == "embedding" for kind in kinds], dtype=torch.bool)
    weights = [circuit.target_weights.get(node.id, 0.0) for node in circuit.nodes]
    mass = torch.tensor(weights, dtype=torch.float64)
    mass /= mass.sum().clamp(min=LEAST)
    found: list[float] = []
    while bool((mass > 0).any()):  # a graph has no loops, so this ends within a layer count
        passed = circuit.shares * mass[circuit.targets]
        mass = torch.zeros_like(mass).index_add(0, circuit.sources, passed)
        found.append(float(mass[starts].sum()))
    return found[:-1]
