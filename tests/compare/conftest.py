"""Graphs made by hand and by chance, and activities made by hand."""

from __future__ import annotations

import pytest
import torch

from circuit_tracer.comparing.activity import Activity
from circuit_tracer.comparing.corpus import Corpus
from circuit_tracer.edges import EdgeRows
from circuit_tracer.graph import Graph, Provenance, Target
from circuit_tracer.nodes import NodeIndex

LAYERS = 4


def _graph(features, edges, n_positions=4, model="model", transcoders="set", n_layers=LAYERS):
    """One output at the last position.

    Args:
        features: (layer, position, id) triples.
        edges: (source, target, weight); an end is such a triple, ("word", position),
            ("error", layer, position) or "output".
    """
    features = sorted(features)
    index = NodeIndex(
        torch.tensor(features).reshape(-1, 3),
        n_layers,
        n_positions,
        torch.tensor([n_positions - 1]),
    )

    def row(end):
        if end == "output":
            return index.target_row(0)
        if end[0] == "word":
            return index.embedding_row(end[1])
        return index.error_row(*end[1:]) if end[0] == "error" else features.index(end)

    ends = [(row(target), row(source), weight) for source, target, weight in edges]
    targets, sources, weights = zip(*ends, strict=True)
    rows = EdgeRows.from_edges(
        index,
        torch.tensor(targets),
        torch.tensor(sources),
        torch.tensor(weights, dtype=torch.float64),
    )
    return Graph(
        edges=rows,
        activations=torch.ones(len(features), dtype=torch.float64),
        targets=(Target(" out", 9, n_positions - 1, 0.5, 0.5),),
        tokens=tuple(f" t{k}" for k in range(n_positions)),
        token_ids=tuple(range(n_positions)),
        provenance=Provenance("a prompt", model, transcoders, "plt"),
    )


def _random(seed, n_features=16, n_positions=4, ids=8):
    """Random features of few ids, all edges that may be."""
    draw = torch.Generator().manual_seed(seed)
    cells = torch.randperm(LAYERS * n_positions * ids, generator=draw)[:n_features].tolist()
    features = sorted(
        (cell // (n_positions * ids), cell // ids % n_positions, cell % ids) for cell in cells
    )
    values = iter(torch.randn(4000, generator=draw, dtype=torch.float64).tolist())
    edges = [((*f,), "output", next(values)) for f in features]
    edges += [(("word", p), f, next(values)) for f in features for p in range(f[1] + 1)]
    edges += [
        (a, b, next(values)) for a in features for b in features if a[0] < b[0] and a[1] <= b[1]
    ]
    edges += [(("error", 0, 0), f, next(values)) for f in features if f[0] > 0]
    return _graph(features, edges, n_positions)


def _activity(rows, groups=None, ids=6, layers=1, seed=0, languages=("en", "fr"), rate=0.5):
    """Random activations of a corpus whose texts are named by row and language."""
    texts = tuple(tuple(f"{row} {code}" for code in languages) for row in range(rows))
    corpus = Corpus(languages, texts, groups or tuple(map(str, range(rows))), "toy")
    draw = torch.Generator().manual_seed(seed)
    shape = (len(languages), rows, ids)
    values = tuple(
        torch.rand(shape, generator=draw, dtype=torch.float64)
        * (torch.rand(shape, generator=draw) < rate)
        for _ in range(layers)
    )
    return Activity(corpus, (torch.arange(ids),) * layers, values, (ids,) * layers)


@pytest.fixture(scope="session")
def graph():
    return _graph


@pytest.fixture(scope="session")
def chance():
    return _random


@pytest.fixture(scope="session")
def toy_activity():
    return _activity
