"""The front ends' JSON, both ways, against a file that the reference tool wrote."""

from __future__ import annotations

import gzip
import json
import math
import pickle
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from circuit_tracer import file_kind
from circuit_tracer.errors import GraphFileError, InputError
from circuit_tracer.graph import Graph, Target
from circuit_tracer.neuronpedia import feature_number, read


def test_reads_the_reference_tools_file(reference_json, reference, llama):
    graph = Graph.from_json(reference_json)
    said = json.loads(reference_json.read_text())
    assert graph.tokens == tuple(said["metadata"]["prompt_tokens"])
    assert graph.token_ids == llama.token_ids
    assert graph.index.n_layers == 4
    assert [t.token_id for t in graph.targets] == [t.token_id for t in llama.targets]
    assert graph.targets[0].label == "w111"
    assert graph.targets[0].probability == pytest.approx(llama.targets[0].probability)
    assert math.isnan(graph.closure_error)
    read, mine = graph.prune(1.0, 1.0), llama.prune()
    assert [node.id for node in read.nodes] == [node.id for node in mine.nodes]
    assert torch.equal(read.sources, mine.sources) and torch.equal(read.targets, mine.targets)
    assert torch.allclose(read.weights, mine.weights)


def test_writes_what_the_reference_tool_writes(llama, reference_json, tmp_path):
    llama.to_json(tmp_path / "g.json", slug="oracle", scan="local/oracle")
    mine, theirs = (json.loads(p.read_text()) for p in (tmp_path / "g.json", reference_json))
    assert set(theirs) == set(mine)
    assert theirs["metadata"].items() <= mine["metadata"].items()
    assert theirs["qParams"] == mine["qParams"]
    new_ids = {}
    for one, other in zip(mine["nodes"], theirs["nodes"], strict=True):
        assert list(one) == list(other)
        new_ids[other["node_id"]] = one["node_id"]
        if one["feature_type"] == "mlp reconstruction error":
            assert one["node_id"] == f"{one['layer']}_-1_{one['ctx_idx']}"
        else:
            assert one["node_id"] == other["node_id"] and one["jsNodeId"] == other["jsNodeId"]
        for name in set(one) - {"node_id", "jsNodeId", "influence", "token_prob"}:
            assert one[name] == other[name], name
        assert one["influence"] == pytest.approx(other["influence"], abs=2e-6)
        assert one["token_prob"] == pytest.approx(other["token_prob"], abs=1e-7)
    wanted = {(new_ids[e["source"]], new_ids[e["target"]]): e["weight"] for e in theirs["links"]}
    found = {(e["source"], e["target"]): e["weight"] for e in mine["links"]}
    assert found == wanted


@settings(max_examples=10, deadline=None)
@given(
    st.integers(0, 9999),
    st.sampled_from([torch.float32, torch.float64]),
    st.sampled_from([0.8, 1.0]),
    st.text(max_size=4),
)
def test_there_and_back(toy, tmp_path_factory, seed, dtype, share, text):
    graph = toy(seed, n_features=12, dtype=dtype, last_only=True)
    direction = Target("logit( big) − logit( tiny)", None, graph.targets[0].position, None, 0.75)
    odd = replace(graph.targets[1], label=text, weight=0.5)
    graph = replace(graph, targets=(direction, odd, graph.targets[2]), tokens=(text,) * 4)
    path = tmp_path_factory.mktemp("j") / "g.json"
    graph.to_json(path, share, share)
    read = Graph.from_json(path)
    assert (read.targets, read.tokens, read.token_ids) == (
        graph.targets,
        graph.tokens,
        graph.token_ids,
    )
    assert read.provenance == graph.provenance
    wanted, found = graph.prune(share, share), read.prune(1.0, 1.0)
    assert [replace(node, influence=0) for node in found.nodes] == [
        replace(node, influence=0) for node in wanted.nodes
    ]
    assert torch.equal(found.sources, wanted.sources)
    assert torch.equal(found.targets, wanted.targets)
    assert torch.equal(found.weights.double(), wanted.weights.double())
    read.to_json(path, 1.0, 1.0)
    assert torch.equal(Graph.from_json(path).dense(), read.dense())


def test_cantor():
    assert feature_number(0, 47) == 1175
    numbers = {feature_number(layer, feature) for layer in range(40) for feature in range(40)}
    assert len(numbers) == 1600


def node(name, kind, layer, position, **more):
    return {
        "node_id": name,
        "feature": 0,
        "layer": layer,
        "ctx_idx": position,
        "feature_type": kind,
        "jsNodeId": name,
    } | more


def small(**changes):
    """Two layers and two tokens; the error of layer 1 at position 1 named as if it were a feature
    of layer 0."""
    feature = "cross layer transcoder"
    nodes = [
        node("0_1_1", feature, "0", 1, activation=0.5),
        node("1_8_1", feature, "1", 1, activation=1.5, clerp="greeting"),
        node("0_1_1", "mlp reconstruction error", "1", 1),
        node("E_5_0", "embedding", "E", 0),
        node("E_6_1", "embedding", "E", 1),
        node("3_9_1", "logit", "3", 1, token_prob=0.5, clerp='Output " hi" (p=0.500)'),
    ]
    links = [
        {"source": "E_5_0", "target": "0_1_1", "weight": 1.0},
        {"source": "0_1_1", "target": "1_8_1", "weight": -2.0},
        {"source": "1_8_1", "target": "3_9_1", "weight": 3.0},
    ]
    about = {"slug": "s", "scan": "x", "prompt_tokens": ["a", "b"], "prompt": "ab"}
    return {"metadata": about, "qParams": {}, "nodes": nodes, "links": links} | changes


def write(tmp_path, content):
    path = tmp_path / "g.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def test_a_shared_id_is_told_apart_where_only_one_can_be_meant(tmp_path):
    """The error cannot feed layer 1, nor be a target: both links are the feature's."""
    graph = Graph.from_json(write(tmp_path, small()))
    matrix = graph.dense()
    assert matrix[graph.row("0_1_1"), graph.row("E_5_0")] == 1
    assert matrix[graph.row("1_8_1"), graph.row("0_1_1")] == -2
    assert graph.notes[1, 8].label == "greeting"
    assert graph.targets[0] == Target(" hi", 9, 1, 0.5, 0.5)


def test_a_shared_id_that_could_be_either_is_refused(tmp_path):
    link = {"source": "0_1_1", "target": "3_9_1", "weight": 1.0}
    with pytest.raises(GraphFileError, match="two nodes share an id"):
        Graph.from_json(write(tmp_path, small(links=[link])))


def test_the_order_of_links_tells_a_feature_from_an_error_of_the_same_id(tmp_path):
    """The reference tool writes the links into a node as their sources stand in its matrix,
    features before errors before embeddings."""

    def sources(*links):
        found = [{"source": s, "target": "3_9_1", "weight": w} for s, w in links]
        graph = Graph.from_json(write(tmp_path, small(links=found)))
        row = graph.dense()[-1]
        return {graph.nodes[int(k)].id: float(row[k]) for k in row.nonzero()}

    shared, other, word = ("0_1_1", 1.0), ("1_8_1", 2.0), ("E_6_1", 4.0)
    assert sources(shared, other, word) == {"0_1_1": 1, "1_8_1": 2, "E_6_1": 4}
    assert sources(other, shared, word) == {"1_8_1": 2, "1_-1_1": 1, "E_6_1": 4}
    assert sources(shared, ("0_1_1", 8.0), word) == {"0_1_1": 1, "1_-1_1": 8, "E_6_1": 4}
    for open_one in ((shared, word), (word, shared), (shared, shared, shared)):
        with pytest.raises(GraphFileError, match="two nodes share an id"):
            sources(*open_one)


def change_node(place, **changes):
    nodes = small()["nodes"]
    nodes[place] = nodes[place] | changes
    return small(nodes=nodes)


def link(source, target, weight=1.0):
    return small(links=[{"source": source, "target": target, "weight": weight}])


MALFORMED = {
    "not json": ("{", "JSON"),
    "not a graph": ({"a": 1}, "metadata"),
    "a list": ([], "object"),
    "no nodes": (small(nodes=[]), "nodes"),
    "a node without an id": (small(nodes=[{"feature": 1}]), "nodes.0.node_id"),
    "unknown kind": (change_node(0, feature_type="neuron"), "neuron"),
    "position outside": (change_node(0, ctx_idx=7), "beyond"),
    "layer in words": (change_node(0, layer="two"), "two"),
    "layer outside": (change_node(0, layer="2"), "layer 2 of 2"),
    "odd id": (change_node(1, node_id="8"), "layer_feature_position"),
    "no logits": (small(nodes=small()["nodes"][:-1], links=[]), "no logit"),
    "two logit layers": (
        small(nodes=[*small()["nodes"], node("9_1_1", "logit", "9", 1)]),
        "[3, 9]",
    ),
    "a node twice": (small(nodes=[*small()["nodes"], small()["nodes"][1]]), "twice"),
    "a link twice": (small(links=small()["links"] * 2), "twice"),
    "a link to nowhere": (link("E_5_0", "7_7_7"), "7_7_7"),
    "a link backwards": (link("3_9_1", "1_8_1"), "impossible"),
    "a link to an embedding": (link("1_8_1", "E_5_0"), "impossible"),
    "a weight that is no number": (link("E_5_0", "1_8_1", "heavy"), "links.0.weight"),
    "an infinite weight": (json.dumps(small()).replace("3.0", "Infinity"), "links.2.weight"),
}


@pytest.mark.parametrize("what", MALFORMED)
def test_malformed_files_are_refused(tmp_path, what):
    content, said = MALFORMED[what]
    with pytest.raises(GraphFileError) as caught:
        Graph.from_json(write(tmp_path, content))
    assert "g.json" in str(caught.value) and said in str(caught.value)


def test_missing_file(tmp_path):
    with pytest.raises(InputError, match="no file"):
        Graph.from_json(tmp_path / "none.json")


def test_slug_is_made_from_the_prompt(llama, tmp_path):
    llama.to_json(tmp_path / "g.json")
    assert json.loads((tmp_path / "g.json").read_text())["metadata"]["slug"].startswith("bos-w10")


def test_pins_and_supernodes_are_read_and_what_is_lost_is_said(tmp_path):
    given = {
        "pinnedIds": ["E_5_0", "0_1_1", "7_7_7"],
        "supernodes": [["hello", "1_8_1", "0_1_1"], ["gone", "8_8_8"], []],
        "clerps": [["0_1_1", "says hi"], ["E_5_0", "no feature"], "nonsense"],
    }
    path = write(tmp_path, small(qParams=given))
    found, graph = read(path), Graph.read(path)
    assert [graph.nodes[row].id for row in found.pinned] == ["E_5_0", "0_1_1"]
    names = [(name, [graph.nodes[row].id for row in rows]) for name, rows in found.supernodes]
    assert names == [("hello", ["1_8_1", "0_1_1"])]
    assert found.lost == ("7_7_7", "8_8_8")
    assert {key: note.label for key, note in graph.notes.items()} == {
        (0, 1): "says hi",
        (1, 8): "greeting",
    }
    assert read(write(tmp_path, small(qParams={"pinnedIds": None}))).pinned == ()


def test_on_neuronpedia_the_scan_is_a_model(tmp_path):
    document = small()
    assert Graph.read(write(tmp_path, document)).provenance.transcoders == "x"
    document["metadata"]["feature_details"] = {"neuronpedia_source_set": "plt-16k"}
    origin = Graph.read(write(tmp_path, document)).provenance
    assert (origin.model, origin.transcoders) == ("x", "plt-16k")


@settings(max_examples=25, deadline=None)
@given(
    st.lists(st.sampled_from(["E_5_0", "0_1_1", "1_8_1", "3_9_1", "9_9_9", ""]), max_size=6),
    st.lists(st.lists(st.sampled_from(["a", "b", "0_1_1", "1_8_1"]), max_size=4), max_size=4),
)
def test_any_pins_and_supernodes_are_there_or_lost(tmp_path_factory, pinned, groups):
    document = small(qParams={"pinnedIds": pinned, "supernodes": groups})
    path = write(tmp_path_factory.mktemp("j"), document)
    found = read(path)
    asked = set(pinned) | {one for group in groups for one in group[1:]}
    assert set(found.lost) == asked - {node["node_id"] for node in document["nodes"]}
    assert len(found.pinned) == len(set(pinned) - set(found.lost))
    for name, rows in found.supernodes:
        assert rows and name in {group[0] for group in groups if group}


def test_a_file_may_be_compressed_and_begin_with_a_mark(tmp_path):
    text = json.dumps(small()).encode()
    for number, content in enumerate((gzip.compress(text), b"\xef\xbb\xbf" + text, b" \n" + text)):
        path = tmp_path / f"{number}.any"
        path.write_bytes(content)
        assert torch.equal(Graph.read(path).dense(), Graph.from_json(path).dense())


def test_any_saved_graph_is_told_by_its_content(llama, tmp_path, reference_json):
    llama.save(tmp_path / "a.json")
    assert torch.equal(Graph.read(tmp_path / "a.json").dense(), llama.dense())
    assert Graph.read(reference_json).index.n_layers == 4


WRONG_KIND = {
    "nothing": (b"", "is empty"),
    "half a json": (b'{"metadata": {', "cut short"),
    "half a gzip": (gzip.compress(json.dumps(small()).encode())[:90], "cut short"),
    "labels": (b'{"labels": [], "more": 1}', "this file has labels, more"),
    "a list": (b"[1, 2]", "this file has none of them"),
    "text": (b"The opposite of small is", "not a graph at all"),
    "an old pickle": (pickle.dumps({"a": print}, 2), "could run code"),
}


@pytest.mark.parametrize("what", WRONG_KIND)
def test_files_that_are_no_graph_are_refused_by_what_they_are(tmp_path, what):
    content, said = WRONG_KIND[what]
    path = tmp_path / "file"
    path.write_bytes(content)
    with pytest.raises(GraphFileError, match=said) as caught:
        Graph.read(path)
    assert str(path) in str(caught.value)


def test_a_file_that_unpacks_to_too_much_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(file_kind, "LARGEST", 1 << 20)
    path = tmp_path / "bomb.json.gz"
    path.write_bytes(gzip.compress(b"[" + b" " * (2 << 20)))
    with pytest.raises(GraphFileError, match="more than"):
        Graph.read(path)


def test_a_graph_says_what_it_is(llama):
    assert repr(llama).endswith(": 214 features, 10 targets)")
