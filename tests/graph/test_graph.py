"""The graph itself: nodes, ids, closure."""

from __future__ import annotations

import gc
import math
import pickle
import weakref
from dataclasses import FrozenInstanceError, replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from circuit_tracer.errors import InputError
from circuit_tracer.graph import FeatureNote, Target
from circuit_tracer.influence import scores
from circuit_tracer.prune import prune

seeds = st.integers(0, 10_000)


@settings(max_examples=20, deadline=None)
@given(seeds, st.integers(1, 4), st.integers(1, 5))
def test_ids_are_unique_and_lead_back(toy, seed, n_layers, n_positions):
    graph = toy(seed, n_layers, n_positions, n_targets=4, n_features=20)
    doubled = Target("twice", 100, graph.targets[0].position, 0.1, 0.1)
    direction = Target("logit(a) − logit(b)", None, graph.targets[2].position, None, 1.0)
    last = replace(direction, position=graph.targets[3].position)
    targets = (graph.targets[0], replace(doubled, position=graph.targets[1].position))
    graph = replace(graph, targets=(*targets, direction, last))
    ids = [node.id for node in graph.nodes]
    assert len(set(ids)) == len(ids)
    assert [graph.row(name) for name in ids] == list(range(len(ids)))
    for row in (0, len(ids) - 1):
        assert graph.node(row) == graph.node(ids[row])


def test_nodes_are_a_sequence(llama):
    nodes = llama.nodes
    assert len(nodes) == len(llama.index) == 269
    assert nodes[-1].kind == "logit" and nodes[214].kind == "error" and nodes[250].id == "E_2_0"
    assert nodes[:2] == (nodes[0], nodes[1])
    assert sum(node.kind == "feature" for node in nodes) == 214
    with pytest.raises(IndexError):
        nodes[269]
    assert nodes[259].id == "5_111_8" and nodes[259].probability == pytest.approx(0.5428, abs=1e-4)
    assert nodes[0].influence == float(llama.influence[0])


@pytest.mark.parametrize(
    "name", ["", "x", "1_2", "E_999_0", "99_0_0", "0_0_99", "-1_-1_0", "4_-1_0"]
)
def test_unknown_ids(llama, name):
    with pytest.raises(InputError, match="ids look like"):
        llama.row(name)


def test_closure(toy, llama):
    graph = toy(2)
    assert graph.closure_error < 1e-12
    graph.edges.blocks[0].values[0, 0] += 0.5
    assert replace(
        graph, edges=replace(graph.edges, bias=graph.edges.bias.clone())
    ).closure_error == pytest.approx(0.5)
    assert math.isnan(llama.closure_error)


def test_dense_is_the_matrix_it_came_from(reference):
    graph, tensors, _ = reference
    assert torch.equal(graph.dense(), tensors["adjacency"])
    assert int(graph.expanded.sum()) == graph.index.n_features + graph.index.n_targets


def test_lengths_must_fit(toy):
    graph = toy()
    for name in ("targets", "tokens", "token_ids", "activations"):
        with pytest.raises(InputError, match=name):
            replace(graph, **{name: getattr(graph, name)[1:]})


def test_the_circuit_knows_its_graph(llama):
    circuit = llama.prune(max_nodes=12)
    assert sum(node.kind in ("feature", "error") for node in circuit.nodes) <= 12
    assert circuit.n_all_nodes == 269 and circuit.n_all_edges == int(llama.dense().count_nonzero())
    assert circuit.graph_scores == llama.scores
    assert circuit.thresholds["max_nodes"] == 12
    assert sum(circuit.target_weights.values()) == pytest.approx(float(llama.weights.sum()))


def test_a_circuit_answers_later_without_the_rows(toy):
    """What is left for later needs none of the graph's rows, and is as it would have been at once,
    also after a pickle's journey and where the graph's notes have been filled since."""
    graph = toy(3)
    wanted, circuit = graph.prune(0.9, 0.9), graph.prune(0.9, 0.9)
    nodes, shares, score = wanted.nodes, wanted.shares, wanted.scores
    row = weakref.ref(graph.edges.blocks[0])
    layer, _, feature = graph.index.features[0].tolist()
    graph.notes[layer, feature] = FeatureNote("a label that came later")
    again = pickle.loads(pickle.dumps(circuit))
    del graph
    gc.collect()
    assert row() is None
    for one in (circuit, again):
        assert one.scores == score and torch.equal(one.shares, shares)
        assert one.nodes == nodes and one.nodes is one.nodes and isinstance(one.nodes, tuple)
        assert replace(one, nodes=nodes[:1]).nodes == nodes[:1]
    with pytest.raises(FrozenInstanceError):
        circuit.nodes = ()


def test_shares_are_of_the_full_row_and_scores_of_what_is_shown(toy):
    """Though a circuit counts nodes by their place in it, and pruning by their row."""
    graph = toy(5, expanded=0.8)
    kept = prune(graph.edges, graph.weights, 0.9, 0.9, found=graph.influence)
    circuit = graph.prune(0.9, 0.9)
    assert circuit.scores == scores(graph.edges, graph.weights, kept.edges)
    dense = graph.dense().double().abs()
    rows = torch.tensor([graph.row(node.id) for node in circuit.nodes])
    assert torch.equal(rows[circuit.targets], kept.edges.targets)
    assert torch.equal(rows[circuit.sources], kept.edges.sources)
    shares = dense[kept.edges.targets, kept.edges.sources] / dense.sum(1)[kept.edges.targets]
    assert torch.allclose(circuit.shares, shares, rtol=1e-12, atol=0)
