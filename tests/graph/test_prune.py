"""Pruning against a naive dense version with sorts, and against the reference tool."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from circuit_tracer import cut
from circuit_tracer import influence as influence_module
from circuit_tracer import prune as prune_module
from circuit_tracer.edges import EdgeRows
from circuit_tracer.errors import InputError
from circuit_tracer.influence import influence, scores
from circuit_tracer.nodes import NodeIndex
from circuit_tracer.prune import prune
from circuit_tracer.threshold import Above, cutoff

seeds = st.integers(0, 10_000)
levels = st.sampled_from([0.0, 0.3, 0.5, 0.8, 0.95, 0.98, 1.0])


def threshold(values, share):
    falling = values.flatten().sort(descending=True).values
    if share >= 1:
        return 0.0
    reached = falling.cumsum(0) / falling.sum()
    return float(falling[min(int(torch.searchsorted(reached, share)), len(falling) - 1)])


def naive(graph, nodes, edges):
    """equations of docs/maths.md with dense matrices and sorts: (node mask, edge mask)."""
    index, matrix = graph.index, graph.dense().double().abs()
    weights = torch.zeros(len(index), dtype=torch.float64)
    weights[index.first_target :] = graph.weights

    def flow(matrix):
        sums = matrix.sum(1, keepdim=True)
        n = matrix / sums.where(sums > 0, 1.0)
        unit = torch.eye(len(n), dtype=n.dtype)
        return n, weights @ (torch.linalg.inv(unit - n) - unit)

    found = graph.influence
    kept = (found >= threshold(found, nodes)) & (found > 0)
    kept[: index.n_features] &= graph.expanded[: index.n_features]
    kept[index.first_embedding :] = True
    n, passing = flow(matrix * kept * kept[:, None])
    score = n * (passing + weights)[:, None]
    # equal in exact arithmetic is equal here: the closed form rounds where one pass does not
    score = score.round(decimals=12)
    strong = (score >= threshold(score, edges)) & (score > 1e-12)
    while True:
        good = kept.clone()
        good[: index.first_embedding] &= strong[:, : index.first_embedding].any(0)
        good[: index.n_features] &= strong[: index.n_features].any(1)
        strong &= good & good[:, None]
        if bool((good == kept).all()):
            return kept, strong
        kept = good


def dense_edges(graph, kept):
    mask = torch.zeros(len(graph.index), len(graph.index), dtype=torch.bool)
    mask[kept.edges.targets, kept.edges.sources] = True
    return mask


def test_parity_with_the_reference_tool(reference):
    graph, tensors, said = reference
    kept = prune(graph.edges, graph.weights, 0.8, 0.98)
    assert torch.equal(kept.nodes, tensors["node_mask"])
    assert torch.equal(dense_edges(graph, kept).nonzero(), tensors["edge_index"])
    assert (kept.n_nodes, kept.n_edges) == (
        said["prune"]["n_nodes_kept"],
        said["prune"]["n_edges_kept"],
    )


@settings(max_examples=25, deadline=None)
@given(seeds, levels, levels, st.sampled_from([1.0, 0.6]))
def test_equals_the_naive_version(toy, seed, nodes, edges, expanded):
    graph = toy(seed, expanded=expanded)
    kept = prune(graph.edges, graph.weights, nodes, edges)
    wanted_nodes, wanted_edges = naive(graph, nodes, edges)
    assert torch.equal(kept.nodes, wanted_nodes)
    assert torch.equal(dense_edges(graph, kept), wanted_edges)


def test_ties_are_kept_together(toy):
    """One layer of features, all alike: whatever the share, all or none of them."""
    graph = toy(1, n_layers=1, n_positions=1, n_targets=1, n_features=8, density=1.0)
    block = next(block for block in graph.edges.blocks if block.layer == 1)
    block.values[:, :8] = 1.0
    kept = prune(graph.edges, graph.weights, 0.3, 0.98)
    assert int(kept.nodes[:8].sum()) in (0, 8)


def test_the_only_edges_into_and_out_of_a_node_are_kept_together():
    """An embedding to a feature to the target: the same passes along both, but for the rounding of
    sums and shares. A threshold between the two would cut the path, then drop the feature."""
    index = NodeIndex(torch.tensor([[0, 1, 0]]), 1, 2, torch.tensor([1]))
    target, embeddings = len(index) - 1, (index.embedding_row(0), index.embedding_row(1))
    path = {(0, embeddings[0]), (target, 0)}
    ends = torch.tensor([[0, embeddings[0]], [target, 0], [target, embeddings[1]]])
    draw = torch.Generator().manual_seed(5)
    for _ in range(60):
        weights = torch.randn(3, generator=draw)
        rows = EdgeRows.from_edges(index, *ends.T, weights, torch.tensor([0]))
        shares = weights[1:].abs().double() / weights[1:].abs().double().sum()
        past_one = float((shares[0] + shares[1] * (shares[1] > shares[0])) / (1 + shares[0]))
        kept = prune(rows, torch.tensor([0.7]), 1.0, past_one - 1e-9)
        assert path <= set(zip(*(a.tolist() for a in kept.edges[:2]), strict=True))


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.integers(0, 2**20), min_size=1, max_size=60),
    st.floats(0, 1),
    st.lists(st.integers(0, 2**20), min_size=2, max_size=2),
)
def test_cutoff_is_what_a_sort_gives(numbers, share, between):
    """Whole numbers, so that sums are exact in any order; also where few scores are held."""
    values = torch.tensor(numbers, dtype=torch.float64)
    share = round(share * 64) / 64
    falling = values.sort(descending=True).values
    reached = (falling.cumsum(0) < share * falling.sum()).sum()
    wanted = float(falling[min(int(reached), len(falling) - 1)])
    assert cutoff(values.numpy(), share) == (0.0 if share == 1 else wanted)
    low, high = sorted(between)
    some = values[values >= low].numpy()
    above = Above(len(some), float(some.sum()), some[some < high])
    needed = share * float(values.sum())
    if above.total < needed:
        assert above.reaching(needed) == 0
    elif above.hold(needed) and len(some):
        assert above.reaching(needed) == wanted
    else:
        assert wanted >= high or not len(some)


@settings(max_examples=12, deadline=None)
@given(st.integers(0, 10**6), st.floats(0.01, 0.999))
def test_cutoff_of_real_numbers(seed, share):
    torch.manual_seed(seed)
    values = torch.rand(500, dtype=torch.float64) ** 9
    assert cutoff(values.numpy(), share) == threshold(values, share)


@settings(max_examples=12, deadline=None)
@given(seeds, levels, levels, levels)
def test_nested_in_the_edge_threshold(toy, seed, nodes, one, other):
    graph = toy(seed, tied=seed % 2 == 0)
    less, more = (prune(graph.edges, graph.weights, nodes, edges) for edges in sorted((one, other)))
    assert not (less.nodes & ~more.nodes).any()
    assert not (dense_edges(graph, less) & ~dense_edges(graph, more)).any()


@settings(max_examples=12, deadline=None)
@given(seeds, levels, levels)
def test_nested_in_the_node_threshold(toy, seed, one, other):
    """With all edges among them. Below 1 the edge scores are renormalised to the nodes kept, as
    in the reference tool, and a wider choice of nodes can push an edge below its threshold."""
    graph = toy(seed)
    less, more = (prune(graph.edges, graph.weights, nodes, 1.0) for nodes in sorted((one, other)))
    assert not (less.nodes & ~more.nodes).any()
    assert not (dense_edges(graph, less) & ~dense_edges(graph, more)).any()


@settings(max_examples=12, deadline=None)
@given(seeds, levels, levels)
def test_what_is_left_stands(toy, seed, nodes, edges):
    """Idempotent: with nothing more to give up, pruning the pruned graph changes nothing."""
    graph = toy(seed, expanded=0.8)
    kept = prune(graph.edges, graph.weights, nodes, edges)
    mask = dense_edges(graph, kept)
    targets, sources = mask.nonzero(as_tuple=True)
    left = type(graph.edges).from_edges(
        graph.index, targets, sources, graph.dense()[targets, sources]
    )
    again = prune(left, graph.weights, 1.0, 1.0)
    assert torch.equal(again.nodes, kept.nodes)
    assert torch.equal(dense_edges(graph, again), mask)


@settings(max_examples=12, deadline=None)
@given(seeds, st.integers(1, 40), levels)
def test_max_nodes_is_kept_and_used(toy, seed, cap, edges):
    graph = toy(seed, expanded=0.7)
    kept = prune(graph.edges, graph.weights, edges=edges, max_nodes=cap)
    inner = int(kept.nodes[: graph.index.first_embedding].sum())
    everything = prune(graph.edges, graph.weights, 1.0, edges)
    assert inner <= cap
    if cap >= int((graph.influence[: graph.index.first_embedding] > 0).sum()):
        assert torch.equal(kept.nodes, everything.nodes)


@settings(max_examples=15, deadline=None)
@given(seeds, levels, levels, st.sampled_from([None, 5, 15]))
def test_how_blocks_are_held_and_laid_out_changes_nothing(toy, seed, nodes, edges, cap):
    """One sheet for all, a sheet for every row, and sheets gathered anew for every pass."""
    graph = toy(seed, expanded=0.8)
    found = graph.influence
    usual = prune(graph.edges, graph.weights, nodes, edges, cap, found=found)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(influence_module, "STRIP", 1)
        patch.setattr(cut, "LARGEST", 1)
        patch.setattr(cut, "JOINED", 0)
        patch.setattr(cut, "HELD", 0)
        other = prune(graph.edges, graph.weights, nodes, edges, cap, found=found)
    assert torch.equal(usual.nodes, other.nodes)
    for one, same in zip(usual.edges, other.edges, strict=True):
        assert torch.equal(one, same)


@settings(max_examples=25, deadline=None)
@given(
    seeds,
    levels,
    st.sampled_from([None, 1, 7, 40]),
    st.sampled_from([1, 5, 30]),
    st.sampled_from([0.5, 1 + 1e-9, 3.0]),
)
def test_what_a_sample_says_changes_nothing(toy, seed, edges, most, sample, near):
    """Samples that mislead, and are trusted too much."""
    graph = toy(seed, expanded=0.8)
    found = graph.influence
    usual = prune(graph.edges, graph.weights, 0.95, edges, max_edges=most, found=found)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(prune_module, "SAMPLE", sample)
        patch.setattr(prune_module, "NEAR", near)
        other = prune(graph.edges, graph.weights, 0.95, edges, max_edges=most, found=found)
    assert torch.equal(usual.nodes, other.nodes)
    for one, same in zip(usual.edges, other.edges, strict=True):
        assert torch.equal(one, same)


@settings(max_examples=15, deadline=None)
@given(seeds, levels, levels)
def test_kept_edges_are_those_of_the_graph_in_order(toy, seed, nodes, edges):
    graph = toy(seed, n_targets=5)
    targets, sources, weights = prune(graph.edges, graph.weights, nodes, edges).edges
    places = targets * len(graph.index) + sources
    assert (places[1:] > places[:-1]).all()
    assert torch.equal(graph.dense()[targets, sources], weights)


@settings(max_examples=20, deadline=None)
@given(seeds, st.integers(1, 60))
def test_max_edges(toy, seed, cap):
    """The strongest: with a cap that bites, some share keeps the same edges."""
    graph = toy(seed)
    kept = prune(graph.edges, graph.weights, 1.0, 1.0, max_edges=cap)
    assert kept.n_edges <= cap
    n = graph.dense().double().abs()
    n /= n.sum(1, keepdim=True).clamp(min=1e-300)
    mass = graph.influence.clone()
    mass[graph.index.first_target :] = graph.weights
    score = n * mass[:, None]
    least = score.flatten().sort(descending=True).values[min(cap, score.numel()) - 1]
    assert (score[kept.edges.targets, kept.edges.sources] >= least - 1e-12).all()


@settings(max_examples=12, deadline=None)
@given(seeds, levels, levels)
def test_pruned_mass_is_merged_into_errors(toy, seed, nodes, edges):
    """Scores of the pruned graph are those of a full graph in which the errors took it over."""
    graph = toy(seed, n_layers=3, expanded=0.8)
    index, kept = graph.index, prune(graph.edges, graph.weights, nodes, edges)
    found = scores(graph.edges, graph.weights, kept.edges)
    absolute, shown = graph.dense().double().abs(), dense_edges(graph, kept)
    merged = absolute * shown
    for target, source in (absolute * ~shown).nonzero().tolist():
        layer = max(0, int(index.layers[source]))
        merged[target, index.error_row(layer, int(index.positions[source]))] += absolute[
            target, source
        ]
    sums = merged.sum(1, keepdim=True)
    n, unit = merged / sums.where(sums > 0, 1.0), torch.eye(len(index), dtype=torch.float64)
    weights = torch.zeros(len(index), dtype=torch.float64)
    weights[index.first_target :] = graph.weights
    infl = weights @ (torch.linalg.inv(unit - n) - unit)
    errors = infl[index.first_error : index.first_embedding].view(index.n_layers, -1).sum(1)
    start = infl[index.first_embedding : index.first_target].sum()
    assert found.replacement == pytest.approx(float(start / (start + errors.sum())), abs=1e-12)
    assert found.error_share_by_layer == pytest.approx(
        (errors / (start + errors.sum())).tolist(), abs=1e-12
    )
    assert found.replacement <= graph.scores.replacement + 1e-12
    assert found.unexpanded_share == 0
    if nodes == edges == 1 and graph.scores.unexpanded_share == 0:
        assert found.pruned_share == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_rows_of_low_precision_are_pruned_like_the_same_numbers(toy, dtype):
    graph = toy(4, n_features=60)
    low, exact = (
        replace(
            graph.edges,
            blocks=tuple(
                replace(block, values=block.values.to(dtype).to(kind))
                for block in graph.edges.blocks
            ),
        )
        for kind in (dtype, torch.float64)
    )
    kept, wanted = (prune(rows, graph.weights, 0.8, 0.9) for rows in (low, exact))
    assert torch.equal(kept.nodes, wanted.nodes)
    assert kept.edges.weights.dtype == dtype
    for one, same in zip(kept.edges, wanted.edges, strict=True):
        assert torch.equal(one.double(), same.double())


def test_pruning_needs_sensible_words(toy):
    graph = toy()
    for wrong in ({"nodes": 1.1}, {"edges": -0.1}, {"max_nodes": 0}, {"max_edges": 0}):
        with pytest.raises(InputError, match=next(iter(wrong))):
            prune(graph.edges, graph.weights, **wrong)


def test_a_graph_without_edges_keeps_its_ends(toy):
    graph = toy(density=0.0)
    kept = prune(graph.edges, graph.weights)
    assert kept.n_edges == 0
    assert kept.n_nodes == graph.index.n_positions + graph.index.n_targets
    assert not influence(graph.edges, graph.weights).any()
