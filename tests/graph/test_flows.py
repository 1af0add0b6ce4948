"""Sums over all paths, dominators and cuts, against enumeration and networkx."""

from __future__ import annotations

import random
import sys

import networkx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from circuit_tracer.errors import InputError
from tests.graph.enumeration import ends, enumerated
from tests.house.repository import ROOT

seeds = st.integers(0, 10_000)


def small(toy, seed, **more):
    return toy(seed, **{"n_features": 12, "density": 0.5, **more}).prune(1.0, 1.0)


def any_of(circuit, seed, count, kinds=("feature", "error", "embedding")):
    nodes = [node for node in circuit.nodes if node.kind in kinds]
    return random.Random(seed).sample(nodes, min(count, len(nodes)))


@settings(max_examples=10, deadline=None)
@given(seeds)
def test_sets_of_sources_and_targets(toy, seed):
    circuit = small(toy, seed)
    sources = any_of(circuit, seed, 3)
    features = any_of(circuit, seed + 1, 2, ("feature",))
    if {node.id for node in sources} & {node.id for node in features}:
        return
    names = [node.id for node in sources]
    wanted = enumerated(circuit, names, {node.id: 1 / len(features) for node in features})
    found = circuit.paths(sources, features, k=5)
    assert [p.share for p in found] == pytest.approx([share for share, _ in wanted[:5]])
    assert circuit.flow(sources, features) == pytest.approx(sum(share for share, _ in wanted))
    logits = [node for node in circuit.nodes if node.kind == "logit"][:2]
    weights = [circuit.target_weights[node.id] for node in logits]
    goals = {n.id: w / sum(weights) for n, w in zip(logits, weights, strict=True)}
    assert circuit.flow(sources, logits) == pytest.approx(
        sum(share for share, _ in enumerated(circuit, names, goals))
    )
    inside = circuit.between(sources, features)
    assert {node.id for node in inside.nodes} >= {name for _, ids in wanted for name in ids}
    if wanted:
        assert inside.flow() == pytest.approx(circuit.flow(sources, features))
        assert inside.paths(k=1)[0].share == pytest.approx(wanted[0][0])


@settings(max_examples=12, deadline=None)
@given(seeds, st.integers(1, 5))
def test_influence_of_a_set_counts_each_path_once(toy, seed, count):
    circuit = small(toy, seed)
    some = any_of(circuit, seed, count)
    names = {node.id for node in some}
    _, goals = ends(circuit)
    # A path counts from the member of the set that it meets last.
    wanted = sum(
        share
        for share, ids in enumerated(circuit, sorted(names), goals)
        if not names & set(ids[1:])
    )
    assert circuit.influence_of(some) == pytest.approx(wanted, abs=1e-14)
    one = some[0]
    assert circuit.influence_of(one) == pytest.approx(circuit.flow(one))
    assert circuit.influence_of(one, one) == 1.0


@settings(max_examples=10, deadline=None)
@given(seeds, st.integers(0, 3))
def test_carriers_are_ranked_by_what_passes_them(toy, seed, position):
    circuit = small(toy, seed)
    (source,) = any_of(circuit, seed, 1, ("embedding",))
    _, goals = ends(circuit)
    paths = enumerated(circuit, [source.id], goals)
    found = circuit.carriers(source, position - 4, k=100)
    assert [c.share for c in found] == sorted((c.share for c in found), reverse=True)
    for carrier in found:
        assert carrier.node.position == position and carrier.node.id != source.id
        passing = sum(share for share, ids in paths if carrier.node.id in ids)
        everything = sum(share for share, _ in paths)
        assert carrier.share == pytest.approx(passing / everything if everything else 0.0)
        arriving = enumerated(circuit, [source.id], {carrier.node.id: 1.0})
        assert carrier.arriving == pytest.approx(sum(share for share, _ in arriving))
    with pytest.raises(InputError, match="position 4 is outside"):
        circuit.carriers(source, 4)


@settings(max_examples=10, deadline=None)
@given(seeds, st.sampled_from(["layer", "position", "token"]))
def test_contributions_start_and_pass_where_paths_do(toy, seed, by):
    circuit = small(toy, seed, density=1.0, last_only=True, n_features=8)
    _, goals = ends(circuit)
    places = {node.id: node for node in circuit.nodes if node.kind != "logit"}

    def key(name):
        node = places[name]
        return {"layer": node.layer, "position": node.position, "token": node.token}[by]

    paths = enumerated(circuit, sorted(places), goals)
    rows = circuit.contributions(by)
    assert {row.group for row in rows} == {key(name) for name in places}
    for row in rows:
        mine = {name for name in places if key(name) == row.group}
        passing = sum(s for s, ids in paths if ids[0] in mine and not mine & set(ids[1:]))
        assert row.passing == pytest.approx(passing)
        kinds = {
            kind: [n for n in mine if places[n].kind == kind] for kind in ("embedding", "error")
        }
        for kind, value in (("embedding", row.inputs), ("error", row.errors)):
            assert value == pytest.approx(sum(s for s, ids in paths if ids[0] in kinds[kind]))
        assert row.n_nodes == len(mine)
    # Nothing was pruned and every row is there: all that drives the targets starts somewhere.
    assert sum(row.inputs + row.errors for row in rows) == pytest.approx(1.0)


def test_contributions_come_by_layer_position_or_token(llama):
    with pytest.raises(InputError, match="by layer, position, token, not by 'head'"):
        llama.prune().contributions("head")


@settings(max_examples=10, deadline=None)
@given(seeds)
def test_common_ancestors_have_influence_on_each(toy, seed):
    circuit = small(toy, seed)
    one, other = any_of(circuit, seed, 2, ("feature", "logit"))
    found = circuit.common_ancestors(one, other, k=1000)
    graph = circuit.to_networkx()
    wanted = networkx.ancestors(graph, one.id) & networkx.ancestors(graph, other.id)
    assert {ancestor.node.id for ancestor in found} == wanted - {one.id, other.id}
    products = [ancestor.product for ancestor in found]
    assert products == sorted(products, reverse=True)
    for ancestor in found:
        flows = circuit.flow(ancestor.node, one), circuit.flow(ancestor.node, other)
        assert ancestor.influences == pytest.approx(flows)
        assert ancestor.least == min(ancestor.influences)
    with pytest.raises(InputError, match="two nodes or more"):
        circuit.common_ancestors(one)


def joined(circuit, sources, targets):
    """The circuit in networkx, with one node before the sources and one behind the targets."""
    graph = circuit.to_networkx()
    graph.add_edges_from(("start", name) for name in sources)
    graph.add_edges_from((name, "end") for name in targets)
    return graph


@settings(max_examples=25, deadline=None)
@given(seeds, st.sampled_from([0.1, 0.2, 0.4]), st.booleans())
def test_dominators_are_what_networkx_finds(toy, seed, density, several):
    circuit = small(toy, seed, density=density, n_layers=5, n_positions=2, n_features=16)
    sources = any_of(circuit, seed, 2 if several else 1, ("embedding",))
    targets = any_of(circuit, seed, 2 if several else 1, ("logit",))
    names, goals = {node.id for node in sources}, {node.id for node in targets}
    graph = joined(circuit, names, goals)
    wanted = []
    if networkx.has_path(graph, "start", "end"):
        above, last = networkx.immediate_dominators(graph, "start"), "end"
        while last != "start":
            last = above[last]
            wanted.insert(0, last)
        wanted = [name for name in wanted[1:] if name not in names | goals]
    assert [node.id for node in circuit.dominators(sources, targets)] == wanted


@settings(max_examples=25, deadline=None)
@given(seeds, st.sampled_from([0.15, 0.3, 0.6]), st.booleans())
def test_cuts_are_as_small_as_networkx_finds_and_cut(toy, seed, density, several):
    circuit = small(toy, seed, density=density, n_layers=4, n_features=20)
    sources = any_of(circuit, seed, 2 if several else 1, ("embedding",))
    targets = any_of(circuit, seed, 2 if several else 1, ("logit",))
    names, goals = [node.id for node in sources], [node.id for node in targets]
    found = circuit.minimum_cut(sources, targets)
    graph = circuit.to_networkx()
    straight = [(a, b) for a in names for b in goals if graph.has_edge(a, b)]
    graph.remove_edges_from(straight)
    graph.add_edges_from(("start", name) for name in names)
    graph.add_edges_from((name, "end") for name in goals)
    for inner in (*names, *goals):  # ends cannot be cut: many copies of each stand side by side
        graph = networkx.contracted_nodes(
            graph, "start" if inner in names else "end", inner, self_loops=False
        )
    if networkx.has_path(graph, "start", "end"):
        assert len(found.nodes) == len(networkx.minimum_node_cut(graph, "start", "end"))
    graph.remove_nodes_from(node.id for node in found.nodes)
    assert not networkx.has_path(graph, "start", "end")
    assert found.share + found.direct == pytest.approx(circuit.flow(sources, targets))


def test_a_node_cannot_be_cut_from_itself(llama):
    circuit = llama.prune()
    with pytest.raises(InputError, match="E_73_3: nothing lies between a node and itself"):
        circuit.minimum_cut(["E_73_3", circuit.nodes[0]], "E_73_3")


def test_questions_without_paths_have_empty_answers(toy):
    circuit = toy(density=0.0).prune()
    assert circuit.dominators() == [] and circuit.minimum_cut().nodes == ()
    assert circuit.carriers("tok0", 0) == [] and circuit.common_ancestors("tok0", "tok1") == []
    assert circuit.influence_of("tok0") == 0.0 and circuit.supernodes() == []
    assert all(row.passing == 0 for row in circuit.contributions())


@pytest.mark.slow
def test_every_query_answers_on_five_thousand_nodes(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "path", [str(ROOT / "tests" / "benchmarks"), *sys.path])
    from queries import queries, random_circuit

    circuit = random_circuit()
    assert (len(circuit.nodes), len(circuit.weights)) == (5_000, 100_000)
    for _, ask in queries(circuit, tmp_path):
        ask()
