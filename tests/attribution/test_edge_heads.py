"""Heads of many edges at once are those of `heads`, one by one."""

from __future__ import annotations

import pytest
import tiny

import circuit_tracer as ct
from circuit_tracer.attention import carried, heads
from circuit_tracer.attention.carried import edge_heads
from circuit_tracer.errors import InputError
from circuit_tracer.tracing import page_circuit

SETS = [
    dict(kind="plt"),
    dict(kind="clt", activation="jump_relu"),
    dict(kind="plt", skip=True, write="mlp.hook_out"),
]
CLOSES = 1e-12  # float64


def name_of(given):
    return "-".join(map(str, given.values()))


def traced(family="llama", **given):
    model = tiny.replacement(family, **given)
    graph = ct.trace(tiny.PROMPT, model, max_logits=2)
    return model, graph, graph.prune(nodes=1.0, edges=1.0)


@pytest.mark.parametrize("family", tiny.FAMILIES)
@pytest.mark.parametrize("given", SETS, ids=name_of)
def test_edges_split_together_are_split_as_one_by_one(family, given):
    model, graph, circuit = traced(family, **given)
    found = edge_heads(model, graph, circuit)
    weights = {(edge.source.id, edge.target.id): edge.weight for edge in circuit.edges}
    assert len(found) == min(len(weights), carried.MOST_EDGES)
    local = model.localise(model.run(tiny.PROMPT), graph.provenance.ignored_positions)
    for (source, target), split in list(found.items())[:: max(1, len(found) // 25)]:
        alone = heads(model, local, source, target)
        assert split.residual + sum(split.by_layer) == pytest.approx(
            weights[source, target], abs=CLOSES
        )
        assert split.residual == pytest.approx(alone.residual, abs=CLOSES)
        assert split.by_layer == pytest.approx(
            alone.by_layer[: len(split.by_layer)].tolist(), abs=CLOSES
        )
        assert not alone.by_layer[len(split.by_layer) :].any()
        assert [abs(part) for _, _, part, _ in split.heads] == pytest.approx(
            [abs(float(alone.by_head[place])) for place in alone.strongest(carried.LISTED)],
            abs=CLOSES,
        )
        for layer, head, part, key in split.heads:
            assert part == pytest.approx(float(alone.by_head[layer, head]), abs=CLOSES)
            assert key == alone.looks_at(layer, head)


def test_a_few_edges_are_those_that_matter_most():
    model, graph, circuit = traced()
    everything = edge_heads(model, graph, circuit, 10**9)
    assert len(everything) == len(circuit.edges)
    assert list(everything)[:7] == list(edge_heads(model, graph, circuit, 7))
    assert edge_heads(model, graph, circuit, 0) == {}


def test_little_memory_and_little_work_change_what_is_split_but_not_how(monkeypatch):
    model, graph, circuit = traced()
    whole = edge_heads(model, graph, circuit)
    monkeypatch.setattr(carried, "AT_ONCE", 1)
    assert edge_heads(model, graph, circuit) == whole
    local = model.localise(model.run(tiny.PROMPT))
    monkeypatch.setitem(carried.MOST_WORK, "cpu", 3 * carried._work(local))
    part = edge_heads(model, graph, circuit)
    assert len({source for source, _ in part}) == 3
    assert set(part) < set(whole)


def test_a_negative_number_of_edges_is_refused():
    model, graph, circuit = traced()
    with pytest.raises(InputError, match="-1 edges"):
        edge_heads(model, graph, circuit, -1)


def test_the_page_has_heads_where_a_model_is_at_hand():
    model, graph, _ = traced()
    assert page_circuit(graph).drawing().heads == {}
    assert page_circuit(graph, model, heads=0).drawing().heads == {}
    circuit = page_circuit(graph, model, heads=5)
    drawing = circuit.drawing()
    assert len(drawing.heads) == 5
    for (source, target), split in drawing.heads.items():
        ends = drawing.nodes[source].id, drawing.nodes[target].id
        assert circuit.heads[ends] is split
    shares = {(edge.source.id, edge.target.id): edge.share for edge in circuit.edges}
    for source, target, weight in drawing.edges:
        ends = drawing.nodes[source].id, drawing.nodes[target].id
        assert abs(weight) / drawing.totals[target] == pytest.approx(shares[ends])


def directed(tmp_path, how):
    """(model, its targets, a graph of them as it was traced or read again)."""
    model = tiny.replacement()
    row = model.adapter.unembedding.weight[7].detach()
    wanted = [ct.Difference(3, 4), ct.Direction(row, "mine"), 5, (2, 5, 1)]
    graph = ct.trace(tiny.PROMPT, model, wanted)
    if how == "saved":
        graph.save(tmp_path / "graph.safetensors")
        graph = ct.Graph.load(tmp_path / "graph.safetensors")
    if how == "json":
        graph.to_json(tmp_path / "graph.json", 1.0, 1.0)
        graph = ct.Graph.from_json(tmp_path / "graph.json")
    return model, wanted, graph


@pytest.mark.parametrize("how", ["traced", "saved", "json"])
def test_edges_into_differences_and_directions_are_there(tmp_path, how):
    model, wanted, graph = directed(tmp_path, how)
    circuit = graph.prune(nodes=1.0, edges=1.0)
    edges = {(edge.source.id, edge.target.id): edge for edge in circuit.edges}
    mine = next(node.id for node in circuit.nodes if node.label == "mine")
    found = edge_heads(model, graph, circuit, 10**9)
    if how == "json":
        assert set(found) == {ends for ends in edges if ends[1] != mine}
        found = edge_heads(model, graph, circuit, 10**9, wanted)
    assert set(found) == set(edges)
    for edge in edges.values():
        split = found[edge.source.id, edge.target.id]
        total = split.residual + sum(split.by_layer)
        assert total == pytest.approx(edge.weight, abs=CLOSES)


def test_one_edge_into_a_direction_of_a_saved_graph(tmp_path):
    model, (_, given, *_), graph = directed(tmp_path, "saved")
    mine = graph.nodes[graph.index.target_row(1)].id
    found = heads(model, graph, f"E_{graph.token_ids[2]}_2", mine)
    again = heads(model, graph, f"E_{graph.token_ids[2]}_2", given)
    assert found.edge == again.edge != 0 and found.error == pytest.approx(0, abs=CLOSES)
