"""What graphs share: planted truth, identity, symmetry, and what is refused."""

from __future__ import annotations

import itertools
import json
import math
from xml.etree import ElementTree

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import circuit_tracer as ct
from circuit_tracer.cli.compared import text
from circuit_tracer.comparing.comparison import key_in
from circuit_tracer.comparing.profile import Profile
from circuit_tracer.errors import InputError

TIGHT = 1e-12
seeds = st.integers(0, 10_000)

CORE = {(0, 10): 1.0, (1, 11): 2.0, (2, 12): 3.0}
ALONE = {"a": {(0, 20), (3, 21)}, "b": {(0, 30), (3, 31), (3, 32)}}


def planted(graph, name, shift):
    """A chain through the core, at positions of its own, and features of its own around it."""
    place = {key: shift + number for number, key in enumerate(CORE)}
    chain = [(layer, place[layer, one], one) for layer, one in CORE]
    own = [(layer, 4, one) for layer, one in sorted(ALONE[name])]
    first, *ends = own
    edges = [(("word", 0), chain[0], 1.0), (("word", 4), first, 1.0)]
    edges += [(a, b, 2.0) for a, b in itertools.pairwise(chain)]
    edges += [(chain[-1], end, 3.0) for end in ends] + [(end, "output", 1.0) for end in ends]
    edges += [(first, "output", 0.5), (chain[-1], "output", 1.0)]
    return graph([*chain, *own], edges, n_positions=5)


def test_a_planted_core_is_recovered_exactly(graph):
    graphs = {"a": planted(graph, "a", 1), "b": planted(graph, "b", 0)}
    found = ct.compare(graphs, nodes=1.0)
    assert {key_in(f, "a") for f in found.shared} == set(CORE)
    for name, wanted in ALONE.items():
        assert {key_in(f, name) for f in found.only(name)} == wanted
    assert found.some == ()
    shared = [edge for edge in found.edges if len(edge.shares) == 2]
    ends = {
        tuple(key_in(found.features[end], "a") for end in (edge.source, edge.target))
        for edge in shared
    }
    assert ends == set(itertools.pairwise(CORE))
    assert found.features[0].positions.keys() == {"a", "b"}
    assert {layer.iou for layer in found.overlap.all.layers} == {1 / 3, 1.0, 0.0}
    assert found.classes["only b"].count == 3 and "3 are active in both" in found.summary()


def test_shares_of_a_chain_are_those_of_its_paths(graph):
    """Of the output's 4.5 in |weight| in `b`, 1/3.5 passes each end of its own."""
    found = ct.compare({"a": planted(graph, "a", 1), "b": planted(graph, "b", 0)}, nodes=1.0)
    chain = next(
        edge
        for edge in found.edges
        if key_in(found.features[edge.source], "b") == (0, 10) and "b" in edge.shares
    )
    assert chain.shares["b"] == pytest.approx(3 / 3.5, abs=TIGHT)
    assert chain.shares["a"] == pytest.approx(2 / 2.5, abs=TIGHT)


@settings(max_examples=10, deadline=None)
@given(seeds)
def test_a_graph_against_itself_is_one_everywhere(chance, seed):
    graph = chance(seed)
    found = ct.compare({"x": graph, "y": graph, "z": graph})
    assert found.features == found.shared and found.features
    assert not (found.some or found.only("x") or found.only("y") or found.roles)
    for each in (*found.overlap.pairs, found.overlap.all):
        for layer in each.layers:
            for value in (layer.iou, layer.weighted, layer.equal):
                assert math.isnan(value) or value == pytest.approx(1, abs=TIGHT)
    for edge in found.edges:
        assert len(set(edge.shares.values())) == 1 and edge.kept == ("x", "y", "z")
    for name in found.names:
        assert found.classes["shared"].influence[name] == pytest.approx(1, abs=TIGHT)


@settings(max_examples=10, deadline=None)
@given(seeds)
def test_the_order_of_the_graphs_changes_nothing(chance, seed):
    graphs = {name: chance(seed + k) for k, name in enumerate("abc")}
    wanted = numbers(ct.compare(graphs))
    for order in itertools.permutations("abc"):
        assert numbers(ct.compare({name: graphs[name] for name in order})) == wanted


def numbers(found):
    """A payload without the caller's order."""
    plain = found.payload()
    for order in ("names", "sides", "summary"):
        del plain[order]
    for feature in (*plain["features"], *plain["edges"]):
        feature["kept"] = sorted(feature["kept"])
    return json.loads(json.dumps(plain, sort_keys=True))


@settings(max_examples=15, deadline=None)
@given(seeds)
def test_overlaps_are_shares_and_classes_part_the_features(chance, seed):
    found = ct.compare({name: chance(seed + k) for k, name in enumerate("abc")})
    for each in (*found.overlap.pairs, found.overlap.all):
        for layer in each.layers:
            for value in (layer.iou, layer.weighted, layer.equal):
                assert math.isnan(value) or -TIGHT <= value <= 1 + TIGHT
    assert sum(each.count for each in found.classes.values()) == len(found.features)
    for name in found.names:
        total = sum(each.influence[name] for each in found.classes.values())
        assert total == pytest.approx(1, abs=TIGHT)
        adds = found.adds(name).values()
        assert sum(part.count for part in adds) == len(found.only(name))
    assert [sum(row.values()) for row in found.by_layer()] == [
        sum(f.layer == layer for f in found.features) for layer in range(found.n_layers)
    ]
    everywhere = found.overlap.all.layers
    for pair in found.overlap.pairs:
        for layer, whole in zip(pair.layers, everywhere, strict=True):
            if not math.isnan(layer.iou):
                assert whole.iou <= layer.iou + TIGHT


@settings(max_examples=10, deadline=None)
@given(seeds)
def test_flows_are_the_influence_they_carry(chance, seed):
    """All that arrives at the output leaves it; what leaves a feature is its influence."""
    graph = chance(seed)
    profile = Profile.of("x", graph, 1.0)
    size = len(profile.keys)
    flows = profile.flows(range(size), size)
    assert flows[size].sum() == pytest.approx(1, abs=TIGHT)
    held = graph.influence[: graph.index.n_features].sum() / graph.weights.sum()
    assert torch.allclose(flows[:, :size].sum(0), profile.influence * held, rtol=0, atol=TIGHT)
    part = profile.flows([size - 1, -1, 0], 3)
    assert part[0, 2] == pytest.approx(float(flows[size - 1, 0]), abs=TIGHT)
    assert not part[1].any() and not part[:, 1].any()


def test_features_in_one_role_are_aligned(graph):
    """`20` and `30` feed from the words into the same feature, `40` goes elsewhere."""

    def made(own, other, position):
        mine, side, core, goal = (0, position, own), (0, 2, other), (1, 3, 5), (2, 3, 6)
        edges = [(("word", position), mine, 1.0), (("error", 0, 0), core, 0.1)]
        edges += [(mine, core, 2.0), (core, goal, 1.0), (goal, "output", 1.0)]
        edges += [(("word", 2), side, 1.0), (side, "output", 0.9)]
        return graph([mine, side, core, goal], edges)

    found = ct.compare({"a": made(20, 21, 0), "b": made(30, 31, 1)}, nodes=1.0)
    assert [role.members for role in found.roles] == [
        {"a": (0, 20), "b": (0, 30)},
        {"a": (0, 21), "b": (0, 31)},
    ]
    assert all(role.similarity == pytest.approx(1, abs=TIGHT) for role in found.roles)


def test_supernodes_of_a_planted_pair_are_one(graph):
    """`10` and `11` read and write alike in both graphs; `a` has a third beside them."""

    def made(position, own=()):
        pair = [(0, position, one) for one in (10, 11, *own)]
        goal = (2, 3, 6)
        edges = [(("word", position), one, 1.0) for one in pair]
        edges += [(one, goal, 1.0) for one in pair] + [(goal, "output", 1.0)]
        return graph([*pair, goal], edges)

    found = ct.compare({"a": made(0, (12,)), "b": made(1), "c": made(2)}, nodes=1.0)
    (one,) = found.supernodes()
    assert {found.features[row].ids["b"] for row in one.common} == {10, 11}
    assert set(one.members) == {"a", "b", "c"} and one.overlap == pytest.approx(2 / 3)
    assert {node.feature for node in one.members["a"].members} == {10, 11, 12}
    at = {name: {position for _, position in each} for name, each in one.places.items()}
    assert at == {"a": {0}, "b": {1}, "c": {2}}
    (plain,) = found.payload()["supernodes"]
    assert [found.features[row].ids["c"] for row, _ in plain["members"]["c"]["features"]] == [
        node.feature for node in one.members["c"].members
    ]
    assert "1 supernode turns up in at least two circuits, 1 of them in all 3" in found.summary()
    *_, said = text(found, 5).split("supernodes of several circuits\n")
    assert said.splitlines()[1].split() == ["L0#10", "66.7", "%", "2", "3", "2", "2"]
    (drawn,) = found.drawing().supernodes
    assert [len(each) for each in drawn.members] == [3, 2, 2] and drawn.common == one.common
    turned = ct.compare({"c": made(2), "a": made(0, (12,)), "b": made(1)}, nodes=1.0)
    assert turned.supernodes() == found.supernodes()
    alone = graph([(1, 0, 40)], [(("word", 0), (1, 0, 40), 1.0), ((1, 0, 40), "output", 1.0)])
    assert ct.compare({"a": made(0), "b": alone}, nodes=1.0).supernodes() == ()


@settings(max_examples=5, deadline=None)
@given(seeds)
def test_a_graph_has_the_supernodes_of_itself(chance, seed):
    graph = chance(seed)
    found = ct.compare({"x": graph, "y": graph})
    own = {one.members for one in found.circuits[0].supernodes()}
    assert {one.members["x"].members for one in found.supernodes()} <= own
    assert all(one.overlap == 1 for one in found.supernodes())
    distinct = {frozenset((n.layer, n.feature) for n in each) for each in own}
    assert len(found.supernodes()) == len(distinct)


@settings(max_examples=5, deadline=None)
@given(seeds)
def test_the_merged_graph_counts_what_was_compared(chance, seed):
    found = ct.compare({name: chance(seed + k) for k, name in enumerate("abcd")})
    merged = found.merged()
    assert merged.number_of_nodes() == len(found.features)
    assert merged.number_of_edges() == len(found.edges)
    core = [name for name, held in merged.nodes(data=True) if held["core"]]
    assert len(core) == len(found.shared)
    for feature in found.features:
        held = merged.nodes[f"L{feature.layer}#{feature.ids[feature.names[0]]}"]
        mean = sum(feature.influence.values()) / 4
        assert held["influence"] == pytest.approx(mean, abs=TIGHT)
        assert held["low"] - TIGHT <= mean <= held["high"] + TIGHT
        assert held["count"] == len(feature.ids) and held["language"] is None


def test_two_graphs_give_no_interval(chance):
    merged = ct.compare({"a": chance(1), "b": chance(2)}).merged()
    assert {held["low"] for _, held in merged.nodes(data=True)} == {None}


def test_saved_graphs_are_read(chance, tmp_path):
    graphs = {"a": chance(1), "b": chance(2)}
    for name, graph in graphs.items():
        graph.save(tmp_path / f"{name}.safetensors")
    paths = {name: tmp_path / f"{name}.safetensors" for name in graphs}
    assert ct.compare(paths).payload() == ct.compare(graphs).payload()


def test_the_drawing_counts_what_python_counts(chance, tmp_path):
    found = ct.compare({name: chance(k) for k, name in enumerate("abc")})
    drawn = found.drawing()
    lanes = {"all": found.shared, "some": found.some}
    lanes |= {f"only {name}": found.only(name) for name in found.names}
    assert {k: len(v) for k, v in drawn.lanes().items()} == {k: len(v) for k, v in lanes.items()}
    held = drawn.held(drawn.lanes()["all"])
    wanted = tuple(found.classes["shared"].influence.values())
    assert held == pytest.approx(wanted, abs=TIGHT)
    assert len(drawn.overlaps) == 4 and drawn.edges[0].shares.count(None) in (0, 1, 2)
    found.save_html(tmp_path / "page.html")
    html = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert html.startswith("<!doctype html>") or html.startswith("<!DOCTYPE html>")


def test_pages_of_the_graphs_stand_beside_the_comparison(chance, tmp_path):
    names = ("a", "b/c", "小")
    found = ct.compare({name: chance(k) for k, name in enumerate(names)})
    found.save_html(tmp_path / "all.html", pages=True)
    written = {path.name for path in tmp_path.iterdir()}
    assert written == {"all.html", "all-1-a.html", "all-2-b-c.html", "all-3-小.html"}


def test_a_still_picture_holds_every_feature_and_count(chance, tmp_path):
    found = ct.compare({name: chance(k) for k, name in enumerate(("a", "b", "<c>"))})
    found.save_svg(tmp_path / "still.svg")
    tree = ElementTree.parse(tmp_path / "still.svg")
    tags = [one.tag.rpartition("}")[2] for one in tree.iter()]
    assert tags.count("circle") == len(found.features)
    said = ["".join(one.itertext()) for one in tree.iter() if one.tag.endswith("text")]
    for name, kind in found.classes.items():
        head = {"shared": "in all 3", "some": "in some"}.get(name, name)
        assert said[said.index(head) + 1] == str(kind.count)
    two = ct.compare({"a": chance(1), "b": chance(2)})
    two.save_svg(tmp_path / "two.svg")
    assert "in both" in (tmp_path / "two.svg").read_text(encoding="utf-8")


def refused(said, *arguments, **extra):
    with pytest.raises(InputError, match=said):
        ct.compare(*arguments, **extra)


def test_bad_input_is_refused_with_what_to_do(graph, chance):
    one, other = chance(1), chance(2)
    refused("at least two", {"a": one})
    refused("at least two", {})
    refused("names two prompts", [("a", one), ("a", other)])
    refused("a name is text", {"": one, "b": other})
    strange = graph([(0, 0, 1)], [((0, 0, 1), "output", 1.0)], model="another")
    refused("different models.*--match decoder", {"a": one, "b": strange})
    deeper = graph([(0, 0, 1)], [((0, 0, 1), "output", 1.0)], n_layers=7)
    refused("4 and 7 layers", {"a": one, "b": deeper})
    silent = graph([(0, 0, 1)], [(("word", 0), "output", 1.0)])
    refused("'b' is empty", {"a": one, "b": silent})
    refused("needs model=", {"a": one, "b": other}, match="decoder")
    refused('must be "id"', {"a": one, "b": other}, match="name")
    texts = {"a": ["x", "y"], "b": ["z", "w"]}
    refused("pass it as model=", {"a": one, "b": other}, baseline=texts)
    refused("ragged", {"a": one, "b": other}, baseline={"a": ["x"], "b": ["z", "w"]})
    with pytest.raises(InputError, match="no graph 'c' here; names are a, b"):
        ct.compare({"a": one, "b": other}).only("c")
    with pytest.raises(InputError, match="are not two of"):
        ct.compare({"a": one, "b": other}).overlap["a", "c"]
