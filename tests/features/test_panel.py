"""What a page is given of a store: true to it, cut short, and there for every bundled graph."""

from __future__ import annotations

import gzip
import json

import pytest
from click.testing import CliRunner
from tiny import replacement

import circuit_tracer as ct
from circuit_tracer.cli.main import main
from circuit_tracer.errors import InputError
from circuit_tracer.features import annotate, build, labels, open_store
from circuit_tracer.features.corpus import Document
from circuit_tracer.features.feature import Label
from circuit_tracer.features.graphs import name
from circuit_tracer.features.panel import OTHERS, TOP, panel

TEXTS = ["w5 w9 w21 w7", "w30 w9 w7 w6", "w8 w8 w33", "w12 w5"]


@pytest.fixture(scope="module")
def model():
    return replacement()


@pytest.fixture
def store(model, tmp_path):
    build(model, [Document(text, "en") for text in TEXTS], tmp_path / "s.sqlite")
    opened = open_store(tmp_path / "s.sqlite")
    yield opened
    opened.close()


@pytest.fixture
def graph(model):
    return ct.trace("w5 w9 w21 w7", model)


def test_a_page_holds_of_a_feature_what_the_store_says(store):
    keys = [(row.layer, row.id) for row in store.rows(most=40) if row.count]
    shown = panel(store)([*keys, (0, 999_999)])
    assert set(shown) == set(keys)
    json.dumps(list(shown.values()), allow_nan=False)
    for key, found in shown.items():
        feature = store.feature(*key)
        for field in ("density", "largest", "mean", "count"):
            assert found[field] == getattr(feature, field)
        assert [bin_[2] for bin_ in found["bins"]] == [one.count for one in feature.histogram]
        assert found["raised"] == [list(pair) for pair in feature.raised]
        assert found["rates"] == feature.spread.rates
        kin = [(*row[:2], store.label(*row[:2]).text) for row in found["similar"]]
        assert [(layer, one, label) for layer, one, _, label in found["similar"]] == kin
        groups = [group for group in feature.groups if group.examples]
        assert [group["name"] for group in found["groups"]] == [group.name for group in groups]
        for place, (mine, whole) in enumerate(zip(found["groups"], groups, strict=True)):
            assert len(mine["examples"]) == min(len(whole.examples), OTHERS if place else TOP)
            for cut, one in zip(mine["examples"], whole.examples, strict=False):
                at = cut["position"]
                assert cut["tokens"][at] == one.tokens[one.position]
                assert cut["activations"][at] == one.activations[one.position]
                assert "".join(cut["tokens"]) in "".join(one.tokens)


def test_an_annotated_graph_shows_examples_and_given_labels_before_automatic_ones(graph, store):
    assert graph.prune().drawing().details == {}
    key = next(
        (node.layer, node.feature)
        for node in graph.prune().nodes
        if node.kind == "feature" and store.known(node.layer, node.feature)
    )
    named = annotate(graph, store, labels={key: Label("mine", "me")})
    assert named > 0 and graph.notes[key].label == "mine"
    drawing = graph.prune().drawing()
    assert key in drawing.details and drawing.details[key]["store"] == "s.sqlite"
    assert {node.label for node in drawing.nodes if (node.layer, node.feature) == key} == {"mine"}
    store.set_labels({key: Label("the store's", "them")})
    annotate(graph, store)
    assert graph.notes[key].label == "mine", "what people called it before stays"
    assert name(graph, {key: Label("other", "me"), (0, 10**6): Label("nowhere", "me")}) == 1
    assert graph.notes[key].label == "other"


def test_a_graph_of_others_says_that_it_needs_a_store(graph):
    with pytest.raises(InputError, match="open one with open_store"):
        annotate(graph)


def test_every_bundled_graph_has_examples_also_after_it_was_saved(tmp_path):
    graph = ct.trace("The opposite of small is")
    circuit = graph.prune(max_nodes=30)
    drawing = circuit.drawing()
    features = {(n.layer, n.feature) for n in circuit.nodes if n.kind == "feature"}
    assert set(drawing.details) == features
    assert all(detail["groups"] for detail in drawing.details.values())
    graph.save(tmp_path / "small.safetensors")
    again = ct.Graph.load(tmp_path / "small.safetensors")
    annotate(again)
    assert again.prune(max_nodes=30).drawing().details == drawing.details


def test_labels_are_read_from_exports_whole_by_line_and_compressed(tmp_path):
    entries = [
        {"layer": "2-gemmascope-mlp-16k", "index": "417", "description": "antonyms " + "x" * 900},
        {"layer": "3-gemmascope-mlp-16k", "index": 5, "description": ""},
        {"layer": "3-gemmascope-mlp-16k", "index": 6, "description": " ~ size "},
    ]
    lines = "\n".join(map(json.dumps, entries))
    (tmp_path / "whole.json").write_text(json.dumps(entries))
    (tmp_path / "lines.jsonl").write_text(lines + "\n")
    (tmp_path / "lines.jsonl.gz").write_bytes(gzip.compress(lines.encode()))
    for file in ("whole.json", "lines.jsonl", "lines.jsonl.gz"):
        found = labels.read(tmp_path / file)
        assert {key: one.text[:8] for key, one in found.items()} == {
            (2, 417): "antonyms",
            (3, 6): "size",
        }
        assert len(found[2, 417].text) == labels.LONGEST
        assert found[3, 6].source == "Neuronpedia" and not found[3, 6].automatic
    (tmp_path / "cut.gz").write_bytes(gzip.compress(lines.encode())[:40])
    (tmp_path / "bad.jsonl").write_text(lines + "\n{")
    for file, said in (("cut.gz", "cannot read"), ("bad.jsonl", "is not JSON")):
        with pytest.raises(InputError, match=said):
            labels.read(tmp_path / file)


def test_labels_of_a_file_stand_in_saved_graphs_and_in_answers(model, graph, tmp_path, monkeypatch):
    monkeypatch.setattr(ct, "load", lambda *a, **k: model)
    node = max((n for n in graph.nodes if n.kind == "feature"), key=lambda n: n.influence)

    def file(label):
        path = tmp_path / f"{label}.json"
        row = {"layer": node.layer, "feature": node.feature, "label": label, "source": "me"}
        path.write_text(json.dumps({"labels": [row]}))
        return path

    def run(*arguments):
        result = CliRunner().invoke(main, [str(one) for one in arguments])
        assert result.exit_code == 0, result.output
        return result.output

    saved, page = tmp_path / "g.safetensors", tmp_path / "g.html"
    run("trace", "w5 w9 w21 w7", "-o", page, "--save", saved, "--labels", file("mine"), "-q")
    assert ct.Graph.load(saved).notes[node.layer, node.feature].label == "mine"
    asked = "query", saved, "nodes", "-q", "--label"
    assert node.id in run(*asked, "mine")
    assert node.id not in run(*asked, "ours")
    assert node.id in run(*asked, "ours", "--labels", file("ours"))
