"""Rows without their weakest edges: what is kept, what the rest comes to, what follows from it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from circuit_tracer.errors import GraphFileError
from circuit_tracer.graph import Graph
from circuit_tracer.graph_file import SPARSE_VERSION, VERSION
from circuit_tracer.influence import Edges, scores
from circuit_tracer.nodes import NodeIndex
from circuit_tracer.prune import prune
from circuit_tracer.sparse import COUNTS, PRECISION, cut, least, packed

TIGHT = 1e-12
seeds = st.integers(0, 10_000)
parts = st.floats(0.001, 0.999)


def without(graph: Graph, keep: float) -> Graph:
    """The graph with the strongest edges of each row alone."""
    index = graph.index
    blocks = tuple(
        cut(index, block.layer, block.position, block.rows, block.values, keep)
        for block in graph.edges.blocks
    )
    return replace(graph, edges=replace(graph.edges, blocks=blocks, keep=keep))


def test_the_strongest_edges_are_kept_and_the_rest_is_summed_by_layer():
    index = NodeIndex(torch.tensor([[0, 0, 3], [1, 0, 5]]), 2, 1, torch.tensor([0]))
    assert index.cone(2, 0).tolist() == [0, 1, 2, 3, 4]  # features, errors, the embedding
    values = torch.tensor([[8.0, -4.0, 2.0, -1.0, 1.0]])
    for keep, kept, remainder, dropped in (
        (0.75, [8, -4, 0, 0, 0], 2, [3, 1]),
        (0.8, [8, -4, 2, 0, 0], 0, [1, 1]),
        (0.9, [8, -4, 2, -1, 1], 0, [0, 0]),  # both of the weakest: they are as strong
        (0.1, [8, 0, 0, 0, 0], -2, [3, 5]),
    ):
        block = cut(index, 2, 0, torch.tensor([5]), values, keep)
        assert block.values.tolist() == [kept]
        assert block.remainder.tolist() == [remainder]
        assert block.dropped.tolist() == [dropped]


@settings(max_examples=40, deadline=None)
@given(
    seeds, parts, st.integers(0, 6), st.integers(1, 70), st.sampled_from([32, 64]), st.booleans()
)
def test_kept_edges_hold_the_share_and_no_more_than_needed(seed, share, n, width, bits, tied):
    torch.manual_seed(seed)
    dtype = torch.float32 if bits == 32 else torch.float64
    values = torch.randn(n, width, dtype=dtype) ** 3 * (torch.rand(n, width) < 0.8)
    values = values.sign() * 2.0 ** torch.randint(-3, 3, values.shape) if tied else values
    absolute = values.abs()
    level = least(absolute, share)[:, None]
    keep, whole = absolute >= level, absolute.double().sum(1)
    held = (absolute * keep).double().sum(1)
    rounding = 1e-5 if bits == 32 else TIGHT
    assert (held >= share * whole * (1 - rounding)).all()
    assert not (keep & (absolute == 0)).any()
    fewer = absolute * (absolute >= level * (1 + 2**-PRECISION) * (1 + 1e-6))
    assert ((fewer.double().sum(1) <= share * whole * (1 + rounding)) | (whole == 0)).all()
    assert np.array_equal(packed(keep).numpy(), np.packbits(keep.numpy(), axis=1))
    assert COUNTS[packed(keep).numpy()].sum() == int(keep.sum())


@settings(max_examples=25, deadline=None)
@given(seeds, parts, st.sampled_from([torch.float32, torch.float64]))
def test_row_sums_and_remainders_are_those_of_all_edges(toy, seed, keep, dtype):
    graph = toy(seed, expanded=0.7, dtype=dtype)
    less = without(graph, keep)
    dense, kept = graph.dense(), less.dense()
    assert torch.equal(kept, dense * (kept != 0))
    for block, whole in zip(less.edges.blocks, graph.edges.blocks, strict=True):
        lost = (whole.values - block.values).double()
        assert torch.allclose(block.remainder, lost.sum(1), rtol=0, atol=TIGHT)
        assert torch.allclose(block.dropped.sum(1), lost.abs().sum(1), rtol=0, atol=TIGHT)
        some = torch.arange(len(block.rows)).flip(0)[::2]
        assert torch.equal(block.some(some), block.values[some])
        assert block.shape == whole.shape and block.dtype == whole.dtype
    assert torch.allclose(less.edges.signed, graph.edges.signed, rtol=0, atol=TIGHT)
    for name in ("absolute", "by_layer"):
        one, other = getattr(graph.flow, name), getattr(less.flow, name)
        assert torch.allclose(one, other, rtol=0, atol=TIGHT)
    assert less.n_edges == int((kept != 0).sum())
    assert abs(less.closure_error - graph.closure_error) < TIGHT
    assert torch.allclose(less.edges.residual, graph.edges.residual, rtol=0, atol=TIGHT)


@settings(max_examples=25, deadline=None)
@given(seeds, parts)
def test_no_influence_is_short_by_more_than_left_along_dropped_edges(toy, seed, keep):
    graph = toy(seed, expanded=0.8)
    less = without(graph, keep)
    own, lost = float(graph.weights.sum()), less.scores.pruned_share
    short = (graph.influence - less.influence)[: graph.index.first_target]
    assert float(short.min()) > -TIGHT
    assert float(short.max()) <= lost * own + TIGHT
    assert lost == pytest.approx(float(less.flow.dropped.sum()) / own, abs=TIGHT)
    for one, other in ((graph.scores, less.scores),):
        assert one.replacement - lost - TIGHT <= other.replacement <= one.replacement + TIGHT
        assert other.completeness <= one.completeness + TIGHT
        ends = other.replacement + other.unexpanded_share + sum(other.error_share_by_layer)
        assert ends == pytest.approx(1, abs=TIGHT)


@settings(max_examples=25, deadline=None)
@given(seeds, parts)
def test_a_circuit_has_the_same_scores_whether_or_not_weaker_edges_are_stored(toy, seed, keep):
    graph = toy(seed, expanded=0.8)
    less = without(graph, keep)
    shown = prune(less.edges, less.weights, 0.8, 0.9).edges
    assert isinstance(shown, Edges)
    one = scores(graph.edges, graph.weights, shown)
    other = scores(less.edges, less.weights, shown)
    for name in ("replacement", "completeness", "pruned_share", "mean_path_length"):
        assert getattr(other, name) == pytest.approx(getattr(one, name), abs=1e-11), name


@settings(max_examples=25, deadline=None)
@given(seeds, st.floats(0.9, 0.999), st.sampled_from([0.5, 0.8, 1.0]), st.floats(0.3, 0.98))
def test_what_pruning_would_keep_and_is_not_stored_carries_next_to_nothing(
    toy, seed, keep, nodes, edges
):
    graph = toy(seed)
    mass = graph.influence.clone()
    mass[graph.index.first_target :] += graph.weights
    share = graph.dense().abs() / graph.flow.absolute.clamp(min=1e-300)[:, None]
    passing = share * mass[:, None]
    stored = without(graph, keep).dense() != 0
    kept = prune(graph.edges, graph.weights, nodes, edges).edges
    missing = ~stored[kept.targets, kept.sources]
    lost = passing[kept.targets, kept.sources][missing].sum()
    assert float(lost) <= (1 - keep) * float(passing.sum()) + TIGHT
    assert float(passing[~stored].sum()) <= (1 - keep) * float(passing.sum()) + TIGHT


def test_pruning_stored_edges_finds_almost_the_circuit_of_all_edges(toy):
    graph = toy(5, n_layers=6, n_positions=6, n_features=300)
    less = without(graph, 0.995)
    whole, found = graph.prune(nodes=0.8, edges=0.98), less.prune(nodes=0.8, edges=0.98)
    ids, others = ({node.id for node in circuit.nodes} for circuit in (whole, found))
    assert len(ids ^ others) <= 0.02 * len(ids)
    lost = less.scores.pruned_share
    assert 0 < lost < 0.005 * graph.scores.mean_path_length
    assert found.graph_scores.pruned_share == lost
    assert found.scores.pruned_share > lost
    assert abs(found.scores.replacement - whole.scores.replacement) < lost
    assert len(found.weights) < len(whole.weights)


@pytest.mark.parametrize("keep", [0.7, 1.0])
def test_a_site_in_parts_is_what_it_is_in_one(toy, tmp_path, keep):
    graph = toy(3, n_features=60, last_only=True, n_targets=5)
    whole = without(graph, keep) if keep < 1 else graph

    def some(block, part):
        found = replace(block, rows=block.rows[part], values=block.values[part])
        if keep == 1:
            return found
        return cut(graph.index, block.layer, block.position, found.rows, found.values, keep)

    halves = tuple(
        some(block, part)
        for block in graph.edges.blocks
        for part in (slice(len(block.rows) // 2), slice(len(block.rows) // 2, None))
        if len(block.rows[part])
    )
    apart = replace(graph, edges=replace(graph.edges, blocks=halves, keep=keep))
    assert len(halves) > len(graph.edges.blocks)
    assert torch.equal(apart.dense(), whole.dense())
    assert torch.allclose(apart.influence, whole.influence, rtol=0, atol=TIGHT)
    one, other = (found.prune() for found in (apart, whole))
    assert [node.id for node in one.nodes] == [node.id for node in other.nodes]
    assert torch.equal(one.weights, other.weights)
    for name, found in (("apart", apart), ("whole", whole)):
        found.save(tmp_path / name)
    written, wanted = (load_file(tmp_path / name) for name in ("apart", "whole"))
    assert written.keys() == wanted.keys()
    assert all(torch.equal(written[name], wanted[name]) for name in wanted)


@settings(max_examples=15, deadline=None)
@given(seeds, parts, st.sampled_from([torch.float32, torch.float64]), st.integers(0, 20))
def test_stored_edges_are_read_back_bit_for_bit(
    toy, tmp_path_factory, seed, keep, dtype, n_features
):
    graph = without(toy(seed, n_features=n_features, expanded=0.7, dtype=dtype), keep)
    path = tmp_path_factory.mktemp("sparse") / "g.safetensors"
    graph.save(path)
    again = Graph.load(path)
    assert again.edges.keep == keep
    for one, other in zip(graph.edges.blocks, again.edges.blocks, strict=True):
        assert (one.layer, one.position, one.width) == (other.layer, other.position, other.width)
        for name in ("rows", "kept", "mask", "remainder", "dropped"):
            assert torch.equal(getattr(one, name), getattr(other, name)), name
    assert again.scores == graph.scores and again.closure_error == graph.closure_error


def broken(name, change):
    def damage(tensors):
        tensors[name] = change(tensors[name].clone())

    return damage


def _set(tensor, place, value):
    tensor[place] = value
    return tensor


WRONG = {
    "a value too few": broken("values", lambda t: t[:-1]),
    "a value too many": broken("values", lambda t: torch.cat([t, t[:1]])),
    "a mask cut short": broken("mask", lambda t: t[:-1]),
    "a mask too long": broken("mask", lambda t: torch.cat([t, t[:1] * 0])),
    "another mask": broken("mask", lambda t: 255 - t),
    "a mask of numbers": broken("mask", lambda t: t.long()),
    "a row without its remainder": broken("remainder", lambda t: t[:-1]),
    "an infinite remainder": broken("remainder", lambda t: _set(t, 0, torch.inf)),
    "a layer too few": broken("dropped", lambda t: t[:, :-1].contiguous()),
    "a negative absolute sum": broken("dropped", lambda t: _set(t, (0, 0), -1.0)),
    "sums of another type": broken("dropped", lambda t: t.float()),
    "no sums": lambda tensors: tensors.pop("dropped"),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_a_damaged_file_of_stored_edges_is_refused(toy, tmp_path, wrong):
    path = tmp_path / "g.safetensors"
    without(toy(2), 0.8).save(path)
    tensors = load_file(path)
    WRONG[wrong](tensors)
    save_file(tensors, path, {"format": "circuit-graph", "version": str(SPARSE_VERSION)})
    with pytest.raises(GraphFileError, match="damaged"):
        Graph.load(path)


def test_files_with_all_edges_stay_readable_by_older_versions(toy, tmp_path):
    for graph, version in ((toy(1), VERSION), (without(toy(1), 0.9), SPARSE_VERSION)):
        graph.save(tmp_path / "g")
        with safe_open(tmp_path / "g", "pt") as file:
            assert file.metadata()["version"] == str(version)
            assert ("mask" in file.keys()) == (version == SPARSE_VERSION)  # noqa: SIM118
