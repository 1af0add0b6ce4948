"""Pruning of large graphs: seconds and memory, one JSON line for each way of pruning.

    python tests/benchmarks/large_prune.py              a page of a graph of 98,000 features
    python tests/benchmarks/large_prune.py long         2,000 rows of a prompt of 400 tokens

The graphs are random, of 26 layers; only some features are expanded, as in a trace with
`max_features`. Memory is counted above the graph itself.
"""

from __future__ import annotations

import argparse
import json

import torch
from meter import Meter

from circuit_tracer.edges import EdgeRows, RowBlock
from circuit_tracer.graph import Graph, Provenance, Target
from circuit_tracer.nodes import NodeIndex

LAYERS, LOGITS = 26, 10
SIZES = {"page": (64, 98_000, 5_000), "long": (400, 150_000, 2_000)}
"""Tokens, active features, features expanded."""
WAYS = (
    {"nodes": 0.98, "edges": 0.99, "max_nodes": 2_000, "max_edges": 40_000},
    {"nodes": 0.8, "edges": 0.98},
    {"nodes": 0.98, "edges": 0.98},
)


def random_graph(tokens: int, n_features: int, n_rows: int) -> Graph:
    """Cubed normal edges between random features, all logits at the last position."""
    generator = torch.Generator().manual_seed(0)
    cells = torch.randint(0, LAYERS * tokens, (n_features,), generator=generator).sort().values
    features = torch.stack([cells // tokens, cells % tokens, torch.arange(n_features)], 1)
    index = NodeIndex(features, LAYERS, tokens, torch.full((LOGITS,), tokens - 1))
    rows = torch.randperm(n_features, generator=generator)[:n_rows].sort().values
    sites = [(cell, rows[cells[rows] == cell]) for cell in cells[rows].unique().tolist()]
    sites.append((LAYERS * tokens + tokens - 1, torch.arange(index.first_target, len(index))))
    blocks = []
    for cell, here in sites:
        layer, position = divmod(cell, tokens)
        width = len(index.cone(layer, position))
        values = torch.randn(len(here), width, generator=generator).pow_(3)
        blocks.append(RowBlock(layer, position, here, values))
    zero = torch.zeros(len(index))
    return Graph(
        EdgeRows(index, tuple(blocks), zero, zero, zero, torch.full_like(zero, torch.nan)),
        torch.ones(n_features),
        tuple(Target(f"w{k}", k, tokens - 1, 0.09, 0.09) for k in range(LOGITS)),
        tuple(f"w{position}" for position in range(tokens)),
        tuple(range(tokens)),
        Provenance("", "random", "random", "plt"),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("size", nargs="?", choices=list(SIZES), default="page")
    parser.add_argument("--threads", type=int, default=1)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    graph = random_graph(*SIZES[given.size])
    values = [block.values for block in graph.edges.blocks]
    about = {
        "n_nodes": len(graph.index),
        "entries": sum(map(torch.numel, values)),
        "rows_mib": sum(part.nbytes for part in values) / 2**20,
    }
    with Meter() as meter:
        scores = graph.scores
    print(json.dumps({"work": "scores", **about, **meter.figures, "share": scores.replacement}))
    for way in WAYS:
        with Meter() as meter:
            circuit = graph.prune(**way)
        kept = {"kept_nodes": len(circuit.nodes), "kept_edges": len(circuit.weights)}
        print(json.dumps({"work": "prune", **way, **about, **meter.figures, **kept}), flush=True)
        del circuit


if __name__ == "__main__":
    main()
