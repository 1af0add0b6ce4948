"""The reference tool's own results on three tiny models; see tests/data/oracle/README.md."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file

import circuit_tracer as ct

CASES = ("llama_relu_plt", "gemma2_jumprelu_plt", "llama_relu_clt")
ATOL = 2e-5


@pytest.fixture(scope="module", params=CASES)
def case(request, oracle):
    folder = oracle / request.param
    model = ct.load(folder / "model", folder / "transcoders")
    prompt = json.loads((folder / "prompt.json").read_text())["token_ids"]
    facts = json.loads((folder / "expected.json").read_text())
    return model, prompt, load_file(folder / "expected.safetensors"), facts


def test_the_whole_matrix(case):
    model, prompt, expected, facts = case
    graph = ct.trace(prompt, model, max_features=None)
    assert torch.equal(graph.index.features, expected["active_features"])
    torch.testing.assert_close(graph.activations, expected["activation_values"], atol=ATOL, rtol=0)
    assert [t.token_id for t in graph.targets] == expected["logit_token_ids"].tolist()
    assert [t.probability for t in graph.targets] == pytest.approx(
        expected["logit_probabilities"].tolist(), abs=1e-5
    )
    torch.testing.assert_close(graph.dense(), expected["adjacency"], atol=ATOL, rtol=0)
    assert graph.closure_error < ATOL
    assert graph.scores.replacement == pytest.approx(facts["replacement_score"], abs=1e-5)
    assert graph.scores.completeness_ct == pytest.approx(facts["completeness_score"], abs=1e-5)


def test_what_pruning_keeps(case):
    model, prompt, expected, facts = case
    graph = ct.trace(prompt, model)
    circuit = graph.prune()
    rows = expected["node_mask"].nonzero()[:, 0].tolist()
    assert [node.id for node in circuit.nodes] == [graph.nodes[row].id for row in rows]
    edges = {(graph.row(edge.target.id), graph.row(edge.source.id)) for edge in circuit.edges}
    assert edges == set(map(tuple, expected["edge_index"].tolist()))


def test_logits_errors_and_token_vectors(case):
    model, prompt, expected, _ = case
    forward = model.run(prompt)
    local = model.localise(forward)
    torch.testing.assert_close(forward.logits, expected["logits_all_pos"], atol=ATOL, rtol=0)
    torch.testing.assert_close(forward.tokens, expected["token_vectors"], atol=ATOL, rtol=0)
    torch.testing.assert_close(local.errors, expected["error_vectors"], atol=ATOL, rtol=0)


def test_named_targets(case):
    model, prompt, expected, _ = case
    columns = model.adapter.unembedding.weight
    apart = ct.Direction(columns[5] - columns[77], "5 and not 77")
    graph = ct.trace(prompt, model, targets=[5, 77, 200, ct.Difference(5, 77), apart])
    *found, by_vector = graph.dense()
    found = torch.stack(found)
    assert [target.weight for target in graph.targets[3:]] == [1.0, 1.0]
    wanted, custom = expected["targets.rows"], expected["custom_target.row"][0]
    sources = graph.index.first_target
    torch.testing.assert_close(found[-4:-1, :sources], wanted[:, :sources], atol=ATOL, rtol=0)
    torch.testing.assert_close(found[-1, :sources], custom[:sources], atol=ATOL, rtol=0)
    torch.testing.assert_close(by_vector[:sources], custom[:sources], atol=ATOL, rtol=0)


def test_a_limited_run_agrees_on_the_nodes_it_shares(case):
    model, prompt, expected, _ = case
    graph = ct.trace(prompt, model, max_features=64)
    whole = expected["adjacency"]
    rows = graph.edges.rows
    assert len(rows) == 64 + len(graph.targets)
    torch.testing.assert_close(graph.dense()[rows], whole[rows], atol=ATOL, rtol=0)
    theirs = set(expected["limited64.selected_features"].tolist())
    ours = set(rows[rows < graph.index.n_features].tolist())
    assert len(theirs & ours) >= 48  # they rank by partial influence, in rounds; we by exact
