"""Questions to a circuit, against networkx and enumeration."""

from __future__ import annotations

import math
import time

import networkx
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from circuit_tracer.circuit import Circuit
from circuit_tracer.errors import InputError
from circuit_tracer.facts import FeatureNote
from circuit_tracer.nodes import Node

seeds = st.integers(0, 10_000)


def enumerated(circuit, sources, goals):
    """(share, ids) of every path, strongest first."""
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


@settings(max_examples=12, deadline=None)
@given(seeds, st.integers(1, 30))
def test_paths_are_the_strongest_there_are(toy, seed, k):
    circuit = toy(seed, n_features=14).prune(0.95, 0.98)
    total = sum(circuit.target_weights.values())
    goals = {name: weight / total for name, weight in circuit.target_weights.items()}
    starts = [node.id for node in circuit.nodes if node.kind == "embedding"]
    wanted = enumerated(circuit, starts, goals)
    found = circuit.paths(k=k)
    assert len(found) == min(k, len(wanted))
    assert [p.share for p in found] == pytest.approx([share for share, _ in wanted[:k]], abs=1e-14)
    shares = {tuple(ids): share for share, ids in wanted}
    names = [tuple(node.id for node in path.nodes) for path in found]
    assert len(set(names)) == len(names)
    for name, path in zip(names, found, strict=True):
        assert shares[name] == pytest.approx(path.share)
        assert len(path.weights) == len(path.nodes) - 1
        assert path.sign == math.prod(1 if weight > 0 else -1 for weight in path.weights)


@settings(max_examples=10, deadline=None)
@given(seeds)
def test_paths_and_flow_between_two_nodes(toy, seed):
    circuit = toy(seed, n_features=14).prune(1.0, 1.0)
    start = circuit.nodes[seed % len(circuit.nodes)]
    end = circuit.find(kind="logit")[0]
    if start.id == end.id:
        return
    wanted = enumerated(circuit, [start.id], {end.id: 1.0})
    found = circuit.paths(start, end.id, k=7)
    assert [p.share for p in found] == pytest.approx([share for share, _ in wanted[:7]], abs=1e-14)
    assert circuit.flow(start, end) == pytest.approx(sum(share for share, _ in wanted))
    inside = circuit.between(start.id, end)
    assert {node.id for node in inside.nodes} == {name for _, ids in wanted for name in ids}
    assert inside.flow(start, end) == pytest.approx(circuit.flow(start, end)) if wanted else True
    assert inside.summary()


@settings(max_examples=10, deadline=None)
@given(seeds, st.sampled_from([0.5, 0.8, 1.0]))
def test_all_paths_add_up_to_the_replacement_score(toy, seed, nodes):
    circuit = toy(seed, density=1.0, last_only=True).prune(nodes)
    assert circuit.flow() == pytest.approx(circuit.scores.replacement, abs=1e-12)


def test_edges_in_and_out(llama):
    circuit, full = llama.prune(), llama.dense()
    sums = full.double().abs().sum(1)
    for node in circuit.nodes:
        into, out = circuit.inputs(node, k=1000), circuit.outputs(node.id, k=1000)
        assert all(edge.target is node for edge in into)
        assert all(edge.source is node for edge in out)
        assert [e.share for e in into] == sorted((e.share for e in into), reverse=True)
        for edge in into:
            target, source = llama.row(edge.target.id), llama.row(edge.source.id)
            assert edge.weight == float(full[target, source])
            assert edge.share == pytest.approx(abs(edge.weight) / float(sums[target]))
    assert sum(len(circuit.inputs(node, k=1000)) for node in circuit.nodes) == len(circuit.weights)
    assert len(circuit.inputs(circuit.nodes[-1], k=3)) == 3
    assert len(circuit.edges) == len(circuit.weights)


def test_find(llama):
    llama = type(llama)(**{**vars_of(llama), "notes": {(0, 47): FeatureNote("small things")}})
    circuit = llama.prune()
    assert {node.kind for node in circuit.find(kind="error")} == {"error"}
    assert [node.id for node in circuit.find(label="SMALL")] == ["0_47_3"]
    assert circuit.find(layer=0, feature=47)[0].label == "small things"
    assert {node.position for node in circuit.find(position=-1)} == {8}
    assert [node.id for node in circuit.find(kind="embedding", token="w73")] == ["E_73_3"]
    ranked = [node.influence for node in circuit.find(kind="feature")]
    assert ranked == sorted(ranked, reverse=True)
    assert circuit.find(layer=99) == []
    with pytest.raises(InputError, match="feature, error, embedding, logit"):
        circuit.find(kind="neuron")
    with pytest.raises(InputError, match="9 tokens"):
        circuit.find(position=9)


def vars_of(graph):
    names = ("edges", "activations", "targets", "tokens", "token_ids", "provenance", "notes")
    return {name: getattr(graph, name) for name in names}


def test_wrong_names_are_answered_with_near_ones(llama):
    with pytest.raises(InputError, match="0_47_3"):
        llama.prune().inputs("0_47_4")
    with pytest.raises(InputError, match="no node 'big'"):
        llama.prune().node("big")
    with pytest.raises(InputError, match="at least 1"):
        llama.prune().paths(k=0)


@settings(max_examples=8, deadline=None)
@given(seeds)
def test_bottlenecks(toy, seed):
    circuit = toy(seed, n_features=12).prune(1.0, 1.0)
    total = sum(circuit.target_weights.values())
    goals = {name: weight / total for name, weight in circuit.target_weights.items()}
    starts = [node.id for node in circuit.nodes if node.kind == "embedding"]
    paths = enumerated(circuit, starts, goals)
    everything = sum(share for share, _ in paths)
    for node, share in circuit.bottlenecks(k=3):
        through = sum(part for part, ids in paths if node.id in ids)
        assert share == pytest.approx(through / everything if everything else 0.0)


def test_tables_and_networkx(llama):
    circuit = llama.prune()
    nodes, edges = circuit.to_pandas()
    graph = circuit.to_networkx()
    assert list(nodes.index) == [node.id for node in circuit.nodes] == list(graph)
    assert len(edges) == graph.number_of_edges() == len(circuit.weights)
    first = edges.iloc[0]
    assert graph.edges[first.source, first.target]["weight"] == first.weight
    assert networkx.is_directed_acyclic_graph(graph)
    assert nodes.loc["5_111_8", "label"] == 'Output "w111"'
    assert nodes.loc["0_-1_1", "label"] == "error L0 @1"
    assert nodes.loc["E_73_3", "label"] == "w73"
    assert nodes.loc["0_47_3", "label"] == "L0#47"


def test_summary_says_what_the_numbers_say(llama):
    circuit = llama.prune()
    said = circuit.summary()
    assert "38 nodes (10 features, 9 errors, 9 embeddings, 10 logits) and 264 edges" in said
    assert f"{100 * circuit.scores.replacement:.1f} %" in said
    assert f"{100 * circuit.pruned_share:.1f} %" in said
    assert str(circuit.paths(k=1)[0]) in said


def test_drawing_and_page(llama, tmp_path):
    circuit = llama.prune()
    drawing = circuit.drawing()
    assert [node.id for node in drawing.nodes] == [node.id for node in circuit.nodes]
    assert drawing.scores["replacement"] == llama.scores.replacement
    assert drawing.about["node threshold"] == 0.8
    assert "not known" in drawing.notices[0]
    circuit.save_html(tmp_path / "page.html")
    assert "w149" not in (tmp_path / "missing").name and (tmp_path / "page.html").stat().st_size
    circuit.figure()


def test_an_empty_circuit_answers(toy):
    circuit = toy(density=0.0).prune()
    assert circuit.paths() == [] and circuit.bottlenecks() == [] and circuit.edges == ()
    assert circuit.summary() and len(circuit.to_pandas()[1]) == 0
    nothing = circuit.between(circuit.nodes[0], circuit.nodes[-1])
    assert nothing.nodes == ()
    with pytest.raises(InputError, match="empty"):
        nothing.node("x")


def test_questions_take_under_a_second_on_five_thousand_nodes(llama):
    """5,000 nodes in 24 layers, 100,000 edges."""
    torch.manual_seed(0)
    layers = torch.cat([torch.full((9,), -1), torch.randint(24, (4981,)), torch.full((10,), 24)])
    order = layers.argsort(stable=True)
    layers = layers[order]
    kinds = ["embedding" if n < 0 else "logit" if n == 24 else "feature" for n in layers.tolist()]
    nodes = tuple(
        Node(f"{place}_0_8", kind, layer, 8, place, "t", None, 0.001, f"n{place}")
        for place, (kind, layer) in enumerate(zip(kinds, layers.tolist(), strict=True))
    )
    ends = torch.randint(5000, (120_000, 2)).sort(1).values.unique(dim=0)
    ends = ends[layers[ends[:, 0]] < layers[ends[:, 1]]][:100_000]
    sums = torch.zeros(5000, dtype=torch.float64)
    weights = torch.randn(len(ends), dtype=torch.float64)
    sums.index_add_(0, ends[:, 1], weights.abs())
    small = llama.prune()
    circuit = Circuit(
        **{
            name: getattr(small, name)
            for name in Circuit.__dataclass_fields__
            if name not in ("nodes", "sources", "targets", "weights", "shares", "target_weights")
        },
        nodes=nodes,
        sources=ends[:, 0],
        targets=ends[:, 1],
        weights=weights,
        shares=weights.abs() / sums[ends[:, 1]],
        target_weights={node.id: 0.1 for node in nodes if node.kind == "logit"},
    )
    questions = {
        "paths": lambda: circuit.paths(k=10),
        "inputs": lambda: circuit.inputs(nodes[-1]),
        "bottlenecks": circuit.bottlenecks,
        "between": lambda: circuit.between(nodes[0], nodes[-1]),
        "find": lambda: circuit.find(label="n49"),
        "summary": circuit.summary,
        "networkx": circuit.to_networkx,
        "pandas": circuit.to_pandas,
    }
    networkx.DiGraph(), __import__("pandas")
    for name, ask in questions.items():
        start = time.process_time()
        ask()
        assert time.process_time() - start < 1.0, name
