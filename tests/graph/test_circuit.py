"""Questions to a circuit, against networkx and enumeration."""

from __future__ import annotations

import math

import networkx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from circuit_tracer.errors import InputError
from circuit_tracer.facts import FeatureNote
from tests.graph.enumeration import enumerated

seeds = st.integers(0, 10_000)


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
    everything = sum(share for share, _ in wanted)
    assert [p.part for p in found] == pytest.approx([p.share / everything for p in found])
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
    assert {node.layer for node in circuit.find(layer=range(2))} == {0, 1}
    ends = circuit.find(kind=("embedding", "logit"), position=[0, -1])
    assert {(node.kind, node.position) for node in ends} == {
        ("embedding", 0),
        ("embedding", 8),
        ("logit", 8),
    }
    assert [node.id for node in circuit.find(text="SMALL thing")] == ["0_47_3"]
    assert circuit.find(text="e_73_")[0].id == "E_73_3"
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
    for ask in (llama.prune().paths, llama.prune().bottlenecks):
        with pytest.raises(InputError, match="at least 1"):
            ask(k=0)


def test_nodes_are_called_as_reports_call_them(llama):
    circuit = llama.prune()
    for name in ("L0#47@3", "0.47@3", "L0.47@-6", "0_47_3"):
        assert circuit.node(name).id == "0_47_3"
    assert circuit.node("error L0 @1").id == circuit.node("error 0@1").id == "0_-1_1"
    assert circuit.node("w73").id == "E_73_3"
    assert circuit.node('Output "w111"').id == "5_111_8"
    with pytest.raises(InputError, match="9 tokens: position 99 is outside"):
        circuit.node("L0#47@99")
    with pytest.raises(InputError, match="nearest are 'w73'"):
        circuit.node("w77")


def test_a_text_that_several_nodes_have_is_answered_with_their_ids(toy):
    circuit = toy(n_positions=3, last_only=True).prune(1.0, 1.0).rename({" tok0": "x", "tok1": "x"})
    with pytest.raises(InputError, match="names 2 nodes; give an id: E_7_0, E_8_1"):
        circuit.node("x")


def test_where_several_nodes_may_stand_none_is_an_error(llama):
    circuit = llama.prune()
    for ask in (circuit.paths, circuit.influence_of, circuit.subset, circuit.flow):
        with pytest.raises(InputError, match="no node was given"):
            ask([])


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
    node, share = circuit.bottlenecks(k=1)[0]
    assert f"{100 * share:.1f} % passes {node.label} at {node.position}" in said


def test_summary_of_what_lies_between_many_names_three(llama):
    circuit = llama.prune()
    inside = circuit.between(circuit.find("embedding"), circuit.find("logit"))
    said = inside.summary()
    assert " or 6 more and " in said and " or 7 more: paths" in said
    carried = f"{100 * circuit.flow():.1f} % of what drives"
    assert carried in said


def test_summary_says_what_ignored_positions_add(toy):
    circuit = toy(last_only=True).prune()
    said = circuit.summary()
    assert "ignored positions (0) are in no share; they add +0.75 to Output" in said


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


def test_a_merged_circuit_is_drawn(toy, tmp_path):
    circuit = toy(density=1.0).prune(1.0, 1.0)
    merged = circuit.merge({"<b>low</b>": circuit.find("feature", layer=0)})
    assert [node.label for node in merged.drawing().nodes].count("<b>low</b>") == 1
    merged.save_html(tmp_path / "page.html")
    assert "<b>low</b>" not in (tmp_path / "page.html").read_text()
    merged.figure()


def test_an_empty_circuit_answers(toy):
    circuit = toy(density=0.0).prune()
    assert circuit.paths() == [] and circuit.bottlenecks() == [] and circuit.edges == ()
    assert circuit.summary() and len(circuit.to_pandas()[1]) == 0
    nothing = circuit.between(circuit.nodes[0], circuit.nodes[-1])
    assert nothing.nodes == ()
    with pytest.raises(InputError, match="empty"):
        nothing.node("x")


class Printer(list):
    """What IPython hands to `_repr_pretty_`."""

    text = list.append


def test_a_notebook_prints_edges_and_paths_in_a_line(toy):
    circuit = toy(3, last_only=True).prune(1.0, 1.0)
    edge, path = circuit.edges[0], circuit.paths(k=1)[0]
    cut = circuit.minimum_cut()
    carrier = circuit.carriers(circuit.find("embedding"), position=-1, k=1)[0]
    printer = Printer()
    for one in (edge, path, cut, carrier):
        one._repr_pretty_(printer, False)
    assert all(len(line) < 150 and "\n" not in line for line in printer)
    assert edge.source.id in printer[0] and f"{edge.weight:+.4g}" in printer[0]
    assert printer[1] == f"Path({path})"
    assert f"{len(cut.nodes)} nodes" in printer[2] and carrier.node.id in printer[3]
    assert len(repr(toy(3).edges)) < 60
