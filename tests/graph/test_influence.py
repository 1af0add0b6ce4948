"""One pass against closed forms, and the reference tool's scores."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from circuit_tracer import influence as module
from circuit_tracer.errors import InputError
from circuit_tracer.influence import cumulative, flow, influence, scores

TIGHT = 1e-12
seeds = st.integers(0, 10_000)
shares = st.sampled_from([0.0, 0.3, 0.7, 1.0])


def normalised(graph):
    absolute = graph.dense().double().abs()
    sums = absolute.sum(1, keepdim=True)
    return absolute / sums.where(sums > 0, 1.0)


def own(graph):
    weights = torch.zeros(len(graph.index), dtype=torch.float64)
    weights[graph.index.first_target :] = graph.weights
    return weights


@settings(max_examples=12, deadline=None)
@given(seeds, shares)
def test_one_pass_is_the_closed_form(toy, seed, expanded):
    graph = toy(seed, expanded=expanded)
    n, unit = normalised(graph), torch.eye(len(graph.index), dtype=torch.float64)
    closed = own(graph) @ (torch.linalg.inv(unit - n) - unit)
    assert torch.allclose(influence(graph.edges, graph.weights), closed, rtol=0, atol=TIGHT)


@settings(max_examples=12, deadline=None)
@given(seeds, shares)
def test_the_pass_counts_what_is_in_the_rows(toy, seed, expanded):
    graph = toy(seed, expanded=expanded, n_features=40)
    index, dense = graph.index, graph.dense()
    found = flow(graph.edges, graph.weights)
    assert torch.allclose(graph.edges.signed, dense.sum(1), rtol=0, atol=TIGHT)
    assert torch.allclose(found.absolute, dense.abs().sum(1), rtol=0, atol=TIGHT)
    assert found.n_edges == int(dense.count_nonzero())
    assert torch.equal(found.rows.sort().values, graph.edges.rows)
    for layer in range(index.n_layers):
        mine = index.layers.clamp(min=0) == layer
        wanted = dense[found.rows][:, mine].abs().sum(1)
        assert torch.allclose(found.by_layer[:, layer], wanted, rtol=0, atol=TIGHT)


@settings(max_examples=10, deadline=None)
@given(seeds)
def test_no_path_is_longer_than_the_layers(toy, seed):
    graph = toy(seed)
    power = torch.linalg.matrix_power(normalised(graph), graph.index.n_layers + 2)
    assert not power.any()


@settings(max_examples=12, deadline=None)
@given(seeds)
def test_influence_of_sources_sums_to_the_weights(toy, seed):
    graph = toy(seed, density=1.0, last_only=True)
    index, found = graph.index, influence(graph.edges, graph.weights)
    ends = found[index.first_error : index.first_target].sum()
    assert abs(float(ends - graph.weights.sum())) < TIGHT


def brute(graph):
    """Every score by powers of the dense matrix, (1, N, N^2, ...) one step at a time."""
    index, n = graph.index, normalised(graph)
    mass, length, infl = own(graph), 0.0, torch.zeros(len(index), dtype=torch.float64)
    ends = n.sum(1) == 0
    for step in range(1, index.n_layers + 2):
        mass = mass @ n
        infl += mass
        length += step * float(mass[ends].sum())
    errors = slice(index.first_error, index.first_embedding)
    embeddings = slice(index.first_embedding, index.first_target)
    stopped = float(infl[: index.n_features][ends[: index.n_features]].sum())
    start, wrong = float(infl[embeddings].sum()), float(infl[errors].sum())
    total = start + wrong + stopped
    weight = infl + own(graph)
    complete = (1 - n[:, errors].sum(1)) * weight
    inner = torch.ones(len(index), dtype=torch.bool)
    inner[errors] = inner[embeddings] = False
    return {
        "replacement": start / total,
        "unexpanded_share": stopped / total,
        "mean_path_length": length / total,
        "completeness": float(complete[inner & ~ends].sum() / weight[inner].sum()),
        "completeness_ct": float(complete.sum() / weight.sum()),
        "error_share_by_layer": tuple(
            (infl[errors].view(index.n_layers, -1).sum(1) / total).tolist()
        ),
        "pruned_share": 0.0,
    }


@settings(max_examples=12, deadline=None)
@given(seeds, shares)
def test_scores_are_their_definitions(toy, seed, expanded):
    graph = toy(seed, expanded=expanded)
    found = scores(graph.edges, graph.weights)
    for name, wanted in brute(graph).items():
        assert getattr(found, name) == pytest.approx(wanted, abs=TIGHT), name
    parts = found.replacement + found.unexpanded_share + sum(found.error_share_by_layer)
    assert parts == pytest.approx(1, abs=TIGHT)


def test_scores_are_the_reference_tools(reference):
    graph, tensors, said = reference
    found = graph.scores
    assert found.replacement == pytest.approx(said["replacement_score"], abs=2e-6)
    assert found.completeness_ct == pytest.approx(said["completeness_score"], abs=2e-6)
    assert found.completeness < found.completeness_ct
    assert torch.allclose(
        cumulative(graph.influence), tensors["cumulative_scores"].double(), rtol=0, atol=2e-6
    )


@settings(max_examples=15, deadline=None)
@given(seeds)
def test_more_rows_can_only_raise_the_scores(toy, seed):
    full = toy(seed)
    some = torch.rand(len(full.edges.blocks)) < 0.5
    blocks = tuple(
        block
        for block, keep in zip(full.edges.blocks, some, strict=True)
        if keep or block.layer == full.index.n_layers
    )
    fewer = type(full.edges)(full.index, blocks, *(full.edges.bias,) * 4)
    low, high = scores(fewer, full.weights), full.scores
    assert low.replacement <= high.replacement + TIGHT
    assert low.completeness <= high.completeness + TIGHT


def test_rows_are_read_in_strips(toy, monkeypatch):
    graph = toy(3, n_features=60)
    whole = influence(graph.edges, graph.weights)
    monkeypatch.setattr(module, "STRIP", 50)
    assert torch.allclose(influence(graph.edges, graph.weights), whole, rtol=0, atol=TIGHT)


def test_a_graph_without_edges_scores_nothing(toy):
    found = toy(0, density=0.0).scores
    assert found.replacement == found.completeness == found.mean_path_length == 0
    assert not math.isnan(found.completeness_ct)


def test_weights_must_fit(toy):
    with pytest.raises(InputError, match="3 targets"):
        influence(toy().edges, torch.ones(2))
