"""CPU seconds of every query on a circuit of 5,000 nodes and 100,000 edges, one JSON line each.

    python tests/benchmarks/queries.py                  64 tokens
    python tests/benchmarks/queries.py --tokens 1       all nodes at one position

The circuit is random, of 26 layers. What is worked out once for a circuit (the lists of edges at
each node) is the first line; every query after it finds that done.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import networkx  # noqa: F401 (its import is not a query's time)
import pandas  # noqa: F401
import torch

from circuit_tracer.circuit import Circuit
from circuit_tracer.facts import Provenance
from circuit_tracer.influence import Scores
from circuit_tracer.nodes import Node, node_id

LAYERS, LOGITS = 26, 10


def random_circuit(tokens: int = 64, n_nodes: int = 5_000, n_edges: int = 100_000) -> Circuit:
    """Normal edges between random features, causal in layer and position; logits at the end."""
    generator = torch.Generator().manual_seed(0)
    middle = n_nodes - tokens - LOGITS
    cells = torch.randint(LAYERS * tokens, (middle,), generator=generator).sort().values
    places = [(-1, position) for position in range(tokens)]
    places += [(cell // tokens, cell % tokens) for cell in cells.tolist()]
    places += [(LAYERS, tokens - 1)] * LOGITS
    kinds = ["embedding"] * tokens + ["feature"] * middle + ["logit"] * LOGITS
    nodes = tuple(
        Node(
            node_id(kind, layer, position, number),
            kind,
            layer,
            position,
            number,
            f"w{position}",
            influence=0.001,
            label=f"n{number}",
        )
        for number, (kind, (layer, position)) in enumerate(zip(kinds, places, strict=True))
    )
    where = torch.tensor(places)
    ends = torch.randint(n_nodes, (8 * n_edges, 2), generator=generator).unique(dim=0)
    source, target = where[ends[:, 0]], where[ends[:, 1]]
    ends = ends[(source[:, 0] < target[:, 0]) & (source[:, 1] <= target[:, 1])]
    ends = ends[torch.randperm(len(ends), generator=generator)[:n_edges]]
    ends = ends[(ends[:, 1] * n_nodes + ends[:, 0]).argsort()]
    weights = torch.randn(len(ends), dtype=torch.float64, generator=generator)
    sums = torch.zeros(n_nodes, dtype=torch.float64).index_add_(0, ends[:, 1], weights.abs())
    scores = Scores(0.5, 0.5, 0.5, (0.0,) * LAYERS, 0.0, 0.0, 3.0)
    return Circuit(
        nodes=nodes,
        sources=ends[:, 0],
        targets=ends[:, 1],
        weights=weights,
        shares=weights.abs() / sums[ends[:, 1]],
        tokens=tuple(f"w{position}" for position in range(tokens)),
        provenance=Provenance("random"),
        scores=scores,
        graph_scores=scores,
        closure_error=0.0,
        target_weights={node.id: 0.1 for node in nodes if node.kind == "logit"},
        thresholds={},
        n_all_nodes=n_nodes,
        n_all_edges=len(ends),
        n_layers=LAYERS,
    )


def queries(circuit: Circuit, folder: Path) -> Iterator[tuple[str, Callable[[], object]]]:
    """(name, what to call) of every query."""
    word, answer = circuit.nodes[0], circuit.nodes[-1]
    features = [node for node in circuit.nodes if node.kind == "feature"]
    some, position = features[:: len(features) // 100], len(circuit.tokens) // 2
    yield "wiring", lambda: circuit.wiring
    yield "find", lambda: circuit.find(text="n49")
    yield "inputs", lambda: circuit.inputs(answer)
    yield "outputs", lambda: circuit.outputs(word)
    yield "paths", lambda: circuit.paths(k=10)
    yield "100 paths between sets", lambda: circuit.paths(some[:50], some[50:], k=100)
    yield "flow", circuit.flow
    yield "between", lambda: circuit.between(word, answer)
    yield "carriers", lambda: circuit.carriers(word, position)
    yield "bottlenecks", circuit.bottlenecks
    yield "dominators", lambda: circuit.dominators(word, answer)
    yield "minimum_cut", lambda: circuit.minimum_cut(word, answer)
    yield "minimum_cut of all", circuit.minimum_cut
    yield "common_ancestors", lambda: circuit.common_ancestors(*some[-3:])
    yield "influence_of", lambda: circuit.influence_of(some)
    yield "contributions by layer", lambda: circuit.contributions("layer")
    yield "contributions by position", lambda: circuit.contributions("position")
    yield "contributions by token", lambda: circuit.contributions("token")
    yield "subset", lambda: circuit.subset(features[::2])
    layers = {f"layer {n}": circuit.find("feature", layer=n)[:10] for n in range(LAYERS)}
    yield "merge", lambda: circuit.merge(layers)
    yield "supernodes", circuit.supernodes
    yield "supernodes, none too unlike", lambda: circuit.supernodes(similarity=0.05)
    found = circuit.supernodes(similarity=0.1)
    yield "merged", lambda: circuit.merged(found)
    yield "summary", circuit.summary
    yield "to_networkx", circuit.to_networkx
    yield "to_pandas", circuit.to_pandas
    yield "to_graphml", lambda: circuit.to_graphml(folder / "c.graphml")
    yield "to_dot", lambda: circuit.to_dot(folder / "c.dot")
    yield "to_csv", lambda: circuit.to_csv(folder / "c.csv")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tokens", type=int, default=64)
    given = parser.parse_args()
    torch.set_num_threads(1)
    circuit = random_circuit(given.tokens)
    about = {"nodes": len(circuit.nodes), "edges": len(circuit.weights), "tokens": given.tokens}
    print(json.dumps(about))
    with tempfile.TemporaryDirectory() as folder:
        for name, ask in queries(circuit, Path(folder)):
            start = time.process_time()
            ask()
            print(json.dumps({"query": name, "cpu_s": round(time.process_time() - start, 4)}))


if __name__ == "__main__":
    main()
