"""Exports, read back; with labels meant to break them."""

from __future__ import annotations

import csv
import re

import networkx
import pytest

from circuit_tracer.errors import OutputError

HOSTILE = 'a "b" \\ <c> & é 小\nnew\x00line\x1b]]> \\" -->'


@pytest.fixture
def circuit(toy):
    circuit = toy(density=0.6).prune(1.0, 1.0)
    first = circuit.find("feature")[0]
    return circuit.merge({HOSTILE: [first]}).rename({"tok0": HOSTILE})


def edges(circuit):
    return {(e.source.id, e.target.id): (e.weight, e.share) for e in circuit.edges}


def test_graphml_is_read_back_by_networkx(circuit, tmp_path):
    circuit.to_graphml(tmp_path / "c.graphml")
    read = networkx.read_graphml(tmp_path / "c.graphml")
    escaped = HOSTILE.replace("\x00", "\\x00").replace("\x1b", "\\x1b")
    names = {node.id: escaped if node.id == HOSTILE else node.id for node in circuit.nodes}
    assert list(read) == list(names.values())
    for node in circuit.nodes:
        found = read.nodes[names[node.id]]
        assert (found["kind"], found["layer"], found["position"]) == (
            node.kind,
            node.layer,
            node.position,
        )
        assert found["influence"] == node.influence
        assert found.get("activation") == node.activation
        assert found.get("probability") == node.probability
    assert read.nodes["E_7_0"]["label"] == escaped
    found = {(a, b): (x["weight"], x["share"]) for a, b, x in read.edges(data=True)}
    assert found == {(names[a], names[b]): values for (a, b), values in edges(circuit).items()}


def test_csv_is_read_back(circuit, tmp_path):
    nodes, links = circuit.to_csv(tmp_path / "my.circuit.csv")
    assert (nodes.name, links.name) == ("my.circuit.nodes.csv", "my.circuit.edges.csv")
    with open(nodes, newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [row["id"] for row in rows] == [node.id for node in circuit.nodes]
    for row, node in zip(rows, circuit.nodes, strict=True):
        assert (row["label"], float(row["influence"])) == (node.label, node.influence)
        assert row["activation"] == ("" if node.activation is None else repr(node.activation))
    with open(links, newline="", encoding="utf-8") as file:
        read = {
            (row["source"], row["target"]): (float(row["weight"]), float(row["share"]))
            for row in csv.DictReader(file)
        }
    assert read == edges(circuit)


STRING = r'"(?:[^"\\]|\\.)*"'


def test_dot_quotes_what_it_must(circuit, tmp_path):
    circuit.to_dot(tmp_path / "c.dot")
    text = (tmp_path / "c.dot").read_text(encoding="utf-8")
    # With all strings taken out nothing is left but the grammar.
    bare = re.sub(STRING, "S", text)
    for line in bare.splitlines()[3:-1]:
        assert re.fullmatch(
            r"  (S \[label=S, shape=\w+, tooltip=S\];"
            r"|\{ rank=same; S(; S)*; \}"
            r"|S -> S \[penwidth=[\d.]+, tooltip=S(, style=dashed, color=S)?\];)",
            line,
        ), line
    assert bare.count(" -> ") == len(circuit.weights)
    assert bare.count("style=dashed") == sum(edge.weight < 0 for edge in circuit.edges)
    assert "\x00" not in text


@pytest.mark.parametrize("name", ["to_graphml", "to_dot", "to_csv"])
def test_what_cannot_be_written_leaves_nothing(circuit, tmp_path, name):
    with pytest.raises(OutputError, match="cannot write"):
        getattr(circuit, name)(tmp_path / "missing" / "file")
    assert list(tmp_path.iterdir()) == []
