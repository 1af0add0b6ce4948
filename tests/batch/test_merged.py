"""The merged graph and the statistics: what they say is what the graphs say."""

from __future__ import annotations

import json
from itertools import pairwise
from math import prod

import networkx
import pytest
from hypothesis import given
from hypothesis import strategies as st

import circuit_tracer as ct
from circuit_tracer.batch import Job, run, statistics
from circuit_tracer.batch.merged import Profiled, merged
from circuit_tracer.batch.plots import histogram
from circuit_tracer.batch.statistics import COLUMNS, path_shares
from circuit_tracer.errors import GraphFileError
from tests import tiny

NAMES = ["a", "b", "c", "d"]
PROMPTS = [[2, 9, 21, 5], [2, 9, 22, 5, 7], [2, 30, 21, 5], [2, 9, 9]]


@pytest.fixture(scope="module")
def graphs():
    model = tiny.replacement("llama")
    return {name: ct.trace(ids, model) for name, ids in zip(NAMES, PROMPTS, strict=True)}


def parts(graphs):
    return [Profiled.of(graph, graph.prune()) for graph in graphs.values()]


def test_nodes_are_those_of_a_comparison_of_the_same_graphs(graphs):
    found = merged(NAMES, parts(graphs))
    wanted = ct.compare(graphs, baseline=None).merged()
    assert {node["id"] for node in found["nodes"]} == set(wanted)
    for node in found["nodes"]:
        other = wanted.nodes[node["id"]]
        for name in ("layer", "count", "kept", "n", "core"):
            assert node[name] == other[name]
        for name in ("influence", "low", "high"):
            assert node[name] == pytest.approx(other[name], abs=1e-12)
        assert node["low"] <= node["influence"] <= node["high"]
    for edge in found["edges"]:
        other = wanted.edges[edge["source"], edge["target"]]
        assert edge["kept"] == other["kept"] >= 1
        assert 0 < edge["share"] <= other["share"] + 1e-12  # there, what was pruned counts too
    assert len(found["edges"]) == wanted.number_of_edges()


def test_all_that_passes_along_the_edges_of_a_circuit_is_there(graphs):
    graph = graphs["a"]
    circuit = graph.prune()
    total = graph.weights.sum()
    passed = sum(
        edge.share * edge.target.influence / total
        for edge in circuit.edges
        if edge.source.kind == edge.target.kind == "feature"
    )
    found = merged(["a"], [Profiled.of(graph, circuit)])
    assert sum(edge["share"] for edge in found["edges"]) == pytest.approx(float(passed))
    assert all(node["low"] is None and node["core"] for node in found["nodes"])


def test_networkx_reads_the_file_and_the_strongest_come_first(tmp_path):
    jobs = [Job(name, ids) for name, ids in zip(NAMES, PROMPTS, strict=True)]
    run([*jobs, Job("bad", [5] * 99)], tiny.replacement("llama"), tmp_path)
    whole = json.loads((tmp_path / "merged.json").read_text())
    assert whole["graph"] == {"n": 4, "names": NAMES}  # a prompt that failed counts nowhere
    ranks = [(-node["kept"], -node["influence"]) for node in whole["nodes"]]
    assert ranks == sorted(ranks)
    graph = networkx.node_link_graph(whole, edges="edges")
    assert networkx.is_directed_acyclic_graph(graph) and len(graph) == len(whole["nodes"])
    for name, node in graph.nodes.items():
        assert len(node["names"]) == node["kept"] and name == f"L{node['layer']}#{node['feature']}"


def test_what_is_kept_of_a_prompt_comes_back_from_its_file_and_damage_is_named(graphs, tmp_path):
    part = parts(graphs)[0]
    part.labels[int(part.kept.nonzero()[0])] = "déjà"
    part.save(tmp_path / "a")
    again = Profiled.load(tmp_path / "a")
    assert again.labels == part.labels
    for name in ("features", "influence", "kept", "ends", "shares"):
        assert getattr(again, name).equal(getattr(part, name))
    (tmp_path / "a").write_bytes((tmp_path / "a").read_bytes()[:-9])
    with pytest.raises(GraphFileError, match="damaged"):
        Profiled.load(tmp_path / "a")


def test_no_graph_at_all_merges_to_nothing():
    assert merged([], [])["nodes"] == merged([], [])["edges"] == []


def test_path_shares_are_those_of_all_paths_by_length(graphs):
    circuit = graphs["a"].prune(max_nodes=25)
    graph, wanted = networkx.DiGraph(), {}
    for edge in circuit.edges:
        graph.add_edge(edge.source.id, edge.target.id, share=edge.share)
    starts = [node.id for node in circuit.nodes if node.kind == "embedding"]
    whole = sum(circuit.target_weights.values())
    for end, weight in circuit.target_weights.items():
        for start in set(starts) & set(graph):
            for path in networkx.all_simple_paths(graph, start, end):
                share = prod(graph.edges[pair]["share"] for pair in pairwise(path))
                wanted[len(path) - 1] = wanted.get(len(path) - 1, 0) + share * weight / whole
    found = path_shares(circuit)
    assert found == pytest.approx([wanted.get(k + 1, 0) for k in range(len(found))])
    assert sum(found) == pytest.approx(circuit.scores.replacement) and len(found) > 2
    limited = ct.trace(PROMPTS[0], tiny.replacement("llama"), max_features=5).prune()
    assert sum(path_shares(limited)) == pytest.approx(limited.scores.replacement)


def test_statistics_are_of_the_columns_and_kinds_that_tables_have(graphs):
    for graph in graphs.values():
        found = statistics(graph)
        assert list(found) == list(COLUMNS)
        for name, kind in COLUMNS.items():
            values = found[name] if isinstance(kind, tuple) else [found[name]]
            assert {type(value) for value in values} <= {
                kind[0] if isinstance(kind, tuple) else kind
            }
        assert sum(found["influence_by_layer"]) == pytest.approx(1)
        assert found["kept_nodes"] == len(graph.targets) + sum(
            found[f"kept_{kind}"] for kind in ("features", "errors", "tokens")
        )


def test_the_arrow_table_has_the_same_columns_whatever_a_batch_holds(tmp_path):
    arrow = pytest.importorskip(
        "pyarrow", reason="pyarrow is not installed: pip install -e '.[arrow]'"
    )
    model = tiny.replacement("llama")
    run([Job("a", PROMPTS[0]), Job("bad", [5] * 99)], model, tmp_path / "one")
    run([Job("bad", [5] * 99)], model, tmp_path / "none")
    tables = [
        arrow.ipc.open_file(str(tmp_path / name / "table.arrow")).read_all()
        for name in ("one", "none")
    ]
    joined = arrow.concat_tables(tables).to_pylist()
    wanted = [
        json.loads(line)
        for name in ("one", "none")
        for line in (tmp_path / name / "table.jsonl").read_text().splitlines()
    ]
    assert joined == [row | {"prompt": str(row["prompt"])} for row in wanted]
    assert [row["error"] is None for row in joined] == [True, False, False]


@given(
    st.lists(st.integers(0, 300), min_size=1, max_size=50)
    | st.lists(st.floats(0, 1), min_size=1, max_size=50)
)
def test_the_bars_of_a_histogram_count_every_value_once(values):
    drawn = histogram(values, "x")
    counts = [int(part.split(" ")[0]) for part in drawn.split("<title>")[1:]]
    assert sum(counts) == len(values) and len(counts) <= 21
