"""Every path of a small circuit, one by one: what exact sums over all paths are held against."""

from __future__ import annotations

import math

import networkx


def enumerated(circuit, sources, goals):
    """(share, ids) of every path from any source to any goal, strongest first; goals by factor."""
    graph = circuit.to_networkx()
    found = []
    for target, factor in goals.items():
        for source in sources:
            if source == target:
                continue
            for ids in networkx.all_simple_paths(graph, source, target):
                steps = zip(ids, ids[1:], strict=False)
                share = math.prod(graph.edges[step]["share"] for step in steps)
                found.append((share * factor, ids))
    return sorted(found, key=lambda pair: -pair[0])


def ends(circuit):
    """(ids of the embeddings, targets with their parts of all target weights)."""
    total = sum(circuit.target_weights.values())
    goals = {name: weight / total for name, weight in circuit.target_weights.items()}
    return [node.id for node in circuit.nodes if node.kind == "embedding"], goals
