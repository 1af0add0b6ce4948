"""Toy graphs of the right shape whose truth is a dense matrix, and the reference tool's graphs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from circuit_tracer.edges import EdgeRows
from circuit_tracer.graph import Graph, Provenance, Target
from circuit_tracer.nodes import NodeIndex

ORACLE = Path(__file__).parents[1] / "data" / "oracle"
CASES = ("llama_relu_plt", "gemma2_jumprelu_plt", "llama_relu_clt")


def _toy(
    seed: int = 0,
    n_layers: int = 3,
    n_positions: int = 4,
    n_targets: int = 3,
    n_features: int = 24,
    density: float = 0.6,
    expanded: float = 1.0,
    tied: bool = False,
    last_only: bool = False,
    dtype: torch.dtype = torch.float64,
) -> Graph:
    """A random graph whose rows close. `tied`: values are few and exact, so that scores tie."""
    torch.manual_seed(seed)
    cells = torch.randperm(n_layers * n_positions * 50)[:n_features].sort().values
    features = torch.stack([cells // (n_positions * 50), cells // 50 % n_positions, cells % 50], 1)
    positions = torch.randint(n_positions, (n_targets,))
    positions = torch.full_like(positions, n_positions - 1) if last_only else positions
    index = NodeIndex(features, n_layers, n_positions, positions)
    n = len(index)
    below = (index.layers[:, None] > index.layers) & (index.positions[:, None] >= index.positions)
    below[index.first_error : index.first_target] = False
    below &= torch.rand(n, n) < density
    unexpanded = torch.rand(index.n_features) >= expanded
    below[: index.n_features][unexpanded] = False
    values = torch.randn(n, n, dtype=dtype)
    if tied:
        values = 2.0 ** torch.randint(-1, 2, (n, n), dtype=dtype) * values.sign()
    targets, sources = below.nonzero(as_tuple=True)
    rows = torch.cat([(~unexpanded).nonzero()[:, 0], torch.arange(index.first_target, n)])
    bare = EdgeRows.from_edges(index, targets, sources, values[targets, sources], rows)
    terms = [torch.zeros(n, dtype=dtype).index_fill(0, bare.rows, 0.25 * k) for k in (1, 2, 3)]
    value = sum(terms) + bare.dense().sum(1)
    weights = torch.rand(n_targets, dtype=torch.float64).softmax(0).tolist()
    return Graph(
        edges=EdgeRows(index, bare.blocks, *terms, value),
        activations=torch.rand(index.n_features, dtype=dtype) + 0.1,
        targets=tuple(
            Target(f" out{k}", 100 + k, int(position), weight, weight)
            for k, (position, weight) in enumerate(zip(positions, weights, strict=True))
        ),
        tokens=tuple(f" tok{k}" for k in range(n_positions)),
        token_ids=tuple(range(7, 7 + n_positions)),
        provenance=Provenance("the prompt", "model", "transcoders", "plt", (0,), {"k": 1}),
    )


def _reference(case: str) -> tuple[Graph, dict, dict]:
    """(graph, expected tensors, expected numbers) of one case."""
    tensors = load_file(ORACLE / case / "expected.safetensors")
    said = json.loads((ORACLE / case / "expected.json").read_text())
    last = said["n_pos"] - 1
    index = NodeIndex(
        tensors["active_features"],
        said["n_layers"],
        said["n_pos"],
        torch.full((said["n_logits"],), last),
    )
    targets, sources = tensors["adjacency"].nonzero(as_tuple=True)
    values = tensors["adjacency"][targets, sources]
    probabilities = tensors["logit_probabilities"].tolist()
    tokens = tensors["input_tokens"].tolist()
    graph = Graph(
        EdgeRows.from_edges(index, targets, sources, values, torch.arange(index.n_features)),
        tensors["activation_values"],
        tuple(
            Target(text, token, last, p, p)
            for (text, token), p in zip(said["logit_targets"], probabilities, strict=True)
        ),
        ("<bos>", *(f"w{token}" for token in tokens[1:])),
        tuple(tokens),
        Provenance(" ".join(["<bos>", *(f"w{token}" for token in tokens[1:])])),
    )
    return graph, tensors, said


@pytest.fixture(scope="session")
def toy():
    return _toy


@pytest.fixture(scope="session", params=CASES)
def reference(request):
    return _reference(request.param)


@pytest.fixture(scope="session")
def llama():
    return _reference("llama_relu_plt")[0]


@pytest.fixture(scope="session")
def reference_json() -> Path:
    return ORACLE / "llama_relu_plt" / "graph_files" / "oracle.json"
